"""The real model and tokenizer keep what the engine and the data loaders ask of them."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import nanochat_engine.testing
import nanochat_tokenizer.testing
import numpy as np
import pytest
import torch
from nanochat_data import ConversationLoader, PretrainLoader, TokenShards, open_text_source
from nanochat_data.testing import check_resumes_exactly
from nanochat_engine import Engine
from nanochat_model import GPT, GPTConfig
from nanochat_tokenizer import Tokenizer, render_conversation, render_for_completion, train_tokenizer

TEXT = "the a small red blue fox bird house runs sings 12 7 over under naïve 漢字 and then, again."


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(TEXT.split(), k=rng.randint(3, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(sentences(200)), vocab_size=320)


def tiny_model(vocab_size: int, *, classic: bool, seed: int = 0) -> GPT:
    make = GPTConfig.classic if classic else GPTConfig
    model = GPT(
        make(
            sequence_len=64,
            vocab_size=vocab_size,
            n_layer=4,
            n_head=4,
            n_kv_head=2,
            n_embd=32,
            window_pattern="SL",
        )
    )
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # initial zeros would hide what a cache gets wrong
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("classic", [False, True])
def test_engine_and_model(classic: bool, tokenizer: Tokenizer) -> None:
    nanochat_engine.testing.check_causal_lm(tiny_model(tokenizer.vocab_size, classic=classic), num_tokens=40)


def test_engine_and_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    nanochat_engine.testing.check_tokenizer(tokenizer)
    nanochat_tokenizer.testing.check_tokenizer(tokenizer)
    tokenizer.save(tmp_path)
    nanochat_engine.testing.check_tokenizer(Tokenizer.load(tmp_path))


@pytest.mark.parametrize("classic", [False, True])
def test_engine_says_what_the_model_says_token_by_token(classic: bool, tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer.vocab_size, classic=classic)
    prompt = render_for_completion(tokenizer, {"messages": [{"role": "user", "content": "the small fox"}]})
    [result], _ = Engine(model, tokenizer, tools={}).generate_batch(prompt, max_tokens=12, temperature=0.0)
    assert result == naive_greedy(model, tokenizer, prompt, num_tokens=12)


def naive_greedy(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], *, num_tokens: int) -> list[int]:
    """The most likely token of the full forward, again and again, up to assistant-end or bos."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            token_id = int(model(torch.tensor([ids]))[0, -1].argmax())
            if token_id in (tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")):
                break
            ids.append(token_id)
    return ids


def test_data_and_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for number, text in enumerate(sentences(60)):
        (tmp_path / f"doc{number:03d}.txt").write_text(text, encoding="utf-8")

    shards = TokenShards(open_text_source(tmp_path, split="train"), tokenizer, tmp_path / "shards").build()

    def loader() -> PretrainLoader:
        return PretrainLoader(shards, batch_size=2, sequence_len=32, seed=3, num_epochs=1)

    check_resumes_exactly(loader, after=3, following=2)
    batch = next(iter(loader()))
    assert batch.inputs.shape == (2, 32)
    assert batch.inputs.dtype == np.int32
    assert (batch.inputs[:, 0] == tokenizer.bos_id).all()
    assert batch.inputs.min() >= 0
    assert batch.inputs.max() < tokenizer.vocab_size
    loss = tiny_model(tokenizer.vocab_size, classic=False).loss(
        torch.from_numpy(batch.inputs).long(), torch.from_numpy(batch.targets).long()
    )
    assert loss.isfinite()


def test_conversations_and_tokenizer(tokenizer: Tokenizer) -> None:
    """What the loader supervises is what rendering masks: the assistant's words, shifted by one."""
    conversations = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]}
        for text in sentences(20, seed=1)
    ]
    render = partial(render_conversation, tokenizer, max_tokens=None)

    def loader() -> ConversationLoader:
        return ConversationLoader(
            conversations,
            render,
            pad_id=tokenizer.bos_id,
            batch_size=2,
            sequence_len=256,
            task_fingerprint="test",
            num_epochs=1,
        )

    check_resumes_exactly(loader, after=1, following=1)
    end = tokenizer.special_id("<|assistant_end|>")
    batch = next(loader())
    for row, targets in zip(batch.inputs, batch.targets, strict=True):
        supervised = targets >= 0
        assert supervised.any()
        assert (targets[:-1][supervised[:-1]] == row[1:][supervised[:-1]]).all()
        assert tokenizer.special_id("<|user_start|>") not in targets
        assert end in targets
