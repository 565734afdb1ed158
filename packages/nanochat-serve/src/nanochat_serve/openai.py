"""The OpenAI wire format over the same backend: chat completions, completions, models. Needs no OpenAI package."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from nanochat_serve.admission import BACKEND, SETTINGS, Place, admitted, json_body
from nanochat_serve.answers import answering
from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.fields import CHAT, TEXT, Parsed, parse
from nanochat_serve.guard import CLAMPED, salt_of
from nanochat_serve.logprobs import chat_logprobs, prompt_logprobs, text_logprobs, text_of
from nanochat_serve.messages import parse_messages, with_system
from nanochat_serve.protocols import (
    ChatEvent,
    ChatRequest,
    Finished,
    Prompt,
    TextDelta,
    Token,
    ToolCall,
)
from nanochat_serve.sse import Line, stream_answer
from nanochat_serve.structured import functions_text


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`. Tool calls happen on the server and are shown to who asks for them."""
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
        return await _answer(request, place, [chat], Form.of("chat", parsed, request, calls=calls))


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
        return await _answer(request, place, chats, Form.of("text", parsed, request))


@dataclass(slots=True)
class Choice:
    """What one sample has said so far."""

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


@dataclass(slots=True)
class More:
    """What an event adds to a choice."""

    index: int
    text: str = ""
    tokens: tuple[Token, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    end: Finished | None = None


@dataclass(kw_only=True, slots=True)
class Form:
    """What differs between chats and texts, what all objects of one answer share, and what its samples have said."""

    kind: str
    parsed: Parsed
    place: Place | None = None
    n: int
    """Samples of each prompt."""
    calls: bool
    """Whether the text is a function's call: its name, a blank, its arguments."""
    with_logprobs: bool
    with_tools: bool
    model_name: str
    shares_prefixes: bool
    """Whether prefixes of other clients may be in the cache, so that their numbers are nobody's business."""
    token: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    choices: dict[int, Choice] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, parsed: Parsed, request: web.Request, *, calls: bool = False) -> Form:
        settings = request.app[SETTINGS]
        request[CLAMPED] = parsed.clamped_header()
        return cls(
            kind=kind,
            parsed=parsed,
            n=parsed["n"],
            calls=calls,
            with_logprobs=parsed["logprobs"] is not None and parsed["logprobs"] is not False,
            with_tools=parsed["include_tool_calls"],
            model_name=request.app[BACKEND].name(parsed["model"]),
            shares_prefixes=settings.prefix_sharing == "all",
        )

    def head(self, *, whole: bool) -> dict[str, Any]:
        if self.kind == "chat":
            prefix, name = "chatcmpl", "chat.completion" if whole else "chat.completion.chunk"
        else:
            prefix, name = "cmpl", "text_completion"
        return {"id": f"{prefix}-{self.token}", "object": name, "created": self.created, "model": self.model_name}

    def take(self, prompt: int, event: ChatEvent) -> list[More]:
        """Adds an event to its choice, or to all of the prompt's; returns what is new in each."""
        if isinstance(event, Prompt):
            return [self._begin(prompt * self.n + sample, event) for sample in range(self.n)]
        index = prompt * self.n + event.sample
        choice = self.choices.get(index)
        if choice is None:
            choice = self.choices[index] = Choice()
        if isinstance(event, TextDelta):
            more = More(index, event.text, event.tokens)
        elif isinstance(event, ToolCall):
            call = {"index": len(choice.tools), "type": "python", "arguments": event.expression, "output": event.output}
            more = More(index, tools=(call,))
        else:
            choice.end = event
            more = More(index, tokens=(event.end,) if event.end is not None and self.kind == "text" else (), end=event)
        choice.text += more.text
        choice.tokens += more.tokens
        choice.tools += more.tools
        return [more]

    def _begin(self, index: int, prompt: Prompt) -> More:
        choice = self.choices.setdefault(index, Choice(prompt=prompt))
        if self.kind == "chat" or not self.parsed["echo"]:
            return More(index)
        choice.text, choice.tokens = prompt.text, list(prompt.tokens)
        return More(index, prompt.text, prompt.tokens)

    def logprobs(self, tokens: Sequence[Token], start: int = 0) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        return chat_logprobs(tokens) if self.kind == "chat" else text_logprobs(tokens, self.parsed["logprobs"], start)

    def whole(self) -> dict[str, Any]:
        """The answer in one."""
        choices = []
        for index, choice in sorted(self.choices.items()):
            assert choice.end is not None
            tools = {"executed_tools": choice.tools} if self.with_tools else {}
            message = (
                {"role": "assistant", "content": None, "refusal": None} | self.content(choice, choice.text) | tools
            )
            said = {"message": message} if self.kind == "chat" else {"text": choice.text} | tools
            rest = {"finish_reason": self.reason(choice.end), "logprobs": self.logprobs(choice.tokens)}
            choices.append({"index": index, **said, **rest} | self._scored(index, "text"))
        return (
            self.head(whole=True)
            | {"choices": choices, "usage": self.usage()}
            | self._scored(0, "chat")
            | self.extras()
        )

    def content(self, choice: Choice, text: str) -> dict[str, Any]:
        """New text of a chat: content, or a part of the call that it is, which begins with the function's name."""
        if not self.calls:
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

    def reason(self, end: Finished) -> str:
        return "tool_calls" if self.calls and end.reason == "stop" else end.reason

    def _scored(self, index: int, kind: str) -> dict[str, Any]:
        """Where vLLM has the prompt's: in the choices of texts, beside those of chats."""
        prompt = self.choices[index].prompt
        if self.kind != kind or prompt is None or self.parsed["prompt_logprobs"] is None:
            return {}
        return {"prompt_logprobs": prompt_logprobs(prompt.tokens)}

    def extras(self) -> dict[str, Any]:
        """What was clamped, and how fast it went."""
        clamped = {"clamped": dict(self.parsed.clamped)} if self.parsed.clamped else {}
        return clamped | {"timings": self.timings()}

    def timings(self) -> dict[str, Any]:
        """As in llama.cpp's server; the time for the prompt includes the wait for a row."""
        assert self.place is not None
        now, first = time.perf_counter(), self.place.first or self.place.start
        usage = self.usage()
        num_prompt = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        timings: dict[str, Any] = {}
        spans = (
            ("prompt", num_prompt, first - self.place.start),
            ("predicted", usage["completion_tokens"], now - first),
        )
        for name, number, span_s in spans:
            rate = round(number / span_s, 2) if span_s > 0 else None
            timings |= {f"{name}_n": number, f"{name}_ms": round(1000 * span_s, 3), f"{name}_per_second": rate}
        return timings

    def usage(self) -> dict[str, Any]:
        """Tokens of all samples; a prompt counts once, however many answers it gets."""
        ends = {index: choice.end for index, choice in self.choices.items() if choice.end is not None}
        prompts = [end for index, end in ends.items() if index % self.n == 0]
        prompt_tokens = sum(end.prompt_tokens for end in prompts)
        completion_tokens = sum(end.completion_tokens for end in ends.values())
        cached = 0 if self.shares_prefixes else sum(end.cached_tokens for end in prompts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


async def _answer(request: web.Request, place: Place, chats: Sequence[ChatRequest], form: Form) -> web.StreamResponse:
    form.place = place
    if form.parsed["stream"]:
        return await stream_answer(request, place, chats, _Chunks(form, sum(chat.params.n for chat in chats)))
    async with answering(request, place, chats) as events:
        async for prompt, event in events:
            form.take(prompt, event)
    return web.json_response(form.whole())


class _Chunks:
    """The samples' events as chunks, all under one id; `[DONE]` after the last."""

    def __init__(self, form: Form, num_samples: int) -> None:
        self._form = form
        self._num_open = num_samples
        self._head = form.head(whole=False)
        options = form.parsed["stream_options"]
        self._with_usage = bool(options.get("include_usage"))
        self._usage: dict[str, Any] = {"usage": None} if self._with_usage else {}

    def __call__(self, prompt: int, event: ChatEvent) -> list[Line]:
        chunks = [chunk for more in self._form.take(prompt, event) if (chunk := self._chunk(more)) is not None]
        self._num_open -= isinstance(event, Finished)
        if self._num_open:
            return [*chunks]
        if self._with_usage:
            chunks.append(self._head | {"choices": [], "usage": self._form.usage()})
        return [*chunks[:-1], chunks[-1] | self._form.extras(), "[DONE]"]

    def _chunk(self, more: More) -> dict[str, Any] | None:
        form, choice = self._form, self._form.choices[more.index]
        tools = {"executed_tools": list(more.tools)} if more.tools and form.with_tools else {}
        if not (more.text or more.tokens or tools or more.end):
            return None
        said: dict[str, Any] = {"text": more.text, **tools}
        if form.kind == "chat":
            content = tools if more.end is not None else {**form.content(choice, more.text), **tools}
            said = {"delta": content if choice.begun else {"role": "assistant", **content}}
        logprobs = form.logprobs(more.tokens, choice.num_chars) if more.tokens or form.kind == "chat" else None
        choice.begun = True
        for token in more.tokens:
            choice.num_chars += len(text_of(token))
        reason = None if more.end is None else form.reason(more.end)
        entry = {"index": more.index, **said, "finish_reason": reason, "logprobs": logprobs}
        return {**self._head, "choices": [entry], **self._usage}
