"""data-stats: a line per part, what parts share, and the lines that are no conversations."""

import json

import pytest
from nanochat_apps import data_stats, download_data
from nanochat_apps.runtime import paths
from nanochat_apps.runtime.cli import UsageError
from nanochat_tokenizer.testing import byte_tokenizer


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files of conversations that share one, the second with a bad line, and a tokenizer of bytes."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    byte_tokenizer().save(paths.tokenizer_dir())
    for name, numbers, more in (("train", range(20), ""), ("test", range(19, 22), "{\n")):
        rows = ({"instruction": f"Say {n}", "output": f"{n}" * 40} for n in numbers)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + more)
    return tuple(str(tmp_path / f"{name}.jsonl") for name in ("train", "test"))


def test_conversations_are_measured(files, capsys):
    assert data_stats.show(data_stats.Settings(conversations=files, max_seq_len=90, max_faults=0)) == 0
    # <|bos|>, two tokens around each message, "Say n" and the answer: 50 of one digit, 91 of two
    lengths = "mean 70, median 91, 95% up to 91, longest 91, 0.0% over 90; packed sequences 77% full"
    train, test, *_ = capsys.readouterr().out.splitlines()
    assert train == f"{files[0]}: 20 items, 0 repeated, 0 bad; 1,410 tokens: {lengths}"
    assert test.endswith(
        "3 items, 0 repeated, 1 bad; 273 tokens: mean 91, median 91, 95% up to 91, longest 91, 0.0% over 90; "
        "packed sequences 100% full"
    )


def test_what_parts_share_and_what_is_bad_is_told(files, capsys):
    data_stats.show(data_stats.Settings(conversations=files))
    said = capsys.readouterr().out
    assert f"1 of 20 items of {files[0]} are in {files[1]} too" in said
    assert f"1 of 3 items of {files[1]} are in {files[0]} too" in said
    assert f"{files[1]}, line 4: " in said


def test_text_is_measured_by_its_splits(files, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, texts in (("train", ["once", "twice", "once"]), ("val", ["once"]), ("test", ["twice"])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data_stats.show(data_stats.Settings(data=folder, max_seq_len=7))
    said = capsys.readouterr().out
    # Of 6, 5 and 5 with their BOS: 6 + 2, 5 + 3, 2, for what a cut leaves is behind a BOS of its own.
    assert "longest 6, 0.0% over 7; packed sequences 75% full" in said
    assert "2 of 3 items of train are in val too" in said
    assert "1 of 1 items of val are in train too" in said
    assert "1 of 1 items of test are in train too" in said
    (folder / "val.jsonl").write_text('{"text": "thrice"}\n{"txt": "twice"}\n')
    data_stats.show(data_stats.Settings(data=folder))
    said = capsys.readouterr().out
    assert "val: 1 items, 0 repeated, 1 bad" in said
    assert "val.jsonl, line 2 has no string in the field 'text'" in said


def test_nothing_to_measure_is_a_wrong_usage(files):
    with pytest.raises(UsageError, match="give text with --data, or conversations"):
        data_stats.show(data_stats.Settings())


def test_the_core_bundle_is_fetched_to_its_place(files, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "nanochat_apps.download_data.download_core_bundle", lambda folder: asked.append(folder) or ["a task"]
    )
    assert download_data.download(download_data.Settings(core=True)) == 0
    assert asked == [paths.core_bundle()]
    assert f"base-eval --core {paths.core_bundle()}" in capsys.readouterr().out
