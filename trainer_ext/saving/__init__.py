"""Checkpoint folders: what a run writes beside its weights, what can be read back, what may be written where."""
