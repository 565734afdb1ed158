"""The check that a converted model says what ours says: equal token ids, equal logits, on the spot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from nanochat_model import GPT
from nanochat_tokenizer import Tokenizer

TOLERANCE = 1e-3
"""Largest difference of two logits, which lie between -15 and 15, that rounding in float32 explains."""

TEXTS = (
    "The river had risen in the night, and by morning the lower meadow was a lake.",
    "def merge(left, right):\n    return sorted([*left, *right])  # 12345 items?\n\n\tIt's  we'll I'VE",
    "naïve café, Straße, Ελλάδα, Россия, 日本語, हिन्दी, عربى, 😀👩‍👩‍👧‍👦\r\n",
    "a<|assistant_end|>b",
)


def check_transformers(directory: Path, model: GPT, tokenizer: Tokenizer) -> float:
    """Compares what transformers makes of a directory with our model; returns the largest difference of two logits.

    Raises `ValueError` naming the text whose ids differ, or the difference if it is too large.
    """
    try:
        from nanochat_model import hf
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("comparing with transformers needs it: pip install 'nanochat-apps[transformers]'") from error
    hf.register()
    with quiet_transformers():
        theirs = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        their_model: Any = AutoModelForCausalLM.from_pretrained(
            directory, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    for text in TEXTS:
        if theirs(text, split_special_tokens=True)["input_ids"] != tokenizer.encode(text):
            raise ValueError(f"{directory}: the tokenizer of transformers gives other ids to {text!r}")
    return largest_difference(
        model, tokenizer, lambda ids: their_model.eval()(ids).logits, what=f"{directory}: the model of transformers"
    )


def largest_difference(model: GPT, tokenizer: Tokenizer, other: object, *, what: str) -> float:
    """Of all logits of a text, in float32. Raises `ValueError` if it is more than rounding."""
    assert callable(other)
    ids = [tokenizer.bos_id, *(token_id for text in TEXTS for token_id in tokenizer.encode(text))]
    inputs = torch.tensor([ids[: model.config.sequence_len]])
    with torch.inference_mode():
        ours: torch.Tensor = model(inputs)
        difference = float((ours - other(inputs)).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{what} differs from ours by {difference:.2g} in a logit; {TOLERANCE} is the most allowed")
    return difference


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars and notices of loading."""
    from transformers.utils import logging as module

    logging: Any = module
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
