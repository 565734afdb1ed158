"""Inference engine for nanochat-like models: KV cache, continuous batching, sampling, tools."""
