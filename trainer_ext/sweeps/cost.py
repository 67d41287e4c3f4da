"""What a sweep would do and what that takes, for its dry run."""

import math
import statistics
from collections.abc import Sequence

from .run_folder import FINISHED, PlannedRun


def plan_table(plan: Sequence[PlannedRun], chosen: set[str], later: int = 0, jobs: int = 1) -> str:
    """What would be done, a line a run, and what it would cost.

    Args:
        later: runs that follow once a value is chosen. jobs: how many run at once.
    """
    states = [planned.state if planned.run.name in chosen else "left out" for planned in plan]
    lines = [f"{state:<10} {planned.run.name}" for state, planned in zip(states, plan, strict=True)]
    to_make = len(plan) - states.count(FINISHED) - states.count("left out")
    waiting = f", and {later} more when a value is chosen for them" if later else ""
    return "\n".join([*lines, f"{len(plan)} runs, {to_make} to make{waiting}", cost_line(plan, to_make + later, jobs)])


def cost_line(plan: Sequence[PlannedRun], missing: int, jobs: int = 1) -> str:
    """The steps of a run, and by the median of the finished ones the minutes that are left, of all processes and, with
    several at once, by the clock: should they not slow each other down more than the finished ones did."""
    steps = sorted({planned.run.settings["max_steps"] for planned in plan if "max_steps" in planned.run.settings})
    told = f"{' or '.join(f'{count:,}' for count in steps)} steps a run; " if steps else ""
    seconds = [planned.earlier.get("process_seconds") for planned in plan if planned.state == FINISHED]
    seconds = [one for one in seconds if one is not None]
    if not seconds:
        return f"{told}how long one takes is known when one is finished: --only NAME makes it"
    usual = statistics.median(seconds)
    clock = f", {usual * math.ceil(missing / jobs) / 60:.0f} by the clock with {jobs} at once" if jobs > 1 else ""
    return (
        f"{told}{usual:.0f} s a run by the {len(seconds)} finished: about {usual * missing / 60:.0f} process minutes "
        f"are left{clock}"
    )
