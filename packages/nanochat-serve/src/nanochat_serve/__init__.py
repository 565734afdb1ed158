"""aiohttp chat server and chat page for any backend that streams text."""
