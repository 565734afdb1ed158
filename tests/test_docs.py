"""The examples of the documents are run, those that need a GPU have their flags read, and links lead somewhere."""

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch
from nanochat_apps import nanochat
from nanochat_apps.interop.bundle import write_bundle
from nanochat_apps.runtime import cli
from nanochat_data.synthetic import TinyWorld
from nanochat_model import GPT, GPTConfig, save_model
from nanochat_tokenizer import convert
from nanochat_tokenizer.testing import byte_tokenizer
from nanochat_train import Recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
KINDS = {"sh", "sh needs-gpu", "sh in-clone", "python", "json", "text", "mermaid"}
FENCE = re.compile(r"^```(.+?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIZES = {"sequence_len": 128, "vocab_size": 265, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64}


def blocks(page: Path, *kinds: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind in kinds]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT / "docs").as_posix()


NOT_RUN = {"results.md", "mirror.md"}
"""Their commands take hours, or a network; test_mirror.py runs the mirror's check."""
RUN = [page for page in PAGES if blocks(page, "sh", "python") and page.name not in NOT_RUN]


def test_links_lead_somewhere_and_every_block_has_a_kind():
    listed = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert {kind for kind, _ in FENCE.findall(text)} <= KINDS, page
        assert text.count("```") == 2 * len(FENCE.findall(text)), page
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", FENCE.sub("", text))
        assert not [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()], page
        assert page.name == "README.md" or f"({name_of(page)})" in listed, page


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh needs-gpu")], ids=name_of)
def test_what_needs_a_gpu_has_flags_that_exist(page):
    for line in "".join(blocks(page, "sh needs-gpu")).splitlines():
        words = shlex.split(line)
        if words[0] == "torchrun":
            words = words[words.index("nanochat_apps") + 1 :]
        cli.parse(nanochat.settings_of(words[0]), words[1:], prog=words[0], description="")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a reader of the pages has at hand, small."""
    world = TinyWorld(0)
    (tmp_path / "my-texts").mkdir()
    for name, split, count in (("train", "train", 300), ("val", "test", 20)):
        lines = (json.dumps({"text": world.document(i, split=split)}) + "\n" for i in range(count))
        (tmp_path / "my-texts" / f"{name}.jsonl").write_text("".join(lines))
    chats = (json.dumps({"messages": world.conversation(i, skill="identity")["messages"]}) for i in range(60))
    (tmp_path / "my-chats.jsonl").write_text("\n".join(chats) + "\n")
    tokenizer = byte_tokenizer()
    tokenizer.save(tmp_path / "their-tokenizer")
    classic = GPT(GPTConfig.classic(**SIZES))
    classic.init_weights(0)
    save_model(classic, tmp_path / "their-model", layout="transformers")
    convert.save_transformers(tokenizer, tmp_path / "their-model")
    modern = GPT(GPTConfig(**SIZES), compute_dtype=torch.bfloat16)
    modern.init_weights(0)
    theirs = tmp_path / "their-nanochat"
    for stage in ("base", "chatsft"):
        tag = theirs / f"{stage}_checkpoints" / "d2"
        tag.mkdir(parents=True)
        torch.save({f"_orig_mod.{k}": v for k, v in modern.state_dict().items()}, tag / "model_000009.pt")
        meta = {"step": 9, "model_config": SIZES | {"window_pattern": "SSSL"}}
        (tag / "meta_000009.json").write_text(json.dumps(meta))
    encoding = tiktoken.Encoding(
        name="rustbpe",
        pat_str=tokenizer.pattern,
        mergeable_ranks=tokenizer.ranks,
        special_tokens=tokenizer.special_tokens,
    )
    (theirs / "tokenizer").mkdir()
    (theirs / "tokenizer/tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_commands_and_programs_do_what_the_page_says(page, folder):
    if page.name == "server.md":
        model = GPT(GPTConfig(**SIZES))
        model.init_weights(0)
        write_bundle(folder / "my-bundle", model, byte_tokenizer(), meta={"stage": "sft"}, layout="nanochat")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "NANOCHAT_BASE_DIR": str(folder / "base"), "OMP_NUM_THREADS": "1"}
    commands = [["bash", "-euo", "pipefail", "-c", text] for text in ["".join(blocks(page, "sh"))] if text]
    commands += [[sys.executable, "-c", text] for text in blocks(page, "python")]
    for command in commands:
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh in-clone")], ids=name_of)
def test_commands_of_a_clone(page):
    for text in blocks(page, "sh in-clone"):
        subprocess.run([sys.executable, *shlex.split(text)[1:]], cwd=ROOT, check=True)


def test_the_sizing_table_is_what_the_recipe_and_the_model_say():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs/sizing.md").read_text(), re.MULTILINE)
    assert len(rows) == 7
    for depth, told in rows:
        width = Recipe.from_depth(int(depth)).n_embd
        config = GPTConfig(n_layer=int(depth), n_embd=width, n_head=width // 128, n_kv_head=width // 128)
        with torch.device("meta"):
            model = GPT(config)
        recipe = Recipe.from_depth(int(depth), flops_per_token=model.flops_per_token())
        tokens = recipe.num_iterations * recipe.total_batch_size
        assert told.split(" | ") == [
            str(width),
            f"{model.param_counts()['total'] / 1e6:.0f}M",
            f"{recipe.num_iterations:,}",
            f"{recipe.total_batch_size:,}",
            f"{tokens / 1e9:.2f}G",
            f"{tokens * model.flops_per_token():.1e}",
        ]
