"""One engine in an environment of its own: reads batch sizes, one a line, and answers with the seconds of its decoding steps.

`python peer_workers.py ENGINE JSON`, started by `peers.py`. Needs nothing but the standard library and the engine it is for.
A step is timed from outside, in the same way for all: it gives a token to each row, and so did the one before.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Steps = Callable[[list[list[int]]], Iterator[int]]
"""Prompts of token ids -> for each step, as it is done, how many tokens it gave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The model, and what is asked of it."""

    checkpoint: str
    """Directory in the layout of transformers; a GGUF file of equal size is written into it."""
    depth: int
    width: int
    heads: int
    vocab_size: int
    context: int
    """Maximum tokens of one sequence."""
    max_rows: int
    prompt_tokens: int
    new_tokens: int
    top_k: int
    threads: int


def ours(job: Job) -> tuple[str, Steps]:
    """nanochat's engine, compiled, in bfloat16."""
    import torch
    from nanochat_engine import Engine, Request, SamplingParams
    from nanochat_engine.testing import ByteTokenizer
    from nanochat_model import load_model, prepare_for_inference

    model = prepare_for_inference(load_model(job.checkpoint), dtype=torch.bfloat16)
    engine = Engine(model, ByteTokenizer(), tools={}, max_rows=job.max_rows, prefix_rows=0, compile=True)
    if engine.steps is None or not engine.steps.wait():
        raise RuntimeError("not all steps could be compiled")

    def run(prompts: list[list[int]]) -> Iterator[int]:
        for seed, prompt in enumerate(prompts):
            params = SamplingParams(max_tokens=job.new_tokens, top_k=job.top_k, ignore_eos=True, seed=seed)
            engine.submit(Request(token_ids=prompt, params=params))
        while not engine.idle:
            yield sum(event.token_id is not None for event in engine.step())

    return f"torch {torch.__version__}", run


def vllm(job: Job) -> tuple[str, Steps]:
    """vLLM, through its implementation on top of transformers."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0)))))
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    import vllm
    from vllm.sampling_params import RequestOutputKind

    llm = vllm.LLM(
        job.checkpoint,
        model_impl="transformers",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=job.context,
        max_num_seqs=job.max_rows,
        enable_prefix_caching=False,
    )
    params = vllm.SamplingParams(
        max_tokens=job.new_tokens,
        top_k=job.top_k,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )

    def run(prompts: list[list[int]]) -> Iterator[int]:
        for i, prompt in enumerate(prompts):
            llm.llm_engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
        while llm.llm_engine.has_unfinished_requests():
            yield sum(len(output.outputs[0].token_ids) for output in llm.llm_engine.step())

    return vllm.__version__, run


def llama(job: Job) -> tuple[str, Steps]:
    """llama.cpp, by its batches of one token for each sequence."""
    import llama_cpp as c

    path = write_gguf(job)
    model_params, context_params = c.llama_model_default_params(), c.llama_context_default_params()
    context_params.n_ctx, context_params.n_seq_max = job.context * job.max_rows, job.max_rows
    context_params.n_threads = context_params.n_threads_batch = job.threads
    context = c.llama_init_from_model(c.llama_model_load_from_file(str(path).encode(), model_params), context_params)
    if not context:
        raise RuntimeError("llama.cpp could not load the model")
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    c.llama_sampler_chain_add(chain, c.llama_sampler_init_top_k(job.top_k))
    c.llama_sampler_chain_add(chain, c.llama_sampler_init_dist(0))
    batch = c.llama_batch_init(max(job.prompt_tokens, job.max_rows), 0, 1)

    def decode(entries: list[tuple[int, int, int]], wanted: set[int]) -> None:
        """(token, position, sequence) of each, and the indices whose logits are wanted."""
        batch.n_tokens = len(entries)
        for i, (batch.token[i], batch.pos[i], batch.seq_id[i][0]) in enumerate(entries):
            batch.n_seq_id[i], batch.logits[i] = 1, i in wanted
        if status := c.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {status}")

    def run(prompts: list[list[int]]) -> Iterator[int]:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        rows, tokens = set(range(len(prompts))), []
        for row, prompt in enumerate(prompts):
            decode([(token, position, row) for position, token in enumerate(prompt)], {len(prompt) - 1})
            tokens.append(c.llama_sampler_sample(chain, context, len(prompt) - 1))
            yield 1
        for position in range(job.prompt_tokens, job.prompt_tokens + job.new_tokens - 1):
            decode([(token, position, row) for row, token in enumerate(tokens)], rows)
            tokens = [c.llama_sampler_sample(chain, context, row) for row in rows]
            yield len(tokens)

    return f"llama-cpp-python {c.__version__}", run


def write_gguf(job: Job) -> Path:
    """A Llama with random weights, as many as ours has: two thirds of the MLP's width, as it has three matrices."""
    import numpy
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    path = Path(job.checkpoint) / "llama.gguf"
    writer, rng = GGUFWriter(path, "llama"), numpy.random.default_rng(0)
    width, hidden = job.width, round(8 * job.width / 3 / 32) * 32
    writer.add_vocab_size(job.vocab_size)
    writer.add_context_length(job.context)
    writer.add_embedding_length(width)
    writer.add_block_count(job.depth)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(job.heads)
    writer.add_head_count_kv(job.heads)
    writer.add_rope_dimension_count(width // job.heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("none")
    shapes = {"token_embd": (job.vocab_size, width), "output": (job.vocab_size, width), "output_norm": (width,)}
    for i in range(job.depth):
        shapes |= {f"blk.{i}.{name}": (width, width) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{i}.{name}": (width,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{i}.{name}": (hidden, width) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{i}.ffn_down"] = (width, hidden)
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", numpy.ones(shape, numpy.float32))
        else:
            weight = 0.02 * rng.standard_normal(shape, numpy.float32)
            writer.add_tensor(
                f"{name}.weight",
                quants.quantize(weight, GGMLQuantizationType.BF16),
                raw_dtype=GGMLQuantizationType.BF16,
            )
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path


def time_steps(counts: Iterator[int], rows: int) -> list[float]:
    """Seconds of each step that gave a token to every row right after another that did: no prefill in it."""
    took_s, was_full, last = [], False, time.perf_counter()
    for count in counts:
        now = time.perf_counter()
        if was_full and count == rows:
            took_s.append(now - last)
        was_full, last = count == rows, now
    return took_s


ENGINES: dict[str, Callable[[Job], tuple[str, Steps]]] = {"ours": ours, "vllm": vllm, "llama.cpp": llama}


def serve(make: Callable[[Job], tuple[str, Steps]], job: Job) -> None:
    """The engine's version in a line; then, for each batch size that comes in, one of its steps' seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engine prints is no answer
    version, run = make(job)

    def answer(value: Any) -> None:
        print(json.dumps(value), file=answers, flush=True)

    answer(version)
    for line in sys.stdin:
        rows = int(line)
        prompts = [[(7919 * row + 31 * i) % job.vocab_size for i in range(job.prompt_tokens)] for row in range(rows)]
        answer(time_steps(run(prompts), rows))


if __name__ == "__main__":
    serve(ENGINES[sys.argv[1]], Job(**json.loads(sys.argv[2])))
