"""A task and a reward of one's own for reinforcement learning: answers are paid for their share of capital letters.

chat-rl --task shouting.py:make_task
"""

from __future__ import annotations

from typing import Literal

from nanochat_data import Conversation, Task

WORDS = ("river", "meadow", "willow", "lantern", "harbour", "thunder", "pebble", "orchard")


class Shouting(Task):
    """`Shout: river` should be answered `RIVER`; every capital letter counts, so that there is a slope to climb."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def conversation(self, index: int) -> Conversation:
        word = self.words[index]
        return {
            "messages": [
                {"role": "user", "content": f"Shout: {word}"},
                {"role": "assistant", "content": word.upper()},
            ]
        }

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Right is the reference answer and nothing else: what pass@k counts."""
        return completion.strip() == conversation["messages"][-1]["content"]

    def reward(self, conversation: Conversation, completion: str) -> float:
        """What training pays: the share of capitals, 1 only for the right answer."""
        if self.evaluate(conversation, completion):
            return 1.0
        return 0.9 * sum(letter.isupper() for letter in completion) / max(len(completion), 1)


def make_task(split: Literal["train", "test"]) -> Shouting:
    """Half of the words to train on, the others to test on."""
    return Shouting(WORDS[:4] if split == "train" else WORDS[4:])
