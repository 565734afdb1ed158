"""The generated world is deterministic, right, varied, and keeps its test items to itself."""

import ast
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nanochat_data.synthetic import SKILLS, TinyWorld, grade
from nanochat_data.synthetic.facts import relations
from nanochat_data.synthetic.phrasing import of_split, table, templates
from nanochat_data.tasks import TinyWorldTask

WORLD = TinyWorld(0)
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(node: ast.AST) -> float:
    if isinstance(node, ast.Expression):
        return value(node.body)
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](value(node.left), value(node.right))
    assert isinstance(node, ast.Constant)
    return node.value


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
            if ".count(" in expression:
                word, letter = expression.split(".count(")
                assert output == str(word.strip("'").count(letter.strip("')")))
                assert 3 <= len(word.strip("'")) <= 14
            else:
                assert float(output) == value(ast.parse(expression, mode="eval"))


@pytest.mark.parametrize("skill", [skill for skill in SKILLS if skill != "identity"])
def test_no_test_item_is_a_training_item(skill):
    def questions(split, num):
        items = (WORLD.conversation(i, split=split, skill=skill)["messages"] for i in range(num))
        return {"/".join(m["content"] for m in messages if m["role"] == "user").lower() for messages in items}

    assert not questions("train", 4000) & questions("test", 400)


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
    assert sum(map(len, intents().values())) >= 150
    expressions = {WORLD.conversation(i, skill="arithmetic")["messages"][1]["content"][0]["text"] for i in range(2000)}
    assert len(expressions) > 1900
    assert {op for e in expressions for op in e if op in "+-*/"} == set("+-*/")
    assert {len(part) for e in expressions for part in e.replace("-", "+").split("+") if part.isdigit()} >= {1, 2, 3, 4}


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
        ("identity", "fine|well", "I am well.", True),
    ],
)
def test_grades(skill, expected, said, right):
    assert grade(skill, expected, said) is right
