"""Public ternary models end to end: our packed models under generate() beside llama.cpp and ik_llama.cpp.

`shapes.py` says how large the models are, `engine_peer.py` times an engine under the interpreter that has it,
`packed.py` writes our model of a shape, and `race.py` lets all take turns. Weights are random, which costs no time.
"""
