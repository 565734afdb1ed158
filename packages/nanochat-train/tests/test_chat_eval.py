"""ChatCORE's arithmetic: pass@k, errors over problems, the metric, grading beside writing, over ranks."""

import itertools
import math
import random
import statistics
from dataclasses import dataclass

import pytest
from nanochat_train import (
    CHAT_CORE,
    Answer,
    ChatResult,
    EvaluationLog,
    ProcessGroup,
    chat_core,
    evaluate_chat,
    pass_at_k,
)


@dataclass
class Task:
    """Problem i is answered by i, in words or by the letter with its remainder."""

    size: int
    eval_type: str = "generative"

    def __len__(self):
        return self.size

    def conversation(self, index):
        right = "abc"[index % 3] if self.eval_type == "categorical" else str(index)
        return {"messages": [{"role": "user", "content": f"{index}?"}, {"role": "assistant", "content": right}]}

    def letters(self, index):
        return "abc"

    def evaluate(self, conversation, completion):
        return completion == conversation["messages"][-1]["content"]


def write_some(problems):
    """Three samples a problem, as many of them right as the index's remainder by 4; later problems are done first."""
    for index, _ in reversed(list(problems)):
        right = [str(index)] * (index % 4)
        texts = right + ["no"] * (3 - len(right))
        yield (
            index,
            [Answer(text=text, num_tokens=3, finished="length" if text == "no" else "stop") for text in texts],
        )


def choose_first(conversations, letters):
    return [[2.0, 1.0, math.nan] for _ in conversations]


def evaluate(task, **options):
    return evaluate_chat("t", task, generate=write_some, score_choices=choose_first, **options)


def test_pass_at_k_is_the_mean_over_all_ways_to_draw():
    for num_samples, num_right in ((1, 0), (1, 1), (4, 1), (6, 2), (6, 6)):
        outcomes = [True] * num_right + [False] * (num_samples - num_right)
        for k in range(1, num_samples + 1):
            draws = [any(draw) for draw in itertools.combinations(outcomes, k)]
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(statistics.mean(draws))
    with pytest.raises(ValueError, match="k=3 must be between 1 and num_samples=2"):
        pass_at_k(2, 1, 3)


def test_answers_in_words_are_graded_whatever_their_order():
    result = evaluate(Task(10))
    shares = [i % 4 / 3 for i in range(10)]
    assert (result.num_problems, result.num_samples) == (10, 3)
    assert result.accuracy == pytest.approx(statistics.mean(shares))
    assert result.standard_error == pytest.approx(statistics.stdev(shares) / math.sqrt(10))
    assert list(result.pass_at) == [1, 2, 3]
    for k, value in result.pass_at.items():
        assert value == pytest.approx(statistics.mean(pass_at_k(3, i % 4, k) for i in range(10)))
    assert result.share_truncated == pytest.approx(1 - statistics.mean(shares))


def test_letters_are_the_most_probable_finite_ones():
    result = evaluate(Task(9, "categorical"), baseline=1 / 3, problems_at_once=2)
    assert result.accuracy == pytest.approx(1 / 3)
    assert result.centred == pytest.approx(0.0)
    assert result.num_unanswered == 0


def test_nothing_finite_is_no_answer():
    def choose(conversations, letters):
        return [[math.nan, math.inf, -math.inf] for _ in conversations]

    result = evaluate_chat("t", Task(3, "categorical"), generate=write_some, score_choices=choose)
    assert (result.accuracy, result.num_unanswered) == (0.0, 3)


def test_an_evaluation_goes_on_from_its_log_and_takes_the_first_problems(tmp_path):
    whole = evaluate(Task(10))
    asked = []

    def write(problems):
        for index, answers in write_some(problems):
            asked.append(index)
            if len(asked) == 5:
                raise KeyboardInterrupt
            yield index, answers

    path = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evaluate_chat("t", Task(10), generate=write, score_choices=choose_first, log=EvaluationLog(path, {}))
    done = len(EvaluationLog(path, {}).done("t"))
    result = evaluate_chat("t", Task(10), generate=write, score_choices=choose_first, log=EvaluationLog(path, {}))
    assert result == whole
    assert len(asked) == 5 + 10 - done
    assert evaluate(Task(10), max_problems=4, log=EvaluationLog(path, {})) == evaluate(Task(4))


def test_ranks_share_the_problems_out(monkeypatch):
    """What two ranks would tell each other, put together by hand."""
    told = []
    monkeypatch.setattr(ProcessGroup, "sum", lambda self, *values: told.append(values) or list(values))
    for rank in (0, 1):
        evaluate(Task(7), ranks=ProcessGroup(rank, 2))
    (_, first), (_, second) = told[:2], told[2:]
    assert first[0] + second[0] == 7
    assert (first[2] + second[2]) / 7 == pytest.approx(evaluate(Task(7)).accuracy)


def test_chatcore_is_the_mean_of_centred_accuracies_and_needs_all_tasks():
    rng = random.Random(0)
    results = [
        ChatResult(
            name=name,
            num_problems=1,
            num_samples=1,
            accuracy=rng.random(),
            standard_error=0.0,
            baseline=baseline,
            pass_at={1: 0.0},
            share_truncated=0.0,
            num_unanswered=0,
        )
        for name, baseline in CHAT_CORE.items()
    ]
    expected = statistics.mean((r.accuracy - r.baseline) / (1 - r.baseline) for r in results)
    assert chat_core(results) == pytest.approx(expected)
    assert chat_core(results[1:]) is None


def test_a_task_without_problems_is_named():
    with pytest.raises(ValueError, match="t has no problem"):
        evaluate(Task(0))
