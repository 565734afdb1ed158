"""Where a server listens and who may come in: its socket, its certificate, its keys, and room for many connections."""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from contextlib import suppress
from pathlib import Path

from nanochat_apps.runtime import cli


def allow_many_connections() -> None:
    """As many open files as the system lets this process have: a connection is one."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def open_socket(host: str, port: int, path: Path | None) -> socket.socket:
    """A listening socket. Raises `UsageError` naming the flag if the port is taken or the address can't be had."""
    try:
        if path is not None:
            return _open_unix_socket(path)
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        flags = f"--unix-socket {path}" if path is not None else f"--host {host} --port {port}"
        if error.errno == errno.EADDRINUSE:
            flags = flags if path is not None else f"--port {port}"
            raise cli.UsageError(f"{flags}: already in use; choose another one") from None
        raise cli.UsageError(f"{flags}: {error.strerror or error}") from None


def _open_unix_socket(path: Path) -> socket.socket:
    """Takes the place of a socket that nobody listens on any more."""
    listener = socket.socket(socket.AF_UNIX)
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()
    listener.bind(str(path))
    return listener


def read_api_keys(path: Path | None) -> tuple[str, ...]:
    """The keys in a file, one per line, without the white space around them. Raises `UsageError` if there is none."""
    if path is None:
        return ()
    try:
        keys = tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise cli.UsageError(f"--api-key-file {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not keys:
        raise cli.UsageError(f"--api-key-file {path}: the file is empty; put a key into it")
    return keys


def read_certificate(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """What TLS needs. Raises `UsageError` naming the files if they cannot be used."""
    if certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise cli.UsageError(f"--certfile {certfile}: {error.strerror or error}") from None
    return context
