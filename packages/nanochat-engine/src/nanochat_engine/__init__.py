"""Inference engine for nanochat-like models: KV cache, continuous batching, sampling, tools; text in, text out."""

from nanochat_engine.async_engine import AsyncEngine, AsyncEventStream, QueueFullError
from nanochat_engine.calculator import use_calculator
from nanochat_engine.checkpoint import load
from nanochat_engine.completion import Completion, CompletionBuilder
from nanochat_engine.engine import Engine, EventStream
from nanochat_engine.grammar import GrammarError, Grammars
from nanochat_engine.kv_cache import KVCache
from nanochat_engine.protocols import CausalLM, ChatRenderer, KVCacheLike, KVSpec, TokenConstraint, Tokenizer
from nanochat_engine.requests import Event, FinishReason, Request
from nanochat_engine.sampling import Logprobs, SamplingParams, sample_next_token, sample_seed
from nanochat_engine.text_stream import TextStream, ToolCall
from nanochat_engine.tools import DEFAULT_TOOLS, Tool, Tools

__all__ = [
    "DEFAULT_TOOLS",
    "AsyncEngine",
    "AsyncEventStream",
    "CausalLM",
    "ChatRenderer",
    "Completion",
    "CompletionBuilder",
    "Engine",
    "Event",
    "EventStream",
    "FinishReason",
    "GrammarError",
    "Grammars",
    "KVCache",
    "KVCacheLike",
    "KVSpec",
    "Logprobs",
    "QueueFullError",
    "Request",
    "SamplingParams",
    "TextStream",
    "TokenConstraint",
    "Tokenizer",
    "Tool",
    "ToolCall",
    "Tools",
    "load",
    "sample_next_token",
    "sample_seed",
    "use_calculator",
]
