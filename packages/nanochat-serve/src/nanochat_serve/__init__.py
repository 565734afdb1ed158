"""aiohttp chat server and chat page for any backend that streams text."""

from nanochat_serve.app import create_app, replace_api_keys
from nanochat_serve.errors import InvalidRequestError
from nanochat_serve.fields import parse_request
from nanochat_serve.frames import WorkerError
from nanochat_serve.in_process import ThreadedBackend
from nanochat_serve.logs import log_to_stderr
from nanochat_serve.page import collect_corrections, describe_model
from nanochat_serve.protocols import (
    BackendStatus,
    ChatBackend,
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    Grammar,
    ModelInfo,
    Prompt,
    SamplingParams,
    TextDelta,
    Token,
    ToolCall,
    WorkerStatus,
)
from nanochat_serve.serving import running
from nanochat_serve.settings import ServerSettings
from nanochat_serve.worker_pool import WorkerPool

__all__ = [
    "BackendStatus",
    "ChatBackend",
    "ChatEvent",
    "ChatRequest",
    "ContextLengthError",
    "Finished",
    "Grammar",
    "InvalidRequestError",
    "ModelInfo",
    "Prompt",
    "SamplingParams",
    "ServerSettings",
    "TextDelta",
    "ThreadedBackend",
    "Token",
    "ToolCall",
    "WorkerError",
    "WorkerPool",
    "WorkerStatus",
    "collect_corrections",
    "create_app",
    "describe_model",
    "log_to_stderr",
    "parse_request",
    "replace_api_keys",
    "running",
]
