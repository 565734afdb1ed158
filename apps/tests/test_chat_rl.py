"""chat-rl on toy sizes: from a fine-tuned model to a better one, stopped and gone on with, on tasks of one's own."""

import json
from dataclasses import replace

import pytest
import torch
from nanochat_apps import chat_rl
from nanochat_apps.adapters import rollouts
from nanochat_apps.adapters.tasks import rewarding_task
from nanochat_apps.runtime import paths
from nanochat_apps.runtime.cli import UsageError
from nanochat_data.synthetic import TinyWorld
from nanochat_engine import SamplingParams
from nanochat_model import GPT, GPTConfig, load_model, save_model
from nanochat_tokenizer import Tokenizer, train_tokenizer
from nanochat_train import list_steps, load_meta, read_metrics, save_checkpoint

OWN_TASK = '''
from nanochat_data import Task

class SayE(Task):
    """Pays for the letter e."""

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 8

    def conversation(self, index):
        messages = [{"role": "user", "content": f"Say it {index} times."}, {"role": "assistant", "content": "e"}]
        return {"messages": messages}

    def evaluate(self, conversation, completion):
        return "e" in completion

def broken(split):
    return 3
'''


@pytest.fixture
def chat_model(tmp_path, monkeypatch):
    """A fine-tuned checkpoint with random weights."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    tokenizer = train_tokenizer((TinyWorld(0).document(i) for i in range(100)), vocab_size=300)
    model = GPT(
        GPTConfig(n_layer=1, n_embd=32, n_head=2, n_kv_head=2, sequence_len=256, vocab_size=tokenizer.vocab_size)
    )
    model.init_weights(0)
    save_checkpoint(
        paths.checkpoints_root("sft") / "tiny",
        1,
        writers=[lambda d: save_model(model, d), lambda d: tokenizer.save(d / "tokenizer")],
        meta={"stage": "sft", "tokenizer_fingerprint": tokenizer.fingerprint},
    )
    own = tmp_path / "own.py"
    own.write_text(OWN_TASK)
    return chat_rl.Settings(
        task=f"{own}:SayE",
        num_iterations=4,
        examples_per_step=2,
        num_samples=4,
        device_batch_size=4,
        max_new_tokens=6,
        eval_every=2,
        eval_examples=4,
        eval_samples=2,
        save_every=2,
        init_lr_frac=1.0,
        device_type="cpu",
        dtype="float32",
    )


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(chat_model):
    assert chat_rl.train(chat_model) == 0
    root = paths.checkpoints_root("rl") / "tiny"
    assert list_steps(root) == [2, 4]
    straight = load_model(root / "step_000004").state_dict()
    start = load_model(paths.find_checkpoint("sft")).state_dict()
    assert any(not torch.equal(start[name], straight[name]) for name in start)
    for file in sorted((root / "step_000004").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert chat_rl.train(replace(chat_model, resume_from_step=2)) == 0
    resumed = load_model(root / "step_000004").state_dict()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


def test_samples_are_of_the_weights_as_they_are_at_the_time(chat_model):
    checkpoint, task = paths.find_checkpoint("sft"), rewarding_task(chat_model.task, "train")
    tokenizer, model = Tokenizer.load(checkpoint / "tokenizer"), load_model(checkpoint)
    conversations = [task[i] for i in range(4)]

    def sample(sampler):
        return sampler.rollouts(conversations, task, 3, [1, 2, 3, 4])

    sampler = rollouts.make_sampler(chat_model, model, tokenizer)
    before = sample(sampler)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert sample(sampler) == sample(rollouts.make_sampler(chat_model, model, tokenizer)) != before


def test_a_run_leaves_scores_curves_and_samples(chat_model):
    chat_rl.train(chat_model)
    root = paths.checkpoints_root("rl") / "tiny"
    meta = load_meta(root / "step_000004")
    assert (meta["stage"], meta["started_from"], meta["scores"]["pass@1_step"]) == ("rl", "step_000001", 4)
    assert 0 <= meta["scores"]["pass@1"] <= meta["scores"]["pass@2"] <= 1
    lines = read_metrics(root / "metrics.jsonl")
    assert [line["step"] for line in lines if "pass@1" in line] == [0, 2, 4]
    assert {"reward", "length", "truncated", "nonzero_groups", "entropy"} <= set(lines[1])
    assert all(line["entropy"] > 1 for line in lines if "reward" in line), "also where all rewards tie"
    samples = [json.loads(line) for line in (root / chat_rl.SAMPLES_FILE).read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1, 2, 3, 4]
    assert samples[0]["text"].startswith("<|bos|><|user_start|>Say it")


def test_going_on_with_another_task_is_refused(chat_model):
    chat_rl.train(chat_model)
    with pytest.raises(
        UsageError, match=r"holds another run \(task was .*own.py:SayE', is now 'tinyworld-arithmetic'\)"
    ):
        chat_rl.train(replace(chat_model, task="tinyworld-arithmetic"))
    with pytest.raises(ValueError, match="other task"):
        chat_rl.train(replace(chat_model, task="tinyworld-arithmetic", resume_from_step=2))


def test_a_mixture_is_graded_task_by_task_and_answers_have_a_budget(chat_model, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(OWN_TASK.replace('"e" in completion', '"q" in completion').replace("Say it", "Write it"))
    mixed = rewarding_task(f"{tmp_path / 'own.py'}:SayE:2,{other}:SayE", "train")
    assert len(mixed) == 24
    for conversation in mixed:
        says_e = conversation["messages"][0]["content"].startswith("Say")
        assert [mixed.reward(conversation, text) for text in ("e", "q")] == [float(says_e), float(not says_e)]
    assert chat_rl.train(replace(chat_model, task=f"{tmp_path / 'own.py'}:SayE,{other}:SayE", length_budget=3)) == 0
    sampler = rollouts.Sampler(model=None, engine=None, params=SamplingParams(max_tokens=8), length_budget=4)
    assert [sampler._within_budget(length) for length in (1, 4, 6, 8)] == [1.0, 1.0, 0.5, 0.0]


def test_clipping_and_the_kl_are_optional_and_change_the_run(chat_model):
    """At the first step the model is its own reference, and its ratios are 1."""
    ends = {}
    for name, changes in {"plain": {}, "both": {"clip_ratio": 0.2, "kl_coef": 0.5}}.items():
        chat_rl.train(replace(chat_model, overwrite=True, **changes))
        root = paths.checkpoints_root("rl") / "tiny"
        lines = [line for line in read_metrics(root / "metrics.jsonl") if "grad_norm" in line]
        ends[name] = lines[0]["grad_norm"], load_model(root / "step_000004").state_dict()
    assert ends["both"][0] == pytest.approx(ends["plain"][0], rel=1e-4)
    assert any(not torch.equal(value, ends["plain"][1][name]) for name, value in ends["both"][1].items())


def test_the_trial_step_of_rl_has_rows_as_long_as_the_context(chat_model, monkeypatch):
    shapes = []
    loss = GPT.loss
    monkeypatch.setattr(
        GPT,
        "loss",
        lambda self, ids, *args, **kwargs: (shapes.append(tuple(ids.shape)), loss(self, ids, *args, **kwargs))[1],
    )
    chat_rl.train(replace(chat_model, device_batch_size=None, num_iterations=1, eval_every=0))
    assert shapes[0] == (4, 256)
    assert load_meta(paths.find_checkpoint("rl"))["device_batch_size"] == 4


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        ("nowhere.py:Task", "the file does not exist"),
        ("{own}:Missing", "must be a nanochat_data.Task"),
        ("{own}:broken", "must be a nanochat_data.Task"),
        ("{own}.jsonl", "no grader"),
    ],
)
def test_a_task_that_cannot_be_trained_on_is_one_line(tmp_path, task, complaint):
    own = tmp_path / "own.py"
    own.write_text(OWN_TASK)
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    own.with_suffix(".py.jsonl").write_text(json.dumps(chat) + "\n")
    with pytest.raises(UsageError, match=complaint):
        rewarding_task(task.format(own=own), "train")


def test_a_task_file_may_have_a_dataclass_and_postponed_annotations(tmp_path):
    own = tmp_path / "own.py"
    settings = "@dataclass(frozen=True, kw_only=True)\nclass Levels:\n    levels: list[int] | None = None\n\n"
    imports = "from __future__ import annotations\n\nfrom dataclasses import dataclass\n"
    own.write_text(imports + OWN_TASK.replace("class SayE", f"{settings}class SayE", 1))
    assert len(rewarding_task(f"{own}:SayE", "train")) > 0


def test_programs_are_not_run_without_walls_unless_by_request(tmp_path, monkeypatch):
    problem = {"prompt": "def f():\n", "canonical_solution": "", "entry_point": "f", "test": "def check(f):\n    f()\n"}
    (tmp_path / "humaneval").mkdir()
    (tmp_path / "humaneval" / "test.jsonl").write_text(json.dumps(problem) + "\n")
    monkeypatch.setenv("NANOCHAT_DATA_MIRROR", str(tmp_path))
    monkeypatch.setattr("nanochat_data.sandbox.landlock.abi", lambda: 0)
    with pytest.raises(RuntimeError, match="this machine lacks Landlock"):
        rewarding_task("humaneval", "train")
    assert len(rewarding_task("humaneval", "train", unsafe_code=True)) == 1
