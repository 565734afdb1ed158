"""The README's program does what it says."""

import asyncio
import re
from pathlib import Path

from aiohttp.test_utils import TestClient, TestServer

README = Path(__file__).parents[1] / "README.md"


def test_the_example_answers():
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    names: dict[str, object] = {"__name__": "readme"}
    exec(compile(code[1], str(README), "exec"), names)

    async def session() -> str:
        async with TestClient(TestServer(names["app"])) as client:
            body = {"messages": [{"role": "user", "content": "one two"}]}
            return await (await client.post("/chat/completions", json=body)).text()

    assert asyncio.run(session()) == (
        'data: {"token": "one ", "gpu": 0}\n\ndata: {"token": "two ", "gpu": 0}\n\ndata: {"done": true}\n\n'
    )
