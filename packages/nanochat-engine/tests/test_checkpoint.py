"""Loading a checkpoint: right files give an engine, wrong ones a line that names the file."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from nanochat_engine import load
from nanochat_engine.testing import check_causal_lm, check_tokenizer

nanochat_model = pytest.importorskip("nanochat_model")
nanochat_tokenizer = pytest.importorskip("nanochat_tokenizer")


def write_manifest(directory: Path) -> None:
    files = {
        path.relative_to(directory).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size_bytes": path.stat().st_size,
        }
        for path in directory.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    (directory / "manifest.json").write_text(json.dumps({"format_version": 1, "files": files}))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "step_000600"
    tokenizer = nanochat_tokenizer.Tokenizer({bytes([byte]): byte for byte in range(256)})
    config = nanochat_model.GPTConfig(
        sequence_len=32, vocab_size=265, n_layer=2, n_head=2, n_kv_head=1, n_embd=32, window_pattern="SL"
    )
    model = nanochat_model.GPT(config)
    model.init_weights(0)
    for parameter in model.parameters():  # what starts at zero would hide what it scales
        torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    nanochat_model.save_model(model, directory, meta={"step": 600, "tokenizer_fingerprint": tokenizer.fingerprint})
    tokenizer.save(directory / "tokenizer")
    write_manifest(directory)
    return directory


def test_a_checkpoint_gives_an_engine_that_equals_the_model(checkpoint: Path) -> None:
    engine = load(checkpoint)
    check_causal_lm(engine.model)
    check_tokenizer(engine.tokenizer)
    prompt = [engine.tokenizer.bos_id, *engine.tokenizer.encode("naïve")]
    [result], _ = engine.generate_batch(prompt, temperature=0, max_tokens=12)
    model = nanochat_model.load_model(checkpoint)
    tokens = list(prompt)
    with torch.inference_mode():
        while len(tokens) < len(result):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert result == tokens
    assert len(tokens) > len(prompt)
    messages = [{"role": "user", "content": "naïve?"}]
    rendered = nanochat_tokenizer.render_for_completion(engine.tokenizer, {"messages": messages})
    chat = engine.chat(messages, temperature=0, max_tokens=4)
    assert chat.token_ids == engine.complete([rendered], temperature=0, max_tokens=4)[0].token_ids
    assert chat.num_prompt_tokens == len(rendered)


def test_the_loading_thread_ends_and_takes_its_openmp_threads_along(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nanochat_model

    threads = []

    def load_model(*arguments: Any, **named: Any) -> Any:
        threads.append(threading.current_thread())
        return original(*arguments, **named)

    original = nanochat_model.load_model
    monkeypatch.setattr(nanochat_model, "load_model", load_model)
    load(checkpoint)
    [thread] = threads
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_dtype_quantization_and_the_engine_s_settings_are_chosen_at_loading(checkpoint: Path) -> None:
    plain = load(str(checkpoint), max_rows=3)
    assert plain.model.kv_spec.dtype == torch.float32
    assert plain.max_rows == 3
    assert load(checkpoint, dtype=torch.bfloat16).model.kv_spec.dtype == torch.bfloat16
    assert load(checkpoint, quantize="int8").model.weight_bytes() < 0.4 * plain.model.weight_bytes()
    with pytest.raises(ValueError, match="quantize='int3'"):
        load(checkpoint, quantize="int3")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "meta.json", "tokenizer/ranks.tiktoken"])
@pytest.mark.parametrize("damage", ["cut", "edit", "remove"])
def test_damaged_files_are_named(checkpoint: Path, name: str, damage: str) -> None:
    path = checkpoint / name
    data = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-5] if damage == "cut" else data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    expected = {"cut": "truncated", "edit": "edited", "remove": "missing"}[damage]
    with pytest.raises(ValueError, match=rf"{path.name}.*{expected}"):
        load(checkpoint)


def test_what_is_not_read_is_not_verified(checkpoint: Path) -> None:
    (checkpoint / "training").mkdir()
    (checkpoint / "training" / "optimizer.safetensors").write_bytes(b"12345")
    write_manifest(checkpoint)
    shutil.rmtree(checkpoint / "training")
    load(checkpoint)


def test_another_tokenizer_is_refused_by_its_fingerprint_and_by_its_size(checkpoint: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    other = nanochat_tokenizer.Tokenizer(ranks, pattern=r"\s+|\S+")
    other.save(checkpoint / "tokenizer")
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match=f"not the tokenizer.*{other.fingerprint}"):
        load(checkpoint)
    larger = nanochat_tokenizer.Tokenizer({**ranks, b"ab": 256})
    larger.save(checkpoint / "tokenizer")
    (checkpoint / "meta.json").unlink()
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match=r"266 tokens.*265"):
        load(checkpoint)


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}', '{"files": {"config.json": {}}}'])
def test_a_broken_manifest_is_named(checkpoint: Path, text: str) -> None:
    (checkpoint / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        load(checkpoint)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["nanochat_model", "nanochat_tokenizer"])
def test_without_the_extra_the_error_says_which(checkpoint: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"nanochat-engine\[checkpoint\]"):
        load(checkpoint)
