"""The engine behind the server, with a real model and tokenizer, keeps what the server asks of a backend."""

import asyncio
from pathlib import Path

import pytest
from nanochat_apps.chat_backend import LoadingBackend, Replicas, create_backend
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_serve.testing import check_chat_backend


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("d2"))


def test_engine_backend(checkpoint: Path) -> None:
    async def check() -> None:
        backend = create_backend(checkpoint)
        await check_chat_backend(backend)
        await backend.aclose()

    asyncio.run(check())


def test_replicas_that_load_while_the_server_runs(checkpoint: Path) -> None:
    async def check() -> None:
        backend = LoadingBackend(
            lambda: Replicas([create_backend(checkpoint), create_backend(checkpoint)]), devices=["cpu", "cpu"]
        )
        assert not backend.status().ready
        await backend.load()
        assert backend.status().ready
        assert backend.status().devices == ("cpu", "cpu")
        assert backend.status().max_running == 64
        await check_chat_backend(backend)
        await backend.aclose()

    asyncio.run(check())
