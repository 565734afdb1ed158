"""Load on a chat server: clients that ask again and again (closed loop), or requests that come at a rate (open loop).

uv run python benchmarks/serve_load.py                        # chat-web on a random depth-4 model, and the bare engine
uv run python benchmarks/serve_load.py --clients 200 --duration-s 600 --serve-args="--max-requests-per-client 64"
uv run python benchmarks/serve_load.py --rate 5               # open loop: 5 requests per second, whatever the server does
uv run python benchmarks/serve_load.py --url http://127.0.0.1:8000

Client, server and model share the machine. `/health` is asked meanwhile. Prints a table and one line of JSON. Server and bare
engine take turns, and their medians are compared. CPU time per token is given beside the rates: it depends less on
what else runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import aiohttp
import tyro
from nanochat_apps.infer_bench.timing import wait_until_compiled
from nanochat_apps.runtime.process import tune_process

MODEL = {"sequence_len": 512, "vocab_size": 4096, "n_layer": 4, "n_head": 4, "n_kv_head": 4, "n_embd": 256}
WORDS = ["the", "small", "model", "cat", "house", "river", "seven", "green", "walks", "sings", "never", "over", "light"]
PROMPT_WORDS = 16
HEALTH_EVERY_S = 0.02
BARE_S = 3.0
"""How long the bare engine is asked in each round."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    url: str | None = None
    """A server that runs; without one, chat-web is started on a random model of depth 4."""
    clients: int = 32
    """Closed loop: clients that ask again as soon as they are answered."""
    rate: float | None = None
    """Open loop instead: requests per second, at random moments."""
    duration_s: float = 20.0
    """Of all rounds together."""
    rounds: int = 5
    """How often server and bare engine take turns."""
    max_tokens: int = 64
    serve_args: str = ""
    """More flags for chat-web, in quotes after a `=`."""
    bare: bool = True
    """Whether to measure the engine without a server too."""

    @property
    def round_s(self) -> float:
        return self.duration_s / self.rounds


@dataclass
class Seen:
    """What the clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    memory_mb: list[float] = field(default_factory=list)
    took_s: float = 0.0
    rates: list[float] = field(default_factory=list)
    """Tokens per second of each round."""


async def ask(session: aiohttp.ClientSession, settings: Settings, chance: random.Random, seen: Seen) -> None:
    """One streamed answer, timed; what became of it is counted."""
    prompt = " ".join(chance.choices(WORDS, k=PROMPT_WORDS))
    body = {
        "model": "any",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": settings.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = last = time.perf_counter()
    outcome = "lost"
    try:
        async with session.post("/v1/chat/completions", json=body) as response:
            if response.status != 200:
                outcome = str(response.status)
                await response.read()
                return
            while event := await response.content.readuntil(b"\n\n"):
                now = time.perf_counter()
                if b'"content"' in event:
                    (seen.first_s if last == start else seen.between_s).append(now - last)
                    last = now
                elif b'"usage": {' in event:
                    seen.tokens += json.loads(event[6:])["usage"]["completion_tokens"]
                elif event == b"data: [DONE]\n\n":
                    outcome = "200"
                elif b'"error"' in event:
                    outcome = "error event"
    except (aiohttp.ClientError, TimeoutError):
        pass
    finally:
        seen.statuses[outcome] += 1


async def closed_loop(session: aiohttp.ClientSession, settings: Settings, seen: Seen) -> None:
    """Every client asks until the time is over; a refused one waits for a moment, as it was told."""
    end = time.perf_counter() + settings.round_s

    async def client(index: int) -> None:
        chance = random.Random(index)
        while time.perf_counter() < end:
            refused = seen.statuses["429"]
            await ask(session, settings, chance, seen)
            if seen.statuses["429"] > refused:
                await asyncio.sleep(chance.random() * 2)

    await asyncio.gather(*(client(index) for index in range(settings.clients)))


async def open_loop(session: aiohttp.ClientSession, settings: Settings, rate: float, seen: Seen) -> None:
    """Requests at the times of a Poisson process."""
    chance, end, asked = random.Random(0), time.perf_counter() + settings.round_s, []
    while time.perf_counter() < end:
        asked.append(asyncio.create_task(ask(session, settings, chance, seen)))
        await asyncio.sleep(chance.expovariate(rate))
    await asyncio.gather(*asked)


async def watch(session: aiohttp.ClientSession, seen: Seen, pids: Sequence[int]) -> None:
    """Asks for the server's health and looks at its memory until it is cancelled."""
    next_look = 0.0
    while True:
        start = time.perf_counter()
        async with session.get("/health") as response:
            await response.read()
        seen.health_s.append(time.perf_counter() - start)
        if pids and start > next_look:
            seen.memory_mb.append(sum(map(resident_mb, pids)))
            next_look = start + 5
        await asyncio.sleep(HEALTH_EVERY_S)


async def load(url: str, settings: Settings, pids: Sequence[int], seen: Seen) -> None:
    """One round; what is seen is added. A few requests go before, which are not counted."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=900)) as session:
        await asyncio.gather(
            *(ask(session, settings, random.Random(i), Seen()) for i in range(min(settings.clients, 32)))
        )
        start, tokens = time.perf_counter(), seen.tokens
        used = [time.process_time(), *map(cpu_s, pids)]
        watching = asyncio.create_task(watch(session, seen, pids))
        if settings.rate is None:
            await closed_loop(session, settings, seen)
        else:
            await open_loop(session, settings, settings.rate, seen)
        took_s = time.perf_counter() - start
        watching.cancel()
        names = ["client", "server", *(f"worker_{index}" for index in range(len(pids) - 1))]
        for name, before, after in zip(names, used, [time.process_time(), *map(cpu_s, pids)], strict=False):
            seen.cpu_s[name] = seen.cpu_s.get(name, 0.0) + after - before
        seen.took_s += took_s
        seen.rates.append((seen.tokens - tokens) / took_s)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used; 0 once it has gone."""
    stat = Path(f"/proc/{pid}/stat")
    fields = stat.read_text().rpartition(")")[2].split() if stat.exists() else ["0"] * 20
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Memory of a process; 0 once it has gone."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def save_random_model(base: Path) -> Path:
    """A checkpoint of a random model, with a tokenizer of its vocabulary."""
    from nanochat_model import GPT, GPTConfig, save_model
    from nanochat_tokenizer import train_tokenizer
    from nanochat_train import save_checkpoint

    chance = random.Random(0)
    made_up = ("".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(60_000))
    tokenizer = train_tokenizer([" ".join(WORDS), " ".join(made_up)], vocab_size=MODEL["vocab_size"])
    model = GPT(GPTConfig(**MODEL, window_pattern="L"))
    model.init_weights(0)
    writers = [lambda path: save_model(model, path), lambda path: tokenizer.save(path / "tokenizer")]
    return save_checkpoint(base / "chatsft_checkpoints" / "d4", 1, writers=writers, meta={"stage": "random"})


class BareEngine:
    """The engine without a server, asked for as many answers at a time as there are clients."""

    def __init__(self, checkpoint: Path, num_rows: int, max_tokens: int, *, compile: bool) -> None:
        import nanochat_engine

        self._engine = nanochat_engine.load(checkpoint, compile=compile, max_rows=num_rows)
        self._num_rows = num_rows
        self._max_tokens = max_tokens
        self._chance = random.Random(0)
        self.rates: list[float] = []
        self.cpu_s: list[float] = []
        if compile:
            wait_until_compiled(self._engine)

    def measure(self, at_least_s: float) -> None:
        """One round: adds its tokens per second and its CPU seconds per token."""
        start, used, tokens = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < at_least_s:
            prompts = [" ".join(self._chance.choices(WORDS, k=PROMPT_WORDS)) for _ in range(self._num_rows)]
            done = self._engine.complete(prompts, max_tokens=self._max_tokens, temperature=0.8, top_k=50)
            tokens += sum(len(completion.token_ids) for completion in done)
        self.rates.append(tokens / (time.perf_counter() - start))
        self.cpu_s.append((time.process_time() - used) / tokens)


@contextmanager
def chat_web(base: Path, args: Sequence[str]) -> Iterator[tuple[str, list[int]]]:
    """A server of its own: its URL, and the processes that it consists of."""
    command = [sys.executable, "-u", "-m", "nanochat_apps", "chat-web", "--host", "127.0.0.1", "--port", "0", *args]
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = ""
        for line in process.stdout:
            url = line.split("open ")[1].strip() if "open http" in line else url
            if line.startswith("ready"):
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        yield url, [process.pid, *map(int, children.read_text().split() if children.exists() else [])]
        process.terminate()


def share(values: Sequence[float], of: float) -> float:
    """A quantile in milliseconds; 0 where nothing was measured."""
    return round(1000 * sorted(values)[min(int(of * len(values)), len(values) - 1)], 1) if values else 0.0


def main(settings: Settings) -> None:
    tune_process()  # as the server's worker does
    with ExitStack() as stack:
        row: dict[str, object] = {"clients": settings.clients, "rate": settings.rate, "max_tokens": settings.max_tokens}
        url, pids, bare, args = settings.url, [], None, shlex.split(settings.serve_args)
        if url is None:
            base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            checkpoint = save_random_model(base)
            if settings.bare and settings.rate is None:
                num_rows = max(1, min(settings.clients, 32))
                bare = BareEngine(checkpoint, num_rows, settings.max_tokens, compile="--no-compile" not in args)
            url, pids = stack.enter_context(chat_web(base, args))
        seen = Seen()
        for _ in range(settings.rounds):
            if bare is not None:
                bare.measure(BARE_S)
            asyncio.run(load(url, settings, pids, seen))
        row |= {
            "seconds": round(seen.took_s, 1),
            "outcomes": dict(seen.statuses),
            "tok_s": round(median(seen.rates)),
            "tok_s_by_round": [round(rate) for rate in seen.rates],
            "ttft_p50_ms": share(seen.first_s, 0.5),
            "ttft_p99_ms": share(seen.first_s, 0.99),
            "between_p50_ms": share(seen.between_s, 0.5),
            "between_p99_ms": share(seen.between_s, 0.99),
            "health_p50_ms": share(seen.health_s, 0.5),
            "health_p99_ms": share(seen.health_s, 0.99),
            "cpu_ms_a_token": {name: round(1000 * used / max(seen.tokens, 1), 3) for name, used in seen.cpu_s.items()},
            "memory_mb": [round(seen.memory_mb[0]), round(seen.memory_mb[-1])] if seen.memory_mb else [],
        }
        if bare is not None:
            row |= {
                "bare_engine_tok_s": round(median(bare.rates)),
                "bare_engine_tok_s_by_round": [round(rate) for rate in bare.rates],
                "bare_engine_cpu_ms_a_token": round(1000 * median(bare.cpu_s), 3),
                "share_of_bare_engine": round(median(seen.rates) / median(bare.rates), 2),
            }
    for name, value in row.items():
        print(f"{name:>26}  {value}")
    print(json.dumps(row))


if __name__ == "__main__":
    main(tyro.cli(Settings))
