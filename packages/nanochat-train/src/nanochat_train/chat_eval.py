"""ChatCORE: problems put to a chat model, answered by a letter or in words, graded; the mean of centred accuracies.

The tasks, and who answers (`ChoiceScorer`, `Generator`), come from outside, so that any data and any model will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from nanochat_train.evaluation_log import EvaluationLog
from nanochat_train.process_group import ProcessGroup

CHAT_CORE: Mapping[str, float] = {"arc-easy": 0.25, "arc-challenge": 0.25, "mmlu": 0.25, "gsm8k": 0.0, "humaneval": 0.0}
"""The tasks of the ChatCORE metric, and the accuracy of guessing in each."""


class ChatTask(Protocol):
    """Numbered conversations that end with the reference answer, and their grader."""

    @property
    def eval_type(self) -> str:
        """`categorical`: answered by a letter, and then the task has `letters(index)`; `generative`: in words."""
        ...

    def __len__(self) -> int: ...

    def conversation(self, index: int, /) -> Any: ...

    def evaluate(self, conversation: Any, completion: str, /) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model wrote."""

    text: str
    num_tokens: int
    finished: str
    """`stop`, `length` (truncated at the limit), or `context length exceeded` (the problem did not fit the context)."""


class Generator(Protocol):
    """Answers problems in words, several samples each, in whatever order they are done."""

    def __call__(self, problems: Iterable[tuple[int, Any]], /) -> Iterator[tuple[int, list[Answer]]]:
        """(index, conversation) -> (index, its answers)."""
        ...


class ChoiceScorer(Protocol):
    """Answers problems by a letter."""

    def __call__(self, conversations: Sequence[Any], letters: Sequence[Sequence[str]], /) -> list[list[float]]:
        """The log probability of each of its letters for each conversation; not finite where there is none."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatResult:
    """How well a task was done."""

    name: str
    num_problems: int
    num_samples: int
    accuracy: float
    """Share of right answers, pass@1."""
    standard_error: float
    """of the accuracy, over problems"""
    baseline: float
    pass_at: dict[int, float]
    """Estimated chance that one of k samples is right, for k = 1, 2, 4, ... up to the number of samples."""
    share_truncated: float
    """Answers that reached the limit of tokens."""
    num_unanswered: int
    """Problems without an answer, which count as wrong: they did not fit the context, or no log probability was finite."""

    @property
    def centred(self) -> float:
        """0 for guessing, 1 for all right."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)


def chat_core(results: Iterable[ChatResult]) -> float | None:
    """The ChatCORE metric; None unless all of its tasks are there."""
    centred = {result.name: result.centred for result in results}
    if not centred.keys() >= CHAT_CORE.keys():
        return None
    return sum(centred[name] for name in CHAT_CORE) / len(CHAT_CORE)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """The chance that k of the samples, drawn without putting back, hold a right one: unbiased (Chen et al. 2021)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k} must be between 1 and num_samples={num_samples}")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def evaluate_chat(
    name: str,
    task: ChatTask,
    *,
    generate: Generator,
    score_choices: ChoiceScorer,
    baseline: float | None = None,
    max_problems: int | None = None,
    problems_at_once: int = 64,
    grading_threads: int = 2,
    log: EvaluationLog | None = None,
    ranks: ProcessGroup | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ChatResult:
    """Puts the first `max_problems` of a task to the model, shared out over the ranks of `ranks`.

    `log` gets one line per problem, with all answers; those that are in it already are not asked again. `baseline` defaults
    to the one of `CHAT_CORE`, else 0. Letters are chosen `problems_at_once`; answers in words are graded on threads.
    """
    ranks = ranks or ProcessGroup()
    total = min(len(task), max_problems or len(task))
    mine = range(ranks.rank, total, ranks.size)
    done = log.done(name) if log is not None else {}
    entries = [done[index] for index in mine if index in done]
    todo = [index for index in mine if index not in done]
    if task.eval_type == "categorical":
        new = _chosen(name, task, todo, score_choices, problems_at_once)
    else:
        new = _written(name, task, todo, generate, grading_threads)
    for entry in new:
        if log is not None:
            log.append([entry])
        entries.append(entry)
        on_progress(len(entries), len(mine))
    if baseline is None:
        baseline = CHAT_CORE.get(name, 0.0)
    return _result(name, entries, baseline, ranks)


def _chosen(
    name: str, task: ChatTask, indices: Sequence[int], score_choices: ChoiceScorer, at_once: int
) -> Iterator[dict[str, Any]]:
    """A line of the log for each problem, answered by a letter."""
    for begin in range(0, len(indices), at_once):
        some = indices[begin : begin + at_once]
        conversations = [task.conversation(index) for index in some]
        letters = [task.letters(index) for index in some]  # type: ignore[attr-defined]
        for index, conversation, names, logprobs in zip(
            some, conversations, letters, score_choices(conversations, letters), strict=True
        ):
            finite = [logprob if math.isfinite(logprob) else -math.inf for logprob in logprobs]
            answered = max(finite) > -math.inf
            letter = names[finite.index(max(finite))] if answered else ""
            yield {
                **_problem(name, index, conversation),
                "answers": [letter],
                "finished": ["stop" if answered else "no answer"],
                "logprobs": [round(logprob, 4) if math.isfinite(logprob) else None for logprob in logprobs],
                "right": [answered and task.evaluate(conversation, letter)],
            }


def _written(
    name: str, task: ChatTask, indices: Sequence[int], generate: Generator, threads: int
) -> Iterator[dict[str, Any]]:
    """A line of the log for each problem, answered in words; while some are graded, others are written."""

    def graded(index: int, conversation: Any, answers: Sequence[Answer]) -> dict[str, Any]:
        return {
            **_problem(name, index, conversation),
            "answers": [answer.text for answer in answers],
            "finished": [answer.finished for answer in answers],
            "num_tokens": [answer.num_tokens for answer in answers],
            "right": [
                answer.finished != "context length exceeded" and task.evaluate(conversation, answer.text)
                for answer in answers
            ],
        }

    conversations: dict[int, Any] = {}

    def problems() -> Iterator[tuple[int, Any]]:
        for index in indices:
            conversations[index] = task.conversation(index)
            yield index, conversations[index]

    with ThreadPoolExecutor(threads) as graders:
        grading: list[Future[dict[str, Any]]] = []
        for index, answers in generate(problems()):
            grading.append(graders.submit(graded, index, conversations.pop(index), answers))
            while grading and (grading[0].done() or len(grading) > 4 * threads):
                yield grading.pop(0).result()
        for future in grading:
            yield future.result()


def _problem(name: str, index: int, conversation: Any) -> dict[str, Any]:
    *messages, reference = conversation["messages"]
    return {"task": name, "index": index, "messages": messages, "reference": reference["content"]}


def _result(name: str, entries: Sequence[Mapping[str, Any]], baseline: float, ranks: ProcessGroup) -> ChatResult:
    """The scores of all ranks' problems."""
    entries = sorted(entries, key=lambda entry: entry["index"])  # sums must not depend on what was done first
    counts = [(len(entry["right"]), sum(entry["right"])) for entry in entries]
    # A rank without problems does not know how many samples there are.
    num_samples = int(max(ranks.gather(max((n for n, _ in counts), default=0))))
    ks = sorted({*(2**i for i in range(num_samples.bit_length())), num_samples} & set(range(1, num_samples + 1)))
    shares = [right / n for n, right in counts]
    finished = [reason for entry in entries for reason in entry["finished"]]
    sums = ranks.sum(
        len(entries),
        len(finished),
        sum(shares),
        sum(share**2 for share in shares),
        finished.count("length"),
        sum(set(entry["finished"]) <= {"context length exceeded", "no answer"} for entry in entries),
        *(sum(pass_at_k(n, right, k) for n, right in counts) for k in ks),
    )
    num_problems, num_answers, total, squares, truncated, unanswered, *passed = sums
    if not num_problems:
        raise ValueError(f"{name} has no problem to put to the model")
    mean = total / num_problems
    variance = max(squares / num_problems - mean**2, 0.0) * num_problems / max(num_problems - 1, 1)
    return ChatResult(
        name=name,
        num_problems=int(num_problems),
        num_samples=num_samples,
        accuracy=mean,
        standard_error=math.sqrt(variance / num_problems),
        baseline=baseline,
        pass_at={k: value / num_problems for k, value in zip(ks, passed, strict=True)},
        share_truncated=truncated / num_answers,
        num_unanswered=int(unanswered),
    )
