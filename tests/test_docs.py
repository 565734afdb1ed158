"""The examples of the documents are run, those that need a GPU have their flags read, and links lead somewhere."""

import json
import os
import pickle
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiktoken
import torch
import yaml
from nanochat_apps import nanochat
from nanochat_apps.interop.bundle import write_bundle
from nanochat_apps.runtime import cli
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_data.synthetic import TinyWorld
from nanochat_model import GPT, GPTConfig, save_model
from nanochat_tokenizer import convert
from nanochat_tokenizer.testing import byte_tokenizer
from nanochat_train import Recipe

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
READMES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "apps/README.md",
    *sorted(ROOT.glob("packages/*/README.md")),
]
PAGES = [*DOCS, *READMES]
KINDS = {
    "sh": "run in a folder with small texts, chats and models",
    "sh in-background": "one command, run beside those that follow",
    "sh in-ci": "run by .ci/run, perhaps with more flags",
    "sh in-clone": "run in the repository",
    "sh needs-gpu": "its flags are read",
    "python": "run like sh, but what `__main__` guards",
    "json": "read",
    "text": "shown",
}
FENCE = re.compile(r"^ *```(.+?)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SIZES = {"sequence_len": 128, "vocab_size": 265, "n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 64}


def blocks(page: Path) -> list[tuple[str, str]]:
    """The kind and the text of each block; a program to be saved under a name has the kind `python save-as=NAME`."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def of_kind(page: Path, kind: str) -> list[str]:
    return [text for found, text in blocks(page) if found == kind]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


NOT_RUN = {"results.md", "mirror.md"}
"""Their commands take hours, or a network; test_mirror.py runs the mirror's check."""
RUN = [page for page in PAGES if of_kind(page, "sh") + of_kind(page, "python") and page.name not in NOT_RUN]


def test_links_lead_somewhere_and_every_block_has_a_kind():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert {re.sub(" save-as=.*", "", kind) for kind, _ in blocks(page)} <= set(KINDS), page
        assert text.count("```") == 2 * len(blocks(page)), page
        targets = re.findall(r"\]\(([^)#]+)[^)]*\)", FENCE.sub("", text))
        generated = {"reference/commands.md"}
        missing = [t for t in targets if not t.startswith("http") and not (page.parent / t).exists()]
        assert not [
            t for t in missing if (page.parent / t).resolve().relative_to(ROOT / "docs").as_posix() not in generated
        ], page
        for example in of_kind(page, "json"):
            json.loads(example)


def test_files_that_pages_name_are_there():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {path for file in listed.split() for path in (file, *("/".join(file.split("/")[i:]) for i in range(9)))}
    for page in PAGES:
        named = re.findall(r"`([\w./-]+\.(?:py|js|mjs|sh|cfg|service|slurm))`", page.read_text(encoding="utf-8"))
        assert not {name for name in named if name not in files | {"shouting.py"}}, page


def test_every_page_is_in_the_navigation():
    def pages(nav: object) -> set[str]:
        if isinstance(nav, str):
            return {nav}
        return set().union(*map(pages, nav.values() if isinstance(nav, dict) else nav))

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in DOCS} | {"reference/commands.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if of_kind(page, "sh needs-gpu")], ids=name_of)
def test_what_needs_a_gpu_has_flags_that_exist(page):
    for line in "".join(of_kind(page, "sh needs-gpu")).replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        assert words[:2] == ["uv", "run"], line
        words = words[2:]
        if words[0] == "torchrun":
            words = words[words.index("nanochat_apps") + 1 :]
        cli.parse(nanochat.settings_of(words[0]), words[1:], prog=words[0], description="")


@pytest.mark.parametrize("page", [page for page in PAGES if of_kind(page, "sh in-ci")], ids=name_of)
def test_what_is_said_to_run_in_ci_does(page):
    ci = (ROOT / ".ci/run").read_text() + "\n.ci/run\n"
    for line in "".join(of_kind(page, "sh in-ci")).splitlines():
        command = line.partition("#")[0].strip().removeprefix("pip install uv && ")
        assert re.search(rf"(^|\s){re.escape(command)}(\s|$)", ci), command


@pytest.fixture
def folder(at_hand: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(at_hand, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def at_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the pages has at hand, small."""
    tmp_path = tmp_path_factory.mktemp("at-hand")
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
    ours = GPT(modern.config)
    ours.init_weights(0)
    for directory in ("my-bundle", "step_000600"):
        write_bundle(tmp_path / directory, ours, tokenizer, meta={"stage": "sft"}, layout="nanochat")
    save_tiny_checkpoint(tmp_path / "base/chatsft_checkpoints/d1")
    return tmp_path


def script_of(page: Path, folder: Path) -> str:
    """All blocks of a page as one script, in their order, with few training steps and a free port."""
    lines = []
    for number, (kind, text) in enumerate(blocks(page)):
        if kind == "sh":
            lines.append(text)
        elif kind == "sh in-background":
            ready = "curl --silent --fail --retry 300 --retry-delay 1 --retry-all-errors http://127.0.0.1:8000/ready"
            lines += [f"{text.strip()} &", "trap 'kill $!' EXIT", ready]
        elif kind.startswith("python"):
            file = kind.partition("save-as=")[2] or f"block-{number}.py"
            (folder / file).write_text(text, encoding="utf-8")
            if "save-as" not in kind:
                lines.append(f'python -c \'import runpy; runpy.run_path("{file}", run_name="page")\'')
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    return re.sub(r"\b8000\b", port, re.sub(r"(--num-iterations) \d+", r"\1 4", "\n".join(lines)))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_commands_and_programs_do_what_the_page_says(page, folder):
    if "export-checkpoint my-bundle" in page.read_text():
        shutil.rmtree(folder / "my-bundle")
    (folder / "bin").mkdir()
    (folder / "bin/uv").write_text('#!/bin/sh\n[ "$1" = run ] && shift\nexec "$@"\n')
    (folder / "bin/uv").chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "NANOCHAT_BASE_DIR": str(folder / "base"), "OMP_NUM_THREADS": "1"}
    command = ["bash", "-euo", "pipefail", "-c", script_of(page, folder)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if of_kind(page, "sh in-clone")], ids=name_of)
def test_commands_of_a_clone(page):
    for text in of_kind(page, "sh in-clone"):
        subprocess.run([sys.executable, *shlex.split(text)[1:]], cwd=ROOT, check=True)


def test_the_sizing_table_is_what_the_recipe_and_the_model_say():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs/reference/recipe.md").read_text(), re.MULTILINE)
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
