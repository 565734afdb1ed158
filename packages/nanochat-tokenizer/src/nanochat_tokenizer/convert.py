"""Tokenizers of other projects: karpathy/nanochat's pickle in, the files of transformers both ways.

The files of transformers are read and written here as what they are, JSON; only `to_transformers` needs transformers (extra
`transformers`). The chat format goes along as their template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nanochat_tokenizer.nanochat_pickle import from_nanochat
from nanochat_tokenizer.tokenizer import Tokenizer

__all__ = ["from_nanochat", "from_transformers", "save_transformers", "to_transformers"]

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


def to_transformers(tokenizer: Tokenizer, *, max_tokens: int | None = None) -> Any:
    """A `PreTrainedTokenizerFast` that gives the same ids to any text that spells no special token.

    Its `apply_chat_template` gives the ids of `render_conversation`. Like every tokenizer of transformers it takes text that
    spells a special token for that token, where ours never does; `split_special_tokens=True` turns that off for plain text.
    """
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise ImportError("conversion needs transformers: pip install 'nanochat-tokenizer[transformers]'") from error
    with TemporaryDirectory() as directory:
        save_transformers(tokenizer, directory, max_tokens=max_tokens)
        return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)


def save_transformers(tokenizer: Tokenizer, directory: str | Path, *, max_tokens: int | None = None) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, which `AutoTokenizer` reads.

    `max_tokens` is the context of the model. Raises `ValueError` for ranks that no merges make.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    special = list(tokenizer.special_tokens)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>" if "<|assistant_end|>" in special else "<|bos|>",
        "pad_token": "<|bos|>",
        "additional_special_tokens": special,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **({"model_max_length": max_tokens} if max_tokens is not None else {}),
    }
    _write_json(directory / TOKENIZER_FILE, _fast_tokenizer(tokenizer))
    _write_json(directory / SETTINGS_FILE, settings)
    (directory / TEMPLATE_FILE).write_text(chat_template(), encoding="utf-8")


def chat_template() -> str:
    """The chat format in Jinja, as transformers and others render it."""
    return (files(__package__) / TEMPLATE_FILE).read_text(encoding="utf-8").rstrip("\n")


def from_transformers(directory: str | Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json` of the kind that `save_transformers` writes: byte-level merges after one split.

    Raises `ValueError` naming the file and the part of it that our tokenizer could not follow.
    """
    path = Path(directory) / TOKENIZER_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: {directory} holds no fast tokenizer of transformers") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from None
    try:
        return _from_fast_tokenizer(values)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no tokenizer.json ({type(error).__name__}: {error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _fast_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of `tokenizer.json`, in the format of the library tokenizers."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, token_id in tokenizer.special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {
                _to_letters(token): rank for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1])
            },
            "merges": [[_to_letters(left), _to_letters(right)] for left, right in _implied_merges(tokenizer.ranks)],
        },
    }


def _from_fast_tokenizer(values: Mapping[str, Any]) -> Tokenizer:
    model = values["model"]
    if model["type"] != "BPE":
        raise ValueError(f"its model is {model['type']}, not BPE")
    if values.get("normalizer") is not None:
        raise ValueError("it normalizes text, which our tokenizer never does")
    special = {token["content"]: token["id"] for token in values["added_tokens"]}
    ranks = {_from_letters(token): rank for token, rank in model["vocab"].items() if token not in special}
    ordered = sorted(special, key=special.__getitem__)
    if [special[name] for name in ordered] != list(range(len(ranks), len(ranks) + len(special))):
        raise ValueError(f"its added tokens do not have the ids that follow the {len(ranks)} merged ones")
    tokenizer = Tokenizer(ranks, pattern=_split_pattern(values["pre_tokenizer"]), special_tokens=ordered)
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    if [(_from_letters(left), _from_letters(right)) for left, right in pairs] != _implied_merges(ranks):
        raise ValueError("its merges are not those that the order of its ids implies")
    return tokenizer


def _split_pattern(pre_tokenizer: Mapping[str, Any]) -> str:
    parts = pre_tokenizer.get("pretokenizers", [])
    kinds = [part["type"] for part in parts]
    if kinds != ["Split", "ByteLevel"] or parts[1].get("use_regex") or parts[1].get("add_prefix_space"):
        raise ValueError(f"it splits text by {kinds or pre_tokenizer['type']}, not by one pattern and then into bytes")
    if parts[0]["behavior"] != "Isolated" or parts[0].get("invert"):
        raise ValueError("its pattern must isolate what it matches")
    return str(parts[0]["pattern"]["Regex"])


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@cache
def _byte_letters() -> dict[int, str]:
    """A visible character for every byte: itself where it is one, else the next free one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(visible)]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@cache
def _letter_bytes() -> dict[str, int]:
    """The byte of each such character."""
    return {letter: byte for byte, letter in _byte_letters().items()}


def _to_letters(token: bytes) -> str:
    """A token as transformers writes it: GPT-2's visible character for each byte."""
    return "".join(_byte_letters()[byte] for byte in token)


def _from_letters(text: str) -> bytes:
    """Raises `ValueError` for a character that stands for no byte."""
    try:
        return bytes(_letter_bytes()[letter] for letter in text)
    except KeyError as error:
        raise ValueError(f"the token {text!r} is not written in byte letters ({error})") from None


def _implied_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """For each token of several bytes, in the order of ranks, the two tokens that the merges before it leave of it.

    Raises `ValueError` for a token that no such pair makes.
    """
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = _merged(token, ranks, below=rank)
        if len(parts) != 2:
            raise ValueError(f"token {rank} ({token!r}) is not made by merging two earlier tokens")
        merges.append((parts[0], parts[1]))
    return merges


def _merged(token: bytes, ranks: Mapping[bytes, int], *, below: int) -> list[bytes]:
    """The token's bytes with every merge of a rank under `below` applied, lowest first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while True:
        pairs = [(ranks.get(parts[i] + parts[i + 1], below), i) for i in range(len(parts) - 1)]
        rank, i = min(pairs, default=(below, 0))
        if rank >= below:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
