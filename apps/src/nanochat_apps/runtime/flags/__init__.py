"""The flags of each program, as dataclasses. Nothing here imports torch."""
