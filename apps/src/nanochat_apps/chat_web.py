"""chat-web: serves a trained model to browsers and programs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat_apps import cli, paths
from nanochat_apps.device import (
    DeviceType,
    DtypeName,
    choose_decode_dtype,
    choose_device,
    has_compiler,
    tuned_environment,
)
from nanochat_apps.generation import Sampling, choose_sampling

if TYPE_CHECKING:
    import torch
    from nanochat_serve import ServerSettings, WorkerPool

DEFAULTS = Sampling(temperature=0.8, top_k=50, max_tokens=512)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, where to listen, and defaults that a request may override."""

    num_gpus: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Replicas of the model, one a GPU; more than one needs CUDA."""
    source: Annotated[paths.Source, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None
    """Directory of a bundle or a checkpoint, wherever it is; instead of source, tag and step."""
    temperature: Annotated[float | None, tyro.conf.arg(aliases=["-t"])] = None
    """0 always takes the likeliest token. Default: the bundle's, else 0.8."""
    top_k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None
    """Likeliest tokens to choose from; 0: all. Default: the bundle's, else 50."""
    max_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-m"])] = None
    """Tokens of an answer at most. Default: the bundle's, else 512."""
    model_tag: Annotated[str | None, tyro.conf.arg(aliases=["-g"])] = None
    """Tag of the model; the largest if not given."""
    step: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Step of the model; the last if not given."""
    port: Annotated[int, tyro.conf.arg(aliases=["-p"])] = 8000
    """Port to listen on; 0 takes a free one."""
    host: str = "0.0.0.0"
    """Address to listen on; 127.0.0.1 for this machine alone."""
    dtype: Annotated[DtypeName | None, tyro.conf.arg(aliases=["-d"])] = None
    """Precision; if not given bfloat16, or float32 where that decodes faster."""
    device_type: DeviceType = "auto"
    """Where to compute."""
    quantize: Literal["int8"] | None = None
    """Keep the weights as int8: a quarter of the memory, answers that differ a little."""
    compile: bool = True
    """Compile the model's step beside the first answers, where there is a C++ compiler; on CUDA, capture it before."""
    max_rows: int = 32
    """Answers that one replica writes at a time; more wait."""
    prefix_rows: int | None = None
    """Rows beside these that keep cached prefixes of earlier prompts; 0 keeps none. Default: as many."""
    kv_budget_mib: int | None = None
    """Memory that the keys and values of one replica's rows may take; fewer rows fit then."""
    prefill_tokens: int = 256
    """Prompt tokens computed in a step, beside one token of each answer."""
    max_requests: int = 64
    """Answers running or waiting at a time, a replica; one more gets status 429."""
    max_requests_per_client: int = 32
    """Of those, how many one client address may hold."""
    queue_timeout_s: float = 60.0
    """Seconds after which an answer that has not begun is given up."""
    request_timeout_s: float = 600.0
    """Seconds that an answer may take in all."""
    drain_s: float = 30.0
    """Seconds that answers in progress get after the server was told to stop."""
    api_key_file: Path | None = None
    """File with a key that requests must carry as `Authorization: Bearer <key>`."""
    cors_origin: tuple[str, ...] = ()
    """Origins of other pages that may use the server, such as `https://app.example`."""
    behind_proxy: bool = False
    """Whether a proxy in front says in `X-Forwarded-For` who the client is."""
    log_conversations: bool = False
    """Write what is asked and answered to the log."""

    def __post_init__(self) -> None:
        counts = {"num_gpus": (1, 1024), "top_k": (0, 200), "max_tokens": (1, 4096), "port": (0, 65535)}
        rows = dict.fromkeys(("max_rows", "max_requests", "max_requests_per_client"), (1, 100_000))
        cache = {"prefix_rows": (0, 100_000), "kv_budget_mib": (1, 1 << 30), "prefill_tokens": (1, 1 << 20)}
        seconds = {"queue_timeout_s": (0.1, 86_400), "request_timeout_s": (0.1, 86_400), "drain_s": (0, 86_400)}
        for field, (low, high) in {**counts, **rows, **cache, **seconds, "temperature": (0, 2)}.items():
            value = getattr(self, field)
            if value is not None and not low <= value <= high:
                flag = field.replace("_", "-")
                raise ValueError(f"--{flag} {value} must be between {low} and {high}")
        if any("://" not in origin and origin != "*" for origin in self.cors_origin):
            raise ValueError(f"--cors-origin {' '.join(self.cors_origin)}: an origin looks like https://app.example")


def serve(settings: Settings) -> int:
    """Serves until it is told to stop (Ctrl-C, SIGTERM), then lets answers in progress end.

    The port is taken first, so that what is wrong with it shows at once, and opened before the model is loaded. The model
    runs in processes of its own, one a device, which are started again when they die.
    """
    checkpoint = settings.checkpoint or paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
    sampling = choose_sampling(settings, checkpoint, otherwise=DEFAULTS)
    api_key = read_api_key(settings.api_key_file)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    allow_many_connections()
    with open_socket(settings.host, settings.port) as listener:
        from nanochat_serve import ServerSettings, WorkerPool

        devices = choose_devices(settings.device_type, settings.num_gpus)
        dtype = choose_decode_dtype(devices[0], settings.dtype)
        announce(settings, listener, checkpoint, devices, dtype, has_key=api_key is not None)
        pool = WorkerPool(
            "nanochat_apps.chat_backend:create_worker",
            [str(device) for device in devices],
            arguments={
                "checkpoint_dir": str(checkpoint),
                "dtype": str(dtype).removeprefix("torch."),
                "quantize": settings.quantize,
                "max_rows": settings.max_rows,
                "prefix_rows": settings.prefix_rows,
                "kv_budget_bytes": None if settings.kv_budget_mib is None else settings.kv_budget_mib << 20,
                "prefill_tokens": settings.prefill_tokens,
                "compile": settings.compile and has_compiler(),
            },
            environment=tuned_environment(),
        )
        server_settings = ServerSettings(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            max_requests=settings.max_requests * len(devices),
            max_requests_per_client=settings.max_requests_per_client,
            queue_timeout_s=settings.queue_timeout_s,
            request_timeout_s=settings.request_timeout_s,
            api_key=api_key,
            cors_origins=settings.cors_origin,
            behind_proxy=settings.behind_proxy,
            log_conversations=settings.log_conversations,
            model_name=paths.model_name(checkpoint),
        )
        asyncio.run(run_server(pool, server_settings, listener, settings.drain_s))
    return 0


async def run_server(pool: WorkerPool, settings: ServerSettings, listener: socket.socket, drain_s: float) -> None:
    """Opens the server on a bound socket, loads the model, and serves until a signal. Raises what loading raises."""
    from nanochat_serve import create_app, running

    stop = asyncio.create_task(stop_signal())
    async with running(create_app(pool, settings), listener, drain_s=drain_s):
        loading = asyncio.create_task(pool.start())
        await asyncio.wait([stop, loading], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            gc.collect()
            gc.freeze()  # all that was imported: looking through it for garbage would hold every answer up
            print("ready; Ctrl-C stops it", flush=True)
        await stop
        print("stopping", flush=True)


async def stop_signal() -> None:
    """Returns at SIGINT or SIGTERM; a second one then does what it always does."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C is a KeyboardInterrupt
        for number in numbers:
            loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        with contextlib.suppress(NotImplementedError):
            for number in numbers:
                loop.remove_signal_handler(number)


def allow_many_connections() -> None:
    """As many open files as the system lets this process have: a connection is one."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `UsageError` naming the flag if the port is taken or the address can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise cli.UsageError(f"--port {port}: another program listens there; choose another one") from None
        raise cli.UsageError(f"--host {host} --port {port}: {error.strerror or error}") from None


def read_api_key(path: Path | None) -> str | None:
    """The key in a file, without the white space around it. Raises `UsageError` if there is none."""
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise cli.UsageError(f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not key:
        raise cli.UsageError(f"--api-key-file {path}: the file is empty; put a key into it")
    return key


def choose_devices(device_type: DeviceType, num_gpus: int) -> list[torch.device]:
    """A device a replica. Raises `UsageError` if there are not as many GPUs."""
    import torch

    device = choose_device(device_type)
    if num_gpus == 1:
        return [device]
    there = torch.cuda.device_count() if device.type == "cuda" else 0
    if num_gpus > there:
        raise cli.UsageError(f"--num-gpus {num_gpus}: there are {there} CUDA devices; without CUDA one replica is all")
    return [torch.device("cuda", index) for index in range(num_gpus)]


def announce(
    settings: Settings,
    listener: socket.socket,
    checkpoint: Path,
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    *,
    has_key: bool,
) -> None:
    """Says which model is served, where to find it, and who else can."""
    import torch

    port = listener.getsockname()[1]
    everywhere = settings.host in ("0.0.0.0", "::", "")
    host = "127.0.0.1" if everywhere else f"[{settings.host}]" if ":" in settings.host else settings.host
    if settings.dtype is None and dtype == torch.float32:
        print("computing in float32: bfloat16 is slower here")
    if settings.compile and not has_compiler():
        print("the model's step is not compiled: there is no C++ compiler here (g++, or what CXX names)")
    where = ", ".join(map(str, devices))
    print(
        f"serving {paths.model_name(checkpoint)} ({checkpoint.name}) on {where}: open http://{host}:{port}", flush=True
    )
    if everywhere and not has_key:
        print(
            f"warning: whoever reaches port {port} of this machine can use http://{host}:{port} without a key; "
            "--host 127.0.0.1 or --api-key-file prevents that",
            flush=True,
        )


def main() -> None:
    cli.run(serve, Settings, prog="chat-web", description="Serve a trained model: a chat page and an HTTP interface.")


if __name__ == "__main__":
    main()
