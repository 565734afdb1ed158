"""Files to documents: formats, splits by name, units that together are the whole, and errors that name file and line."""

import gzip
import json
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nanochat_data import GSM8K, CustomJSON, documents, files, open_text_source


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def texts_of(path: Path, split="train", **options) -> list[str]:
    return list(open_text_source(path, split=split, **options).documents())


def compressed(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def test_formats_hold_the_same_documents(tmp_path):
    texts = ["one", "two\nlines", "three"]
    write_jsonl(tmp_path / "t.jsonl", texts)
    plain = (tmp_path / "t.jsonl").read_bytes()
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(plain[:20]) + gzip.compress(plain[20:]))
    (tmp_path / "z.jsonl.zst").write_bytes(compressed(plain[:20]) + compressed(plain[20:]))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "t.parquet")
    for name in ("t.jsonl", "z.jsonl.gz", "z.jsonl.zst", "t.parquet"):
        assert texts_of(tmp_path / name) == texts
    (tmp_path / "t.txt").write_text("one# two\nlines# three")
    (tmp_path / "t.txt.zst").write_bytes(compressed((tmp_path / "t.txt").read_bytes()))
    for name in ("t.txt", "t.txt.zst"):
        assert texts_of(tmp_path / name, split_on="# ") == ["one", "# two\nlines", "# three"]


def test_null_and_blank_documents_are_left_out_and_line_ends_kept(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": null}\n{"text": " "}\n{"text": "b"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "", "b"]}), tmp_path / "t.parquet")
    (tmp_path / "t.txt").write_bytes(b"a\r\nb")
    assert texts_of(tmp_path / "t.jsonl") == ["a", "b"]
    assert texts_of(tmp_path / "t.parquet") == ["a", "b"]
    assert texts_of(tmp_path / "t.txt") == ["a\r\nb"]


def test_cutting_a_text_loses_no_byte(tmp_path):
    (tmp_path / "t.txt").write_bytes(b" \n# a\n#  \n# b\n# ")
    assert texts_of(tmp_path / "t.txt", split_on="^# ") == [" \n# a\n", "#  \n", "# b\n", "# "]
    assert texts_of(tmp_path / "t.txt", split_on=" ") == [" \n#", " a\n# ", " \n#", " b\n# "]


def cut_whole(text: str, pattern: str) -> list[str]:
    """As of a text that is read at once."""
    pieces: list[str] = []
    for start, end in pairwise([0, *(match.start() for match in re.finditer(pattern, text, re.MULTILINE)), len(text)]):
        if pieces and (not pieces[-1].strip() or not text[start:end].strip()):
            pieces[-1] += text[start:end]
        else:
            pieces.append(text[start:end])
    return [piece for piece in pieces if piece.strip()]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.sampled_from(["a", "#", "\n", " ", "é", "\r", "🙂"]), max_size=200),
    pattern=st.sampled_from([r"^# ", "#", r"(?<=\n)\n", r"^a?", r"\n{1,3}#", r"(?=#{1,3}a)", r"a$", r"\A ", r"\Z"]),
    block=st.integers(1, 30),
)
def test_a_text_read_in_blocks_is_cut_as_one_read_at_once(tmp_path_factory, text, pattern, block):
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_bytes(("b" + text).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK_BYTES", block)
        patch.setattr(files, "REACH", 8)
        assert texts_of(path, split_on=pattern) == cut_whole("b" + text, pattern)


@pytest.mark.parametrize("split_on", [None, "^# ", "^never"])
def test_a_text_is_read_in_bounded_memory(tmp_path, monkeypatch, split_on):
    for name, value in (("BLOCK_BYTES", 1 << 14), ("LONGEST_DOCUMENT", 1 << 16), ("REACH", 1 << 10)):
        monkeypatch.setattr(files, name, value)
    lines = [f"{'# ' if i % 100 == 0 else ''}line {i}" for i in range(300_000)]
    (tmp_path / "t.txt").write_text("\n".join(lines))
    tracemalloc.start()
    counts = [(document.count("\n"), len(document)) for document in files.read_txt(tmp_path / "t.txt", split_on)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(newlines for newlines, _ in counts) == 299_999
    assert sum(length for _, length in counts) == (tmp_path / "t.txt").stat().st_size
    assert peak < 1 << 20
    if split_on == "^# ":
        assert {newlines for newlines, _ in counts} == {99, 100}
    else:
        assert all((1 << 16) - 20 < length <= 1 << 16 for _, length in counts[:-1]), "cut after a line"


def test_a_cap_cuts_documents_but_no_text_that_is_one(tmp_path):
    (tmp_path / "t.txt").write_text("# abc# def")
    write_jsonl(tmp_path / "t.jsonl", ["abcdef"])
    capped = {
        name: open_text_source(tmp_path / name, split="train").documents(doc_cap=3) for name in ("t.txt", "t.jsonl")
    }
    assert {name: list(found) for name, found in capped.items()} == {"t.txt": ["# abc# def"], "t.jsonl": ["abc"]}
    assert list(open_text_source(tmp_path / "t.txt", split="train", split_on="# ").documents(doc_cap=3)) == [
        "# a",
        "# d",
    ]


SPLITS = [
    # files, training, validation, test
    ("shard_0 shard_2 shard_10 shard_1", "shard_0 shard_1 shard_2", "shard_10", ""),
    ("a b valid", "a b", "valid", ""),
    ("a values_1 b", "a b", "values_1", ""),
    ("train-0 train-1 test-0", "train-0", "train-1", "test-0"),
    ("train validation test", "train", "validation", "test"),
    ("train/0000 train/0001 validation/0000 test/0000", "train/0000 train/0001", "validation/0000", "test/0000"),
    ("en/c4-train.00000-of-00001 en/c4-validation.00000-of-00001", "en/c4-train.00000-of-00001",
     "en/c4-validation.00000-of-00001", ""),
    ("data/train-00000-of-00002-ab data/train-00001-of-00002-cd data/test-00000-of-00001-ef",
     "data/train-00000-of-00002-ab", "data/train-00001-of-00002-cd", "data/test-00000-of-00001-ef"),
    ("main/TRAIN main/dev", "main/TRAIN", "main/dev", ""),
    ("contest testament trained", "contest testament", "trained", ""),
    ("a/x b/x .cache/x", "a/x", "b/x", ""),
]  # fmt: skip


@pytest.mark.parametrize(("names", "train", "val", "test"), SPLITS)
def test_names_say_the_split(tmp_path, names, train, val, test):
    for name in names.split():
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    assert texts_of(tmp_path, "train") == train.split()
    assert texts_of(tmp_path, "val") == val.split()
    if test:
        assert texts_of(tmp_path, "test") == test.split()
    else:
        with pytest.raises(ValueError, match="has no test documents"):
            open_text_source(tmp_path, split="test")


def test_of_one_file_every_fiftieth_document_is_validation(tmp_path):
    write_jsonl(tmp_path / "shard_0.jsonl", [f"a{i}" for i in range(100)])
    write_jsonl(tmp_path / "test.jsonl", ["t"])
    assert texts_of(tmp_path, "val") == ["a49", "a99"]
    assert len(texts_of(tmp_path, "train")) == 98
    assert "t" not in texts_of(tmp_path, "train")


AMBIGUOUS = [
    ("train notes", "notes.jsonl says no split, and train.jsonl beside it does"),
    ("train_test", "is named for test and train"),
    ("test/train", "is named for test and train"),
    ("test", "has no training documents (files: 0 for train, 0 for val, 1 for test)"),
    ("val-0 val-1", "has no training documents (files: 0 for train, 2 for val, 0 for test)"),
    ("train-00000-of-00004", "train-00001-of-00004 is missing, 1 of 4 files are there"),
]


@pytest.mark.parametrize(("names", "complaint"), AMBIGUOUS)
def test_what_is_ambiguous_or_partial_is_refused(tmp_path, names, complaint):
    for name in names.split():
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    with pytest.raises(ValueError, match=r"jsonl|train") as caught:
        open_text_source(tmp_path, split="train")
    assert complaint in str(caught.value)


def test_the_same_text_twice_is_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ["a"])
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress((tmp_path / "train.jsonl").read_bytes()))
    with pytest.raises(ValueError, match=r"train.jsonl\S* and train.jsonl\S* look like the same text twice"):
        open_text_source(tmp_path, split="train")


def test_a_mirror_that_was_copied_in_part_or_twice_is_refused(tmp_path):
    row = {"question": "1 + 1?", "answer": "#### 2"}
    for name in ("train-00000-of-00004", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=r"train-00001-of-00004 is missing, 1 of 4 files are there"):
        GSM8K("train", folder=tmp_path)
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress((tmp_path / "test.jsonl").read_bytes()))
    with pytest.raises(ValueError, match=r"look like the same text twice"):
        GSM8K("test", folder=tmp_path)


def broken_files(folder: Path) -> dict[str, str]:
    (folder / "empty.parquet").write_bytes(b"")
    (folder / "corrupt.parquet").write_bytes(b"PAR1 nonsense PAR1")
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), folder / "column.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1]}), folder / "numbers.parquet")
    bad = pyarrow.array([b"na\xefve"]).cast(pyarrow.string(), safe=False)
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), folder / "bytes.parquet")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "late.txt").write_bytes(b"ab\n" * (1 << 19) + b"\xe2\x82")
    (folder / "line.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (folder / "field.jsonl").write_text('{"text": "fine"}\n{"txt": "x"}\n')
    (folder / "half.jsonl").write_text('{"text": "fine \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    (folder / "blank.txt").write_text("  \n")
    whole = gzip.compress(b'{"text": "fine"}\n' * 1000)
    (folder / "short.jsonl.gz").write_bytes(whole[:-20])
    (folder / "bent.jsonl.gz").write_bytes(whole[:12] + b"????" + whole[16:])
    (folder / "short.jsonl.zst").write_bytes(compressed(b'{"text": "fine"}\n' * 1000)[:-5])
    (folder / "notes.md").write_text("text")
    return {
        "empty.parquet": "empty, damaged or no parquet",
        "corrupt.parquet": "empty, damaged or no parquet",
        "column.parquet": "no column 'text'; it has body",
        "numbers.parquet": "holds other things than text (int64)",
        "bytes.parquet": "holds text that is not UTF-8",
        "latin.txt": "line 1 is not UTF-8 (byte 2)",
        "late.txt": f"line {2**19 + 1} is not UTF-8 (byte {3 * 2**19})",
        "short.jsonl.gz": "cannot be read",
        "bent.jsonl.gz": "cannot be read",
        "short.jsonl.zst": "cannot be read",
        "notes.md": "is none of .parquet, .jsonl",
        "line.jsonl": "line 2 is not JSON",
        "field.jsonl": "line 2 has no string in the field 'text'",
        "half.jsonl": "line 2 has half of a surrogate pair",
        "blank.txt": "has no training documents",
    }


def test_bad_files_are_one_line_that_names_them(tmp_path):
    for name, complaint in broken_files(tmp_path).items():
        with pytest.raises(ValueError, match=name) as caught:
            texts_of(tmp_path / name)
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        open_text_source(tmp_path / "nowhere", split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no"):
        open_text_source(tmp_path / "empty", split="train")
    (tmp_path / "chats.jsonl").write_text('[{"role": "user", "content": "\\udfff"}]')
    with pytest.raises(ValueError, match=r"chats.jsonl, line 1 has half of a surrogate pair"):
        CustomJSON(tmp_path / "chats.jsonl")


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=12),
    unit_bytes=st.integers(1, 60),
    crlf=st.booleans(),
)
def test_units_of_lines_are_together_the_file(tmp_path_factory, texts, unit_bytes, crlf):
    path = tmp_path_factory.mktemp("lines") / "t.jsonl"
    end = "\r\n" if crlf else "\n"
    path.write_bytes("".join(json.dumps({"text": text}, ensure_ascii=False) + end for text in ["x", *texts]).encode())
    expected = [text for text in ["x", *texts] if text.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "UNIT_BYTES", unit_bytes)
        source = open_text_source(path, split="train")
        assert [d for unit in source.units() for d in source.read(unit)] == expected
        assert len(list(source.units())) == -(-path.stat().st_size // unit_bytes)


@pytest.mark.parametrize("unit_bytes", [1, 7, 40, 41, 1000])
def test_an_error_in_a_later_unit_names_the_line_of_the_file(tmp_path, monkeypatch, unit_bytes):
    monkeypatch.setattr(documents, "UNIT_BYTES", unit_bytes)
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": "bc"}\n' * 3 + '{"text": 1}\n')
    with pytest.raises(ValueError, match=r"t.jsonl, line 10 has no string"):
        texts_of(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": "bc"}\n' * 3 + '{"text":\n')
    with pytest.raises(ValueError, match=r"t.jsonl, line 10 is not JSON"):
        texts_of(tmp_path / "t.jsonl")


def test_row_groups_and_small_files_make_units(tmp_path, monkeypatch):
    texts = [f"{i:010d}" * 10 for i in range(100)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "t.parquet", row_group_size=10)
    monkeypatch.setattr(documents, "UNIT_BYTES", 2000)
    source = open_text_source(tmp_path / "t.parquet", split="train", text_field="text")
    units = list(source.units())
    assert [[(span.start, span.stop) for span in unit] for unit in units] == [[(i, i + 2)] for i in range(0, 10, 2)]
    kept = [text for part in range(5) for text in texts[20 * part : 20 * part + 20]]
    assert [d for unit in units for d in source.read(unit)] == kept
    for i in range(9):
        write_jsonl(tmp_path / "many" / f"{i}.jsonl", ["x" * 900])
    source = open_text_source(tmp_path / "many", split="train")
    assert [len(unit) for unit in source.units()] == [3, 3, 2]
