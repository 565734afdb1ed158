"""OpenAI's Responses, by conversion: a request becomes a chat, its answer one message, streamed as their events."""

from __future__ import annotations

import secrets
import time
from typing import Any

from aiohttp import web

from nanochat_serve.admission import BACKEND, SETTINGS, admitted, json_body
from nanochat_serve.answers import answering
from nanochat_serve.fields import RESPONSES, Parsed, parse
from nanochat_serve.guard import CLAMPED, salt_of
from nanochat_serve.messages import parse_messages, with_system
from nanochat_serve.protocols import ChatEvent, ChatRequest, Finished, TextDelta
from nanochat_serve.settings import ServerSettings
from nanochat_serve.sse import Line, stream_answer


async def responses(request: web.Request) -> web.StreamResponse:
    """`POST /v1/responses`. Nothing is stored: each request carries the whole conversation."""
    settings = request.app[SETTINGS]
    with admitted(request) as place:
        parsed = parse(await json_body(request), RESPONSES, settings)
        given, instructions = parsed["input"], parsed["instructions"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        messages = parse_messages(items, settings, "input")
        messages = with_system(messages, instructions) if instructions else messages
        limit = parsed["max_output_tokens"]
        params = parsed.params(**({} if limit is None else {"max_tokens": limit}))
        model, grammar = request.app[BACKEND].name(parsed["model"]), parsed.grammar()
        chat = ChatRequest(messages=messages, params=params, model=model, grammar=grammar, salt=salt_of(request))
        request[CLAMPED] = parsed.clamped_header()
        answer = _Response(parsed, params.max_tokens, model, settings)
        if parsed["stream"]:
            return await stream_answer(request, place, [chat], answer)
        async with answering(request, place, [chat]) as events:
            async for _, event in events:
                answer(0, event)
        return web.json_response(answer.object())


class _Response:
    """The answer as it grows; called with an event it says which lines of a stream that makes."""

    def __init__(self, parsed: Parsed, max_tokens: int, model: str, settings: ServerSettings) -> None:
        self._parsed = parsed
        self._max_tokens = max_tokens
        self._model = model
        self._shares_prefixes = settings.prefix_sharing == "all"
        self._id, self._item_id = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
        self._created = int(time.time())
        grammar = parsed["text"]
        schema = {"type": "json_schema", "name": "answer", "schema": grammar and grammar.value}
        self._format = {"type": "text"} if grammar is None else schema
        self._text = ""
        self._end: Finished | None = None
        self._num_lines = 0

    def __call__(self, _prompt: int, event: ChatEvent) -> list[Line]:
        lines: list[Line] = []
        if not self._num_lines:
            lines += [self._line(f"response.{name}", response=self.object()) for name in ("created", "in_progress")]
            lines.append(self._line("response.output_item.added", output_index=0, item=self._item(done=False)))
            lines.append(self._part_line("response.content_part.added", part=self._part()))
        if isinstance(event, TextDelta) and event.text:
            self._text += event.text
            lines.append(self._part_line("response.output_text.delta", delta=event.text, logprobs=[]))
        elif isinstance(event, Finished):
            self._end = event
            lines.append(self._part_line("response.output_text.done", text=self._text, logprobs=[]))
            lines.append(self._part_line("response.content_part.done", part=self._part()))
            lines.append(self._line("response.output_item.done", output_index=0, item=self._item(done=True)))
            lines.append(self._line(f"response.{self._status}", response=self.object()))
        return lines

    @property
    def _status(self) -> str:
        if self._end is None:
            return "in_progress"
        return "completed" if self._end.reason == "stop" else "incomplete"

    def object(self) -> dict[str, Any]:
        """The response as it stands."""
        end, parsed = self._end, self._parsed
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == "incomplete" else None,
            "instructions": parsed["instructions"],
            "max_output_tokens": self._max_tokens,
            "metadata": parsed["metadata"],
            "model": self._model,
            "output": [] if end is None else [self._item(done=True)],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": parsed["temperature"],
            "text": {"format": self._format},
            "tool_choice": "none",
            "tools": [],
            "top_p": parsed["top_p"],
            "truncation": "disabled",
            "usage": None if end is None else self._usage(end),
        } | ({"clamped": dict(parsed.clamped)} if parsed.clamped else {})

    def _usage(self, end: Finished) -> dict[str, Any]:
        return {
            "input_tokens": end.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0 if self._shares_prefixes else end.cached_tokens},
            "output_tokens": end.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": end.prompt_tokens + end.completion_tokens,
        }

    def _item(self, *, done: bool) -> dict[str, Any]:
        status = self._status if done else "in_progress"
        content = [self._part()] if done else []
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": []}

    def _part_line(self, kind: str, **fields: Any) -> Line:
        return self._line(kind, item_id=self._item_id, output_index=0, content_index=0, **fields)

    def _line(self, kind: str, **fields: Any) -> Line:
        self._num_lines += 1
        return {"type": kind, "sequence_number": self._num_lines - 1, **fields}
