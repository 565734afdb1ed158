"""CORE as base-eval scores it equals a plain scorer, one item and one option at a time, over transformers' own models."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from nanochat_apps import base_eval
from nanochat_apps.adapters import base_evals
from nanochat_apps.adapters.eval_model import make_loglikelihood
from nanochat_apps.runtime.cli import UsageError
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_data import CoreTask, load_core_bundle
from nanochat_model.convert import from_transformers
from nanochat_tokenizer.testing import byte_tokenizer
from nanochat_train import evaluate_core
from torch import Tensor

TOKENIZER = byte_tokenizer()
V = TOKENIZER.vocab_size
NUM_OPTIONS = (24 + 24) * 4 + (12 + 12) * 2 + 12 + 12
"""Of the bundle below."""
WORDS = [
    "the",
    "old",
    "red fox",
    "sees",
    "a small bird",
    "near two",
    "quiet houses",
    "while it",
    "sings",
    "and then",
    "go home",
]


def encode(text: str) -> list[int]:
    return [TOKENIZER.bos_id, *TOKENIZER.encode(text)]


@torch.no_grad()
def make_lively(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """Weights that make answers differ, and an unembedding that says nothing but small letters."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    head = model.get_output_embeddings().weight
    spoken = torch.zeros(V, 1)
    spoken[ord("a") : ord("z") + 1] = 1
    head.mul_(spoken)
    return model.eval()


def nanochat() -> transformers.PreTrainedModel:
    return make_lively(
        transformers.NanoChatForCausalLM(
            transformers.NanoChatConfig(
                vocab_size=V,
                hidden_size=32,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=1024,
            )
        )
    )


def llama() -> transformers.PreTrainedModel:
    return make_lively(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=V,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=2048,
            )
        )
    )


class WithoutCache:
    """A transformers model as the engine's Protocol has it, whole sequences only."""

    kv_spec = None
    device = torch.device("cpu")

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self._model = model
        self.max_context = 2048

    def __call__(self, token_ids: Tensor, *, kv_cache: object = None) -> Tensor:
        assert kv_cache is None
        return self._model(token_ids).logits


class Oracle:
    """Scores one option at a time with a model's logits, in float64, from the paper's definitions."""

    def __init__(self, model: transformers.PreTrainedModel) -> None:
        self._model = model

    @torch.no_grad()
    def log_probabilities(self, text: str) -> tuple[list[int], Tensor]:
        """The ids (T,) and what the model gives for the token after each of them, (T, V)."""
        ids = encode(text)
        return ids, self._model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def is_right(self, task: CoreTask, index: int) -> bool:
        prompts, gold = task.item(index).prompts, task.item(index).gold
        if task.kind == "language_modeling":
            ids, log_probabilities = self.log_probabilities(prompts[1])
            start = len(encode(prompts[0]))
            return all(int(log_probabilities[t - 1].argmax()) == ids[t] for t in range(start, len(ids)))
        encoded = [encode(prompt) for prompt in prompts]
        if task.kind == "schema":
            shared = next(n for n in range(1, 10**6) if len({ids[-n] for ids in encoded}) > 1) - 1
            starts = [len(ids) - shared for ids in encoded]
        else:
            starts = [next(n for n in range(10**6) if len({ids[n] for ids in encoded}) > 1)] * len(encoded)
        means = []
        for prompt, start in zip(prompts, starts, strict=True):
            ids, log_probabilities = self.log_probabilities(prompt)
            losses = [-float(log_probabilities[t - 1, ids[t]]) for t in range(start, len(ids))]
            means.append(sum(losses) / len(losses))
        return means.index(min(means)) == gold

    @torch.no_grad()
    def go_on(self, text: str, count: int) -> str:
        """What it would say."""
        for _ in range(count):
            text += chr(int(self.log_probabilities(text)[1][-1].argmax()))
        return text[-count:]


def make_bundle(folder: Path, oracle: Oracle) -> Path:
    """A bundle of every kind, of which the oracle answers some rightly."""
    rng = random.Random(0)

    def say(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    choices = [
        {"query": say(9), "choices": [say(rng.randint(1, 4)) + f" {n}" for n in range(4)], "gold": rng.randrange(4)}
        for _ in range(24)
    ]
    schema = [
        {"context_options": [say(3), say(5) + "!"], "continuation": say(4), "gold": rng.randrange(2)} for _ in range(12)
    ]
    continued = [{"context": say(8), "continuation": say(1)} for _ in range(12)]
    for row in continued[::2]:  # without shots these are what the model says
        row["continuation"] = oracle.go_on(row["context"], 3)
    tasks = [
        ("choose", "multiple_choice", 5, "\nAnswer: ", choices),
        ("choose at once", "multiple_choice", 0, " ", choices),
        ("resolve", "schema", 0, " ", schema),
        ("resolve after others", "schema", 2, " ", schema),
        ("go on", "language_modeling", 0, "", continued),
        ("go on after others", "language_modeling", 3, " ", continued),
    ]
    (folder / "eval_data").mkdir(parents=True)
    entries = []
    for label, kind, shots, delimiter, rows in tasks:
        name = f"{label}.jsonl"
        (folder / "eval_data" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        entries.append(
            {
                "label": label,
                "dataset_uri": name,
                "num_fewshot": [shots],
                "icl_task_type": kind,
                "continuation_delimiter": delimiter,
            }
        )
    (folder / "core.yaml").write_text(json.dumps({"icl_tasks": entries}))
    lines = [f"{label},{0 if kind == 'language_modeling' else 25}\n" for label, kind, *_ in tasks]
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def hf_model() -> transformers.PreTrainedModel:
    return nanochat()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, hf_model: transformers.PreTrainedModel) -> Path:
    return make_bundle(tmp_path_factory.mktemp("core"), Oracle(hf_model))


def accuracies(oracle: Oracle, tasks: Sequence[CoreTask]) -> list[float]:
    return [sum(oracle.is_right(task, i) for i in range(len(task))) / len(task) for task in tasks]


def test_a_transformers_model_and_ours_of_its_weights_get_the_oracles_score(bundle, hf_model):
    tasks = load_core_bundle(bundle)
    expected = accuracies(Oracle(hf_model), tasks)
    assert all(0 < accuracy < 1 for accuracy in expected[:5]), "the tasks must tell right from wrong"
    ours = from_transformers(hf_model)
    for batch_tokens, items_at_once in ((100, 1), (700, 5), (20_000, 64)):
        for model in (ours, WithoutCache(hf_model)):
            loglikelihood = make_loglikelihood(model, TOKENIZER, batch_tokens=batch_tokens)
            result = evaluate_core(tasks, encode, loglikelihood, items_at_once=items_at_once)
            assert [task.accuracy for task in result.tasks] == expected, (batch_tokens, type(model).__name__)


def test_another_architecture_gets_the_oracles_score(bundle):
    model = llama()
    tasks = load_core_bundle(bundle)
    result = evaluate_core(tasks, encode, make_loglikelihood(WithoutCache(model), TOKENIZER))
    assert [task.accuracy for task in result.tasks] == accuracies(Oracle(model), tasks)


def test_fewer_items_than_shots_get_the_oracles_score(bundle, hf_model):
    tasks = load_core_bundle(bundle, max_per_task=2)
    result = evaluate_core(tasks, encode, make_loglikelihood(from_transformers(hf_model), TOKENIZER))
    assert [task.accuracy for task in result.tasks] == accuracies(Oracle(hf_model), tasks)


def test_long_contexts_computed_in_chunks_and_once_give_the_sums_of_whole_sequences(hf_model):
    generator = torch.Generator().manual_seed(1)
    context = torch.randint(0, 256, (1200,), generator=generator).tolist()  # more than the model was trained for
    ends = [torch.randint(0, 256, (n,), generator=generator).tolist() for n in (3, 7, 5)]
    pairs = [*((context, end) for end in ends), (context[:300], ends[0]), (ends[1][:2], ends[1][2:]), ([1], ends[2])]
    model, num_tokens = from_transformers(hf_model), 0

    class Counting:
        kv_spec, device, max_context = model.kv_spec, model.device, model.max_context

        def __call__(self, token_ids, *, kv_cache=None):
            nonlocal num_tokens
            num_tokens += token_ids.numel()
            return model(token_ids, kv_cache=kv_cache)

    ours = make_loglikelihood(Counting(), TOKENIZER, batch_tokens=500)(pairs)
    assert num_tokens < 1.1 * len(context), "what continuations share is computed once"
    for (before, after), (total, is_greedy) in zip(pairs, ours, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([before + after]))[0, len(before) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(after)[:, None]).sum()
        assert total == pytest.approx(float(expected), abs=1e-3)
        assert is_greedy == (logits.argmax(-1).tolist() == after)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> base_eval.Settings:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    save_tiny_checkpoint(tmp_path / "base_checkpoints" / "d2")
    return base_eval.Settings(core=bundle, num_samples=0, device_type="cpu", dtype="float32")


def test_base_eval_goes_on_where_it_was_stopped(settings, tmp_path, capsys, monkeypatch):
    assert base_eval.evaluate(settings) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in said[1:3]] == ["choose", "choose at once"]
    assert said[-1].startswith("CORE ")
    log = tmp_path / "report" / "core_d2_step_000001.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 24 + 24 + 12 + 12 + 12 + 12
    log.write_text("".join(lines[:50]) + lines[50][:20])

    scored = []
    real = base_evals.make_loglikelihood

    def counting(*args, **kwargs):
        loglikelihood = real(*args, **kwargs)
        return lambda pairs: scored.extend(pairs) or loglikelihood(pairs)

    monkeypatch.setattr(base_evals, "make_loglikelihood", counting)
    assert base_eval.evaluate(settings) == 0
    assert len(scored) == NUM_OPTIONS - (24 + 24) * 4 - 2
    assert capsys.readouterr().out.splitlines()[1:] == said[1:]

    save_tiny_checkpoint(tmp_path / "base_checkpoints" / "d2", step=1, seed=5)
    assert base_eval.evaluate(settings) == 0
    assert len(scored) == 2 * NUM_OPTIONS - (24 + 24) * 4 - 2, "another model's verdicts are no use"


def test_fewer_items_have_a_log_of_their_own(settings, tmp_path, capsys):
    assert base_eval.evaluate(replace(settings, max_per_task=1)) == 0
    assert all(" of     1 " in line for line in capsys.readouterr().out.splitlines()[1:-1])
    assert (tmp_path / "report" / "core_d2_step_000001_1.jsonl").is_file()
    with pytest.raises(UsageError, match="--max-per-task 0 must be at least 1, or -1"):
        base_eval.evaluate(replace(settings, max_per_task=0))


def test_a_prompt_beyond_the_models_positions_is_cropped_and_said_to_be(settings, tmp_path, capsys, monkeypatch):
    save_tiny_checkpoint(tmp_path / "base_checkpoints" / "d2", step=2, sequence_len=32)
    assert base_eval.evaluate(settings) == 0
    assert "cropped)" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("choose "))
