"""A model of one's own behind nanochat-serve: chat page, streaming, the OpenAI format, metrics; no torch anywhere.

python server.py 8000      then open http://127.0.0.1:8000
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

from aiohttp import web
from nanochat_serve import ChatEvent, ChatRequest, Finished, ServerSettings, TextDelta, ThreadedBackend, create_app

REPLIES = {
    "mother": "Tell me more about your family.",
    "dream": "What does that dream suggest to you?",
    "computer": "Do computers worry you?",
}


def answer(request: ChatRequest, cancelled: threading.Event) -> Iterator[ChatEvent]:
    """A therapist of the old school, word by word. Runs on a thread of its own, so it may take its time."""
    said = str(request.messages[-1]["content"]).lower()
    reply = next((reply for word, reply in REPLIES.items() if word in said), "Please go on.")
    words = reply.split(" ")[: request.params.max_tokens]
    for number, word in enumerate(words):
        if cancelled.is_set():
            return
        yield TextDelta(word if number == 0 else f" {word}")
    yield Finished(reason="stop", prompt_tokens=len(said.split()), completion_tokens=len(words))


def make_app() -> web.Application:
    return create_app(ThreadedBackend(answer, num_workers=4), ServerSettings(max_requests=64))


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
