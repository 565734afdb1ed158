"""Tasks: slices, mixtures, the formats of the prompts, graders, and complaints about bad files."""

import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nanochat_data.tasks import (
    GSM8K,
    CustomJSON,
    SimpleSpelling,
    SpellingBee,
    Task,
    TaskMixture,
    TaskOptions,
    TaskSequence,
    make_task,
    parse_mixture,
)
from nanochat_data.testing import check_task
from nanochat_data.words import load_words

REAL_DATA = Path(os.environ.get("NANOCHAT_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")


class Numbers(Task):
    """Conversation i asks for i."""

    def __init__(self, size: int, name: str = "n"):
        self.size, self.name = size, name

    def __len__(self):
        return self.size

    def conversation(self, index):
        said = f"{self.name}{index}"
        return {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": said}]}

    def evaluate(self, conversation, completion):
        return completion == conversation["messages"][-1]["content"]


def said(task) -> list[str]:
    return [conversation["messages"][0]["content"] for conversation in task]


def gsm8k_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = [
        {"question": f"What is {n} and 1000?", "answer": f"{n}+1000=<<{n}+1000={n + 1000}>>{n + 1000}\n#### 1,00{n}"}
        for n in range(5)
    ]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@given(st.slices(20), st.slices(20))
def test_a_slice_of_a_slice_is_what_python_slices(first, second):
    assert said(Numbers(20)[first][second]) == said(Numbers(20))[first][second]


def test_an_index_is_pythons_and_a_slice_grades_as_its_task():
    task = Numbers(5)[1:]
    assert task[-1] == task[3] == Numbers(5)[4]
    with pytest.raises(IndexError):
        task[4]
    assert task.reward(task[0], "n1") == 1.0
    assert task.reward(task[0], "n0") == 0.0
    check_task(task)


def test_a_mixture_is_a_fixed_shuffle_and_repeats_what_is_listed_twice():
    a, b = Numbers(30, "a"), Numbers(20, "b")
    mixture = TaskMixture([a, b, b])
    pairs = said(a) + said(b) * 2
    random.Random(42).shuffle(pairs)
    assert said(mixture) == pairs
    assert Counter(pairs)["b3"] == 2
    assert said(TaskSequence([a, b])) == said(a) + said(b)
    with pytest.raises(ValueError, match="TaskMixture has no grader"):
        mixture.evaluate(mixture[0], "x")


def test_a_fingerprint_tells_tasks_apart():
    assert Numbers(500).fingerprint == Numbers(500).fingerprint
    assert len({Numbers(500).fingerprint, Numbers(501).fingerprint, Numbers(500, "m").fingerprint}) == 3


def test_gsm8k_calls_become_parts_and_numbers_are_compared(tmp_path):
    task = GSM8K("train", folder=gsm8k_folder(tmp_path / "gsm8k"))
    assert len(task) == 5
    parts = task[0]["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["text", "python", "python_output", "text"]
    number = parts[2]["text"]
    assert parts[1]["text"] == f"{int(number) - 1000}+1000"
    assert "".join(part["text"] for part in parts if part["type"] == "text").endswith(f"#### 1,{number[1:]}")
    assert task.evaluate(task[0], f"so\n#### {number}")
    assert task.evaluate(task[0], f"#### 1,{number[1:]} #### 7")
    assert not task.evaluate(task[0], f"#### {number}.0")
    assert not task.evaluate(task[0], number)
    check_task(task)


def test_a_set_is_the_same_from_a_folder_a_mirror_and_parquet(tmp_path):
    folder = gsm8k_folder(tmp_path / "mirror" / "gsm8k")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    hub = tmp_path / "hub" / "openai" / "gsm8k" / "main"
    hub.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), hub / "train-00000-of-00001.parquet")
    expected = said(GSM8K("train", folder=folder))
    assert said(GSM8K("train", mirror=tmp_path / "mirror")) == expected
    assert said(GSM8K("train", mirror=tmp_path / "hub")) == expected
    with pytest.raises(ValueError, match=r"no test.jsonl, .* in .*gsm8k"):
        GSM8K("test", mirror=tmp_path / "hub")


def test_the_letter_count_is_right_and_the_tool_agrees():
    task = SpellingBee(words=load_words(), size=400)
    questions = said(task)
    for question, conversation in zip(questions, task, strict=True):
        text, call, output, last = (part["text"] for part in conversation["messages"][1]["content"])
        word, letter = call.split("'")[1], call.split("'")[3]
        assert word in question
        assert letter in question
        assert f"{word}:{','.join(word)}" in text
        assert output == str(word.count(letter))
        assert last.endswith(f"#### {word.count(letter)}")
        assert task.evaluate(conversation, f"#### {output}")
        assert not task.evaluate(conversation, f"#### {int(output) + 1}")
        assert not task.evaluate(conversation, output)
    assert 150 < sum(question.endswith("?") for question in questions) < 250
    assert not set(questions) & set(said(SpellingBee("test", words=load_words(), size=5)))
    check_task(task)


def test_spelling_a_word_out():
    task = SimpleSpelling(words=["cat"], size=3)
    assert said(task) == ["Spell the word: cat"] * 3
    assert task.evaluate(task[0], "cat:c,a,t\n")
    assert not task.evaluate(task[0], "cat:c,a")
    with pytest.raises(ValueError, match="'Café' is no word"):
        SimpleSpelling(words=["Café"])


def test_words_come_from_a_file_or_are_built_in(tmp_path):
    assert load_words() == load_words()
    (tmp_path / "words.txt").write_text("Cat\ndog\nit's\ncafé\ncat\n", encoding="utf-8")
    assert load_words(tmp_path / "words.txt") == ("cat", "dog")
    with pytest.raises(ValueError, match=r"no.txt cannot be read"):
        load_words(tmp_path / "no.txt")


def test_custom_json_takes_both_forms(tmp_path):
    user, assistant = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    lines = [{"messages": [user, assistant], "id": 3}, [{"role": "system", "content": "be kind"}, user, assistant]]
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    task = CustomJSON(path)
    assert [len(conversation["messages"]) for conversation in task] == [2, 3]
    assert task[0] == {"messages": [user, assistant]}
    check_task(task)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[", "line 2 is not JSON"),
        ('"text"', "neither a JSON object nor a list"),
        ("[]", "needs a user's and an assistant's"),
        ('[{"role": "user"}, 3]', "message 0 must be"),
        ('[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]', "role 'user' where 'assistant'"),
        ('[{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]', "role 'robot' where 'assistant'"),
        ('[{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]', "message 0 must have text"),
        (
            '[{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "image", "text": ""}]}]',
            "message 1 has a part that is not",
        ),
    ],
)
def test_a_bad_conversation_is_named_with_file_and_line(tmp_path, line, complaint):
    good = json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}])
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{good}\n{line}\n")
    with pytest.raises(ValueError, match=r"chats.jsonl, line 2") as caught:
        CustomJSON(path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mixture_from_one_line_of_text(tmp_path):
    gsm8k_folder(tmp_path / "gsm8k")
    pair = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(pair) + "\n")
    options = TaskOptions(mirror=tmp_path)
    mixture = parse_mixture(f"{path}:3, gsm8k,SpellingBee[:7]:2", options)
    assert len(mixture) == 3 + 5 + 14
    assert said(mixture).count("hi") == 3
    tasks = {"numbers": lambda options: Numbers(4, options.split)}
    assert sorted(said(parse_mixture("numbers:1", tasks=tasks))) == ["train0", "train1", "train2", "train3"]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "mixture is empty"),
        ("gsm8k:0", "'gsm8k:0' must be name:times"),
        ("arithmetic", "unknown task 'arithmetic'; choose from arc-challenge, arc-easy, gsm8k"),
        ("gsm8k:-1", "unknown task 'gsm8k:-1'"),
        ("nowhere.jsonl", "nowhere.jsonl does not exist"),
    ],
)
def test_a_wrong_mixture_is_explained(spec, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_mixture(spec)


def test_real_files_when_at_hand():
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside the repository")
    test = GSM8K("test", mirror=REAL_DATA)
    check_task(test)
    answers = [conversation["messages"][1]["content"] for conversation in test]
    assert all(
        test.evaluate(conversation, answer[-1]["text"]) for conversation, answer in zip(test, answers, strict=True)
    )
    check_task(make_task(str(REAL_DATA / "chat_oasst" / "oasst_en.jsonl")))
