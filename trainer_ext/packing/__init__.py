"""From other people's ternary checkpoints to packed ones, tensor by tensor: what is in them, and how it is written."""
