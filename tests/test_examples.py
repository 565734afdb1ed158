"""The examples run as a stranger runs them, with nothing of ours importable but what they say they need."""

import json
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
from nanochat_apps import chat_rl
from nanochat_apps.runtime import paths
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_train import load_meta, read_metrics
from packaging.requirements import Requirement

EXAMPLES = Path(__file__).parent.parent / "examples"

ONLY = """
import runpy, sys
allowed = {allowed!r}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("nanochat_") and name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{{name}} is not among the example's dependencies", name=name)


sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(example: str, file: str, *arguments: str) -> list[str]:
    project = tomllib.loads((EXAMPLES / example / "pyproject.toml").read_text())["project"]
    allowed = [Requirement(line).name.replace("-", "_") for line in project["dependencies"]]
    return [sys.executable, "-c", ONLY.format(allowed=allowed), str(EXAMPLES / example / file), *arguments]


def run(example: str, file: str, *arguments: str) -> str:
    done = subprocess.run(command(example, file, *arguments), capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_in_the_list_and_says_what_it_needs():
    folders = [path for path in EXAMPLES.iterdir() if path.is_dir()]
    assert folders
    listed = (EXAMPLES / "README.md").read_text()
    assert not [path for path in folders if f"({path.name})" not in listed or not (path / "pyproject.toml").exists()]


@pytest.mark.slow
def test_a_bot_on_the_engine_alone():
    said = run("engine-bot", "bot.py", "the dog")
    words = said.split()
    assert len(said) > 40
    assert {"the", "cat", "sat", "on", "dog"} & set(words)
    assert said == run("engine-bot", "bot.py", "the dog")


@pytest.mark.slow
def test_another_tokenizer_swapped_in():
    loss, text = run("custom-tokenizer", "train.py").splitlines()
    first, last = (float(word) for word in loss.split() if word[0].isdigit())
    assert last < first / 2
    assert text.startswith("red fox ")


@pytest.mark.slow
def test_a_model_of_one_s_own_is_served():
    process = subprocess.Popen(command("serve-own-model", "server.py", "0"), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        [url] = re.findall(r"http://\S+", process.stdout.readline())
        body = {"messages": [{"role": "user", "content": "I had a dream"}]}
        request = urllib.request.Request(
            f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        lines = urllib.request.urlopen(request).read().decode().splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert "".join(event.get("token", "") for event in events) == "What does that dream suggest to you?"
        assert events[-1] == {"done": True}
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_task_and_a_reward_of_one_s_own(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    save_tiny_checkpoint(paths.checkpoints_root("sft") / "d2")
    settings = chat_rl.Settings(
        task=f"{EXAMPLES / 'rl-own-task' / 'shouting.py'}:make_task",
        num_iterations=2,
        examples_per_step=2,
        num_samples=4,
        max_new_tokens=8,
        eval_samples=2,
        device_type="cpu",
        dtype="float32",
    )
    assert chat_rl.train(settings) == 0
    rl = paths.find_checkpoint("rl", "d2")
    assert load_meta(rl)["step"] == 2
    rewards = [line["reward"] for line in read_metrics(rl.parent / "metrics.jsonl") if "reward" in line]
    assert len(rewards) == 2
    assert 0 < max(rewards) < 1  # noise has some capitals
