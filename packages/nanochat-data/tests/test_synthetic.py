"""The generated world is deterministic, right, varied, and keeps its test items to itself."""

import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nanochat_data.synthetic import MIXTURE, SKILLS, TinyWorld, grade
from nanochat_data.synthetic.arithmetic import in_words
from nanochat_data.synthetic.expressions import combined, number, parsed, random_expression
from nanochat_data.synthetic.facts import relations
from nanochat_data.synthetic.lookups import lookup
from nanochat_data.synthetic.phrasing import of_split, table, templates
from nanochat_data.tasks import TinyWorldTask

WORLD = TinyWorld(0)


def value(expression: str) -> Fraction:
    """Python's own value, of numbers that are exact."""
    return eval(re.sub(r"\d+(\.\d+)?", r"Fraction('\g<0>')", expression), {"Fraction": Fraction})


def user_turns(item) -> str:
    return " / ".join(message["content"] for message in item["messages"] if message["role"] == "user")


@pytest.mark.parametrize("skill", SKILLS)
def test_items_are_a_pure_function_of_their_index(skill):
    for index in (0, 7, 123_456_789):
        assert TinyWorld(3).conversation(index, skill=skill) == TinyWorld(3).conversation(index, skill=skill)
    assert TinyWorld(3).conversation(1, skill=skill) != TinyWorld(4).conversation(1, skill=skill)
    assert WORLD.document(5) == TinyWorld(0).document(5)


@given(index=st.integers(0, 10**9), split=st.sampled_from(["train", "test"]), skill=st.sampled_from(SKILLS))
def test_the_worlds_own_answers_are_right(index, split, skill):
    conversation = WORLD.conversation(index, split=split, skill=skill)
    last = conversation["messages"][-1]["content"]
    said = last if isinstance(last, str) else last[-1]["text"]
    assert grade(skill, conversation["answer"], said)
    assert not grade(skill, conversation["answer"], "zzz")
    for message in conversation["messages"]:
        if isinstance(message["content"], list):
            expression, output, _ = (part["text"] for part in message["content"])
            if counted := re.fullmatch(r"' ([a-z]{3,14})'\.count\('([a-z])'\)", expression):
                assert output == str(counted[1].count(counted[2]))
            else:
                assert float(output) == float(value(expression))


@pytest.mark.parametrize("skill", [skill for skill in SKILLS if skill != "identity"])
def test_no_test_item_is_a_training_item(skill):
    def questions(split, num):
        return {user_turns(WORLD.conversation(i, split=split, skill=skill)).lower() for i in range(num)}

    assert not questions("train", 4000) & questions("test", 400)


def test_the_mixture_has_no_story_of_three_actions_and_no_multiple_choice():
    assert sum(MIXTURE.values()) == 100
    skills = {WORLD.conversation(i)["skill"] for i in range(2000)}
    assert skills == set(MIXTURE)
    for i in range(300):
        told, long_told = (WORLD.conversation(i, skill=skill)["messages"][1] for skill in ("stories", "long_stories"))
        operators = [re.findall(r"(?<=[0-9)])[-+*/]", m["content"][0]["text"]) for m in (told, long_told)]
        assert len(operators[0]) <= 2
        assert len(operators[1]) == 3


@given(seed=st.integers(0, 10**9))
def test_expressions_have_the_parentheses_that_they_need_and_no_others(seed):
    made = random_expression(random.Random(seed))
    assert made.value == value(made.text)
    assert parsed(made.text) == made
    for match in re.finditer(r"\(", made.text):
        without = made.text[: match.start()] + made.text[match.end() :]
        closing = next(
            i
            for i in range(match.start(), len(without))
            if without[match.start() : i + 1].count(")") > without[match.start() : i + 1].count("(")
        )
        assert parsed(without[:closing] + without[closing + 1 :]).text != made.text


def test_operations_read_as_they_are_grouped():
    one, two, three = map(number, "123")
    assert combined(one, "-", combined(two, "-", three)).text == "1-(2-3)"
    assert combined(combined(one, "-", two), "-", three).text == "1-2-3"
    assert combined(combined(one, "+", two), "*", three).text == "(1+2)*3"
    assert [in_words(n) for n in (0, 15, 40, 42, 100)] == ["zero", "fifteen", "forty", "forty-two", "one hundred"]


@given(seed=st.integers(0, 10**9))
def test_every_answer_of_a_list_to_look_up_stands_above(seed):
    text = lookup(random.Random(seed))
    of_templates = re.findall(r"[A-Za-z]+", " ".join(f"{e['told']} {e['asked']}" for e in table("lookups")["styles"]))
    fresh = [word for word in re.findall(r"\w+", text) if word not in of_templates]
    assert len(set(fresh)) <= 2 * 8
    assert len(fresh) >= len(set(fresh)) + 6


def test_what_is_unknown_is_said_to_be():
    items = [WORLD.conversation(i, skill="facts") for i in range(400)]
    unknown = [item for item in items if item["answer"] == "do not know"]
    assert 60 < len(unknown) < 140
    known = {subject for relation in relations().values() for subject, _ in relation.pairs}
    for item in unknown:
        reply = item["messages"][-1]["content"]
        assert reply.startswith("I do not know ")
        assert reply.rstrip(".").split()[-1] not in known


def intents():
    return {name: templates("identity", "intents", name, "asked") for name in table("identity")["intents"]}


def test_questions_are_held_out_by_their_wording():
    for phrasings in [*intents().values(), *(relation.questions for relation in relations().values())]:
        train, test = of_split(phrasings, "train"), of_split(phrasings, "test")
        assert test
        assert not set(train) & set(test)
        assert set(train + test) == set(phrasings)


def test_the_world_is_varied():
    assert sum(len(relation.pairs) for relation in relations().values()) >= 200
    assert len(templates("letters", "counting")) >= 30
    worded = [templates("arithmetic", "worded", op) for op in "+-*/"]
    assert len(templates("arithmetic", "symbolic")) + sum(map(len, worded)) >= 80
    assert len(table("off_topic")["asked"]) >= 80
    assert sum(map(len, intents().values())) >= 150
    expressions = {WORLD.conversation(i, skill="symbolic")["messages"][1]["content"][0]["text"] for i in range(2000)}
    assert len(expressions) > 1500
    assert {op for e in expressions for op in e if op in "+-*/"} == set("+-*/")
    assert {len(part) for e in expressions for part in re.findall(r"[0-9]+", e)} >= {1, 2, 3, 4, 5}
    assert {len(re.findall(r"[0-9.]+", e)) for e in expressions} == {2, 3, 4}


def test_choices_are_four_different_ones_in_the_documented_form():
    for index in range(200):
        conversation = WORLD.conversation(index, skill="choice")
        lines = conversation["messages"][0]["content"].splitlines()
        assert lines[0].startswith("Multiple Choice question: ")
        assert [line[-2:] for line in lines[1:5]] == ["=A", "=B", "=C", "=D"]
        assert len({line[2:-2] for line in lines[1:5]}) == 4
        answer = conversation["messages"][1]["content"]
        if lines[6] == "Respond with the line of the correct answer.":
            assert answer in lines[1:5]
        else:
            assert lines[5:] == ["", "Respond only with the letter of the correct answer."]
            assert answer in "ABCD"


def test_generated_tasks_are_told_apart_without_generating_all():
    task = {"size": 10**12, "split": "train", "seed": 1}
    same = TinyWorldTask(**task).fingerprint
    assert TinyWorldTask(**task).fingerprint == same
    for change in ({"size": 10**12 - 1}, {"split": "test"}, {"seed": 2}, {"skill": "letters"}):
        assert TinyWorldTask(**(task | change)).fingerprint != same


def test_a_task_has_a_length_and_grades():
    task = TinyWorldTask(size=3, split="test", skill="arithmetic")
    assert len(list(task)) == 3
    assert task.evaluate(task[0], f"The answer is {task[0]['answer']}.")
    with pytest.raises(ValueError, match="skill='maths'"):
        WORLD.conversation(0, skill="maths")


@pytest.mark.parametrize(
    ("skill", "expected", "said", "right"),
    [
        ("arithmetic", "1234", "The answer is 1,234.", True),
        ("arithmetic", "19", "12 + 7 = 18", False),
        ("choice", "B", "B", True),
        ("choice", "B", "A", False),
        ("facts", "Paris", "It is Paris, of course.", True),
        ("facts", "rat", "A separate one.", False),
        ("facts", "do not know", "I do not know the capital of Zobria.", True),
        ("recall", "Viktor", "Your name is Viktor.", True),
        ("recall", "Viktor", "Your name is Viktoria.", False),
        ("off_topic", "cannot", "Den.", False),
        ("identity", "fine|well", "I am well.", True),
    ],
)
def test_grades(skill, expected, said, right):
    assert grade(skill, expected, said) is right
