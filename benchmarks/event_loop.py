"""How long callbacks hold up the server's event loop, by asyncio's own measure: nothing that a test may be decided by.

    uv run python benchmarks/event_loop.py --clients 64 --limit-ms 8

The server streams a scripted answer to each client, all on one loop. Prints what took longer than the limit, longest first.
Other programs on the machine count as well: what is stopped in the middle of a callback is slow.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import tyro
from aiohttp.test_utils import TestClient, TestServer
from nanochat_serve import Finished, ServerSettings, TextDelta, create_app
from nanochat_serve.testing import ScriptedBackend


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is asked, and what counts as slow."""

    clients: int = 64
    """Who ask at the same time."""
    rounds: int = 5
    """Questions of each client."""
    tokens: int = 200
    """Of each answer."""
    limit_ms: float = 8.0
    """Shorter callbacks are not listed."""


async def ask(client: TestClient, rounds: int) -> None:
    for _ in range(rounds):
        async with client.post("/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]}) as response:
            await response.read()


async def serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = settings.limit_ms / 1000
    done = Finished(reason="stop", prompt_tokens=1, completion_tokens=settings.tokens)
    backend = ScriptedBackend([TextDelta("word ")] * settings.tokens + [done], pause_s=0.002)
    limits = ServerSettings(max_requests=settings.clients, max_requests_per_client=settings.clients)
    async with TestClient(TestServer(create_app(backend, limits))) as client:
        await asyncio.gather(*(ask(client, settings.rounds) for _ in range(settings.clients)))


def main(settings: Settings) -> None:
    slow: list[str] = []
    log = logging.getLogger("asyncio")
    log.addFilter(lambda record: slow.append(record.getMessage()) or False)
    asyncio.run(serve(settings))
    took = [line.removeprefix("Executing ").rpartition(" took ")[::2] for line in slow if line.startswith("Executing")]
    print(f"{len(took)} callbacks took longer than {settings.limit_ms:g} ms")
    for callback, duration in sorted(took, key=lambda pair: pair[1], reverse=True)[:10]:
        print(f"{duration}: {callback[:120]}")


if __name__ == "__main__":
    main(tyro.cli(Settings))
