"""chat-cli on a tiny random checkpoint, as a person would use it."""

import builtins
from collections.abc import Iterator
from pathlib import Path

import nanochat_engine
import pytest
from nanochat_apps import chat_cli, nanochat
from nanochat_apps.chat_cli import Chat, Settings
from nanochat_apps.runtime import paths
from nanochat_apps.testing import save_tiny_checkpoint
from nanochat_engine import Engine, ToolCall
from nanochat_engine.testing import ScriptedLM
from nanochat_tokenizer import render_for_completion
from nanochat_tokenizer.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
IDS = {name.strip("<|>"): token_id for name, token_id in TOKENIZER.special_tokens.items()}
START, END, OUTPUT_START, OUTPUT_END = (
    IDS[name] for name in ("assistant_start", "assistant_end", "output_start", "output_end")
)
MARKERS = {"{": IDS["python_start"], "}": IDS["python_end"]}


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    return tmp_path


def run(*args: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr("sys.argv", ["chat-cli", *args])
    with pytest.raises(SystemExit) as ended:
        nanochat.main()
    return ended.value.code


def typed(lines: list[str | BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `input` return these lines, or raise them, then the end of the input."""
    left: Iterator[str | BaseException] = iter(lines)

    def read(prompt: str = "") -> str:
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", read)


def answering(script: dict[str, str], *, max_context: int = 200, **settings: object) -> Chat:
    """A chat with a model that answers by the last thing the user said."""
    model = ScriptedLM(lambda ids: next_id(script, ids), vocab_size=TOKENIZER.vocab_size, max_context=max_context)
    engine = Engine(
        model, TOKENIZER, render_chat=lambda messages: render_for_completion(TOKENIZER, {"messages": messages})
    )
    return Chat(engine, Settings(temperature=0.0, **settings))  # type: ignore[arg-type]


def next_id(script: dict[str, str], ids: list[int]) -> int:
    """The script maps a question to an answer, in which `{` and `}` stand for the markers of a tool call."""
    if START not in ids:
        return END
    start = len(ids) - 1 - ids[::-1].index(START)
    question = TOKENIZER.decode(ids[:start])
    text = next((answer for asked, answer in script.items() if question.endswith(f"{asked}<|user_end|>")), "")
    answer = [MARKERS.get(character, ord(character)) for character in text]
    said = ids[start + 1 :]
    if OUTPUT_END in said:  # what the tool said is not of the script
        said = said[: said.index(OUTPUT_START)] + said[said.index(OUTPUT_END) + 1 :]
    return answer[len(said)] if len(said) < len(answer) else END


def test_one_answer(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_checkpoint(paths.checkpoints_root("sft") / "d2")
    assert (
        run("-p", "Hello", "--max-tokens", "8", "-d", "float32", "--device-type", "cpu", monkeypatch=monkeypatch) == 0
    )
    first = capsys.readouterr()
    assert first.err == ""
    assert "<|" not in first.out
    run("-p", "Hello", "--max-tokens", "8", "-d", "float32", "--device-type", "cpu", monkeypatch=monkeypatch)
    assert capsys.readouterr().out == first.out


def test_base_model_goes_on_with_the_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_checkpoint(paths.checkpoints_root("base") / "d2")
    args = ["-i", "base", "-p", "Once", "-t", "0", "--max-tokens", "6", "--device-type", "cpu", "-d", "float32"]
    assert run(*args, monkeypatch=monkeypatch) == 0
    engine = nanochat_engine.load(paths.find_checkpoint("base"))
    prompt = [engine.tokenizer.bos_id, *engine.tokenizer.encode("Once")]
    [ids], _ = engine.generate_batch(prompt, max_tokens=6, temperature=0.0)
    shown = capsys.readouterr().out.rstrip("\n")
    said = engine.tokenizer.decode([i for i in ids[len(prompt) :] if i < 256])
    assert said.replace("\ufffd", "").translate(chat_cli.CONTROLS) == shown


def test_what_is_missing_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-p", "Hello", monkeypatch=monkeypatch) == 2
    assert "no complete sft checkpoint" in capsys.readouterr().err
    assert run("--temperature", "3", monkeypatch=monkeypatch) == 2
    assert "--temperature 3.0 must be between 0 and 2" in capsys.readouterr().err
    directory = save_tiny_checkpoint(paths.checkpoints_root("sft") / "d2")
    (directory / "model.safetensors").write_bytes(b"cut")
    assert run("-p", "Hello", monkeypatch=monkeypatch) == 1
    said = capsys.readouterr().err
    assert "model.safetensors" in said
    assert said.count("\n") == 1


def test_too_long_a_prompt_fails_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny_checkpoint(paths.checkpoints_root("sft") / "d2", sequence_len=16)
    assert run("-p", "x" * 10_000, "--device-type", "cpu", monkeypatch=monkeypatch) == 1
    assert capsys.readouterr().err.startswith(
        "chat-cli: error: the prompt has 10004 tokens, the model's context holds "
    )


def test_turns_build_on_each_other_and_carry_tool_calls() -> None:
    talk = answering({"What is 12+7?": "It is {12+7}.", "Sure?": "Yes."})
    assert list(talk.answer("What is 12+7?"))[-2:] == [ToolCall("12+7", "19"), "."]
    assert "".join(str(piece) for piece in talk.answer("Sure?")) == "Yes."
    [question, answer, *_] = talk.messages
    assert question == {"role": "user", "content": "What is 12+7?"}
    assert [(part["type"], part["text"]) for part in answer["content"]] == [
        ("text", "It is "),
        ("python", "12+7"),
        ("python_output", "19"),
        ("text", "."),
    ]


def test_a_conversation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk = answering({"Hi": "Hello {1+1}", "Bye": "So long"}, max_context=60)
    typed(["Hi", KeyboardInterrupt(), "", "x" * 100, "clear", "Bye", "quit", "Hi"], monkeypatch)
    chat_cli.converse(talk)
    said = capsys.readouterr()
    assert "Assistant: Hello [1+1 = 2]\n" in said.out
    assert "Assistant: So long\n" in said.out
    assert said.out.count("Assistant:") == 2
    assert said.err.startswith("error: the conversation has 1")
    assert said.err.count("\n") == 1
    assert [message["content"] for message in talk.messages][::2] == ["Bye"]


def test_ctrl_c_stops_the_answer_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    talk = answering({"Count": "123456", "Hi": "Hello"})
    pieces = []

    def interrupted(piece: str | ToolCall) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat_cli, "show_piece", interrupted)
        chat_cli.take_turn(talk, "Count")
    assert pieces == ["1", "2", "3"]
    assert [part["text"] for part in talk.messages[-1]["content"]] == ["123"]
    chat_cli.take_turn(talk, "Hi")
    assert capsys.readouterr().out == "\nAssistant: \n(stopped)\n\nAssistant: Hello\n"


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    chat_cli.show_piece("a\x1b[31mb\n\tc\x9b")
    assert capsys.readouterr().out == "a␛[31mb\n\tc\ufffd"


def test_a_second_turn_reads_only_what_is_new() -> None:
    chat = answering({"first question, a long one": "A long answer.", "more": "Yes."}, max_context=400)
    model = chat._engine.model
    assert isinstance(model, ScriptedLM)
    list(chat.answer("first question, a long one"))
    before = model.num_tokens
    list(chat.answer("more"))
    # The first answer's last token and marker, the question with its two, assistant-start; then what was said.
    assert model.num_tokens - before <= 2 + len("more") + 2 + 1 + len("Yes.")
