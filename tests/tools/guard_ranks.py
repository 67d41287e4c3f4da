"""The guard in two processes, every fault on one of them alone; rank 0 prints what happened, as JSON.

Usage: accelerate launch ... tests/tools/guard_ranks.py FOLDER
"""

import itertools
import json
import math
import sys

import torch
from accelerate import PartialState

from guarded_runs import ALWAYS, FAULT, KINDS, Run, batches, gradient_fault, same_length, without

STEPS = FAULT + 1
FAULTS = {"nan once": (math.nan, 1), "nan": (math.nan, ALWAYS), "inf": (math.inf, ALWAYS)}


def on_rank(rank: int, plant):
    return lambda trainer: plant(trainer) if PartialState().process_index == rank else None


def main(folder: str) -> None:
    rows = batches(4 * 4 * (STEPS + 1))
    found = []
    for kind, bf16, accumulation in itertools.product(KINDS, (False, True), (1, 4)):
        options = {"kind": kind, "bf16": bf16, "accumulation": accumulation, "steps": STEPS}
        clean = Run(folder, rows, **options)
        spared = Run(
            folder, without(rows, accumulation, 4), plant=same_length(STEPS), **(options | {"steps": STEPS - 1})
        )
        for rank, (name, (value, times)) in enumerate(FAULTS.items()):
            # DDP averages gradients, so what one process meets reaches all; the hook runs before that
            hit = Run(folder, rows, plant=on_rank(rank % 2, gradient_fault(value, times)), **options)
            expected = clean if times == 1 else spared
            same = all(torch.equal(hit.weights[key], expected.weights[key]) for key in hit.weights)
            found.append({**options, "fault": name, "counts": dict(hit.guard.counts), "same": same})
    if PartialState().process_index == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
