"""infer-bench: how fast the engine answers, beside what the machine can do."""
