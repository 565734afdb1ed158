"""aiohttp chat server and chat page for any backend that streams text."""

from nanochat_serve.app import create_app
from nanochat_serve.in_process import ThreadedBackend
from nanochat_serve.protocols import (
    BackendStatus,
    ChatBackend,
    ChatEvent,
    ChatRequest,
    ContextLengthError,
    Finished,
    TextDelta,
    ToolCall,
)
from nanochat_serve.settings import ServerSettings
from nanochat_serve.validation import InvalidRequestError, parse_request

__all__ = [
    "BackendStatus",
    "ChatBackend",
    "ChatEvent",
    "ChatRequest",
    "ContextLengthError",
    "Finished",
    "InvalidRequestError",
    "ServerSettings",
    "TextDelta",
    "ThreadedBackend",
    "ToolCall",
    "create_app",
    "parse_request",
]
