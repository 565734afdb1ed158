"""The nanochat GPT: forward pass, loss, accounting and safetensors checkpoints."""
