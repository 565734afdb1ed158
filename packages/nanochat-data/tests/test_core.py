"""The CORE bundle: prompts and shots as the reference makes them, cut tasks, and complaints about damaged files."""

import hashlib
import json
import os
import random
import zipfile
from pathlib import Path

import pytest
from nanochat_data import core_bundle_fingerprint, download_core_bundle, load_core_bundle

REAL_BUNDLE = (
    Path(os.environ.get("NANOCHAT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data") / "eval_bundle"
)

CHOICES = [{"query": f"Q{i}?", "choices": [f"a{i}", f"b{i}"], "gold": i % 2} for i in range(12)]
SCHEMA = [{"context_options": [f"x{i}", f"y{i}"], "continuation": f"went {i}", "gold": 1} for i in range(3)]
CONTINUED = [{"context": f"  once {i} ", "continuation": f"upon {i}"} for i in range(5)]
YAML = """
icl_tasks:
-
  label: choosing
  dataset_uri: a/choices.jsonl
  num_fewshot: [10]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
-
  label: resolving
  dataset_uri: schema.jsonl
  num_fewshot: [1]
  icl_task_type: schema
-
  label: going on
  dataset_uri: continued.jsonl
  num_fewshot: [2]
  icl_task_type: language_modeling
"""
BASELINES = "Eval Task,Task Category,Random baseline\nchoosing,x,25\nresolving,x,50\ngoing on,x,0\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    data = tmp_path / "eval_data"
    (data / "a").mkdir(parents=True)
    for name, rows in (("a/choices", CHOICES), ("schema", SCHEMA), ("continued", CONTINUED)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "core.yaml").write_text(YAML)
    (tmp_path / "eval_meta_data.csv").write_text(BASELINES)
    return tmp_path


def shuffled(rows: list[dict]) -> list[dict]:
    rows = list(rows)
    random.Random(1337).shuffle(rows)
    return rows


def shots(rows: list[dict], index: int, count: int) -> list[dict]:
    """The reference's draw."""
    return [rows[i] for i in random.Random(1234 + index).sample([i for i in range(len(rows)) if i != index], count)]


def test_multiple_choice_prompts(bundle):
    task = load_core_bundle(bundle)[0]
    rows = shuffled(CHOICES)
    assert (task.label, task.kind, task.baseline, len(task)) == ("choosing", "multiple_choice", 0.25, 12)
    for index, row in enumerate(rows):
        before = "".join(f"{s['query']}\nAnswer: {s['choices'][s['gold']]}\n\n" for s in shots(rows, index, 10))
        item = task.item(index)
        assert item.prompts == tuple(f"{before}{row['query']}\nAnswer: {choice}" for choice in row["choices"])
        assert item.gold == row["gold"]


def test_schema_prompts_differ_in_the_context(bundle):
    task = load_core_bundle(bundle)[1]
    rows = shuffled(SCHEMA)
    [shot] = shots(rows, 0, 1)
    before = f"{shot['context_options'][1]} {shot['continuation']}\n\n"
    expected = tuple(f"{before}{option} {rows[0]['continuation']}" for option in rows[0]["context_options"])
    assert task.item(0).prompts == expected


def test_language_modelling_prompts_are_without_and_with_the_continuation(bundle):
    task = load_core_bundle(bundle)[2]
    rows = shuffled(CONTINUED)
    before = "".join(f"{s['context'].strip()} {s['continuation']}\n\n" for s in shots(rows, 3, 2))
    without = f"{before}{rows[3]['context'].strip()}"
    assert task.item(3).prompts == (without, f"{without} {rows[3]['continuation']}")


@pytest.mark.parametrize("max_per_task", [1, 2, 4])
def test_a_task_cut_below_its_shots_takes_the_shots_there_are(bundle, max_per_task):
    task = load_core_bundle(bundle, max_per_task=max_per_task)[0]
    rows = shuffled(CHOICES)[:max_per_task]
    assert len(task) == max_per_task
    for index in range(max_per_task):
        before = "".join(
            f"{s['query']}\nAnswer: {s['choices'][s['gold']]}\n\n" for s in shots(rows, index, max_per_task - 1)
        )
        assert task.item(index).prompts[0] == f"{before}{rows[index]['query']}\nAnswer: {rows[index]['choices'][0]}"


def test_a_fingerprint_tells_bundles_apart(bundle):
    whole = core_bundle_fingerprint(load_core_bundle(bundle))
    assert whole == core_bundle_fingerprint(load_core_bundle(bundle))
    assert whole != core_bundle_fingerprint(load_core_bundle(bundle, max_per_task=2))
    (bundle / "core.yaml").write_text(YAML.replace("[2]", "[3]"))
    assert whole != core_bundle_fingerprint(load_core_bundle(bundle))


def test_a_bundle_is_fetched_compared_and_appears_whole(bundle, tmp_path_factory):
    there = tmp_path_factory.mktemp("fetched")
    archive = there / "bundle.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in bundle.rglob("*"):
            packed.write(path, Path("eval_bundle") / path.relative_to(bundle))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"has the SHA-256 {digest}, not 90a7"):
        download_core_bundle(there / "bundle", url=archive.as_uri())
    assert [path.name for path in there.iterdir()] == ["bundle.zip"]
    tasks = download_core_bundle(there / "bundle", url=archive.as_uri(), sha256=digest)
    assert core_bundle_fingerprint(tasks) == core_bundle_fingerprint(load_core_bundle(bundle))
    archive.unlink()
    assert len(download_core_bundle(there / "bundle", url=archive.as_uri())) == 3, "what is there is not fetched again"
    assert [path.name for path in there.iterdir()] == ["bundle"]
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("readme.txt", "nothing")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"does not hold one folder with a core\.yaml"):
        download_core_bundle(there / "other", url=archive.as_uri(), sha256=digest)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("schema.jsonl", "", "schema.jsonl holds no item"),
        ("schema.jsonl", "{", r"schema.jsonl, line 1 is not JSON"),
        ("schema.jsonl", "[]", "schema.jsonl, line 1: an item of type schema needs context_options, continuation, gold"),
        (
            "schema.jsonl",
            '{"context_options": ["a", "b"], "continuation": "c", "gold": 2}',
            "schema.jsonl, line 1: gold must be the index of one of the 2 context_options, not 2",
        ),
        (
            "schema.jsonl",
            '{"context_options": ["a", 3], "continuation": "c", "gold": 0}',
            "line 1: context_options must be a list of texts",
        ),
        (
            "a/choices.jsonl",
            '{"query": "q", "choices": "ab", "gold": 0}',
            "line 1: choices must be a list of texts",
        ),
        ("a/choices.jsonl", '{"query": 3, "choices": ["a"], "gold": 0}', "line 1: query must be text"),
        ("a/choices.jsonl", '{"query": "q", "choices": ["a"], "gold": "0"}', "gold must be the index .* not '0'"),
        ("continued.jsonl", '\n{"context": "a", "continuation": " "}', "line 2: the continuation is empty"),
        ("continued.jsonl", '{"context": "a"}', "line 1: an item of type language_modeling needs context, continuation"),
        ("../core.yaml", "", "core.yaml has no list of tasks"),
        ("../core.yaml", "icl_tasks: [", "core.yaml is not YAML"),
        ("../core.yaml", "icl_tasks: [{label: choosing}]", "core.yaml, task 1 has no text under dataset_uri"),
        ("../core.yaml", YAML.replace("schema\n", "chess\n"), "task 2: resolving has the type 'chess'"),
        ("../core.yaml", YAML.replace("[10]", "ten"), "task 1: choosing needs num_fewshot"),
        ("../core.yaml", YAML.replace("a/choices", "b/choices"), "choices.jsonl does not exist; core.yaml names it"),
        ("../eval_meta_data.csv", "a,b\n1,2\n", "eval_meta_data.csv is missing or has no columns"),
        ("../eval_meta_data.csv", "Eval Task,Random baseline\nchoosing,25\n", "eval_meta_data.csv has no row for resolving"),
        ("../eval_meta_data.csv", BASELINES.replace("25", "100"), "baseline of choosing must be between 0 and 100"),
    ],
)  # fmt: skip
def test_damage_is_one_line_that_names_the_place(bundle, file, text, complaint):
    (bundle / "eval_data" / file).write_text(text)
    with pytest.raises(ValueError, match=complaint) as caught:
        load_core_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_missing_bundle_and_a_limit_of_none_at_all(bundle, tmp_path):
    with pytest.raises(ValueError, match="max_per_task=0 must be at least 1"):
        load_core_bundle(bundle, max_per_task=0)
    (bundle / "core.yaml").unlink()
    with pytest.raises(ValueError, match=r"core.yaml does not exist; give the folder of the CORE bundle"):
        load_core_bundle(bundle)


@pytest.mark.skipif(not REAL_BUNDLE.is_dir(), reason="the CORE bundle is not here")
def test_the_real_bundle_is_22_tasks_that_can_all_be_asked():
    tasks = load_core_bundle(REAL_BUNDLE)
    assert len(tasks) == 22
    for task in tasks:
        for index in {0, len(task) - 1}:
            item = task.item(index)
            assert len(set(item.prompts)) >= 2
            assert 0 <= item.gold < len(item.prompts)
