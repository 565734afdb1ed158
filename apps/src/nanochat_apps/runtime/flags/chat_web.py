"""The flags of chat-web."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nanochat_apps.runtime.flags.common import DeviceType, DtypeName, Source

COMPARED = re.compile(r"(base|sft|rl)(?::(\d+))?")
"""A model of `--compare`: its stage, and perhaps its step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Which model, where to listen, and defaults that a request may override."""

    num_gpus: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """Replicas of the model, one per GPU; more than one needs CUDA."""
    source: Annotated[Source, tyro.conf.arg(aliases=["-i"])] = "sft"
    """Stage of the model."""
    checkpoint: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None
    """Directory of a bundle or a checkpoint, wherever it is; instead of source, tag and step."""
    compare: tuple[str, ...] = ()
    """Several models beside each other, by stage and perhaps step, as in `base sft rl` or `sft:100 sft:600`. The page asks all
    of them; programs choose by `model`, whose default is the last one."""
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
        if self.compare and (len(set(self.compare)) < 2 or not all(map(COMPARED.fullmatch, self.compare))):
            told = " ".join(self.compare)
            raise ValueError(
                f"--compare {told}: give at least two different models, each base, sft or rl, or sft:<step>"
            )
        if self.compare and (self.checkpoint is not None or self.step is not None):
            raise ValueError("--compare says itself which models and steps: leave --checkpoint and --step out")
