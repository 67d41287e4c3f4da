"""How weights lie in models of others: what projections are called, what fused ones hold, how wide heads are."""
