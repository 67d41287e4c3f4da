"""Models that answer: which may be opened, and texts from them piece by piece, each from its own seed."""
