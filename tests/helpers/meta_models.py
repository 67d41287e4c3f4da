"""Sizes of the tiny models, for the tests of groups."""

H, I, V, LAYERS = 32, 48, 272, 4  # hidden, intermediate, vocabulary, layers of the tiny models
Q, KV = H, 16  # outputs of the projections with two of four heads for keys and values
