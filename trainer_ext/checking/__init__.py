"""What a model promises, tried: causality, padding, batch, cache, packed rows, gradients, saving; behind `check`."""
