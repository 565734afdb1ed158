"""Training for nanochat: MuonAdamW, the depth recipe, pretraining and SFT loops, checkpoints, metrics."""
