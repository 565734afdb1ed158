"""The OpenAI wire format over the same backend: chat completions and completions. Needs no OpenAI package."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from aiohttp import web

from nanochat_serve.admission import BACKEND, SETTINGS, Place, admitted, json_body
from nanochat_serve.answers import answering
from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.fields import CHAT, TEXT, Parsed, parse
from nanochat_serve.guard import CLAMPED, salt_of
from nanochat_serve.logprobs import chat_logprobs, prompt_logprobs, text_logprobs, text_of
from nanochat_serve.messages import parse_messages, with_system
from nanochat_serve.protocols import ChatEvent, ChatRequest, Finished, Prompt, TextDelta, Token, ToolCall
from nanochat_serve.sse import Line, Lines, stream_answer
from nanochat_serve.structured import functions_text


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`. The model's own tool calls happen on the server and are shown to who asks for them."""
    with admitted(request) as place:
        parsed = parse(await json_body(request), CHAT, request.app[SETTINGS])
        logprobs = parsed["top_logprobs"] if parsed["logprobs"] else None
        params = parsed.params(n=parsed["n"], logprobs=logprobs, prompt_logprobs=parsed["prompt_logprobs"])
        messages, grammar = parse_messages(parsed["messages"], request.app[SETTINGS]), parsed.grammar()
        calls = grammar is not None and grammar.kind == "calls"
        chat = ChatRequest(
            messages=with_system(messages, functions_text(parsed["tools"])) if calls else messages,
            params=params,
            model=parsed["model"],
            echo=params.prompt_logprobs is not None,
            grammar=grammar,
            salt=salt_of(request, parsed["cache_salt"]),
        )
        return await _respond(request, [chat], Answer("chat", parsed, request, place, calls=calls))


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`: continues a text or token ids, or several of either, as a base model does."""
    settings = request.app[SETTINGS]
    with admitted(request) as place:
        parsed = parse(await json_body(request), TEXT, settings)
        n, logprobs, prompts = parsed["n"], parsed["logprobs"], parsed["prompt"]
        if (asked := len(prompts) * n) > settings.max_samples:
            raise InvalidRequestError("prompt", f"with n asks for {asked} answers, limit {settings.max_samples}")
        if (size := sum(map(len, prompts))) > (limit := settings.max_total_chars):
            raise InvalidRequestError("prompt", f"has {size} characters or ids, at most {limit} are taken")
        if (parsed["best_of"] or n) != n:
            raise InvalidRequestError("best_of", "must be n: this server does not choose among answers")
        scored = parsed["prompt_logprobs"]
        scored = logprobs if scored is None and parsed["echo"] else scored
        params = parsed.params(n=n, logprobs=logprobs, prompt_logprobs=scored)
        echo, salt = parsed["echo"] or scored is not None, salt_of(request, parsed["cache_salt"])
        common = ChatRequest(params=params, model=parsed["model"], echo=echo, grammar=parsed.grammar(), salt=salt)
        chats = [replace(common, prompt=prompt) for prompt in prompts]
        return await _respond(request, chats, Answer("text", parsed, request, place))


async def _respond(request: web.Request, chats: Sequence[ChatRequest], answer: Answer) -> web.StreamResponse:
    if answer.parsed["stream"]:
        return await stream_answer(request, answer.place, chats, answer.chunks(sum(chat.params.n for chat in chats)))
    async with answering(request, answer.place, chats) as events:
        async for prompt, event in events:
            answer.take(prompt, event)
    return web.json_response(answer.whole())


@dataclass(slots=True)
class Choice:
    """What one sample has said so far."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: Prompt | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    end: Finished | None = None
    begun: bool = False
    """Whether a chunk of it has gone out."""
    called: bool = False
    """Whether one of these began a function's call."""
    call_id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")
    num_chars: int = 0
    """Of the tokens in the chunks so far."""

    def add(self, text: str = "", tokens: Sequence[Token] = (), tools: Sequence[dict[str, Any]] = ()) -> Piece:
        self.text += text
        self.tokens += tokens
        self.tools += tools
        return Piece(self, text, tokens, tools)


@dataclass(frozen=True, slots=True)
class Piece:
    """What an event adds to a choice."""

    choice: Choice
    text: str
    tokens: Sequence[Token]
    tools: Sequence[dict[str, Any]]


class Answer:
    """The answer to one request: what its objects share, and what its samples have said; as one object or as chunks."""

    def __init__(
        self, kind: Literal["chat", "text"], parsed: Parsed, request: web.Request, place: Place, *, calls: bool = False
    ) -> None:
        request[CLAMPED] = parsed.clamped_header()
        self.parsed, self.place = parsed, place
        self._is_chat = kind == "chat"
        self._calls = calls
        """Whether the text is a function's call: its name, a blank, its arguments."""
        self._n = parsed["n"]
        self._shares_prefixes = request.app[SETTINGS].prefix_sharing == "all"
        """Whether prefixes of other clients may be in the cache, so that their numbers are nobody's business."""
        prefix, self._object = ("chatcmpl", "chat.completion") if self._is_chat else ("cmpl", "text_completion")
        self._id, self._created = f"{prefix}-{secrets.token_hex(12)}", int(time.time())
        self._model = request.app[BACKEND].name(parsed["model"])
        self._choices: dict[int, Choice] = {}

    def _head(self, suffix: str = "") -> dict[str, Any]:
        return {"id": self._id, "object": self._object + suffix, "created": self._created, "model": self._model}

    def take(self, prompt: int, event: ChatEvent) -> list[Piece]:
        """Adds an event to its choice, or to all of the prompt's; returns what is new in each."""
        if isinstance(event, Prompt):
            return [self._begin(self._choice(prompt, sample), event) for sample in range(self._n)]
        choice = self._choice(prompt, event.sample)
        if isinstance(event, TextDelta):
            return [choice.add(event.text, event.tokens)]
        if isinstance(event, ToolCall):
            call = {"index": len(choice.tools), "type": "python", "arguments": event.expression, "output": event.output}
            return [choice.add(tools=(call,))]
        choice.end = event
        return [choice.add(tokens=() if event.end is None or self._is_chat else (event.end,))]

    def _choice(self, prompt: int, sample: int) -> Choice:
        index = prompt * self._n + sample
        if index not in self._choices:
            self._choices[index] = Choice(index)
        return self._choices[index]

    def _begin(self, choice: Choice, prompt: Prompt) -> Piece:
        choice.prompt = prompt
        return choice.add() if self._is_chat or not self.parsed["echo"] else choice.add(prompt.text, prompt.tokens)

    def whole(self) -> dict[str, Any]:
        """The answer in one."""
        choices = []
        for _, choice in sorted(self._choices.items()):
            tools = {"executed_tools": choice.tools} if self.parsed["include_tool_calls"] else {}
            said: dict[str, Any] = {"text": choice.text, **tools}
            if self._is_chat:
                content = {"content": None, **self._content(choice, choice.text), **tools}
                said = {"message": {"role": "assistant", "refusal": None, **content}}
            rest = {"finish_reason": self._reason(choice), "logprobs": self._logprobs(choice.tokens)}
            choices.append({"index": choice.index, **said, **rest, **({} if self._is_chat else self._scored(choice))})
        scored = self._scored(self._choices[0]) if self._is_chat else {}
        return {**self._head(), "choices": choices, "usage": self.usage(), **scored, **self._extras()}

    def chunks(self, num_samples: int) -> Lines:
        """Turns the events of so many samples into chunks, all under one id; `[DONE]` comes after the last."""
        head, num_open = self._head(".chunk" if self._is_chat else ""), num_samples
        with_usage = bool(self.parsed["stream_options"].get("include_usage"))
        usage = {"usage": None} if with_usage else {}

        def lines(prompt: int, event: ChatEvent) -> list[Line]:
            nonlocal num_open
            entries = [self._entry(piece) for piece in self.take(prompt, event)]
            chunks: list[dict[str, Any]] = [{**head, "choices": [entry], **usage} for entry in entries if entry]
            num_open -= isinstance(event, Finished)
            if num_open:
                return [*chunks]
            if with_usage:
                chunks.append({**head, "choices": [], "usage": self.usage()})
            return [*chunks[:-1], chunks[-1] | self._extras(), "[DONE]"]

        return lines

    def _entry(self, piece: Piece) -> dict[str, Any] | None:
        """A choice of a chunk; None where there is nothing to say."""
        choice = piece.choice
        tools = {"executed_tools": [*piece.tools]} if piece.tools and self.parsed["include_tool_calls"] else {}
        if not (piece.text or piece.tokens or tools or choice.end):
            return None
        said: dict[str, Any] = {"text": piece.text, **tools}
        if self._is_chat:
            content = {} if choice.end else self._content(choice, piece.text)
            said = {"delta": {**({} if choice.begun else {"role": "assistant"}), **content, **tools}}
        has_logprobs = piece.tokens or self._is_chat
        logprobs = self._logprobs(piece.tokens, choice.num_chars) if has_logprobs else None
        choice.begun = True
        choice.num_chars += sum(len(text_of(token)) for token in piece.tokens)
        return {"index": choice.index, **said, "finish_reason": self._reason(choice), "logprobs": logprobs}

    def _content(self, choice: Choice, text: str) -> dict[str, Any]:
        """New text of a chat: content, or a part of the call that it is, which begins with the function's name."""
        if not self._calls:
            return {"content": text}
        name, blank, arguments = choice.text.partition(" ")
        if not blank:
            return {}
        call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
        if not choice.called:
            choice.called = True
            function = {"name": name, "arguments": arguments}
            call = {"index": 0, "id": choice.call_id, "type": "function", "function": function}
        return {"tool_calls": [call]}

    def _reason(self, choice: Choice) -> str | None:
        reason = None if choice.end is None else choice.end.reason
        return "tool_calls" if self._calls and reason == "stop" else reason

    def _logprobs(self, tokens: Sequence[Token], start: int = 0) -> dict[str, Any] | None:
        asked = self.parsed["logprobs"]
        if asked is None or asked is False:
            return None
        return chat_logprobs(tokens) if self._is_chat else text_logprobs(tokens, asked, start)

    def _scored(self, choice: Choice) -> dict[str, Any]:
        """The prompt's, where vLLM has them: in the choices of texts, beside those of chats."""
        if choice.prompt is None or self.parsed["prompt_logprobs"] is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(choice.prompt.tokens)}

    def _extras(self) -> dict[str, Any]:
        """What was clamped, and how fast it went."""
        clamped = {"clamped": dict(self.parsed.clamped)} if self.parsed.clamped else {}
        return clamped | {"timings": self.timings()}

    def timings(self) -> dict[str, Any]:
        """As in llama.cpp's server; the time for the prompt includes the wait for a row."""
        now, start = time.perf_counter(), self.place.start
        first, usage = self.place.first or start, self.usage()
        num_prompt = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        spans = ("prompt", num_prompt, first - start), ("predicted", usage["completion_tokens"], now - first)
        timings: dict[str, Any] = {}
        for name, number, span_s in spans:
            rate = round(number / span_s, 2) if span_s > 0 else None
            timings |= {f"{name}_n": number, f"{name}_ms": round(1000 * span_s, 3), f"{name}_per_second": rate}
        return timings

    def usage(self) -> dict[str, Any]:
        """Tokens of all samples; a prompt counts once, however many answers it gets."""
        ends = [(choice.index, choice.end) for choice in self._choices.values() if choice.end is not None]
        prompts = [end for index, end in ends if index % self._n == 0]
        prompt_tokens = sum(end.prompt_tokens for end in prompts)
        completion_tokens = sum(end.completion_tokens for _, end in ends)
        cached = 0 if self._shares_prefixes else sum(end.cached_tokens for end in prompts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
