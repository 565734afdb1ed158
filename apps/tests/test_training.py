"""base-train, chat-sft and quickstart on toy sizes, as a person runs them: stopped, gone on with, and given bad input."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nanochat_apps import base_eval, base_train, chat_sft, paths, tok_eval, tok_train
from nanochat_apps.cli import UsageError
from nanochat_apps.quickstart import program, report
from nanochat_data.tinyworld import TinyWorld
from nanochat_model import load_model
from nanochat_train import JsonlSink, list_steps, load_meta, read_metrics


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of generated text and a tokenizer trained on it."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    world, folder = TinyWorld(0), tmp_path / "texts"
    folder.mkdir()
    for name, split, count in (("train", "train", 300), ("valid", "test", 20)):
        lines = (json.dumps({"text": world.document(i, split=split)}) + "\n" for i in range(count))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    assert tok_train.train(tok_train.Settings(data=folder, vocab_size=300)) == 0
    return folder


def settings(corpus: Path, **changes) -> base_train.Settings:
    return base_train.Settings(
        **{
            "data": corpus,
            "depth": 1,
            "aspect_ratio": 32,
            "head_dim": 16,
            "max_seq_len": 64,
            "num_iterations": 6,
            "device_batch_size": 2,
            "total_batch_size": 256,
            "eval_every": 3,
            "eval_tokens": 2000,
            "model_tag": "tiny",
            "device_type": "cpu",
            "dtype": "float32",
            "sample_every": 0,
        }
        | changes
    )


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(corpus):
    whole = settings(corpus, model_tag="whole")
    assert base_train.train(whole) == 0
    parts = replace(whole, model_tag="parts", save_every=2, keep=2)
    assert base_train.train(replace(parts, save_every=3)) == 0
    root = paths.checkpoints_root("base") / "parts"
    assert list_steps(root) == [3, 6]
    for file in sorted((root / "step_000006").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    assert base_train.train(replace(parts, resume_from_step=3)) == 0
    resumed, straight = (load_model(paths.find_checkpoint("base", tag)).state_dict() for tag in ("parts", "whole"))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    steps = [json.loads(line)["step"] for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert [s for s in steps if s <= 6] == sorted(steps)


def test_a_checkpoint_says_what_it_is_and_nothing_of_the_machine(corpus, tmp_path):
    base_train.train(settings(corpus))
    meta = load_meta(paths.find_checkpoint("base"))
    assert (meta["step"], meta["stage"], meta["settings"]["depth"]) == (6, "base", 1)
    assert meta["scores"]["val_bpb"] > 0
    assert str(tmp_path) not in json.dumps(meta)


def test_fine_tuning_starts_from_the_base_model_and_is_evaluated(corpus, tmp_path, capsys):
    base_train.train(settings(corpus))
    chats = tmp_path / "chats.jsonl"
    lines = (
        json.dumps({"messages": TinyWorld(0).conversation(i, skill="identity")["messages"]}) + "\n" for i in range(60)
    )
    chats.write_text("".join(lines))
    assert (
        chat_sft.train(chat_sft.Settings(mixture=f"{chats}:2", device_type="cpu", dtype="float32", compile="off")) == 0
    )
    meta = load_meta(paths.find_checkpoint("sft"))
    assert meta["base"] == "step_000006"
    assert meta["scores"]["val_bpb"] > 0
    assert (
        base_eval.evaluate(base_eval.Settings(data=corpus, split_tokens=500, device_type="cpu", dtype="float32")) == 0
    )
    assert tok_eval.evaluate(tok_eval.Settings(data=corpus)) == 0
    said = capsys.readouterr().out
    assert "val: " in said
    assert "The capital of France is|" in said
    assert "bytes a token" in said


def test_another_tokenizer_or_model_is_refused_by_name(corpus):
    base_train.train(settings(corpus))
    with pytest.raises(ValueError, match=r"n_head=2, these settings make n_head=1"):
        base_train.train(settings(corpus, resume_from_step=0, head_dim=32))
    with pytest.raises(UsageError, match=r"--resume-from-step 5: no such checkpoint .* \(there: 6\)"):
        base_train.train(settings(corpus, resume_from_step=5))
    tok_train.train(tok_train.Settings(data=corpus, vocab_size=301))
    with pytest.raises(ValueError, match="another tokenizer"):
        base_train.train(settings(corpus, resume_from_step=0))


@pytest.mark.parametrize(("file", "named"), [("train", "training text"), ("valid", "validation text")])
def test_other_text_is_refused_by_name(corpus, file, named):
    base_train.train(settings(corpus, num_iterations=1))
    path = corpus / f"{file}.jsonl"
    path.write_text(path.read_text() + json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(ValueError, match=rf"step_000001 was made with other {named} \(fingerprint [0-9a-f]{{12}}, now"):
        base_train.train(settings(corpus, resume_from_step=0))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_from_there(corpus, monkeypatch, number, capsys):
    whole = settings(corpus, model_tag="whole")
    assert base_train.train(whole) == 0
    stopped = replace(whole, model_tag="stopped")
    log = JsonlSink.log

    def log_and_signal(sink, step, metrics):
        log(sink, step, metrics)
        if step == 2 and not root_steps("stopped"):
            signal.raise_signal(number)

    monkeypatch.setattr(JsonlSink, "log", log_and_signal)
    assert base_train.train(stopped) == 130
    assert root_steps("stopped") == [2]
    assert "stopped after step 2, which is saved" in capsys.readouterr().err
    assert base_train.train(replace(stopped, resume_from_step=0)) == 0
    ours, theirs = (load_model(paths.find_checkpoint("base", tag)).state_dict() for tag in ("stopped", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def root_steps(tag: str) -> list[int]:
    return list_steps(paths.checkpoints_root("base") / tag)


def test_fine_tuning_that_is_stopped_and_resumed_ends_with_the_same_weights(corpus, tmp_path):
    base_train.train(settings(corpus, num_iterations=2))
    chats = tmp_path / "chats.jsonl"
    messages = (TinyWorld(0).conversation(i, skill="identity")["messages"] for i in range(60))
    chats.write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))
    fine_tuning = chat_sft.Settings(
        mixture=str(chats), num_iterations=6, save_every=3, device_type="cpu", dtype="float32", compile="off"
    )
    assert chat_sft.train(fine_tuning) == 0
    straight = load_model(paths.find_checkpoint("sft")).state_dict()
    shutil.rmtree(paths.find_checkpoint("sft"))
    assert chat_sft.train(replace(fine_tuning, resume_from_step=3)) == 0
    resumed = load_model(paths.find_checkpoint("sft")).state_dict()
    assert load_meta(paths.find_checkpoint("sft"))["step"] == 6
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    chats.write_text(chats.read_text().replace("you", "thou", 1))
    with pytest.raises(ValueError, match=r"was made with other conversations"):
        chat_sft.train(replace(fine_tuning, resume_from_step=3))


def test_samples_and_core_come_every_so_often_and_at_the_end(corpus, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    (bundle / "eval_data").mkdir(parents=True)
    task = {"label": "ends", "dataset_uri": "ends.jsonl", "icl_task_type": "language_modeling", "num_fewshot": [1]}
    (bundle / "core.yaml").write_text(json.dumps({"icl_tasks": [task]}))
    (bundle / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nends,0\n")
    items = [{"context": f"{a} and", "continuation": a} for a in ("one", "two", "six", "ten")]
    (bundle / "eval_data/ends.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    often = settings(corpus, core=bundle, core_metric_every=2, core_metric_max_per_task=3, sample_every=4)
    base_train.train(replace(often, num_iterations=5))
    assert load_meta(paths.find_checkpoint("base"))["scores"]["core"] >= 0
    lines = read_metrics(paths.checkpoints_root("base") / "tiny" / "metrics.jsonl")
    assert [line["step"] for line in lines if "core" in line] == [2, 4, 5]
    said = capsys.readouterr().err
    assert [step for step in range(1, 6) if f"base step {step}  The capital of France is|" in said] == [4, 5]
    base_train.train(replace(often, model_tag="quiet", core=None, sample_every=-1))
    assert "capital" not in capsys.readouterr().err


def test_a_new_run_takes_the_weights_of_an_old_one(corpus):
    base_train.train(settings(corpus))
    old = paths.find_checkpoint("base", "tiny")
    base_train.train(
        settings(corpus, model_tag="new", init_from=old, num_iterations=1, embedding_lr=0.0, matrix_lr=0.0)
    )
    new = load_model(paths.find_checkpoint("base", "new")).state_dict()
    assert torch.equal(new["transformer.wte.weight"], load_model(old).state_dict()["transformer.wte.weight"])
    assert load_meta(paths.find_checkpoint("base", "new"))["step"] == 1
    with pytest.raises(ValueError, match=r"n_head=2, these settings make n_head=1"):
        base_train.train(settings(corpus, model_tag="other", init_from=old, head_dim=32))


def test_the_token_cache_changes_nothing_but_the_speed(corpus):
    base_train.train(settings(corpus, model_tag="text"))
    base_train.train(settings(corpus, model_tag="cache", cache_tokens=True))
    ours, theirs = (load_model(paths.find_checkpoint("base", tag)).state_dict() for tag in ("cache", "text"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_dtypes_train(corpus, dtype):
    base_train.train(settings(corpus, dtype=dtype, num_iterations=12, warmup_steps=1, matrix_lr=0.05))
    lines = read_metrics(paths.checkpoints_root("base") / "tiny" / "metrics.jsonl")
    losses = [line["step_loss"] for line in lines if "step_loss" in line]
    assert losses[-1] < losses[0]


def test_runs_are_compared_and_different_validation_text_is_flagged(corpus, capsys):
    for tag in ("one", "two"):
        base_train.train(settings(corpus, model_tag=tag))
    assert base_eval.evaluate(base_eval.Settings(compare=("one", "two"))) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1])
    assert "cannot be compared" not in page.read_text()
    assert page.read_text().count("<svg") == 2
    valid = corpus / "valid.jsonl"
    valid.write_text(valid.read_text() + json.dumps({"text": "one more"}) + "\n")
    base_train.train(settings(corpus, model_tag="three"))
    base_eval.evaluate(base_eval.Settings(compare=("one", "three")))
    assert "cannot be compared" in page.read_text()


def test_a_plan_touches_no_data_and_the_planner_sets_the_rows(corpus, capsys):
    assert base_train.train(settings(corpus, data=Path("nowhere"), plan=True, device_batch_size=None)) == 0
    said = capsys.readouterr().err
    assert "micro-batch" in said
    assert "4 rows" in said
    base_train.train(settings(corpus, device_batch_size=None, num_iterations=1))
    assert load_meta(paths.find_checkpoint("base", "tiny"))["device_batch_size"] == 4


def test_the_best_checkpoint_is_kept_beside_the_last(corpus, monkeypatch):
    scores = iter([1.0, 3.0, 2.5, 2.0, 2.0, 2.0])
    monkeypatch.setattr("nanochat_train.bits_per_byte", lambda *_, **__: SimpleNamespace(bpb=next(scores)))
    base_train.train(settings(corpus, num_iterations=5, eval_every=1, save_every=1, keep=1))
    assert list_steps(paths.checkpoints_root("base") / "tiny") == [1, 5]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"total_batch_size": 200}, "--total-batch-size 200 must be a multiple"),
        ({"data": Path("nowhere")}, "nowhere does not exist"),
        ({"window_pattern": "XY"}, "window_pattern='XY'"),
        ({"num_iterations": 0}, "0 iterations"),
        ({"tokenizer": Path("nowhere")}, "nowhere holds no tokenizer"),
    ],
)
def test_bad_settings_are_one_line(corpus, changes, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        base_train.train(settings(corpus, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_quickstart_runs_to_its_report_and_a_second_time_skips(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    tiny = program.Size(
        depth=1,
        vocab_size=320,
        num_documents=300,
        base_steps=2,
        sft_steps=2,
        num_conversations=200,
        rl_steps=2,
        questions_per_skill=2,
    )
    monkeypatch.setattr(program, "SMOKE", tiny)
    assert program.start(program.Settings(smoke=True, device_type="cpu")) == 0
    page = (tmp_path / "quickstart-smoke/report/report.html").read_text()
    assert "arithmetic with the tool" in page
    assert page.count("<svg") == 3
    assert "http-equiv" not in page
    capsys.readouterr()
    assert program.start(program.Settings(smoke=True, device_type="cpu")) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.endswith("done already")] == [
        f"{stage}: done already" for stage in ("data", "tokenizer", "base", "sft", "rl", "evaluation")
    ]


def test_report_pages_escape_what_a_model_says():
    assert (
        report.dialogue_html([("assistant", "<script>")])
        == '<div class="assistant"><b>assistant</b>: &lt;script&gt;</div>'
    )
