"""import-checkpoint, and the programs on what it made, as a person who comes from another project runs them."""

import asyncio
import json
import pickle
from pathlib import Path

import nanochat_engine
import pytest
import tiktoken
import torch
from nanochat_apps import base_eval, chat_sft, import_checkpoint, nanochat
from nanochat_apps.adapters.chat_backend import create_backend
from nanochat_apps.runtime import paths
from nanochat_model import GPT, GPTConfig, load_model
from nanochat_serve.testing import check_chat_backend
from nanochat_tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from nanochat_train import load_meta

SIZES = {"sequence_len": 128, "vocab_size": 265, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 32}


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "ours"))
    return tmp_path


def random_model(config: GPTConfig, seed: int) -> GPT:
    model = GPT(config, compute_dtype=torch.bfloat16)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def write_model(folder: Path, step: int, model: GPT, model_config: dict[str, object], **meta: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(state, folder / f"model_{step:06d}.pt")
    torch.save({"state": {}}, folder / f"optim_{step:06d}_rank0.pt")
    meta = {"step": step, "model_config": model_config, **meta}
    (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    encoding = tiktoken.Encoding(
        name="rustbpe",
        pat_str=SPLIT_PATTERN,
        mergeable_ranks={bytes([byte]): byte for byte in range(256)},
        special_tokens={name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)},
    )
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A base directory as the reference leaves it: a modern model in each stage, two tags of the base model."""
    root = tmp_path / "theirs"
    write_tokenizer(root / "tokenizer")
    config = GPTConfig(**SIZES)
    for seed, (stage, tag) in enumerate((("base", "d1"), ("base", "d2"), ("chatsft", "d2"), ("chatrl", "d2"))):
        write_model(
            root / f"{stage}_checkpoints" / tag,
            40,
            random_model(config, seed),
            SIZES | {"window_pattern": config.window_pattern},
            val_bpb=1.25,
            user_config={"matrix_lr": 0.03, "run": "dummy", "out": "/somewhere/else", "depth": 2},
            device_batch_size=2,
            total_batch_size=256,
        )
    return root


def run(*args: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        import_checkpoint.cli.run(
            import_checkpoint.import_checkpoints, import_checkpoint.Settings, prog="import", description="", args=args
        )
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_every_stage_comes_in_and_works_like_our_own(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("--from", "nanochat", str(theirs), capsys=capsys)
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()[:3]] == ["base", "sft", "rl"]
    config = GPTConfig(**SIZES)
    for source, seed in (("base", 1), ("sft", 2), ("rl", 3)):
        checkpoint = paths.find_checkpoint(source, "d2", 40)
        engine = nanochat_engine.load(checkpoint)
        ids = torch.arange(60)[None]
        with torch.no_grad():
            assert torch.equal(load_model(checkpoint)(ids), random_model(config, seed)(ids))
            torch.testing.assert_close(
                engine.model(ids), random_model(config, seed)(ids), rtol=0, atol=0.05
            )  # bfloat16
    meta = load_meta(paths.find_checkpoint("base"))
    assert meta["settings"] == {
        "matrix_lr": 0.03,
        "run": "dummy",
        "depth": 2,
        "embedding_lr": 0.3,
        "unembedding_lr": 0.008,
        "scalar_lr": 0.5,
    }
    assert meta["scores"] == {"val_bpb": 1.25}
    assert Tokenizer.load(paths.tokenizer_dir()).vocab_size == 265

    for source in ("sft", "rl"):
        monkeypatch.setattr("sys.argv", ["chat-cli", "-p", "Hi", "-m", "4", "-i", source, "--device-type", "cpu"])
        with pytest.raises(SystemExit) as ended:
            nanochat.main()
        assert ended.value.code == 0

    async def serve() -> None:
        backend = create_backend(paths.find_checkpoint("sft"))
        await check_chat_backend(backend)
        await backend.aclose()

    asyncio.run(serve())

    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("train.txt", "val.txt"):
        (texts / name).write_text("A little text.\n" * 50)
    evaluated = base_eval.Settings(data=texts, split_tokens=300, device_type="cpu", dtype="float32")
    assert base_eval.evaluate(evaluated) == 0

    chats = tmp_path / "chats.jsonl"
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    chats.write_text((json.dumps(chat) + "\n") * 30)
    tuned = chat_sft.Settings(mixture=f"{chats}:1", num_iterations=2, device_type="cpu", dtype="float32", compile="off")
    (paths.checkpoints_root("sft") / "d2").rename(paths.checkpoints_root("sft") / "imported")
    assert chat_sft.train(tuned) == 0
    assert load_meta(paths.find_checkpoint("sft", "d2"))["step"] == 2


def test_the_first_release_in_a_single_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hub-download"
    model = random_model(GPTConfig.classic(**SIZES, norm_eps=None), 4)
    write_model(folder, 650, model, SIZES)
    write_tokenizer(folder)
    code, out, _ = run("--from", "nanochat", str(folder), "-i", "sft", capsys=capsys)
    assert code == 0
    assert out.endswith("try it: chat-cli -i sft -g d2\n")
    engine = nanochat_engine.load(paths.find_checkpoint("sft", "d2", 650))
    with torch.no_grad():
        assert torch.equal(engine.model(torch.arange(60)[None]), model(torch.arange(60)[None]))
    code, _, err = run("--from", "nanochat", str(folder), "-i", "sft", capsys=capsys)
    assert code == 2
    assert "already exists" in err


def test_what_is_wrong_is_one_line(theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*args: str) -> str:
        code, _, err = run("--from", "nanochat", *args, capsys=capsys)
        assert code in (1, 2)
        assert err.count("\n") == 1
        return err

    (tmp_path / "empty").mkdir()
    assert "no model_<step>.pt" in refused(str(tmp_path / "empty"))
    assert "is not a directory" in refused(str(tmp_path / "nowhere"))
    assert "base_checkpoints/d9" in refused(str(theirs), "-g", "d9")
    assert "--step 7: not in" in refused(str(theirs), "-s", "7")
    assert "not-there.pkl is missing" in refused(str(theirs), "--tokenizer", str(tmp_path / "not-there.pkl"))
    meta = theirs / "chatrl_checkpoints/d2/meta_000040.json"
    meta.write_text("{}")
    assert "meta_000040.json has no object model_config" in refused(str(theirs), "-i", "rl")
    meta.write_text("{")
    assert "is not readable JSON" in refused(str(theirs), "-i", "rl")
    meta.write_text(json.dumps({"model_config": SIZES | {"vocab_size": 266, "window_pattern": "L"}}))
    assert "the model has 266 tokens, the tokenizer 265" in refused(str(theirs), "-i", "rl")
    (theirs / "tokenizer/tokenizer.pkl").write_bytes(pickle.dumps([print]))
    assert "tokenizer.pkl: the pickle uses EMPTY_LIST" in refused(str(theirs), "-i", "sft")
    assert not (tmp_path / "ours").exists()
