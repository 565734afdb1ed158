"""Every variant of the model as a class of transformers (extra `transformers`): no code comes with the weights.

After `register()`, `AutoModelForCausalLM.from_pretrained` takes what `save_model` wrote, for `generate`, lm-evaluation-harness
and TRL; `load_model` reads what `save_pretrained` wrote. The forward pass is `GPT`'s.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat_model.attention import rotary_table
from nanochat_model.checkpoint import FORMAT_VERSION, GPT_MODEL_TYPE
from nanochat_model.config import GPTConfig
from nanochat_model.gpt import GPT

try:
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
    from transformers.cache_utils import DynamicCache, DynamicLayer
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise ImportError("nanochat_model.hf needs transformers: pip install 'nanochat-model[transformers]'") from error


_REFUSED = ("inputs_embeds", "position_ids", "output_attentions", "output_hidden_states")


def register() -> None:
    """Tells transformers' `AutoConfig` and `AutoModelForCausalLM` of the classes below; again does no harm."""
    AutoConfig.register(GPT_MODEL_TYPE, NanochatGPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(NanochatGPTConfig, NanochatGPTForCausalLM, exist_ok=True)


class NanochatGPTConfig(PreTrainedConfig):
    """The fields of `GPTConfig` as settings of transformers, which reads the common ones under its own names too."""

    model_type = GPT_MODEL_TYPE
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "sequence_len",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "num_key_value_heads": "n_kv_head",
    }

    def __post_init__(self, **kwargs: Any) -> None:
        self.format_version = kwargs.pop("format_version", FORMAT_VERSION)
        if self.format_version != FORMAT_VERSION:
            raise ValueError(f"format_version={self.format_version!r} must be {FORMAT_VERSION}")
        for field in fields(GPTConfig):
            setattr(self, field.name, kwargs.pop(field.name, field.default))
        super().__post_init__(**{"tie_word_embeddings": False} | kwargs)

    @property
    def gpt(self) -> GPTConfig:
        """Our settings. Raises `ValueError` naming one that is wrong."""
        return GPTConfig(**{field.name: getattr(self, field.name) for field in fields(GPTConfig)})


class NanochatGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """A `GPT` that computes in the dtype of its embeddings.

    Prompts may be padded on the left, with an `attention_mask`. There are no `inputs_embeds`, `position_ids` of one's own,
    attention weights, hidden states, static caches or gradient checkpointing; what is asked of these is refused.
    """

    config_class = NanochatGPTConfig
    base_model_prefix = "gpt"

    def __init__(self, config: NanochatGPTConfig) -> None:
        super().__init__(config)
        self.gpt = GPT(config.gpt, compute_dtype=torch.get_default_dtype())
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Of a new model all; of one that is being loaded, which must be complete, the rotary table."""
        if not isinstance(module, GPT):
            return
        read = {name: getattr(p, "_is_hf_initialized", False) for name, p in module.named_parameters()}
        if not any(read.values()):
            module.init_weights()
        elif not all(read.values()):
            raise ValueError(f"the weights lack the tensor {next(name for name in read if not read[name])}")
        tables = rotary_table(module.cos.size(0), module.config.head_dim, module.config.rope_base)
        for buffer, table in zip((module.cos, module.sin), tables, strict=True):
            buffer.copy_(table)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.gpt.wte

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.gpt.lm_head

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        inputs.pop("position_ids", None)  # they follow from the mask
        return inputs

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, V) float32, or of the last `logits_to_keep` positions, or at those indices.

        `attention_mask` (B, S) is over what the cache holds and the chunk, 0 at padding. With `labels` (B, T), -100 ignored,
        also the mean cross-entropy in nats of each next token.
        """
        for name in _REFUSED:
            given = kwargs.pop(name, None)
            if given is not None and given is not False:
                raise ValueError(f"{type(self).__name__} takes no {name}")
        cache = DynamicCache() if use_cache and past_key_values is None else past_key_values
        if cache is not None and not isinstance(cache, DynamicCache):
            raise ValueError(f"past_key_values is a {type(cache).__name__}; only a DynamicCache will do")
        self.gpt.compute_dtype = self.gpt.wte.weight.dtype
        left_padded = attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any())
        if cache is None and not left_padded and isinstance(logits_to_keep, int) and logits_to_keep == 0:
            logits = self.gpt(input_ids)
        else:
            logits = self.gpt(input_ids, kv_cache=_Chunk(self.gpt, cache, attention_mask, logits_to_keep))
        loss = None if labels is None else self.loss_function(logits, labels, self.gpt.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)


class _Chunk:
    """What `GPT.forward` knows of a cache: a `KVCacheLike` over one of transformers, or over the chunk alone.

    S is what the cache holds with the chunk. Ids are kept as the keys of one more layer, so that beam search reorders and crops
    them with the others.
    """

    def __init__(self, gpt: GPT, cache: DynamicCache | None, mask: Tensor | None, logits_to_keep: int | Tensor) -> None:
        self.logits_at: Tensor | None = None
        self._num_layers = gpt.config.n_layer
        self._cache = cache
        self._mask = mask
        self._keep = logits_to_keep

    def extend(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        B, T = token_ids.shape
        held = token_ids
        if self._cache is not None:
            while len(self._cache.layers) <= self._num_layers:
                self._cache.layers.append(DynamicLayer())
            ids_B1T1 = token_ids[:, None, :, None]
            layer: Any = self._cache.layers[self._num_layers]
            held = layer.update(ids_B1T1, ids_B1T1)[0][:, 0, :, 0]
        mask = torch.ones_like(held) if self._mask is None else self._mask
        if mask.shape != held.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; ids held and given have {tuple(held.shape)}"
            )
        real = mask.bool()
        positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        before = F.pad(held.where(real, -1)[:, :-1], (1, 0), value=-1)
        index = torch.arange(held.size(1), device=held.device)
        query, key = index[-T:, None], index
        self._distance = positions[:, -T:, None] - positions[:, None, :]
        self._seen = (key <= query) & real[:, None, :] | (
            key == query
        )  # padding sees itself, so that its softmax is defined
        if isinstance(self._keep, Tensor) or self._keep:
            kept = self._keep if isinstance(self._keep, Tensor) else torch.arange(max(T - self._keep, 0), T)
            self.logits_at = kept.to(held.device).expand(B, -1)
        return positions[:, -T:], before[:, -T:]

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, *, window: int, scale: float) -> Tensor:
        k_BKSD, v_BKSD = k.transpose(1, 2), v.transpose(1, 2)
        if self._cache is not None:
            k_BKSD, v_BKSD = self._cache.update(k_BKSD, v_BKSD, layer_idx)
        k_BHSD, v_BHSD = (x.repeat_interleave(q.size(2) // k.size(2), dim=1) for x in (k_BKSD, v_BKSD))
        seen = (self._seen & (self._distance <= window))[:, None]
        y_BHTD = F.scaled_dot_product_attention(q.transpose(1, 2), k_BHSD, v_BHSD, attn_mask=seen, scale=scale)
        return y_BHTD.transpose(1, 2)

    def advance(self, num_tokens: int) -> None:
        """Nothing to do: the caches of transformers advance as they are written."""
