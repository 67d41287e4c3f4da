"""Standard synthetic tasks: generators of their sequences, small models that are trained on them, and the table."""
