"""chat-web: serves a trained model to browsers and programs."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat_apps import cli, page_card, paths
from nanochat_apps.device import (
    DeviceType,
    DtypeName,
    choose_decode_dtype,
    choose_device,
    has_compiler,
    tuned_environment,
)
from nanochat_apps.generation import Sampling, choose_sampling
from nanochat_apps.listening import allow_many_connections, open_socket, read_api_keys, read_certificate

if TYPE_CHECKING:
    import torch
    from aiohttp import web
    from nanochat_serve import WorkerPool

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
    """0 is greedy. Default: the bundle's, else 0.8."""
    top_k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None
    """Most probable tokens to sample from; 0: all. Default: the bundle's, else 50."""
    max_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-m"])] = None
    """Maximum new tokens. Default: the bundle's, else 512."""
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
    """Max concurrent sequences of one replica; more wait."""
    prefix_rows: int | None = None
    """Rows beside these that keep cached prefixes of earlier prompts; 0 keeps none. Default: as many."""
    kv_budget_mib: int | None = None
    """Memory that the keys and values of one replica's rows may take; fewer rows fit then. Default: half of what is free."""
    prefill_tokens: int = 256
    """Prefill tokens per step, beside one token of each answer."""
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
    max_connections: int = 4096
    """Open connections; fewer where the system does not let the process have as many files."""
    api_key_file: Path | None = None
    """File of keys, one per line, of which requests must carry one as `Authorization: Bearer <key>`; SIGHUP reads it again."""
    certfile: Path | None = None
    """TLS: certificate chain in PEM."""
    keyfile: Path | None = None
    """TLS: its private key, if that is not in the same file."""
    unix_socket: Path | None = None
    """Listen on this socket instead of host and port."""
    root_path: str = ""
    """Path that the server begins with, such as `/nanochat`, behind a proxy that passes the whole path on."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other pages that may use the server, such as `https://app.example`."""
    allowed_hosts: tuple[str, ...] = ()
    """Names beside localhost by which requests on this machine may call the server, such as a proxy's."""
    behind_proxy: bool = False
    """Whether a proxy in front says in `X-Forwarded-For` who the client is."""
    prefix_sharing: Literal["client", "all", "none"] = "client"
    """Who shares cached prefixes: one API key or address, all clients (who can then find out what others ask), or none."""
    access_log: bool = False
    """Log a line for each request: id, address, route, status, time; nothing of its content."""
    log_conversations: bool = False
    """Write what is asked and answered to the log."""
    collect: Path | None = None
    """A .jsonl file to which the page adds answers that a person corrected or praised, for chat-sft to train on."""

    def __post_init__(self) -> None:
        counts = {"num_gpus": (1, 1024), "top_k": (0, 200), "max_tokens": (1, 4096), "port": (0, 65535)}
        rows = dict.fromkeys(("max_rows", "max_requests", "max_requests_per_client", "max_connections"), (1, 100_000))
        cache = {"prefix_rows": (0, 100_000), "kv_budget_mib": (1, 1 << 30), "prefill_tokens": (1, 1 << 20)}
        seconds = {"queue_timeout_s": (0.1, 86_400), "request_timeout_s": (0.1, 86_400), "drain_s": (0, 86_400)}
        for field, (low, high) in {**counts, **rows, **cache, **seconds, "temperature": (0, 2)}.items():
            value = getattr(self, field)
            if value is not None and not low <= value <= high:
                flag = field.replace("_", "-")
                raise ValueError(f"--{flag} {value} must be between {low} and {high}")
        if any("://" not in origin and origin != "*" for origin in self.cors_origins):
            raise ValueError(f"--cors-origins {' '.join(self.cors_origins)}: an origin looks like https://app.example")
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise ValueError(f"--root-path {self.root_path}: begin it with a slash and end it without, as /nanochat")
        if self.keyfile is not None and self.certfile is None:
            raise ValueError("--keyfile needs --certfile")


def serve(settings: Settings) -> int:
    """Serves until it is told to stop (Ctrl-C, SIGTERM), then lets answers in progress end.

    The port is open before the model is loaded, which runs in processes of its own, one a device, started again when they die.
    """
    checkpoint = settings.checkpoint or paths.find_checkpoint(settings.source, settings.model_tag, settings.step)
    sampling = choose_sampling(settings, checkpoint, otherwise=DEFAULTS)
    from nanochat_serve import ServerSettings, WorkerPool, create_app, log_to_stderr

    api_keys, tls = read_api_keys(settings.api_key_file), read_certificate(settings.certfile, settings.keyfile)
    log_to_stderr()
    allow_many_connections()
    with open_socket(settings.host, settings.port, settings.unix_socket) as listener:
        devices = choose_devices(settings.device_type, settings.num_gpus)
        dtype = choose_decode_dtype(devices[0], settings.dtype)
        announce(settings, listener, checkpoint, devices, dtype, has_key=bool(api_keys))
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
            max_connections=settings.max_connections,
            api_keys=api_keys,
            cors_origins=settings.cors_origins,
            allowed_hosts=settings.allowed_hosts,
            behind_proxy=settings.behind_proxy,
            prefix_sharing=settings.prefix_sharing,
            root_path=settings.root_path,
            access_log=settings.access_log,
            log_conversations=settings.log_conversations,
            model_name=paths.model_name(checkpoint),
        )
        app = page_card.described(create_app(pool, server_settings), checkpoint, settings.collect)
        asyncio.run(run_server(app, pool, listener, settings, tls))
    return 0


async def run_server(
    app: web.Application, pool: WorkerPool, listener: socket.socket, settings: Settings, tls: ssl.SSLContext | None
) -> None:
    """Opens the server on a bound socket, loads the model, and serves until a signal. Raises what loading raises."""
    from nanochat_serve import running

    stop = asyncio.create_task(stop_signal())
    with suppress(NotImplementedError, AttributeError):  # Windows has no SIGHUP
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload_keys, app, settings.api_key_file)
    async with running(app, listener, drain_s=settings.drain_s, tls=tls):
        loading = asyncio.create_task(pool.start())
        await asyncio.wait([stop, loading], return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            gc.collect()
            gc.freeze()  # all that was imported: looking through it for garbage would hold every answer up
            say("ready; Ctrl-C stops it")
        await stop
        say("stopping")


def reload_keys(app: web.Application, path: Path | None) -> None:
    """Reads the keys again; a file that cannot be read leaves those that there are."""
    from nanochat_serve import replace_api_keys

    try:
        replace_api_keys(app, read_api_keys(path))
    except cli.UsageError as error:
        logging.getLogger(__name__).error("the keys stay as they are: %s", error)


def say(line: str) -> None:
    """Prints a line, if that can be done: a full disk or a closed pipe is no reason to end."""
    with suppress(OSError):
        print(line, flush=True)


async def stop_signal() -> None:
    """Returns at SIGINT or SIGTERM; a second one then does what it always does."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    with suppress(NotImplementedError):  # Windows: Ctrl-C is a KeyboardInterrupt
        for number in numbers:
            loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        with suppress(NotImplementedError):
            for number in numbers:
                loop.remove_signal_handler(number)


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

    unix, name = settings.unix_socket, listener.getsockname()
    everywhere = unix is None and settings.host in ("0.0.0.0", "::", "")
    host = "127.0.0.1" if everywhere else f"[{settings.host}]" if ":" in settings.host else settings.host
    port, scheme = name[1] if unix is None else None, "http" if settings.certfile is None else "https"
    url = f"{scheme}://{host}:{port}{settings.root_path}" if unix is None else f"unix:{unix}"
    if settings.dtype is None and dtype == torch.float32:
        say("computing in float32: bfloat16 is slower here")
    if settings.compile and not has_compiler():
        say("the model's step is not compiled: there is no C++ compiler here (g++, or what CXX names)")
    say(f"serving {paths.model_name(checkpoint)} ({checkpoint.name}) on {', '.join(map(str, devices))}: open {url}")
    if everywhere and not has_key:
        say(
            f"warning: whoever reaches port {port} of this machine can use {url} without a key; "
            "--host 127.0.0.1 or --api-key-file prevents that"
        )


def main() -> None:
    cli.run(serve, Settings, prog="chat-web", description="Serve a trained model: a chat page and an HTTP interface.")


if __name__ == "__main__":
    main()
