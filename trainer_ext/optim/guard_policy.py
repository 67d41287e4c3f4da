"""What the gradient guard does about what it finds: a table of numbers."""

import dataclasses
import sys
from dataclasses import dataclass

from frankenlm.modeling.checks import check_keys
from frankenlm.modeling.yaml_text import load_yaml, plain

# The least that each whole number may be, and the most that each other may.
WHOLE = {"tries": 0, "failures_in_a_row": 1, "exploding_epochs": 1, "recovery_steps": 1, "vanishing_evaluations": 1}
REAL = {"redo_rate": 1, "exploding_rate": 1} | dict.fromkeys(
    ("exploding_norm", "exploding_clip", "vanishing_norm"), sys.float_info.max
)


@dataclass(frozen=True)
class GuardPolicy:
    """What is done when a gradient is not what it should be.

    tries: how often a batch whose gradient holds NaN is computed again before it is skipped: first with fresh random
        numbers, then from the parameters of before the last step, which a rolling copy holds, at `redo_rate`
        of the learning rate. rolling_copy: whether that copy is kept (memory and time: see RollingCopy).
    failures_in_a_row: batches skipped in a row after which the run is saved and ends.
    exploding_norm: from which norm on a finite gradient is clipped to `exploding_clip`, and the rate lowered to
        `exploding_rate` of itself. exploding_epochs: epochs in a row with such steps after which the run ends.
    recovery_steps: good steps over which a lowered rate rises back.
    vanishing_norm: below which a gradient counts as vanished; vanishing_evaluations: evaluations without a
        better loss, all with vanished gradients, after which the run ends.
    """

    tries: int = 3
    rolling_copy: bool = True
    redo_rate: float = 0.5
    failures_in_a_row: int = 3
    exploding_norm: float = 10.0
    exploding_clip: float = 1.0
    exploding_rate: float = 0.5
    exploding_epochs: int = 5
    recovery_steps: int = 20
    vanishing_norm: float = 1e-10
    vanishing_evaluations: int = 5

    def __post_init__(self):
        for name, smallest in WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int or value < smallest:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {smallest}.")
        for name, highest in REAL.items():
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= highest:
                bound = "a positive finite number" if highest > 1 else "a number in (0, 1]"
                raise ValueError(f"{name}={value!r} must be {bound}.")
        if self.exploding_clip > self.exploding_norm:
            raise ValueError(
                f"exploding_clip={self.exploding_clip} must not exceed exploding_norm={self.exploding_norm}: clipping "
                "makes a gradient smaller."
            )
        if type(self.rolling_copy) is not bool:
            raise ValueError(f"rolling_copy={self.rolling_copy!r} must be true or false.")


def read_policy(text: str | None) -> GuardPolicy:
    """Read --guard_policy, a YAML mapping of the fields to change; None changes none.

    Raises:
        ValueError: no mapping, an unknown field (with a did-you-mean), or a number out of range.
    """
    if text is None:
        return GuardPolicy()
    changes = load_yaml(text)
    if not isinstance(changes, dict):
        raise ValueError(f'--guard_policy {text!r}: a mapping is expected, as in "{{tries: 1}}".')
    check_keys("--guard_policy", changes, [field.name for field in dataclasses.fields(GuardPolicy)])
    try:
        return GuardPolicy(**plain(changes))
    except ValueError as error:
        raise ValueError(f"--guard_policy: {error}") from error
