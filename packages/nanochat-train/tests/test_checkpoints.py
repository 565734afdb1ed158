"""Checkpoints that are interrupted, damaged or out of disk; runs that resume bit for bit; metrics and bits per byte."""

import errno
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nanochat_train import (
    CheckpointError,
    Ema,
    Evaluated,
    Evaluation,
    JsonlLogger,
    Logger,
    Loggers,
    MuonAdamW,
    PlainLogger,
    Pretraining,
    ProgressLogger,
    Run,
    RunFolder,
    TrackerLogger,
    Trainer,
    TrainingState,
    bits_per_byte,
    checkpoints,
    list_steps,
    load_meta,
    load_training_state,
    save_checkpoint,
    state,
    verify_checkpoint,
)
from nanochat_train.testing import BigramModel, CountingLoader, check_batch_loader, check_trainable_model


def make_trainer(num_iterations: int = 12, grad_accum_steps: int = 2) -> Trainer:
    model = BigramModel()
    groups = [
        {"params": [model.matrix], "kind": "muon", "lr": 0.02, "initial_lr": 0.02, "initial_weight_decay": 0.1},
        {
            "params": [model.table],
            "kind": "adamw",
            "lr": 0.1,
            "initial_lr": 0.1,
            "initial_weight_decay": 0.0,
        },
    ]
    stage = Pretraining(num_iterations=num_iterations, warmup_steps=3)
    return Trainer(
        model, MuonAdamW(groups), CountingLoader(), stage, device=torch.device("cpu"), grad_accum_steps=grad_accum_steps
    )


def write_model(trainer: Trainer):
    return lambda directory: (directory / "weights.bin").write_bytes(
        b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())
    )


def test_stop_save_and_resume_is_the_uninterrupted_run(tmp_path):
    whole, losses = make_trainer(), []
    whole.fit(lambda report: losses.append((report.loss, report.grad_norm)))

    first, seen = make_trainer(), []
    first.fit(lambda report: seen.append((report.loss, report.grad_norm)), should_stop=lambda: first.step == 5)
    weights = {k: v.clone() for k, v in first.model.state_dict().items()}
    directory = save_checkpoint(tmp_path, 5, writers=[write_model(first)], meta={}, training=state.capture(first))

    second = make_trainer()
    second.model.load_state_dict(weights)
    state.restore(second, load_training_state(directory))
    assert second.step == 5
    assert second.fit(lambda report: seen.append((report.loss, report.grad_norm)))
    assert seen == losses
    for ours, theirs in zip(second.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_are_normalised_over_the_accumulated_batch():
    trainer = make_trainer(num_iterations=1, grad_accum_steps=4)
    loader = CountingLoader()
    batches = [next(loader) for _ in range(4)]
    ids = torch.cat([torch.from_numpy(b.inputs).long() for b in batches])
    targets = torch.cat([torch.from_numpy(b.targets).long() for b in batches])
    model = BigramModel()
    expected = model.loss(ids, targets, reduction="sum") / (targets != -1).sum()
    expected.backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    reports = []
    trainer.fit(reports.append)
    assert reports[0].loss == pytest.approx(expected.item(), rel=1e-6)
    assert reports[0].grad_norm == pytest.approx(norm.item(), rel=1e-5)
    assert reports[0].num_targets == int((targets != -1).sum()) == 20


def test_a_step_without_any_target_stays_finite():
    trainer = make_trainer(num_iterations=1, grad_accum_steps=1)
    reports = []
    trainer.fit(reports.append)
    assert reports[0].loss == 0.0
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def save(root: Path, step: int, content: bytes = b"x" * 1000, *, run_id: str | None = None, **settings) -> Path:
    def write(directory: Path) -> None:
        (directory / "sub").mkdir()
        (directory / "sub/weights.bin").write_bytes(content)

    return save_checkpoint(root, step, writers=[write], meta={"stage": "base", "run_id": run_id or ""}, **settings)


def test_saved_checkpoints_verify_and_the_last_are_kept(tmp_path):
    for step in (1, 2, 3):
        directory = save(tmp_path, step, keep_last=2)
        verify_checkpoint(directory)
    assert list_steps(tmp_path) == [2, 3]
    assert load_meta(directory)["stage"] == "base"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002", "step_000003"]
    with pytest.raises(CheckpointError, match="holds no training state"):
        load_training_state(directory)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda f: f.unlink(), "missing"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "999 bytes, its manifest says 1000"),
        (lambda f: f.write_bytes(b"y" * 1000), "checksum differs"),
    ],
)
def test_damage_is_named(tmp_path, damage, complaint):
    directory = save(tmp_path, 1)
    damage(directory / "sub/weights.bin")
    with pytest.raises(CheckpointError, match=complaint) as caught:
        verify_checkpoint(directory)
    assert "weights.bin" in str(caught.value)


def test_a_full_disk_keeps_what_was_there(tmp_path):
    save(tmp_path, 1)

    def full(directory: Path) -> None:
        (directory / "part").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match="No space left on device; earlier checkpoints are untouched"):
        save_checkpoint(tmp_path, 2, writers=[full], meta={})
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    verify_checkpoint(tmp_path / "step_000001")


def save_and_die(root: Path, moment: str) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "syncing":
        checkpoints._sync = die
    if moment == "removing":
        checkpoints.shutil.rmtree = lambda path, **_: die() if path.name == "step_000007" else None
    if moment == "renaming":
        rename = Path.rename
        checkpoints.Path.rename = lambda source, target: (rename(source, target), die())
    writer = die if moment == "writing" else lambda directory: (directory / "weights.bin").write_bytes(b"new")
    save_checkpoint(root, 7, writers=[writer], meta={"run_id": "2"})


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("moment", ["writing", "syncing", "removing", "renaming"])
def test_killed_while_saving_hides_no_checkpoint_of_the_run(tmp_path, moment):
    """Not even where an older run's checkpoint of the step has to make room."""
    save(tmp_path, 6, run_id="2")
    save(tmp_path, 7, run_id="1")
    process = multiprocessing.get_context("fork").Process(target=save_and_die, args=(tmp_path, moment))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list_steps(tmp_path) == ([6, 7] if moment == "renaming" else [6])
    save(tmp_path, 8, run_id="2")  # clears up
    assert list_steps(tmp_path)[-1] == 8
    for path in tmp_path.iterdir():
        verify_checkpoint(path)


def test_a_step_is_never_written_twice_by_a_run_and_the_newest_run_counts(tmp_path):
    old = save(tmp_path, 900, b"old", run_id="1")
    assert save(tmp_path, 900, b"again", run_id="1") == old
    assert (old / "sub/weights.bin").read_bytes() == b"old"
    save(tmp_path, 300, b"new", run_id="2", keep_last=1)
    assert (list_steps(tmp_path), list_steps(tmp_path, newest_run=False)) == ([300], [300, 900])
    save(tmp_path, 900, b"new", run_id="2")
    assert (old / "sub/weights.bin").read_bytes() == b"new"
    verify_checkpoint(old)


def test_what_is_measured_later_is_added_beside_the_files(tmp_path):
    directory = save(tmp_path, 1)
    checkpoints.add_outcome(directory, scores={"val_bpb": 1.5}, finished=True)
    assert (load_meta(directory)["scores"], load_meta(directory)["finished"]) == ({"val_bpb": 1.5}, True)
    verify_checkpoint(directory)


SETTINGS = {"depth": 4, "eval_every": 10}


def run_folder(root: Path, *, resume_from_step=None, overwrite=False, **settings) -> RunFolder:
    return RunFolder(
        root,
        settings=SETTINGS | settings,
        may_change=frozenset({"eval_every"}),
        resume_from_step=resume_from_step,
        overwrite=overwrite,
    )


def train(folder: RunFolder, *, num_iterations: int = 6, stop_after: int | None = None, **more) -> list[str]:
    """Trains, or resumes, in a folder; returns what is said."""
    said: list[str] = []

    class Said(Logger):
        def message(self, text: str) -> None:
            said.append(text)

    trainer = make_trainer(num_iterations)
    folder.configure(writers=[write_model(trainer)], meta={"data_fingerprints": {"text": "a" * 64}})
    folder.restore(trainer, lambda directory: None)
    loggers = lambda: [JsonlLogger(folder.metrics_file, resume_step=trainer.step), Said()]  # noqa: E731
    run = Run(stage="base", folder=folder, make_loggers=loggers, save_every=2, **more)
    trainer.fit(run=run, should_stop=lambda: trainer.step == stop_after)
    return said


def test_a_stopped_run_resumes_by_the_same_command_and_says_which_one_where_that_would_not(tmp_path):
    said = train(run_folder(tmp_path), stop_after=3)
    assert said[-1] == "base: stopped after step 3, which is saved; the same command resumes from there"
    again = run_folder(tmp_path, eval_every=5)
    assert (again.resumed, again.is_finished) == (tmp_path / "step_000003", False)
    train(again)
    assert list_steps(tmp_path) == [2, 3, 4, 6]
    assert run_folder(tmp_path).is_finished
    assert len({load_meta(tmp_path / f"step_00000{step}")["run_id"] for step in (2, 3, 4, 6)}) == 1
    with pytest.raises(ValueError, match=r"holds another run \(depth was 4, is now 5\): --overwrite starts a new one"):
        run_folder(tmp_path, depth=5)
    assert "in place of this command's --overwrite" in train(run_folder(tmp_path, overwrite=True), stop_after=1)[-1]
    assert list_steps(tmp_path) == [1]
    assert run_folder(tmp_path).resumed == tmp_path / "step_000001"
    assert "in place of" in train(run_folder(tmp_path, resume_from_step=4), stop_after=5)[-1]
    assert list_steps(tmp_path) == [5]


def test_a_run_of_the_first_edition_has_no_id_and_resumes_all_the_same(tmp_path):
    old = save_checkpoint(
        tmp_path,
        3,
        writers=[],
        meta={"settings": SETTINGS, "scores": {"val_bpb": 1.0}, "data_fingerprints": {"text": "a" * 64}},
        training=old_state(),
    )
    assert "run_id" not in load_meta(old)
    folder = run_folder(tmp_path)
    train(folder)
    assert (folder.resumed, list_steps(tmp_path)) == (old, [3, 4, 6])
    other = run_folder(tmp_path)
    other.configure(writers=[], meta={"data_fingerprints": {"text": "b" * 64}})
    with pytest.raises(ValueError, match=r"was made with other text \(fingerprint a{12}, now b{12}\)"):
        other.restore(make_trainer(), lambda directory: None)


def old_state() -> TrainingState:
    """After three steps, with the counters that there were."""
    trainer = make_trainer()
    trainer.fit(should_stop=lambda: trainer.step == 3)
    saved = state.capture(trainer)
    names = ("step", "tokens_seen", "loader")
    return replace(saved, values=saved.values | {"loop": {name: saved.values["loop"][name] for name in names}})


def test_a_second_ctrl_c_ends_at_once_and_the_first_at_the_next_step(tmp_path):
    def interrupt_twice() -> Evaluated:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return Evaluated()

    evaluation = Evaluation(every=2, evaluate=interrupt_twice, at_start=False)
    with pytest.raises(KeyboardInterrupt):
        train(run_folder(tmp_path), evaluations=[evaluation])
    assert list_steps(tmp_path) == [2], "it was saved before it was evaluated"


def test_trackers_get_metrics_by_step_and_are_named_where_they_are_missing(monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda metrics, step: calls.append((step, metrics)), finish=lambda: calls.append("finished")
    )
    fake = SimpleNamespace(init=lambda **settings: calls.append(settings) or run)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    logger = TrackerLogger("trackio", project="nanochat", name="a", settings={"depth": 4})
    logger.log(3, {"loss": 2.0})
    logger.close()
    assert calls == [
        {"project": "nanochat", "name": "a", "resume": "allow", "config": {"depth": 4}},
        (3, {"loss": 2.0}),
        "finished",
    ]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="logging to wandb needs it: pip install wandb"):
        TrackerLogger("wandb", project="nanochat", name="a", settings={})


def test_training_state_comes_back_bit_for_bit(tmp_path):
    saved = TrainingState(tensors={"a": torch.randn(3).bfloat16(), "n": torch.tensor(5.0)}, values={"x": [1, None]})
    loaded = load_training_state(save(tmp_path, 1, training=saved))
    assert loaded.values == saved.values
    assert all(torch.equal(loaded.tensors[k], v) for k, v in saved.tensors.items())


@pytest.mark.skipif(sys.platform == "win32", reason="has no such permissions")
def test_another_user_may_read_what_the_umask_lets_them_read(tmp_path):
    """A server seldom runs as who trained the model."""
    saved = TrainingState(tensors={"a": torch.ones(1)}, values={})
    before = os.umask(0o022)
    try:
        directory = save(tmp_path, 1, training=saved)
        os.umask(0o077)
        private = save(tmp_path, 2, training=saved)
    finally:
        os.umask(before)
    modes = [{p.stat().st_mode & 0o777 for p in d.rglob("*") if p.is_file()} for d in (directory, private)]
    assert modes == [{0o644}, {0o600}]


def test_bits_per_byte_equals_a_plain_float64_loop():
    model = BigramModel()
    lengths = torch.tensor([0, 1, 2, 3, 1, 1, 4, 0, 2, 1, 1])
    loader = CountingLoader()
    batches = [next(loader) for _ in range(5)]
    nats, num_bytes = 0.0, 0
    for batch in batches:
        for row, targets in zip(batch.inputs, batch.targets, strict=True):
            for token, target in zip(row, targets, strict=True):
                if target == -1 or lengths[target] == 0:
                    continue
                logits = (model.matrix.double() @ model.table[int(token)].double()).tolist()
                nats += math.log(sum(math.exp(x) for x in logits)) - logits[target]
                num_bytes += int(lengths[target])
    result = bits_per_byte(model, batches, lengths, device=torch.device("cpu"))
    assert result.num_bytes == num_bytes
    assert result.bpb == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)
    with pytest.raises(ValueError, match="no text"):
        bits_per_byte(model, batches, torch.zeros(11), device=torch.device("cpu"))


def test_metrics_reach_the_file_and_a_resumed_run_drops_what_came_after(tmp_path):
    path = tmp_path / "run/metrics.jsonl"
    sink = JsonlLogger(path)
    for step in (1, 2, 3):
        sink.log(step, {"loss": 1.0 / step})
    sink.close()
    path.write_text(path.read_text() + '{"step": 4, "lo')
    JsonlLogger(path, resume_step=2).log(3, {"loss": 9.0})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 0.5, 9.0]


def test_plain_lines_come_every_so_often_and_at_the_end():
    stream = io.StringIO()
    sink = PlainLogger(stream, title="base", total_steps=3, interval_s=1000)
    for step in (1, 2, 3):
        sink.log(step, {"loss": 2.5, "tokens_per_s": 12345.6, "eta_s": 61, "mfu": 0.25})
    sink.close()
    assert stream.getvalue().splitlines() == [
        "base step 1/3  loss 2.5000  12,346 tok/s  MFU 25.0%  ETA 1m01s",
        "base step 3/3  loss 2.5000  12,346 tok/s  MFU 25.0%  ETA 1m01s",
    ]


def test_a_line_comes_also_while_nothing_is_logged():
    stream = io.StringIO()
    sink = PlainLogger(stream, title="base", total_steps=9, interval_s=0.01)
    sink.log(4, {"loss": 2.5})
    while stream.getvalue().count("step 4/9, still at work") < 2:
        time.sleep(0.01)
    sink.close()
    # A slow machine may have had time to say that it is starting.
    lines = [line for line in stream.getvalue().splitlines() if line != "base starting, still at work"]
    assert lines[:3] == ["base step 4/9  loss 2.5000", *["base step 4/9, still at work"] * 2]
    assert not sink._watch.is_alive(), "a closed sink is silent"


def test_a_board_takes_the_place_of_the_one_before_on_a_terminal_and_is_lines_elsewhere():
    terminal, stream = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    loggers = Loggers(
        [
            ProgressLogger(terminal, title="base", total_steps=2),
            PlainLogger(stream, title="base", total_steps=2),
        ]
    )
    for board in (["step 0", "  2+2?  [bold]"], ["step 1", "  2+2?  4"]):
        loggers.board(board)
    loggers.close()
    assert stream.getvalue() == "step 0\n  2+2?  [bold]\nstep 1\n  2+2?  4\n"
    before, _, after = terminal.getvalue().partition("[bold]")
    assert "step 0" in before
    assert after.split("step 1")[0].count("\x1b[1A") == 2, "two lines up, to write over the board"
    assert "  2+2?  4" in after


def test_sinks_are_all_closed_even_if_one_fails_to(tmp_path):
    class Full(JsonlLogger):
        def close(self):
            raise OSError("no space left")

    stream = io.StringIO()
    plain = PlainLogger(stream, title="base", total_steps=9)
    with pytest.raises(OSError, match="no space left"):
        Loggers([Full(tmp_path / "a.jsonl"), plain, Full(tmp_path / "b.jsonl")]).close()
    assert not any(thread.name == "plain-logger" for thread in threading.enumerate())


def test_the_moving_average_has_no_bias_at_its_start():
    ema = Ema(0.9)
    assert ema.update(4.0) == pytest.approx(4.0)
    assert ema.update(2.0) == pytest.approx((0.9 * 0.1 * 4 + 0.1 * 2) / (0.09 + 0.1))


def test_the_public_fakes_pass_the_public_checks():
    check_trainable_model(BigramModel(), vocab_size=11)
    check_batch_loader(CountingLoader)
