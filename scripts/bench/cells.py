"""One cell of the benchmark: all contestants of a product interleaved, next to the limit measured in the same rounds.

The limit of a product is what the machine would need if it did nothing else than the slower of two things: read the
weights once at 2 bits each, or do the multiplications with its best instruction. Both rates are measured by loops that
do only that, over the same buffers, with the same threads, in the same rounds as the contestants.
Times of one thread are processor time, which other programs do not lengthen; of more threads, the wall's.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from frankenlm.scripts.bench.contestants import ProductContestant

SAMPLE_SECONDS = 2e-3  # long against the clock, short against a time slice
FEWEST_ROUNDS, MOST_ROUNDS = 3, 40
MOST_CALLS = 10**7
LONGEST_CELL = 2.0  # seconds a contestant may take in a cell


@dataclass(frozen=True)
class BenchCell:
    """A product y (tokens, outputs) = x (tokens, inputs) W: `memory` is "cache" or "dram", where the weights lie."""

    inputs: int
    outputs: int
    tokens: int
    threads: int
    memory: str

    @property
    def products(self) -> int:
        return self.tokens * self.inputs * self.outputs

    @property
    def weight_bytes(self) -> float:
        return self.inputs * self.outputs / 4

    @property
    def shape(self) -> str:
        return f"{self.inputs}x{self.outputs}"


@dataclass(frozen=True)
class Timing:
    """Seconds per unit (a product of matrices, a byte, a multiplication) over the rounds."""

    median: float
    p20: float
    p80: float
    wall: float  # median
    rounds: int
    calls: int  # of a round


@dataclass
class _Plan:
    contestant: ProductContestant
    calls: int
    rounds: int
    warm_calls: int


def _seconds(times, threads: int) -> float:
    return times.processor if threads == 1 else times.wall


def plan(contestant: ProductContestant, budget: float, in_cache: bool) -> _Plan:
    """Find how many calls make a sample and how many rounds fit the budget."""
    calls = 1
    while (seconds := contestant.run(calls)[0].wall) < SAMPLE_SECONDS / 4 and calls < MOST_CALLS:
        calls *= 8
    per_call = max(seconds / calls, 1e-9)
    calls = max(1, min(int(SAMPLE_SECONDS / per_call), MOST_CALLS))
    fitting = int(min(budget, LONGEST_CELL) / (calls * per_call))
    fewest = min(FEWEST_ROUNDS, max(1, int(LONGEST_CELL / per_call)))
    # The others' weights have pushed this one's out of the cache since its last turn.
    warm_calls = max(1, calls // 4) if in_cache and per_call < SAMPLE_SECONDS else 0
    return _Plan(contestant, calls, max(fewest, min(fitting, MOST_ROUNDS)), warm_calls)


def takes_part(round_number: int, rounds: int, all_rounds: int) -> bool:
    """Spread `rounds` turns evenly over `all_rounds`."""
    return (round_number + 1) * rounds // all_rounds > round_number * rounds // all_rounds


def interleave(
    contestants: Mapping[str, ProductContestant], *, threads: int, in_cache: bool, budget: float
) -> dict[str, Timing]:
    """Time every contestant in turn, round by round; torch's number of threads is set and put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        plans = {name: plan(contestant, budget, in_cache) for name, contestant in contestants.items()}
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in plans}
        all_rounds = max(item.rounds for item in plans.values())
        for number in range(all_rounds):
            for name, item in plans.items():
                if takes_part(number, item.rounds, all_rounds):
                    if item.warm_calls:
                        item.contestant.run(item.warm_calls)
                    times, amount = item.contestant.run(item.calls)
                    samples[name].append((_seconds(times, threads) / amount, times.wall / amount))
    finally:
        torch.set_num_threads(before)
    return {name: _timing(samples[name], plans[name].calls) for name in plans}


def _timing(samples: Sequence[tuple[float, float]], calls: int) -> Timing:
    chosen, walls = sorted(sample[0] for sample in samples), [sample[1] for sample in samples]
    fifth = len(chosen) // 5
    return Timing(
        statistics.median(chosen), chosen[fifth], chosen[-1 - fifth], statistics.median(walls), len(chosen), calls
    )


@dataclass(frozen=True)
class Limit:
    """Seconds that a product takes at least, and what sets them: "bandwidth" or "instruction"."""

    seconds: float
    set_by: str


def limit(weight_bytes: float, products: float, bytes_per_second: float, products_per_second: float | None) -> Limit:
    """Return the roofline's time; without a measured instruction the bandwidth alone."""
    reading = weight_bytes / bytes_per_second
    multiplying = products / products_per_second if products_per_second else 0.0
    return Limit(reading, "bandwidth") if reading >= multiplying else Limit(multiplying, "instruction")


@dataclass(frozen=True)
class Roofline:
    """What the machine did at most in a cell: bytes a second, and products a second of each instruction."""

    bytes_per_second: float
    products_per_second: Mapping[str, float]

    @classmethod
    def from_timings(cls, timings: Mapping[str, Timing]) -> "Roofline":
        """Take the better way of reading, and every peak; names are those of `roofline_contestants`."""
        reads = [1 / timing.median for name, timing in timings.items() if name.startswith("read ")]
        peaks = {name[5:]: 1 / timing.median for name, timing in timings.items() if name.startswith("peak ")}
        return cls(max(reads), peaks)

    def limit(self, cell: BenchCell, instruction: str | None = None) -> Limit:
        """Return the limit of the machine, or the one with a given instruction."""
        best = max(self.products_per_second.values(), default=None)
        peak = self.products_per_second.get(instruction) if instruction else best
        return limit(cell.weight_bytes, cell.products, self.bytes_per_second, peak)


def rows_of(
    cell: BenchCell, timings: Mapping[str, Timing], roofline: Roofline, instructions: Mapping[str, str]
) -> list[dict]:
    """Return a row for each contestant, with its ratio to TQ2_0 and torch int8 (None where these did not take part)."""
    best = roofline.limit(cell)
    rows = []
    for name, timing in timings.items():
        own = roofline.limit(cell, instructions[name]) if name in instructions else None
        rows.append(
            {
                "contestant": name,
                **asdict(cell),
                "us": timing.median * 1e6,
                "p20_us": timing.p20 * 1e6,
                "p80_us": timing.p80 * 1e6,
                "wall_us": timing.wall * 1e6,
                "rounds": timing.rounds,
                "calls": timing.calls,
                "gops": 2e-9 * cell.products / timing.median,
                "limit_us": best.seconds * 1e6,
                "limit_set_by": best.set_by,
                "share_of_limit": best.seconds / timing.median,
                "share_of_own_limit": own.seconds / timing.median if own else None,
                "times_TQ2_0": _ratio(timings, "ggml TQ2_0", timing),
                "times_int8": _ratio(timings, "torch int8", timing),
                "noise": timing.p80 / timing.p20 - 1,
            }
        )
    return rows


def _ratio(timings: Mapping[str, Timing], peer: str, timing: Timing) -> float | None:
    return timings[peer].median / timing.median if peer in timings else None


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |output - expected| / |expected|."""
    return ((output - expected).norm() / expected.norm()).item()
