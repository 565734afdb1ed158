"""What the server says of itself: health, readiness, statistics, metrics."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from nanochat_serve.admission import BACKEND, GATE, METRICS, SETTINGS


async def health(request: web.Request) -> web.Response:
    """Always 200: the server is there, whatever the model does."""
    workers = request.app[BACKEND].status().workers
    return web.json_response(
        {
            "status": "ok",
            "ready": _is_ready(request.app),
            "num_gpus": len(workers),
            "available_workers": sum(worker.has_room for worker in workers),
        }
    )


async def ready(request: web.Request) -> web.Response:
    """503 until the model is loaded, and once the server is about to stop."""
    is_ready = _is_ready(request.app)
    return web.json_response({"ready": is_ready}, status=200 if is_ready else 503)


async def stats(request: web.Request) -> web.Response:
    """Workers, queue, tokens since the start, and what a request that leaves a setting out gets."""
    status, counters, settings = request.app[BACKEND].status(), request.app[METRICS], request.app[SETTINGS]
    return web.json_response(
        {
            "total_workers": len(status.workers),
            "available_workers": sum(worker.has_room for worker in status.workers),
            "busy_workers": sum(worker.num_running > 0 for worker in status.workers),
            "workers": [
                {
                    "gpu_id": index,
                    "device": worker.device,
                    "ready": worker.ready,
                    "running": worker.num_running,
                    "waiting": worker.num_waiting,
                    "restarts": worker.num_restarts,
                }
                for index, worker in enumerate(status.workers)
            ],
            "running": status.num_running,
            "waiting": status.num_waiting,
            "model": settings.model_name,
            "defaults": {
                "temperature": settings.temperature,
                "top_k": settings.top_k,
                "max_tokens": settings.max_tokens,
            },
            "requests": counters.num_requests,
            "completion_tokens": counters.num_tokens,
        }
    )


async def metrics(request: web.Request) -> web.Response:
    """All counters in Prometheus' text format."""
    text = generate_latest(request.app[METRICS].registry)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_LATEST})


def _is_ready(app: web.Application) -> bool:
    return app[BACKEND].ready and not app[GATE].draining
