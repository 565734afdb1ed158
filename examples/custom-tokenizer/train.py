"""Another tokenizer swapped in: words instead of byte pairs, from text through training to generation.

Nothing in the loaders, the trainer or the engine knows which tokenizer it is given; each asks for a few methods.

    python train.py
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from nanochat_data import PretrainLoader, TokenShards, open_text_source
from nanochat_engine import Engine
from nanochat_engine.testing import check_tokenizer
from nanochat_model import GPT, GPTConfig
from nanochat_train import MuonAdamW, Pretraining, Rates, Trainer, param_groups

TEXT = "red fox runs home . blue bird sings . red fox sings . blue bird runs home . "


class Words:
    """A word, a space or any other character is a token; what was never seen is spelled in bytes."""

    def __init__(self, text: str) -> None:
        words = sorted(set(self._split(text)))
        self._pieces = [word.encode() for word in words] + [bytes([byte]) for byte in range(256)]
        self._ids = {word: i for i, word in enumerate(words)}
        self._first_byte = len(words)
        self.bos_id = len(self._pieces)
        self.vocab_size = len(self._pieces) + 1
        self.fingerprint = " ".join(words)
        """Token shards belong to it: equal for equal vocabularies only."""

    @staticmethod
    def _split(text: str) -> list[str]:
        return re.findall(r"\w+|\s|[^\w\s]", text)

    def encode(self, text: str) -> list[int]:
        token_ids: list[int] = []
        for piece in self._split(text):
            known = self._ids.get(piece)
            token_ids += [self._first_byte + byte for byte in piece.encode()] if known is None else [known]
        return token_ids

    def encode_batch(self, texts: Sequence[str], *, num_threads: int = 1) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, token_ids: Sequence[int]) -> str:
        pieces = (b"<|bos|>" if i == self.bos_id else self._pieces[i] for i in token_ids)
        return b"".join(pieces).decode(errors="replace")

    def special_id(self, name: str) -> int | None:
        return self.bos_id if name == "<|bos|>" else None


def train(folder: Path, *, num_iterations: int = 80) -> tuple[Engine, list[float]]:
    """A tiny model on the text files of a folder, and the loss of each step."""
    tokenizer = Words(TEXT)
    check_tokenizer(tokenizer)
    shards = TokenShards(open_text_source(folder, split="train"), tokenizer, folder / "token_shards").build()
    loader = PretrainLoader(shards, batch_size=4, sequence_len=32, seed=1, num_epochs=None)
    config = GPTConfig(
        sequence_len=32,
        vocab_size=tokenizer.vocab_size,
        n_layer=2,
        n_head=2,
        n_kv_head=2,
        n_embd=64,
        window_pattern="L",
    )
    model = GPT(config)
    model.init_weights(1)
    groups = param_groups(model.param_roles(), n_embd=64, rates=Rates(), lr_scale=0.3, weight_decay=0.0)
    schedule = Pretraining(num_iterations=num_iterations, warmup_steps=2)
    trainer = Trainer(model, MuonAdamW(groups), loader, schedule, device=torch.device("cpu"))
    losses: list[float] = []
    trainer.fit(lambda report: losses.append(report.loss))
    return Engine(model.eval(), tokenizer), losses


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("train.txt", "val.txt"):
            (Path(folder) / name).write_text(TEXT * 20)
        engine, losses = train(Path(folder))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    [completion] = engine.complete("red fox", max_tokens=12, temperature=0.0)
    print(f"red fox{completion.text}")


if __name__ == "__main__":
    main()
