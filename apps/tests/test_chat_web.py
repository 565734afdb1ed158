"""chat-web as a process: what it says, what it serves, how it ends."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nanochat_apps.runtime.flags.chat_web import Settings
from nanochat_apps.runtime.process import has_compiler
from nanochat_apps.testing import save_tiny_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="stops the server with a signal")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("base")
    save_tiny_checkpoint(base / "chatsft_checkpoints" / "d2")
    return base


def start(base: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "nanochat_apps", "chat-web", "--device-type", "cpu", "--no-compile", *args],
        env={**os.environ, "NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def failure(base: Path, *args: str) -> tuple[int, str]:
    process = start(base, *args)
    _, errors = process.communicate()
    return process.returncode, errors


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[tuple[str, list[str]]]:
    """URL of a running server with a key, and the lines it printed."""
    (base / "key.txt").write_text("secret\n")
    process = start(
        base, "--port", "0", "--host", "127.0.0.1", "--api-key-file", str(base / "key.txt"), "-d", "float32"
    )
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("ready"):
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()[1]
    yield next(line for line in lines if "http://" in line).split("open ")[1].strip(), lines
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate()
    assert (process.returncode, out, errors) == (0, "stopping\n", "")


def ask(url: str, key: str | None, **body: object) -> str:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    messages = [{"role": "user", "content": "Hi"}]
    request = urllib.request.Request(
        f"{url}/chat/completions", data=json.dumps({"messages": messages, **body}).encode(), headers=headers
    )
    with urllib.request.urlopen(request) as response:
        return str(response.read().decode())


def test_serves_answers(server: tuple[str, list[str]]) -> None:
    url, lines = server
    assert not any("warning" in line for line in lines)
    events = [
        json.loads(line.removeprefix("data: ")) for line in ask(url, "secret", max_tokens=5).split("\n\n") if line
    ]
    assert events[-1] == {"done": True}
    assert all(set(event) <= {"token", "tool", "gpu"} for event in events[:-1])
    with urllib.request.urlopen(f"{url}/ready") as response:
        assert response.status == 200
    with urllib.request.urlopen(url) as response:
        assert b"<html" in response.read()


def test_the_key_is_asked_for(server: tuple[str, list[str]]) -> None:
    for key in (None, "wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(server[0], key)


def test_a_conversation_that_is_too_long_gets_400(server: tuple[str, list[str]]) -> None:
    with pytest.raises(urllib.error.HTTPError) as failed:
        ask(server[0], "secret", messages=[{"role": "user", "content": "x" * 7000}])
    assert failed.value.code == 400
    assert json.load(failed.value)["error"]["type"] == "context_length_exceeded"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_tls_on_a_unix_socket_under_a_path_with_keys_that_change(base: Path, tmp_path: Path) -> None:
    cert, key, keys, path = (tmp_path / name for name in ("cert.pem", "key.pem", "keys", "socket"))
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*make, "-keyout", key, "-out", cert], check=True, capture_output=True)
    keys.write_text("one\ntwo\n")
    flags = ["--certfile", str(cert), "--keyfile", str(key), "--api-key-file", str(keys), "--root-path", "/chat"]
    process = start(base, *flags, "--unix-socket", str(path), "-d", "float32")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]
    assert lines == [f"serving d2 (step_000001) on cpu: open unix:{path}\n", "ready; Ctrl-C stops it\n"]

    def status(with_key: str) -> int:
        context = ssl.create_default_context(cafile=cert)
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(str(path))
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                head = f"GET /chat/stats HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {with_key}\r\n\r\n"
                connection.sendall(head.encode())
                return int(connection.recv(1 << 16).split()[1])

    assert [status(given) for given in ("one", "two", "three")] == [200, 200, 401]
    keys.write_text("three\n")
    process.send_signal(signal.SIGHUP)
    while status("three") != 200:
        pass
    assert status("one") == 401
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate()
    assert (process.returncode, out, errors) == (0, "stopping\n", "")


@pytest.mark.slow
def test_a_signal_under_load_loses_no_answer(base: Path) -> None:
    process = start(base, "--port", "0", "--host", "127.0.0.1", "-d", "float32", "--max-rows", "4")
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("ready"):
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()[1]
    url = next(line for line in lines if "http://" in line).split("open ")[1].strip()
    with ThreadPoolExecutor(12) as threads:
        answers = [threads.submit(ask, url, None, max_tokens=100, temperature=2, top_k=0) for _ in range(12)]
        while json.load(urllib.request.urlopen(f"{url}/stats"))["running"] < 4:
            time.sleep(0.02)
        admitted = json.load(urllib.request.urlopen(f"{url}/stats"))["requests"]
        process.send_signal(signal.SIGTERM)
        texts = [answer.result() for answer in answers if answer.exception() is None]
    out, errors = process.communicate()
    assert (process.returncode, out, errors) == (0, "stopping\n", "")
    assert len(texts) >= admitted
    assert all(text.endswith('data: {"done": true}\n\n') for text in texts)


@pytest.mark.slow
def test_listening_everywhere_without_a_key_is_warned_of(base: Path) -> None:
    process = start(base, "--port", "0")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGTERM)
    process.communicate()
    [warning] = [line for line in lines if line.startswith("warning")]
    assert "without a key" in warning
    assert "http://127.0.0.1:" in warning


@pytest.mark.slow
def test_what_is_wrong_with_flags(base: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, errors = failure(base, "--host", "127.0.0.1", "--port", port)
    assert (code, errors) == (2, f"chat-web: error: --port {port}: already in use; choose another one\n")
    code, errors = failure(base, "--port", "70000")
    assert code == 2
    assert "--port 70000 must be between 0 and 65535" in errors
    code, errors = failure(base, "--api-key-file", str(tmp_path / "none"), "--port", "0")
    assert (code, errors) == (2, f"chat-web: error: --api-key-file {tmp_path / 'none'}: No such file or directory\n")
    code, errors = failure(tmp_path, "--port", "0")
    assert code == 2
    assert "chat-sft makes one" in errors


@pytest.mark.slow
def test_the_cache_can_be_bounded_and_steps_are_compiled_beside_the_answers(base: Path) -> None:
    """By default; without a compiler in one line, and either way with answers from the start."""
    flags = ["--port", "0", "--host", "127.0.0.1", "-d", "float32", "--max-rows", "1", "--prefix-rows", "0"]
    process = start(base, *flags, "--kv-budget-mib", "1", "--prefill-tokens", "8", "--compile")
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("ready"):
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()[1]
    assert any("not compiled" in line for line in lines) == (not has_compiler())
    url = next(line for line in lines if "http://" in line).split("open ")[1].strip()
    assert ask(url, None, max_tokens=5).endswith('data: {"done": true}\n\n')
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert (process.returncode, out) == (0, "stopping\n")
    code, errors = failure(base, *flags, "--kv-budget-mib", "0")
    assert (code, "--kv-budget-mib 0 must be between 1 and" in errors) == (2, True)


@pytest.mark.parametrize(
    "wrong", [{"compare": ("base",)}, {"compare": ("sft", "sft")}, {"compare": ("sft", "d2")}, {"step": 3}]
)
def test_what_cannot_be_compared(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--compare"):
        Settings(**{"compare": ("sft", "rl"), **wrong})


@pytest.mark.slow
def test_models_beside_each_other(base: Path) -> None:
    """Two steps of a stage: a request's `model` chooses, both draw by one seed, the last is the default."""
    for step, seed in ((1, 5), (2, 6)):
        save_tiny_checkpoint(base / "chatrl_checkpoints" / "d2", step=step, seed=seed)
    process = start(base, "--port", "0", "--host", "127.0.0.1", "-d", "float32", "--compare", "rl:1", "rl:2", "rl")
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith("ready"):
        lines.append(process.stdout.readline())
        assert lines[-1], process.communicate()[1]
    url = next(line for line in lines if "http://" in line).split("open ")[1].strip()
    with urllib.request.urlopen(f"{url}/v1/models") as response:
        assert [model["id"] for model in json.load(response)["data"]] == ["rl:1", "rl:2", "rl"]
    said = {}
    for model in ("rl:1", "rl:2", "rl", "gpt"):
        asked = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "seed": 3, "max_tokens": 30}
        data = json.dumps({**asked, "temperature": 2, "ignore_eos": True, "logprobs": True}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            answer = json.load(response)
        said[model] = answer["model"], answer["choices"][0]["logprobs"]["content"][0]["logprob"]
    assert [name for name, _ in said.values()] == ["rl:1", "rl:2", "rl", "rl"]
    assert said["rl:2"][1] == said["rl"][1] == said["gpt"][1] != said["rl:1"][1]
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert (process.returncode, out) == (0, "stopping\n")


@pytest.mark.slow
def test_more_replicas_than_gpus(base: Path) -> None:
    code, errors = failure(base, "-n", "64", "--port", "0", "--host", "127.0.0.1")
    assert code == 2
    assert errors.startswith("chat-web: error: --num-gpus 64: there are ")
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_the_server(tmp_path: Path) -> None:
    directory = save_tiny_checkpoint(tmp_path / "chatsft_checkpoints" / "d2")
    (directory / "model.safetensors").write_bytes(b"cut")
    code, errors = failure(tmp_path, "--port", "0", "--host", "127.0.0.1")
    assert code == 1
    assert "model.safetensors" in errors
    assert errors.count("\n") == 1
