"""quickstart: a small chat model trained on the spot, from a generated world, and talked to. No network data, no GPU."""
