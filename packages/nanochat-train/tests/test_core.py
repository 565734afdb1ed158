"""CORE's arithmetic: what is scored, which option wins, the errors, over ranks, and going on from a log."""

import dataclasses
import importlib.util
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from nanochat_train import Candidate, EvaluationLog, evaluate_core
from nanochat_train.core import candidates, choice, common_prefix, cropped, score, task_result

WORKER = Path(__file__).parent / "core_worker.py"
spec = importlib.util.spec_from_file_location("core_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
sys.modules["core_worker"] = worker
spec.loader.exec_module(worker)
Item, Task = worker.Item, worker.Task


def letters(text: str) -> list[int]:
    return [0, *text.encode()]


def test_multiple_choice_scores_what_follows_the_common_beginning():
    got = candidates(Item(("say ab", "say acd"), 0), "multiple_choice", letters)
    assert [c.token_ids for c in got] == [letters("say ab"), letters("say acd")]
    assert [c.start for c in got] == [6, 6]


def test_schema_scores_the_common_end():
    got = candidates(Item(("Tom ran", "Ann has ran"), 0), "schema", letters)
    assert [c.start for c in got] == [4, 8]
    same = candidates(Item(("ran", "ran"), 0), "schema", letters)
    assert same[0].start == 1, "the first token has nothing before it to be told from"


def test_language_modelling_scores_what_the_continuation_adds():
    [got] = candidates(Item(("once", "once upon"), 1), "language_modeling", letters)
    assert got == Candidate(letters("once upon"), 5)


def test_a_common_prefix_is_of_all():
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_prefix(["abc", "b"]) == 0
    assert common_prefix([[5]]) == 1


def test_long_prompts_lose_the_same_beginning():
    options = [Candidate(list(range(10)), 8), Candidate(list(range(7)), 5)]
    assert cropped(options, 10) == options == cropped(options, None)
    assert cropped(options, 6) == [Candidate([4, 5, 6, 7, 8, 9], 4), Candidate([4, 5, 6], 1)]


def test_an_option_without_tokens_to_score_is_not_asked_about():
    asked = []

    def loglikelihood(pairs):
        asked.extend(pairs)
        return [(-3.0, True)] * len(pairs)

    [[empty, full]] = score([[Candidate([1, 2], 2), Candidate([1, 2, 3, 4], 2)]], loglikelihood)
    assert asked == [([1, 2], [3, 4])]
    assert math.isnan(empty[0])
    assert (empty[1], full) == (False, (1.5, True))


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([2.0, 1.0, 3.0], 1),
        ([1.0, 1.0], 0),
        ([1.000001, 1.0], 0),
        ([1.001, 1.0], 1),
        ([math.nan, 7.0], 1),
        ([math.nan, math.inf], None),
    ],
)
def test_the_lowest_finite_loss_wins_and_the_first_of_equals(means, expected):
    assert choice(means) == expected


def test_scores_and_errors_are_those_of_the_sample():
    right = [True] * 6 + [False] * 4
    result = task_result("x", sum(right), len(right), 0.25)
    assert result.accuracy == 0.6
    assert result.centred == pytest.approx((0.6 - 0.25) / 0.75)
    assert result.standard_error == pytest.approx(statistics.stdev(right) / math.sqrt(10) / 0.75)
    assert task_result("x", 1, 1, 0.0).standard_error == 0.0


def plain(tasks) -> list[float]:
    """Accuracies, one item at a time."""
    accuracies = []
    for task in tasks:
        right = []
        for index in range(len(task)):
            item = task.item(index)
            [scored] = score([candidates(item, task.kind, worker.encode)], worker.loglikelihood)
            if task.kind == "language_modeling":
                right.append(scored[0][1])
            else:
                right.append(scored.index(min(scored)) == item.gold)
        accuracies.append(sum(right) / len(right))
    return accuracies


@pytest.mark.parametrize("items_at_once", [1, 5, 100])
def test_the_score_is_that_of_one_item_at_a_time(items_at_once):
    result = evaluate_core(worker.TASKS, worker.encode, worker.loglikelihood, items_at_once=items_at_once)
    assert [task.accuracy for task in result.tasks] == plain(worker.TASKS)
    assert result.core == pytest.approx(statistics.mean(task.centred for task in result.tasks))
    assert result.standard_error == pytest.approx(math.hypot(*(task.standard_error for task in result.tasks)) / 3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_gives_the_same_score(tmp_path, size):
    ranks = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), str(size), str(tmp_path)], stderr=subprocess.PIPE)
        for rank in range(size)
    ]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, errors
    alone = dataclasses.asdict(evaluate_core(worker.TASKS, worker.encode, worker.loglikelihood))
    for rank in range(size):
        assert json.loads((tmp_path / f"result_{rank}.json").read_text()) == alone
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    keys = [(line["task"], line["index"]) for line in lines if "task" in line]
    assert sorted(keys) == sorted((task.label, index) for task in worker.TASKS for index in range(len(task)))


def test_an_interrupted_evaluation_goes_on_from_its_log(tmp_path):
    whole = evaluate_core(worker.TASKS, worker.encode, worker.loglikelihood)
    asked = 0

    def stopping(pairs):
        nonlocal asked
        asked += len(pairs)
        if asked > 100:
            raise KeyboardInterrupt
        return worker.loglikelihood(pairs)

    path = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate_core(worker.TASKS, worker.encode, stopping, items_at_once=4, log=EvaluationLog(path, {"a": 1}))
    assert asked == 23 * 4 + 4 * 3
    with path.open("a") as file:
        file.write('{"task": "resolve", "ind')  # as a crash leaves it
    asked = -1000
    log = EvaluationLog(path, {"a": 1})
    assert evaluate_core(worker.TASKS, worker.encode, stopping, items_at_once=4, log=log) == whole
    assert asked == -1000 + 7 * 3 + 9
    asked = 1000
    log = EvaluationLog(path, {"a": 1})
    assert evaluate_core(worker.TASKS, worker.encode, stopping, log=log) == whole, "nothing is left to be asked"


def test_a_log_about_something_else_is_begun_anew(tmp_path):
    path = tmp_path / "report" / "log.jsonl"
    EvaluationLog(path, {"checkpoint": "a"}).append([{"task": "t", "index": 0, "right": True}])
    assert EvaluationLog(path, {"checkpoint": "a"}).done("t")[0]["right"] is True
    assert EvaluationLog(path, {"checkpoint": "b"}).done("t") == {}
    path.write_text("not a log\n")
    assert EvaluationLog(path, {"checkpoint": "b"}).done("t") == {}


def test_text_that_looks_like_the_end_of_a_line_is_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    entry = {"task": "t", "index": 0, "right": True, "prompt": "a\u2028b\x85c\nd"}
    EvaluationLog(path, {}).append([entry])
    with path.open("ab") as file:
        file.write('{"task": "t", "pröm'.encode()[:-2])  # cut within a character
    assert EvaluationLog(path, {}).done("t") == {0: entry}


def test_the_log_has_prompts_losses_and_verdict(tmp_path):
    log = EvaluationLog(tmp_path / "log.jsonl", {})
    evaluate_core([Task("choose", "multiple_choice", 1)], worker.encode, worker.loglikelihood, log=log)
    entry = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[1])
    assert (entry["prompt"], entry["options"], entry["gold"]) == ("0 is ", ["a", "b", "c", "d"], 0)
    assert entry["right"] is (entry["losses"].index(min(entry["losses"])) == 0)


def test_a_model_without_finite_losses_is_wrong_and_said_to_be(tmp_path):
    def broken(pairs):
        return [(math.nan, False)] * len(pairs)

    path = tmp_path / "log.jsonl"
    result = evaluate_core(worker.TASKS, worker.encode, broken, log=EvaluationLog(path, {}))
    assert [(task.accuracy, task.num_undecided) for task in result.tasks] == [(0.0, 23), (0.0, 7), (0.0, 9)]
    assert "NaN" not in path.read_text(), "NaN is no JSON"


def test_cropped_items_are_counted():
    result = evaluate_core(worker.TASKS[:1], worker.encode, worker.loglikelihood, max_tokens=7)
    assert result.tasks[0].num_cropped == 13, "items with two digits"
