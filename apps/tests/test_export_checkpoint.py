"""Bundles and models for transformers: made, checked, moved, used by every program, and refused with the reason."""

import json
import shutil
from pathlib import Path

import nanochat_engine
import pytest
import torch
from nanochat_apps import chat_cli, export_checkpoint, import_checkpoint, nanochat
from nanochat_apps.adapters.chat_backend import create_backend
from nanochat_apps.chat_web import DEFAULTS as WEB_DEFAULTS
from nanochat_apps.chat_web import Settings as WebSettings
from nanochat_apps.interop import parity
from nanochat_apps.runtime import cli, paths
from nanochat_apps.runtime.generation import Sampling, choose_sampling
from nanochat_model import GPT, GPTConfig, hf, load_model, save_model
from nanochat_tokenizer import render_for_completion, train_tokenizer
from nanochat_train import load_meta, save_checkpoint, verify_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

CORPUS = [f"The fox number {i} runs over the red house, again and again. Ça va? {i * 7}" for i in range(300)]
TOKENIZER = train_tokenizer(CORPUS, vocab_size=400)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How far does fox number 12 run?"}]


SIZES = {"sequence_len": 256, "vocab_size": 400, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64}


def random_model(config: GPTConfig, *, dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(config, compute_dtype=dtype)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path


@pytest.fixture
def classic() -> Path:
    """A classic chat model, its embeddings in bfloat16, under d2."""
    model = random_model(GPTConfig.classic(**SIZES), dtype=torch.bfloat16)
    return save_checkpoint(
        paths.checkpoints_root("sft") / "d2",
        600,
        writers=[lambda d: save_model(model, d), lambda d: TOKENIZER.save(d / "tokenizer")],
        meta={
            "stage": "sft",
            "settings": {"matrix_lr": 0.02, "run": None},
            "scores": {"val_bpb": 1.2345678},
            "tokenizer_fingerprint": TOKENIZER.fingerprint,
        },
    )


def export(out: Path, **changes: object) -> int:
    return export_checkpoint.export(export_checkpoint.Settings(out=out, **changes))  # type: ignore[arg-type]


def test_a_classic_bundle_is_moved_and_used_by_all(
    classic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(tmp_path / "made") == 0
    assert "transformers gives the same ids" in capsys.readouterr().out
    moved = tmp_path / "elsewhere" / "bundle"
    shutil.copytree(tmp_path / "made", moved)
    shutil.rmtree(tmp_path / "made")
    shutil.rmtree(tmp_path / "base")
    verify_checkpoint(moved)
    assert str(tmp_path) not in "".join(path.read_text() for path in moved.glob("*.json"))
    assert json.loads((moved / "chat_format.json").read_text())["special_token_ids"] == TOKENIZER.special_tokens
    card = (moved / "README.md").read_text()
    assert "| matrix_lr | 0.02 |" in card
    assert "| val_bpb | 1.235 |" in card
    assert "AutoModelForCausalLM" in card

    engine = nanochat_engine.load(moved, dtype=torch.float32)
    prompt = render_for_completion(TOKENIZER, {"messages": CHAT})
    plain = nanochat_engine.Engine(engine.model, engine.tokenizer, tools={})
    [ours], _ = plain.generate_batch(prompt, max_tokens=64, temperature=0.0)
    theirs = AutoTokenizer.from_pretrained(moved)
    inputs = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert inputs["input_ids"][0].tolist() == prompt
    hf_model = AutoModelForCausalLM.from_pretrained(moved, dtype=torch.float32)
    generated = hf_model.generate(**inputs, do_sample=False, max_new_tokens=64)[0].tolist()
    end = TOKENIZER.special_id("<|assistant_end|>")
    assert len(ours) - len(prompt) >= 60 or generated[-1] in (end, TOKENIZER.bos_id)
    assert [i for i in generated if i not in (end, TOKENIZER.bos_id)] == [i for i in ours if i != TOKENIZER.bos_id]
    assert hf_model.generation_config.max_new_tokens == 512

    monkeypatch.setattr("sys.argv", ["chat-cli", "-c", str(moved), "-p", "Hi", "-m", "5", "--device-type", "cpu"])
    with pytest.raises(SystemExit) as ended:
        nanochat.main()
    assert ended.value.code == 0
    assert create_backend(moved).status().ready
    assert choose_sampling(WebSettings(temperature=0.1), moved, otherwise=WEB_DEFAULTS) == Sampling(
        temperature=0.1, top_k=50, max_tokens=512
    )
    assert chat_cli.Chat(engine, chat_cli.Settings(checkpoint=moved))._sampling.max_tokens == 512
    assert chat_cli.Chat(engine, chat_cli.Settings())._sampling.max_tokens == 256


def test_ours_to_transformers_to_ours_is_bit_exact(
    classic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tmp_path / "theirs", target="transformers", model_tag="d2") == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "again")
    AutoTokenizer.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "again")
    for folder, tag in (("theirs", "straight"), ("again", "through")):
        settings = import_checkpoint.Settings(directory=tmp_path / folder, origin="transformers", model_tag=tag)
        assert import_checkpoint.import_checkpoints(settings) == 0
        back = paths.find_checkpoint("sft", tag)
        original, returned = load_model(classic), load_model(back, dtype=torch.bfloat16)
        assert returned.config == original.config
        for name, tensor in original.state_dict().items():
            assert torch.equal(returned.state_dict()[name][:400], tensor[:400]), name
        assert load_meta(back)["tokenizer_fingerprint"] == TOKENIZER.fingerprint
    assert "logits within" in capsys.readouterr().out


def test_a_modern_bundle_is_used_by_the_engine_and_with_our_class_by_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(GPTConfig(**SIZES))
    save_checkpoint(
        paths.checkpoints_root("sft") / "d2",
        600,
        writers=[lambda d: save_model(model, d), lambda d: TOKENIZER.save(d / "tokenizer")],
        meta={"stage": "sft"},
    )
    with pytest.raises(ValueError, match="no place for value_embeddings"):
        export(tmp_path / "out", target="transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert export(tmp_path / "out") == 0
    assert "after nanochat_model.hf.register(), gives the same ids, and logits within" in capsys.readouterr().out
    assert "hf.register()" in (tmp_path / "out/README.md").read_text()

    engine = nanochat_engine.load(tmp_path / "out", dtype=torch.float32)
    prompt = render_for_completion(TOKENIZER, {"messages": CHAT})
    plain = nanochat_engine.Engine(engine.model, engine.tokenizer, tools={})
    ours = plain.complete([prompt], max_tokens=64, temperature=0.0)[0].token_ids
    hf.register()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = theirs.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    hf_model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    generated = hf_model.generate(**inputs, do_sample=False, max_new_tokens=64)[0, len(prompt) :].tolist()
    ends = hf_model.generation_config.eos_token_id
    assert len(generated) == 64 or generated[-1] in ends
    assert [i for i in generated if i not in ends] == ours

    with pytest.raises(cli.UsageError, match="already exists"):
        export(tmp_path / "out")
    (tmp_path / "out/config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        nanochat_engine.load(tmp_path / "out")


def test_a_conversion_that_says_something_else_is_refused(
    classic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"differs from ours by .* in a logit"):
        export(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_damaged_defaults_are_named(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(ValueError, match=r"generation_config\.json: temperature='hot'"):
        choose_sampling(WebSettings(), tmp_path, otherwise=WEB_DEFAULTS)
