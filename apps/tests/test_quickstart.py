"""quickstart on a toy size, as a person runs it; its sizes, its questions, how it grades, and its report."""

import json
import re
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from nanochat_apps.quickstart import evaluation, program, report
from nanochat_apps.quickstart.evaluation import Question, Score
from nanochat_apps.quickstart.sizes import FULL, SMOKE, Size, sized
from nanochat_apps.runtime.flags.quickstart import Settings
from nanochat_data.synthetic import TinyWorld, grade
from nanochat_data.synthetic.facts import relations
from nanochat_data.synthetic.phrasing import table, templates, words
from nanochat_engine import use_calculator


class Parrot:
    """An engine that answers a conversation with what a mapping has for its last turn, and remembers what it was asked."""

    def __init__(self, **changes: object) -> None:
        self.asked: list[list[str]] = []
        self._changes = changes

    def chat_ids(self, messages: Sequence[dict]) -> Sequence[dict]:
        return list(messages)

    def complete(self, prompts: Sequence[Sequence[dict]], **_: object) -> list[SimpleNamespace]:
        self.asked += [[str(message["content"]) for message in messages] for messages in prompts]
        return [self._answer(messages[-1]["content"]) for messages in prompts]

    def _answer(self, said: str) -> SimpleNamespace:
        answer = {"text": f"You said {said}", "parts": [], "tool_calls": [], "finish_reason": "stop"}
        return SimpleNamespace(**(answer | self._changes))


@pytest.mark.slow
def test_quickstart_runs_to_its_report_and_a_second_time_skips(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    tiny = Size(
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
    assert program.start(Settings(smoke=True, device_type="cpu")) == 0
    page = (tmp_path / "quickstart-smoke/report/report.html").read_text()
    assert all(name in page for name in evaluation.SKILLS.values())
    assert page.count("<svg") == 4
    assert "http-equiv" not in page
    samples = [json.loads(line) for line in (tmp_path / "quickstart-smoke/sft_samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 1, 2]
    assert all(len(sample["answers"]) == len(evaluation.WATCHED) for sample in samples)
    capsys.readouterr()
    assert program.start(Settings(smoke=True, device_type="cpu")) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.endswith("done already")] == [
        f"{stage}: done already" for stage in ("data", "tokenizer", "base", "sft", "rl", "evaluation")
    ]


@pytest.mark.parametrize("step_s", [0.05, 0.19, 0.8])
@pytest.mark.parametrize("minutes", [6, 20])
def test_a_size_takes_as_long_as_asked(minutes, step_s):
    size = sized(minutes, step_s)
    if size.depth == FULL.depth and size.base_steps + size.sft_steps > 100:
        assert size.minutes(step_s) == pytest.approx(minutes, rel=0.02)
    steps = size.base_steps + size.sft_steps
    assert steps >= 100
    assert sized(minutes, step_s / 10).depth >= size.depth
    assert (size.depth > FULL.depth) == (minutes * 60 / step_s > 3500)


def normalised(text: str) -> str:
    return re.sub(r"[^\w+*/ -]", "", text.lower()).strip()


def of_the_world(skill: str) -> set[str]:
    """What the world asks: all of it where that can be listed, else a sample."""
    if skill == "facts":
        pairs = ((relation, subject) for relation in relations().values() for subject, _ in relation.pairs)
        return {normalised(asked.format(s=subject)) for relation, subject in pairs for asked in relation.questions}
    if skill == "identity":
        names = table("identity")["intents"]
        return {normalised(asked) for name in names for asked in templates("identity", "intents", name, "asked")}
    if skill == "off_topic":
        phrases = table("off_topic")
        asked = set(phrases["asked"])
        for slot in {slot for template in asked for slot in re.findall(r"{(\w+)}", template)}:
            fillers = phrases["slots"][slot].split(", ") if slot in phrases["slots"] else words(slot)
            asked = {template.replace(f"{{{slot}}}", filler) for template in asked for filler in fillers}
        return set(map(normalised, asked))
    items = (TinyWorld(42).conversation(i, skill=skill)["messages"] for i in range(3000))
    return {normalised(" ".join(m["content"] for m in messages if m["role"] == "user")) for messages in items}


def test_out_of_distribution_questions_are_sixty_of_a_skill_and_none_of_the_worlds():
    written = evaluation.written()
    assert set(written) == {"arithmetic", "letters", "copying", "follow_up", "facts", "identity", "off_topic"}
    assert {len(questions) for questions in written.values()} == {60}
    tuned_on = {normalised(" ".join(q.turns)) for qs in evaluation.written("development.toml").values() for q in qs}
    for skill, questions in written.items():
        asked = {normalised(" ".join(question.turns)) for question in questions}
        assert len(asked) == 60
        assert not asked & tuned_on
        assert not asked & of_the_world(skill)


def test_the_written_answers_are_right_as_far_as_can_be_computed():
    for question in evaluation.written()["letters"]:
        words = re.findall(r"[a-z]+", question.turns[0].lower())
        counts = {str(word.count(letter)) for word in words for letter in words if len(letter) == 1}
        counts |= {str(word.count(letter[0])) for word in words for letter in words if len(letter) == 2}
        assert question.answer in counts, question
    for question in evaluation.written()["arithmetic"]:
        if re.fullmatch(r"[-+*/(). 0-9]+", question.turns[0]):
            assert float(use_calculator(question.turns[0])) == float(question.answer), question
    for question in evaluation.written()["copying"]:
        assert question.answer in " ".join(question.turns)
        assert grade(question.skill, question.answer, f"It is {question.answer}.")


def test_held_out_questions_are_the_persons_turns():
    questions = evaluation.held_out("follow_up", 20, seed=1)
    assert {len(question.turns) for question in questions} >= {2, 3}
    assert all(isinstance(turn, str) for question in questions for turn in question.turns)


def test_a_dialogue_is_played_with_the_models_own_answers():
    engine = Parrot()
    [[first, second], [only]] = evaluation.play(engine, [("a", "b"), ("c",)])
    assert engine.asked == [["a"], ["c"], ["a", "You said a", "b"]]
    assert (first.text, second.text, only.text) == ("You said a", "You said b", "You said c")


def test_scores_count_what_is_right_refused_and_broken():
    def scored(skill: str, answer: str, **changes: object) -> Score:
        return evaluation.score(Parrot(**changes), skill, [Question(skill=skill, turns=["7"], answer=answer)])

    assert scored("letters", "7").num_right == 1
    wrong = scored("letters", "8")
    assert (wrong.num_right, wrong.num_asked) == (0, 1)
    assert wrong.mistakes == [{"question": "7", "answer": "You said 7", "expected": "8"}]
    refusal = {"text": "I cannot do that."}
    assert scored("letters", "7", **refusal).num_refused == 1
    assert scored("off_topic", "cannot", **refusal).num_refused == 0
    assert scored("off_topic", "cannot", **refusal).num_right == 1
    for broken in (
        {"finish_reason": "length"},
        {"text": " "},
        {"text": "' berry'.count('r')"},
        {"text": "<|python_end|>"},
        {"tool_calls": [SimpleNamespace(output=None)]},
    ):
        assert scored("letters", "7", **broken).num_broken == 1
    assert scored("letters", "7").num_broken == 0


def test_a_score_has_its_standard_error():
    assert str(Score(name="", num_right=50, num_asked=100, mistakes=[])) == "50.0% ± 5.0%"


def test_report_pages_escape_what_a_model_says():
    assert (
        report.dialogue_html([("assistant", "<script>")])
        == '<div class="assistant"><b>assistant</b>: &lt;script&gt;</div>'
    )


def test_the_scoreboard_has_a_line_of_each_skill_and_the_share_of_false_refusals():
    def made(name: str, refused: int) -> Score:
        return Score(name=name, num_right=1, num_asked=2, num_refused=refused, num_broken=1, mistakes=[])

    scores = {
        "rl": [made("letter counts", 1), made(evaluation.SKILLS["off_topic"], 0)],
        "out_of_distribution": [made("letter counts", 0)],
        "sft": [made("letter counts", 0)],
    }
    lines = report.scoreboard(scores).splitlines()
    assert lines[1].split("50.0% ± 35.4%")[0].strip() == "letter counts"
    assert lines[1].count("50.0%") == 3
    assert lines[2].count("50.0%") == 1
    assert lines[-1].strip() == "False refusals: 1 of 4 (25.0%); broken answers: 3 of 6."


def test_smoke_is_smaller_than_full():
    assert SMOKE.minutes(0.2) < FULL.minutes(0.2)
