"""chat-web: serves a trained model to browsers and programs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from nanochat_serve import ServerSettings, WorkerPool, create_app, log_to_stderr

from nanochat_apps.reports import page_card
from nanochat_apps.runtime import paths
from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.runtime.device import choose_decode_dtype, choose_device
from nanochat_apps.runtime.flags.chat_web import Settings as Settings
from nanochat_apps.runtime.flags.common import DeviceType
from nanochat_apps.runtime.generation import Sampling, choose_sampling
from nanochat_apps.runtime.listening import allow_many_connections, open_socket, read_api_keys, read_certificate
from nanochat_apps.runtime.process import has_compiler, tuned_environment
from nanochat_apps.runtime.serving import run_server, say

DEFAULTS = Sampling(temperature=0.8, top_k=50, max_tokens=512)


def serve(settings: Settings) -> int:
    """Serves until it is told to stop (Ctrl-C, SIGTERM), then lets answers in progress end.

    The port is open before the model is loaded, which runs in processes of its own, one per device, restarted when they die.
    """
    checkpoints = choose_checkpoints(settings)
    name, checkpoint = list(checkpoints.items())[-1]
    api_keys, tls = read_api_keys(settings.api_key_file), read_certificate(settings.certfile, settings.keyfile)
    server_settings = server_settings_of(settings, name, checkpoint, api_keys)
    log_to_stderr()
    allow_many_connections()
    with open_socket(settings.host, settings.port, settings.unix_socket) as listener:
        devices = choose_devices(settings.device_type, settings.num_gpus)
        dtype = choose_decode_dtype(devices[0], settings.dtype)
        announce(settings, listener, checkpoints, devices, dtype, has_key=bool(api_keys))
        pools = {
            model: WorkerPool(
                "nanochat_apps.adapters.chat_backend:create_worker",
                [str(device) for device in devices],
                arguments=worker_arguments(settings, own, dtype) | {"num_neighbours": len(checkpoints) - 1},
                environment=tuned_environment(),
            )
            for model, own in checkpoints.items()
        }
        app = page_card.described(create_app(pools, server_settings), checkpoint, settings.collect)
        key_file, drain_s = settings.api_key_file, settings.drain_s
        asyncio.run(run_server(app, [*pools.values()], listener, tls=tls, drain_s=drain_s, api_key_file=key_file))
    return 0


def choose_checkpoints(settings: Settings) -> dict[str, Path]:
    """The models to serve, by name; the last one is the default."""
    if not settings.compare:
        own = settings.checkpoint or paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
        return {paths.model_name(own): own}
    found = {}
    for name in settings.compare:
        stage, _, step = name.partition(":")
        found[name] = paths.find_checkpoint(stage, settings.model_tag, int(step) if step else None)
    return found


def server_settings_of(settings: Settings, name: str, checkpoint: Path, api_keys: tuple[str, ...]) -> ServerSettings:
    """The flags that have the names of the server's settings, and what follows from the others."""
    named = {field.name for field in fields(ServerSettings)} & {field.name for field in fields(settings)}
    sampling = choose_sampling(settings, checkpoint, otherwise=DEFAULTS)
    return replace(
        ServerSettings(**{name: getattr(settings, name) for name in named}),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        max_requests=settings.max_requests * settings.num_gpus,
        api_keys=api_keys,
        model_name=name,
    )


def worker_arguments(settings: Settings, checkpoint: Path, dtype: torch.dtype) -> dict[str, Any]:
    """What `create_worker` is given, as JSON values."""
    return {
        "checkpoint_dir": str(checkpoint),
        "dtype": str(dtype).removeprefix("torch."),
        "quantize": settings.quantize,
        "max_rows": settings.max_rows,
        "prefix_rows": settings.prefix_rows,
        "kv_budget_bytes": None if settings.kv_budget_mib is None else settings.kv_budget_mib << 20,
        "prefill_tokens": settings.prefill_tokens,
        "compile": settings.compile and has_compiler(),
    }


def choose_devices(device_type: DeviceType, num_gpus: int) -> list[torch.device]:
    """A device per replica. Raises `UsageError` if there are not as many GPUs."""
    device = choose_device(device_type)
    if num_gpus == 1:
        return [device]
    there = torch.cuda.device_count() if device.type == "cuda" else 0
    if num_gpus > there:
        raise UsageError(f"--num-gpus {num_gpus}: there are {there} CUDA devices; without CUDA one replica is all")
    return [torch.device("cuda", index) for index in range(num_gpus)]


def announce(
    settings: Settings,
    listener: socket.socket,
    checkpoints: Mapping[str, Path],
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    *,
    has_key: bool,
) -> None:
    """Says which model is served, where to find it, and who else can."""
    unix, name = settings.unix_socket, listener.getsockname()
    everywhere = unix is None and settings.host in ("0.0.0.0", "::", "")
    host = "127.0.0.1" if everywhere else f"[{settings.host}]" if ":" in settings.host else settings.host
    port, scheme = name[1] if unix is None else None, "http" if settings.certfile is None else "https"
    url = f"{scheme}://{host}:{port}{settings.root_path}" if unix is None else f"unix:{unix}"
    if settings.dtype is None and dtype == torch.float32:
        say("computing in float32: bfloat16 is slower here")
    if settings.compile and not has_compiler():
        say("the model's step is not compiled: there is no C++ compiler here (g++, or what CXX names)")
    served = ", ".join(f"{model} ({checkpoint.name})" for model, checkpoint in checkpoints.items())
    say(f"serving {served} on {', '.join(map(str, devices))}: open {url}")
    if everywhere and not has_key:
        say(
            f"warning: whoever reaches port {port} of this machine can use {url} without a key; "
            "--host 127.0.0.1 or --api-key-file prevents that"
        )
