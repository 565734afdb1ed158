"""base-train, chat-sft and quickstart on toy sizes, as a person runs them: stopped, gone on with, and given bad input."""

import json
import math
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
import torch
from nanochat_apps import base_eval, base_train, chat_sft, tok_eval, tok_train
from nanochat_apps.quickstart import program, report
from nanochat_apps.runtime import paths, training_model
from nanochat_apps.runtime.cli import UsageError
from nanochat_data import ConversationLoader
from nanochat_data.synthetic import TinyWorld
from nanochat_model import GPT, load_model
from nanochat_tokenizer import Tokenizer
from nanochat_tokenizer.testing import byte_tokenizer
from nanochat_train import JsonlLogger, checkpoints, list_steps, load_meta, read_metrics


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated text and chats, and a tokenizer trained on the text."""
    home, world = tmp_path_factory.mktemp("untrained"), TinyWorld(0)
    (home / "texts").mkdir()
    for name, split, count in (("train", "train", 300), ("valid", "test", 20)):
        lines = (json.dumps({"text": world.document(i, split=split)}) + "\n" for i in range(count))
        (home / "texts" / f"{name}.jsonl").write_text("".join(lines))
    messages = (world.conversation(i, skill="identity")["messages"] for i in range(60))
    (home / "chats.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(home / "base"))
        assert tok_train.train(tok_train.Settings(data=home / "texts", vocab_size=300)) == 0
    return home


@pytest.fixture(scope="module")
def trained(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run of six steps under the tag `tiny`."""
    home = tmp_path_factory.mktemp("trained") / "home"
    shutil.copytree(untrained, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(home / "base"))
        assert base_train.train(settings(home / "texts")) == 0
    return home


@pytest.fixture
def corpus(untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the text, with a tokenizer and no model in the base directory."""
    return copy_of(untrained, tmp_path, monkeypatch)


@pytest.fixture
def trained_on(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the text, with the tokenizer and the model `tiny` in the base directory."""
    return copy_of(trained, tmp_path, monkeypatch)


def copy_of(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "texts"


def weights(stage: str, tag: str | None = None) -> dict[str, torch.Tensor]:
    return load_model(paths.find_checkpoint(stage, tag)).state_dict()


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


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


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(trained_on):
    parts = settings(trained_on, model_tag="parts", save_every=2, keep=2)
    assert base_train.train(replace(parts, save_every=3)) == 0
    root = paths.checkpoints_root("base") / "parts"
    assert list_steps(root) == [3, 6]
    shutil.rmtree(root / "step_000006")
    assert base_train.train(replace(parts, resume_from_step=3)) == 0
    assert_equal(weights("base", "parts"), weights("base", "tiny"))
    steps = [json.loads(line)["step"] for line in (root / "metrics.jsonl").read_text().splitlines()]
    assert [s for s in steps if s <= 6] == sorted(steps)


def test_a_checkpoint_says_what_it_is_and_nothing_of_the_machine(trained_on, trained):
    meta = load_meta(paths.find_checkpoint("base"))
    assert (meta["step"], meta["stage"], meta["settings"]["depth"]) == (6, "base", 1)
    assert meta["scores"]["val_bpb"] > 0
    assert str(trained.parent) not in json.dumps(meta)


def test_fine_tuning_starts_from_the_base_model_and_is_evaluated(trained_on, tmp_path, capsys):
    on_cpu = {"device_type": "cpu", "dtype": "float32"}
    assert chat_sft.train(chat_sft.Settings(mixture=f"{tmp_path / 'chats.jsonl'}:2", compile="off", **on_cpu)) == 0
    meta = load_meta(paths.find_checkpoint("sft"))
    assert meta["base"] == "step_000006"
    assert meta["scores"]["val_bpb"] > 0
    assert base_eval.evaluate(base_eval.Settings(data=trained_on, split_tokens=500, **on_cpu)) == 0
    assert tok_eval.evaluate(tok_eval.Settings(data=trained_on)) == 0
    said = capsys.readouterr().out
    assert "val: " in said
    assert "The capital of France is|" in said
    assert "bytes per token" in said


def test_tok_eval_compares_with_the_encodings_that_are_named(tmp_path, monkeypatch, capsys):
    byte_tokenizer().save(tmp_path)
    alphabet = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("gpt2", pat_str=r".|\s", mergeable_ranks=alphabet, special_tokens={})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    settings = tok_eval.Settings(tokenizer=tmp_path)
    assert tok_eval.evaluate(settings) == 0
    assert "gpt2" not in capsys.readouterr().out, "nothing is fetched that nobody asked for"
    assert tok_eval.evaluate(replace(settings, compare=("gpt2",))) == 0
    assert "gpt2" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--compare gpt9: unknown encoding; choose from"):
        tok_eval.evaluate(replace(settings, compare=("gpt9",)))


def test_another_model_text_or_tokenizer_is_refused_by_name(trained_on):
    resumed = settings(trained_on, resume_from_step=0)
    with pytest.raises(ValueError, match=r"n_head=2, these settings make n_head=1"):
        base_train.train(replace(resumed, head_dim=32))
    with pytest.raises(UsageError, match=r"--resume-from-step 5: no such checkpoint .* \(there: 6\)"):
        base_train.train(replace(resumed, resume_from_step=5))
    for file, named in (("train", "training text"), ("valid", "validation text")):
        path = trained_on / f"{file}.jsonl"
        text = path.read_text()
        path.write_text(text + json.dumps({"text": "one more"}) + "\n")
        with pytest.raises(ValueError, match=rf"step_000006 was made with other {named} \(fingerprint \w{{12}}, now"):
            base_train.train(resumed)
        path.write_text(text)
    tok_train.train(tok_train.Settings(data=trained_on, vocab_size=301))
    with pytest.raises(ValueError, match="another tokenizer"):
        base_train.train(resumed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_next_step_and_the_run_goes_on_from_there(trained_on, monkeypatch, number, capsys):
    stopped = settings(trained_on, model_tag="stopped")
    log = JsonlLogger.log

    def log_and_signal(sink, step, metrics):
        log(sink, step, metrics)
        if step == 2 and not root_steps("stopped"):
            signal.raise_signal(number)

    monkeypatch.setattr(JsonlLogger, "log", log_and_signal)
    assert base_train.train(stopped) == 130
    assert root_steps("stopped") == [2]
    assert "stopped after step 2, which is saved; the same command resumes from there" in capsys.readouterr().err
    assert base_train.train(stopped) == 0
    assert_equal(weights("base", "stopped"), weights("base", "tiny"))


def root_steps(tag: str) -> list[int]:
    return list_steps(paths.checkpoints_root("base") / tag)


def test_fine_tuning_that_is_stopped_and_resumed_ends_with_the_same_weights(trained_on, tmp_path):
    chats = tmp_path / "chats.jsonl"
    fine_tuning = chat_sft.Settings(
        mixture=str(chats), num_iterations=6, save_every=3, device_type="cpu", dtype="float32", compile="off"
    )
    assert chat_sft.train(fine_tuning) == 0
    straight = weights("sft")
    shutil.rmtree(paths.find_checkpoint("sft"))
    assert chat_sft.train(replace(fine_tuning, resume_from_step=3)) == 0
    assert load_meta(paths.find_checkpoint("sft"))["step"] == 6
    assert_equal(weights("sft"), straight)
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


def test_a_new_run_takes_the_weights_of_an_old_one(trained_on):
    old, name = paths.find_checkpoint("base", "tiny"), "transformer.wte.weight"
    still = {"num_iterations": 1, "embedding_lr": 0.0, "matrix_lr": 0.0}
    base_train.train(settings(trained_on, model_tag="new", init_from=old, **still))
    assert torch.equal(weights("base", "new")[name], weights("base", "tiny")[name])
    assert load_meta(paths.find_checkpoint("base", "new"))["step"] == 1
    with pytest.raises(ValueError, match=r"n_head=2, these settings make n_head=1"):
        base_train.train(settings(trained_on, model_tag="other", init_from=old, head_dim=32))


def test_text_is_tokenized_once_for_training_and_validation_and_repetition_is_announced(
    trained_on, monkeypatch, capsys
):
    lines = (trained_on / "train.jsonl").read_text().splitlines(keepends=True)
    (trained_on / "train.jsonl").write_text("".join(lines[:40]))
    base_train.train(settings(trained_on, model_tag="short", num_iterations=60))
    said = capsys.readouterr().err
    assert re.search(
        r"train text: 1 file, 40 documents, [\d,]+ tokens in texts\nval text: 1 file, 20 documents, ", said
    )
    repeated = re.findall(r"base step (\d+): all data read 1 x; what comes now is repeated", said)
    metrics = read_metrics(paths.checkpoints_root("base") / "short" / "metrics.jsonl")
    epochs = {line["step"]: line["epoch"] for line in metrics if "epoch" in line}
    assert [int(step) for step in repeated] == [min(step for step, epoch in epochs.items() if epoch == 1)]
    assert all(0.5 < line["fill"] <= 1 for line in metrics if "fill" in line)
    tokens = [line["tokens"] for line in metrics if "tokens" in line]
    assert tokens[-1] == pytest.approx(sum(256 * line["fill"] for line in metrics if "fill" in line))
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *_, **__: pytest.fail("all is tokenized"))
    base_train.train(settings(trained_on, model_tag="again", num_iterations=3))


def test_documents_of_a_row_are_masked_by_flag(trained_on, tmp_path, monkeypatch):
    """In training and validation, of base models and of chat models; a run keeps to it, and base-eval does as the run did."""
    bos_id = Tokenizer.load(paths.tokenizer_dir()).bos_id
    masked, loss = set(), GPT.loss

    def recorded(model, token_ids, targets, document_ids=None, **options):
        masked.add((torch.is_grad_enabled(), document_ids is not None))
        if document_ids is not None:
            assert torch.equal(document_ids.diff(dim=1) == 1, token_ids[:, 1:] == bos_id)
        return loss(model, token_ids, targets, document_ids=document_ids, **options)

    def seen_in(train, **options):
        masked.clear()
        assert train(**options) == 0
        return set(masked)

    monkeypatch.setattr(GPT, "loss", recorded)
    on_cpu = {"device_type": "cpu", "dtype": "float32"}
    base = settings(trained_on, model_tag="masked", document_mask=True, num_iterations=2)
    assert seen_in(base_train.train, settings=base) == {(True, True), (False, True)}
    measured = base_eval.Settings(data=trained_on, model_tag="masked", split_tokens=500, num_samples=0, **on_cpu)
    assert seen_in(base_eval.evaluate, settings=measured) == {(False, True)}
    assert seen_in(base_eval.evaluate, settings=replace(measured, model_tag="tiny")) == {(False, False)}
    with pytest.raises(UsageError, match="document_mask was True, is now False"):
        base_train.train(replace(base, document_mask=False))
    chats = {"mixture": str(tmp_path / "chats.jsonl"), "model_tag": "masked", "num_iterations": 2, "compile": "off"}
    for wanted in (False, True):
        tuned = chat_sft.Settings(**chats, document_mask=wanted, overwrite=True, **on_cpu)
        assert seen_in(chat_sft.train, settings=tuned) == {(True, wanted), (False, wanted)}


def test_what_is_held_out_of_a_mixture_is_not_trained_on(trained_on, tmp_path, monkeypatch):
    """Over four repetitions, with the texts that are rendered for training and for validation."""
    seen: dict[int | None, set[str]] = {}

    class Recording(ConversationLoader):
        def _rendered(self, index):
            seen.setdefault(self.num_epochs, set()).add(json.dumps(self.task[index]))
            return super()._rendered(index)

    monkeypatch.setattr("nanochat_apps.chat_sft.ConversationLoader", Recording)
    mixture = f"{tmp_path / 'chats.jsonl'}:4"
    options = {"num_iterations": 60, "device_type": "cpu", "dtype": "float32", "compile": "off"}
    assert chat_sft.train(chat_sft.Settings(mixture=mixture, **options)) == 0
    assert len(seen[None]) > 30
    assert len(seen[1]) > 0
    assert not seen[None] & seen[1]


def test_bfloat16_trains_and_float16_is_refused(corpus):
    with pytest.raises(UsageError, match="--dtype float16: gradients underflow"):
        base_train.train(settings(corpus, dtype="float16"))
    base_train.train(settings(corpus, dtype="bfloat16", num_iterations=12, warmup_steps=1, matrix_lr=0.05))
    lines = read_metrics(paths.checkpoints_root("base") / "tiny" / "metrics.jsonl")
    losses = [line["step_loss"] for line in lines if "step_loss" in line]
    assert losses[-1] < losses[0]


def test_a_trial_says_what_the_run_takes_and_saves_nothing(corpus, capsys):
    assert base_train.train(settings(corpus, trial=True, device_batch_size=None)) == 0
    said = capsys.readouterr().err
    assert re.search(r"memory +\d+\.\d\d GiB", said)
    assert re.search(r"speed +[\d,]+ tokens/s", said)
    assert re.search(r"time left +0\.00 h for 2 steps", said)
    assert not paths.checkpoints_root("base").exists()


def test_the_rows_of_a_micro_batch_are_found_saved_and_taken_again(corpus, monkeypatch):
    """A resumed run does not look again: with other memory free it would sum in another order."""
    found = settings(corpus, device_batch_size=None, num_iterations=4, save_every=2)
    base_train.train(found)
    last = paths.find_checkpoint("base", "tiny")
    assert load_meta(last)["device_batch_size"] == 4
    shutil.rmtree(last)
    monkeypatch.setattr("nanochat_apps.runtime.training.rows_that_fit", lambda *_, **__: pytest.fail("found already"))
    base_train.train(found)
    assert load_meta(paths.find_checkpoint("base", "tiny"))["device_batch_size"] == 4


def test_checkpointed_activations_change_no_gradient(trained_on):
    base_train.train(settings(trained_on, model_tag="again", activation_checkpointing="on"))
    assert_equal(weights("base", "again"), weights("base", "tiny"))
    kept = {}
    model = load_model(paths.find_checkpoint("base", "tiny"))
    for name in ("plain", "checkpointed"):
        kept[name] = 0

        def pack(tensor, name=name):
            kept[name] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(torch.zeros(4, 64, dtype=torch.int64), torch.ones(4, 64, dtype=torch.int64))
        training_model.checkpoint_activations(model)
    assert kept["checkpointed"] < kept["plain"] / 2


def test_a_profile_and_clipping_by_flag(corpus):
    base_train.train(settings(corpus, profile=True, grad_clip=1e-6, num_iterations=7))
    root = paths.checkpoints_root("base") / "tiny"
    assert json.loads((root / "trace.json").read_text())["traceEvents"]
    lines = [line for line in read_metrics(root / "metrics.jsonl") if "grad_norm" in line]
    assert min(line["grad_norm"] for line in lines) > 1e-6, "as it was before clipping"
    assert {"data_wait_s", "step_s", "total_s", "flops", "skipped_steps", "memory_bytes"} <= lines[-1].keys()
    assert lines[-1]["total_s"] == pytest.approx(sum(line["data_wait_s"] + line["step_s"] for line in lines))
    assert lines[-1]["flops"] == lines[-1]["tokens"] * load_model(root / "step_000007").flops_per_token()


def test_a_folder_with_another_run_is_left_alone_unless_told(trained_on, capsys):
    root = paths.checkpoints_root("base") / "tiny"
    old_metrics, shorter = (root / "metrics.jsonl").read_text(), settings(trained_on, num_iterations=4, save_every=2)
    with pytest.raises(UsageError, match=r"tiny holds another run \(num_iterations was 6, is now 4\): --overwrite"):
        base_train.train(shorter)
    assert (root / "metrics.jsonl").read_text() == old_metrics
    assert base_train.train(replace(shorter, overwrite=True)) == 0
    assert (root / "metrics.1.jsonl").read_text() == old_metrics
    assert list_steps(root) == [2, 4]
    assert paths.find_checkpoint("base").name == "step_000004", "though a higher step of the run before is there"
    assert paths.find_checkpoint("base", "tiny", 6).name == "step_000006"
    capsys.readouterr()
    assert base_train.train(shorter) == 0
    assert "step_000004: this run is finished; --overwrite starts a new one" in capsys.readouterr().err
    assert list_steps(root) == [2, 4]


def test_a_run_resumed_from_an_earlier_step_is_the_newest_from_there_on(trained_on):
    root = paths.checkpoints_root("base") / "forked"
    base_train.train(settings(trained_on, model_tag="forked", save_every=2))
    base_train.train(settings(trained_on, model_tag="forked", resume_from_step=2, num_iterations=5, save_every=3))
    assert list_steps(root) == [3, 5]
    assert list_steps(root, newest_run=False) == [2, 3, 4, 5, 6]
    assert paths.find_checkpoint("base", "forked").name == "step_000005"


def test_saving_comes_before_evaluating(corpus, monkeypatch):
    """An evaluation that fails loses nothing, not even the last step."""
    root, calls = paths.checkpoints_root("base") / "tiny", []

    def fails(*_, **__):
        calls.append(list_steps(root))
        if len(calls) == fail_at:
            raise RuntimeError("an evaluation failed")
        return SimpleNamespace(bpb=1.0)

    monkeypatch.setattr("nanochat_apps.adapters.base_evals.bits_per_byte", fails)
    for fail_at, saved in ((2, [3]), (3, [3, 6])):
        calls.clear()
        with pytest.raises(RuntimeError, match="an evaluation failed"):
            base_train.train(settings(corpus, save_every=3, overwrite=True))
        assert list_steps(root) == saved
        assert calls[0] == [] or fail_at == 3, "the first is at step 0"
    monkeypatch.setattr("nanochat_apps.adapters.base_evals.bits_per_byte", lambda *_, **__: SimpleNamespace(bpb=2.0))
    base_train.train(settings(corpus, save_every=3))
    assert load_meta(root / "step_000006")["scores"]["val_bpb"] == 2.0, "the same command evaluates what is there"


def test_a_finished_run_saves_its_last_step_once(corpus, monkeypatch):
    saved = []
    save = checkpoints._write_json
    monkeypatch.setattr(checkpoints, "_write_json", lambda path, value: (saved.append(path.name), save(path, value)))
    base_train.train(settings(corpus, save_every=3))
    assert saved.count("manifest.json") == 2
    meta = load_meta(paths.find_checkpoint("base"))
    assert (meta["finished"], meta["scores"]["val_bpb_step"]) == (True, 6)


def test_conversations_longer_than_a_row_are_cut_and_train(trained_on, tmp_path, capsys):
    """A row may then have no target at all: its loss is 0, not NaN."""
    question, answer = "many words before the answer " * 40, "yes " * 90
    longs = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in [(question, "no"), ("short", answer), ("a", "b")] * 20
    ]
    chats = tmp_path / "long.jsonl"
    chats.write_text("".join(json.dumps(chat | {"n": i}) + "\n" for i, chat in enumerate(longs)))
    options = {"device_type": "cpu", "dtype": "float32", "compile": "off", "device_batch_size": 1}
    chat_sft.train(chat_sft.Settings(mixture=str(chats), total_batch_size=64, num_iterations=30, **options))
    lines = read_metrics(paths.checkpoints_root("sft") / "tiny" / "metrics.jsonl")
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert all(bool(value.isfinite().all()) for value in weights("sft").values())
    assert max(line["skipped_steps"] for line in lines if "skipped_steps" in line) > 0
    assert re.search(r"\d+ conversations were longer than 64 tokens and were cut", capsys.readouterr().err)


def test_fine_tuning_is_evaluated_on_test_splits_and_chatcores_tasks_by_flag(trained_on, tmp_path, monkeypatch):
    rows = [{"question": f"{i}+1?", "answer": f"#### {i + 1}"} for i in range(30)]
    (tmp_path / "mirror/gsm8k").mkdir(parents=True)
    for split in ("train", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"mirror/gsm8k/{split}.jsonl").write_text(text)
    monkeypatch.setenv("NANOCHAT_DATA_MIRROR", str(tmp_path / "mirror"))
    on_cpu = {"device_type": "cpu", "dtype": "float32", "compile": "off", "num_iterations": 2}
    flags = {"test_splits": True, "chatcore_every": 1, "chatcore_tasks": "gsm8k", "chatcore_max_problems": 2}
    chat_sft.train(chat_sft.Settings(mixture=f"{tmp_path / 'chats.jsonl'}:2,gsm8k[:20]:2", **flags, **on_cpu))
    lines = read_metrics(paths.checkpoints_root("sft") / "tiny" / "metrics.jsonl")
    assert [line["step"] for line in lines if "test_bpb" in line] == [0, 2]
    assert [line["step"] for line in lines if "gsm8k" in line] == [1, 2]
    with pytest.raises(ValueError, match="--test-splits: no set in the mixture"):
        chat_sft.train(chat_sft.Settings(mixture=str(tmp_path / "chats.jsonl"), overwrite=True, **flags, **on_cpu))


def test_the_best_checkpoint_is_kept_beside_the_last(corpus, monkeypatch):
    scores = iter([9.0, 1.0, 3.0, 2.5, 2.0, 2.0])
    monkeypatch.setattr(
        "nanochat_apps.adapters.base_evals.bits_per_byte", lambda *_, **__: SimpleNamespace(bpb=next(scores))
    )
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
