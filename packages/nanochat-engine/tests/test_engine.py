"""The engine equals the naive token-by-token forward, and keeps the documented results."""

from __future__ import annotations

import pytest
import torch
from nanochat_engine import Completion, Engine, sample_next_token, sample_seed
from nanochat_engine.testing import ByteTokenizer, ScriptedLM, TinyLM

TOKENIZER = ByteTokenizer()
ASSISTANT_END = 260
ENDS = (TOKENIZER.bos_id, ASSISTANT_END)


def naive(
    model: TinyLM, prompt: list[int], max_tokens: int, temperature: float, top_k: int | None, seed: int
) -> list[int]:
    """Oracle: the whole sequence through the model for every token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(max_tokens):
        logits = model(torch.tensor([tokens]))[:, -1]
        token = int(sample_next_token(logits, generator, temperature, top_k))
        if token in ENDS:
            break
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, None), (0.8, 5)])
def test_generate_batch_equals_the_naive_forward(cached: bool, temperature: float, top_k: int | None) -> None:
    model = TinyLM(cached=cached)
    prompt = [256, 5, 6, 7]
    results, masks = Engine(model, TOKENIZER).generate_batch(
        prompt, num_samples=3, max_tokens=40, temperature=temperature, top_k=top_k, seed=11
    )
    for sample, (result, mask) in enumerate(zip(results, masks, strict=True)):
        assert result == naive(model, prompt, 40, temperature, top_k, sample_seed(11, sample))
        assert mask == [0] * 4 + [1] * (len(result) - 4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_complete_batch_answers_each_prompt_as_if_alone(temperature: float) -> None:
    model = TinyLM()
    prompts = [[256, *range(length)] for length in (1, 90, 3, 17, 40, 2, 5)]
    completions = Engine(model, TOKENIZER).complete_batch(
        prompts, max_tokens=20, temperature=temperature, seed=7, max_rows=3
    )
    for index, (prompt, [completion]) in enumerate(zip(prompts, completions, strict=True)):
        expected = naive(model, prompt, 20, temperature, None, sample_seed(7, index))
        assert prompt + completion.token_ids == expected


def counting(stops: dict[int, int]) -> Engine:
    """Says its own position, and the wanted token at some positions."""
    return Engine(ScriptedLM(lambda history: stops.get(len(history), len(history)), max_context=12), TOKENIZER)


def test_generate_yields_columns_and_masks() -> None:
    engine = counting({4: ASSISTANT_END})
    assert list(engine.generate([9, 9], num_samples=2)) == [
        ([2, 2], [1, 1]),
        ([3, 3], [1, 1]),
        ([ASSISTANT_END, ASSISTANT_END], [1, 1]),
    ]


def test_a_finished_sample_s_entry_is_assistant_end_with_mask_0() -> None:
    engine = Engine(TinyLM(seed=3), TOKENIZER)
    columns = list(engine.generate([256, 1], num_samples=6, temperature=3.0, max_tokens=120, seed=1))
    ended: set[int] = set()
    for tokens, masks in columns:
        for sample, (token, mask) in enumerate(zip(tokens, masks, strict=True)):
            assert (sample in ended) == (mask == 0)
            assert mask or token == ASSISTANT_END
            if token in ENDS:
                ended.add(sample)
    assert ended, "choose another seed: no sample ended early"


def test_results_leave_out_what_ended_them() -> None:
    assert counting({4: ASSISTANT_END}).generate_batch([9, 9]) == ([[9, 9, 2, 3]], [[0, 0, 1, 1]])
    assert counting({3: 256}).generate_batch([9, 9]) == ([[9, 9, 2]], [[0, 0, 1]])
    [[completion]] = counting({}).complete_batch([[9, 9]], stop_ids=[5])
    assert completion == Completion(token_ids=[2, 3, 4], mask=[1, 1, 1], finished="stop", end_id=5)


def test_the_context_and_max_tokens_end_a_sample() -> None:
    engine = counting({})
    assert engine.generate_batch([0] * 9)[0] == [[0] * 9 + [9, 10, 11]]
    assert engine.generate_batch([0] * 9, max_tokens=2)[0] == [[0] * 9 + [9, 10]]
    assert engine.generate_batch([0] * 12) == ([[0] * 12], [[0] * 12])
    assert list(engine.generate([0], max_tokens=0)) == []
    [[completion]] = engine.complete_batch([[0] * 12])
    assert completion == Completion(token_ids=[], mask=[], finished="length", end_id=None)


def test_what_cannot_be_served_is_refused_at_once() -> None:
    engine = counting({})
    with pytest.raises(ValueError, match=r"13 tokens.* holds 12"):
        engine.generate([0] * 13)
    with pytest.raises(ValueError, match="empty"):
        engine.generate_batch([])
    with pytest.raises(ValueError, match="num_samples=0"):
        engine.generate([1], num_samples=0)
    with pytest.raises(ValueError, match="temperature=-1"):
        engine.generate([1], temperature=-1.0)
    with pytest.raises(ValueError, match="max_tokens=-1"):
        engine.generate([1], max_tokens=-1)


def test_the_prompt_is_read_once_for_all_samples() -> None:
    model = ScriptedLM(lambda history: 65)
    Engine(model, TOKENIZER).generate_batch([1] * 50, num_samples=4, max_tokens=2)
    assert model.num_tokens == 50 + 4


def test_what_the_model_raises_reaches_the_caller() -> None:
    def fail(history: list[int]) -> int:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        Engine(ScriptedLM(fail), TOKENIZER).generate_batch([1])


def test_interleaved_generators_do_not_disturb_each_other() -> None:
    engine = Engine(TinyLM(), TOKENIZER)
    alone = [list(engine.generate([256, seed], max_tokens=10, seed=seed)) for seed in (1, 2)]
    first, second = (engine.generate([256, seed], max_tokens=10, seed=seed) for seed in (1, 2))
    pairs = list(zip(first, second, strict=True)) if len(alone[0]) == len(alone[1]) else []
    assert [[pair[i] for pair in pairs] for i in (0, 1)] == alone
