"""All families of text models that transformers has, one after the other, and the page that tells about them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ..common.cli import UserError, is_memory_error, one_line
from ..common.opening import reading
from .judging import BROKEN, HOLDS, REFUSES, UNKNOWN, Finding, Judge
from .opening import open_subject, plan_type
from .promises.table import PROMISES
from .rows import Rows, special_ids
from .trial import Trial

# Columns of the page: what is one promise to a reader, though it is tried in several ways.
COLUMNS: dict[str, tuple[str, ...]] = {
    "causal": ("causality", "no gradient from the future"),
    "left pads": ("padding left, batch 1", "padding left, batch 2"),
    "right pads": ("padding right, batch 1", "padding right, batch 2"),
    "batch": ("same input, same output", "batch independence"),
    "cache": ("cache",),
    "pieces": ("prefill in pieces",),
    "crop": ("cropping",),
    "position_ids": ("packed rows, position_ids",),
    "seq_idx": ("packed rows, seq_idx",),
    "cu_seq_lens": ("packed rows, cu_seq_lens",),
    "gradient": ("no gradient across documents",),
    "saved": ("save and load",),
}
PACKED = (*(name for name in PROMISES if name.startswith("packed rows")), "no gradient across documents")


@dataclass(frozen=True)
class TriedFamily:
    """What became of one family: its findings, or why it was not tried."""

    name: str
    is_decoder: bool = False
    findings: tuple[Finding, ...] = ()
    reason: str = ""

    def of(self, promises: Iterable[str]) -> list[Finding]:
        return [each for each in self.findings if each.promise in promises]

    @property
    def broken(self) -> list[str]:
        return [each.promise for each in self.findings if each.verdict == BROKEN]


def family_names() -> list[str]:
    """Return the families of causal and masked language models that transformers itself has."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES})


def try_families(names: Iterable[str], *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Iterator[TriedFamily]:
    """Yield what becomes of each family; one that cannot be built tiny, or is no text model, says so."""
    for name in names:
        try:
            plan = plan_type(name)
            subject = open_subject(plan, dtype=dtype, device="cpu", seed=seed)
            with reading(name, "model"):
                judge = Judge(Trial(subject, Rows(subject.vocabulary, special_ids(subject.model.config), seed)))
            findings = tuple(judge.judge(promise, tried) for promise, tried in PROMISES.items())
            yield TriedFamily(name, plan.is_decoder, findings)
        except UserError as error:
            yield TriedFamily(name, reason=one_line(error).removeprefix(f"{name}: "))
        except Exception as error:  # two hundred families of others, each with ways of its own
            if is_memory_error(error):
                raise
            yield TriedFamily(name, reason=f"{type(error).__name__}: {one_line(error)}")


def markdown(families: Iterable[TriedFamily]) -> str:
    """Return the findings as a section of a page."""
    families = list(families)
    tried = [each for each in families if each.findings]
    decoders, encoders = ([each for each in tried if each.is_decoder is kind] for kind in (True, False))
    leaking = [each for each in decoders if each.broken]
    left_out = [each for each in families if each.reason and "encoder-decoder" not in each.reason]
    parts = [
        f"{date.today()}, transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}, CPU: "
        f"{len(tried)} families ({len(decoders)} decoders, {len(encoders)} encoders).",
        f"### Decoders that break a promise ({len(leaking)})",
        _table(leaking),
        f"### Decoders that break none ({len(decoders) - len(leaking)})",
        ", ".join(f"`{each.name}`" for each in decoders if not each.broken) + ".",
        f"### Encoders ({len(encoders)})",
        _encoders(encoders),
        "### Not tried",
        "Encoder-decoders, models with parts beside their text, and:",
        "\n".join(f"- `{each.name}`: {_short(each.reason)}" for each in left_out if "parts beside" not in each.reason),
    ]
    return "\n\n".join(parts) + "\n"


def _table(families: list[TriedFamily]) -> str:
    lines = [f"| family | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for family in families:
        lines.append(f"| `{family.name}` | {' | '.join(_cell(family.of(each)) for each in COLUMNS.values())} |")
    return "\n".join(lines)


def _cell(findings: list[Finding]) -> str:
    """The worst of what a column tells: a broken promise by its size."""
    verdicts = {each.verdict for each in findings}
    if BROKEN in verdicts:
        worst = max((each for each in findings if each.verdict == BROKEN), key=lambda each: each.difference)
        silent = " (silent)" if worst.note == "ignored in silence" else ""
        return f"**{worst.difference:.0e}**{silent}"
    return next(sign for verdict, sign in ((REFUSES, "refuses"), (HOLDS, "ok"), (UNKNOWN, "-")) if verdict in verdicts)


def _encoders(encoders: list[TriedFamily]) -> str:
    together = [each for each in encoders if all(found.verdict == HOLDS for found in each.of(PACKED))]
    padding = [each for each in encoders if set(each.broken) - set(PACKED)]
    lines = [
        f"- Packed documents stay apart in {_names(together)} of them: where they share a row, they see each other.",
        f"- Something else is broken in {len(padding)}:",
        "",
        _table(padding),
    ]
    return "\n".join(lines)


def _names(families: list[TriedFamily]) -> str:
    return ", ".join(f"`{each.name}`" for each in families) or "none"


def _short(text: str) -> str:
    return text if len(text) <= 140 else text[:137] + "..."


def facts_of(families: Iterable[TriedFamily]) -> Mapping[str, object]:
    """Return what the JSON file of the walk holds, family by family."""
    return {
        each.name: {"reason": each.reason} if each.reason else {"findings": [vars(found) for found in each.findings]}
        for each in families
    }
