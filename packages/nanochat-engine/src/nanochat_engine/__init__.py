"""Inference engine for nanochat-like models: KV cache, continuous batching, sampling, tools."""

from nanochat_engine.async_engine import AsyncEngine, EventStream, QueueFullError
from nanochat_engine.batcher import Batcher
from nanochat_engine.calculator import use_calculator
from nanochat_engine.checkpoint import load
from nanochat_engine.engine import Completion, Engine
from nanochat_engine.kv_cache import KVCache
from nanochat_engine.protocols import CausalLM, KVCacheLike, KVSpec, Tokenizer
from nanochat_engine.requests import Event, FinishReason, Request
from nanochat_engine.sampling import sample_next_token, sample_seed
from nanochat_engine.steps import ModelStep, fast_step
from nanochat_engine.tools import DEFAULT_TOOLS, Tool, Tools

__all__ = [
    "DEFAULT_TOOLS",
    "AsyncEngine",
    "Batcher",
    "CausalLM",
    "Completion",
    "Engine",
    "Event",
    "EventStream",
    "FinishReason",
    "KVCache",
    "KVCacheLike",
    "KVSpec",
    "ModelStep",
    "QueueFullError",
    "Request",
    "Tokenizer",
    "Tool",
    "Tools",
    "fast_step",
    "load",
    "sample_next_token",
    "sample_seed",
    "use_calculator",
]
