"""The README of an exported model: what it is, how it was trained, what it scores, how to use it."""

from __future__ import annotations

from typing import Any

from nanochat_model import GPT

STAGES = {
    "base": "a base model: it continues text and does not chat",
    "sft": "a chat model, fine-tuned on conversations",
    "rl": "a chat model, fine-tuned on conversations and by reinforcement learning",
}

CARD = """\
---
{front_matter}
---

# {name}

{summary}

| architecture | |
|---|---|
{architecture}

## Training

| setting | value |
|---|---|
{settings}

## Scores

{scores}

## Use

With the [nanochat workspace]'s programs, from this directory's parent:

```sh
chat-cli --checkpoint {name}
chat-web --checkpoint {name} --host 127.0.0.1
```

As a library (`pip install 'nanochat-engine[checkpoint]'`):

```python
import nanochat_engine

engine = nanochat_engine.load("{name}")
```
{transformers}
## Limits

A small model: it states falsehoods fluently, knows nothing that happened after its training text was gathered, and was not
tested for safety. Its training text and its biases are those of the data named above.

[nanochat workspace]: a small ChatGPT, end to end, out of libraries that each stand alone
"""

TRANSFORMERS = """
With transformers{package}:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
{register}
tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
messages = [{{"role": "user", "content": "Why is the sky blue?"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs)[0]))
```

There, unlike in the workspace, a user who writes `<|assistant_end|>` writes the special token: take such text out before.
"""


REGISTER = """from nanochat_model import hf

hf.register()
"""


def model_card(model: GPT, meta: dict[str, Any], *, transformers: bool) -> str:
    """Markdown with the front matter that model hubs read. `meta` is the checkpoint's.

    `transformers`: whether transformers by itself has a class for the model; else ours has to be registered.
    """
    config, counts = model.config, model.param_counts()
    stage = str(meta.get("stage", "base"))
    name = f"nanochat-d{config.n_layer}-{stage}"
    front_matter = ["pipeline_tag: text-generation", "tags: [nanochat]"]
    if transformers:
        front_matter.append("library_name: transformers")
    architecture = {
        "variant": "classic" if not config.value_embeddings else "modern",
        "parameters": f"{counts['total']:,}",
        "layers, width": f"{config.n_layer}, {config.n_embd}",
        "heads (key/value)": f"{config.n_head} ({config.n_kv_head})",
        "context, tokens": config.sequence_len,
        "vocabulary": config.vocab_size,
    }
    settings = {"step": meta.get("step", "unknown"), **meta.get("settings", {})}
    if "tokens_seen" in meta:
        settings["tokens_seen"] = f"{meta['tokens_seen']:,}"
    for split, fingerprint in meta.get("data_fingerprints", {}).items():
        settings[f"{split} data, fingerprint"] = fingerprint
    scores = meta.get("scores", {})
    return CARD.format(
        front_matter="\n".join(front_matter),
        name=name,
        summary=f"{STAGES.get(stage, 'A model')[:1].upper()}{STAGES.get(stage, 'A model')[1:]}.",
        architecture=_rows(architecture),
        settings=_rows({key: value for key, value in settings.items() if value is not None}),
        scores="| score | value |\n|---|---|\n" + _rows(scores) if scores else "None were measured.",
        transformers=TRANSFORMERS.format(
            name=name,
            package="" if transformers else " (`pip install 'nanochat-model[transformers]'`)",
            register="" if transformers else REGISTER,
        ),
    )


def _rows(values: dict[str, Any]) -> str:
    return "\n".join(f"| {key} | {_plain(value)} |" for key, value in values.items())


def _plain(value: object) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return shown.replace("|", "\\|").replace("\n", " ")
