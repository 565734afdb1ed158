"""What the data package takes for a conversation, the tokenizer renders, and the other way round."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nanochat_data import as_messages
from nanochat_tokenizer import render_conversation
from nanochat_tokenizer.testing import byte_tokenizer

TOKENIZER = byte_tokenizer()
PARTS = st.sampled_from(["text", "python", "python_output", "image"]).map(lambda kind: [{"type": kind, "text": "x"}])
MESSAGES = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "assistant", "tool", "robot"]),
        "content": st.just("x") | PARTS | st.none(),
    },
    optional={"weight": st.sampled_from([0, 1, None, 2, "1"])},
)
TURNS = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "tool", "assistant", "user")]


def refused(check, messages) -> bool:
    try:
        check({"messages": messages})
    except ValueError:
        return True
    return False


@given(st.lists(MESSAGES, max_size=4) | st.integers(1, 6).map(lambda count: TURNS[:count]))
@example(TURNS)
def test_both_refuse_the_same(messages):
    if any(message["role"] == "assistant" for message in messages):  # without one there is nothing to train on
        assert refused(as_messages, messages) == refused(lambda chat: render_conversation(TOKENIZER, chat), messages)


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
        {"instruction": "Hi", "input": "", "output": "Yo"},
        {"prompt": "Hi", "completion": "Yo"},
    ],
)
def test_every_shape_renders_as_the_plain_one(row):
    plain = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    assert render_conversation(TOKENIZER, {"messages": as_messages(row)}) == render_conversation(
        TOKENIZER, {"messages": plain}
    )
