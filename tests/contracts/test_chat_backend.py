"""The engine behind the server, with a real model and tokenizer, keeps what the server asks of a backend."""

import asyncio
from pathlib import Path

import pytest
from nanochat_apps.adapters.chat_backend import create_backend
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_serve import WorkerPool
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


@pytest.mark.slow
def test_worker_processes_that_load_while_the_server_runs(checkpoint: Path) -> None:
    async def check() -> None:
        arguments = {"checkpoint_dir": str(checkpoint), "dtype": "float32", "max_rows": 8}
        pool = WorkerPool("nanochat_apps.adapters.chat_backend:create_worker", ["cpu", "cpu"], arguments=arguments)
        assert not pool.status().ready
        await pool.start()
        assert [(w.device, w.ready, w.max_running) for w in pool.status().workers] == [("cpu", True, 8)] * 2
        await check_chat_backend(pool)
        await pool.aclose()

    asyncio.run(check())
