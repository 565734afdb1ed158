"""For whoever swaps the tokenizer: a byte-level one without training, and the checks a tokenizer must pass."""

from __future__ import annotations

from nanochat_tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer

SAMPLES = (
    "",
    "a",
    "Hello, world! 12345",
    "naïve café 😀 日本語",
    " \n\t  x",
    "<|assistant_end|>",
    "def f(x):\n    return x\n",
)


def byte_tokenizer() -> Tokenizer:
    """Every byte its own token: 256 and the special tokens."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)})


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Round trips, ids within the vocabulary, special tokens out of reach of text, and byte lengths that add up."""
    lengths = tokenizer.token_byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,), "token_byte_lengths must have one entry per token"
    specials = {tokenizer.special_id(name) for name in SPECIAL_TOKENS}
    assert None not in specials, "the chat format needs all special tokens"
    assert len(specials) == len(SPECIAL_TOKENS), "special tokens must have ids of their own"
    assert tokenizer.special_id("<|no_such_token|>") is None, "an unknown special must be None"
    assert tokenizer.bos_id == tokenizer.special_id("<|bos|>"), "bos_id must be the id of <|bos|>"
    for text in SAMPLES:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text, f"decode(encode(text)) must be the text: {text!r}"
        assert not specials & set(ids), f"text must never encode to special tokens: {text!r}"
        assert all(0 <= i < tokenizer.vocab_size for i in ids), f"ids must be within the vocabulary: {text!r}"
        assert int(lengths[ids].sum()) == len(text.encode()), f"byte lengths must add up: {text!r}"
    assert tokenizer.encode_batch(SAMPLES, num_threads=2) == [tokenizer.encode(t) for t in SAMPLES]
