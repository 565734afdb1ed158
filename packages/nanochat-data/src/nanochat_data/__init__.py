"""Text and chat data for nanochat: packed batches, tasks with graders, and a small synthetic world."""
