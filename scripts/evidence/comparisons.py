"""What the evidence compares, and the words for each outcome: a difference in loss, ours - theirs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frankenlm.scripts.evidence.models import (
    ATTENTION,
    GPT2,
    HYBRID_VARIANT,
    INFINITO,
    MEMORY_OFF,
    TITAN,
    TITAN_MEMORY,
)

SHUFFLED = "shuffled-memory"
SAFEGUARDS = "unigram output bias, RMS-normalised embedding, embedding convolution"

# An effect below this share of the loss is called negligible, even if it is measurable.
NEGLIGIBLE = 0.001


@dataclass(frozen=True)
class Comparison:
    """A difference, ours - theirs, and what it means when it lies below 0, above 0, or neither is shown."""

    ours: str
    theirs: str
    below: str
    above: str
    neither: str

    @property
    def name(self) -> str:
        return f"{self.ours} minus {self.theirs}"


COMPARISONS = (
    Comparison(
        INFINITO.name,
        MEMORY_OFF.name,
        below="the slot memory lowers the loss",
        above="the slot memory raises the loss",
        neither="no effect of the slot memory is shown",
    ),
    Comparison(
        SHUFFLED,
        INFINITO.name,
        below="reading another text's memory lowers the loss, which speaks against a use of the content",
        above="reading another text's memory hurts, so the model uses the content of its memory",
        neither="reading another text's memory instead of its own makes no measurable difference to the model",
    ),
    Comparison(
        TITAN_MEMORY.name,
        TITAN.name,
        below="the delta memory lowers the loss",
        above="the delta memory raises the loss",
        neither="no effect of the delta memory is shown",
    ),
    Comparison(
        HYBRID_VARIANT.name,
        ATTENTION.name,
        below="the hybrid's mixers lower the loss against plain attention with the same safeguards",
        above="the hybrid's mixers raise the loss against plain attention with the same safeguards",
        neither="no effect of the hybrid's mixers is shown against plain attention with the same safeguards",
    ),
    Comparison(
        HYBRID_VARIANT.name,
        GPT2.name,
        below=f"the hybrid has the lower loss, but GPT-2 lacks its safeguards ({SAFEGUARDS}), so this is no finding "
        "about mixers",
        above="the hybrid has the higher loss, though GPT-2 lacks its safeguards",
        neither="no difference is shown, though GPT-2 lacks the hybrid's safeguards",
    ),
    Comparison(
        ATTENTION.name,
        GPT2.name,
        below="plain attention with the hybrid's safeguards has the lower loss, without any of its mixers",
        above="plain attention with the hybrid's safeguards has the higher loss",
        neither="no difference is shown between plain attention with the hybrid's safeguards and GPT-2",
    ),
)


def verdict(comparison: Comparison, difference: Mapping[str, Any]) -> str:
    """Say what a difference shows: its size, its spread, whether its interval excludes 0, and what follows.

    Twins that share start and data differ so little between seeds that an interval may exclude 0 for an effect of no
    practical size; then the sentence says that too.

    Args:
        difference: of `paired_difference` or `unpaired_difference`, with `share` of the loss.
    """
    if difference["n"] == 0:
        return "not measured, runs are missing."
    text = f"{difference['mean']:+.4f} nats, a {'higher' if difference['mean'] > 0 else 'lower'} loss"
    text += f", {_seeds(difference)}"
    if difference["low"] is None:
        return f"{text}, which shows nothing about the spread."
    text += f"; 95 % interval {difference['low']:+.4f} to {difference['high']:+.4f}"
    if not difference["excludes_zero"]:
        return f"{text}, which includes 0: {comparison.neither}."
    effect = comparison.below if difference["mean"] < 0 else comparison.above
    if difference["share"] < NEGLIGIBLE:
        effect += f"; by a negligible {difference['share']:.2%} of the loss"
    return f"{text}, which excludes 0: {effect}."


def _seeds(difference: Mapping[str, Any]) -> str:
    """How many seeds a difference rests on."""
    if difference.get("counts"):  # not paired
        ours, theirs = difference["counts"]
        return f"over {ours} and {theirs} seeds that are not paired"
    if difference["n"] == 1:
        return "with one seed"
    return f"sd {difference['sd']:.4f} over {difference['n']} seeds"
