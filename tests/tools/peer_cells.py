"""Which tool of others does what with which kind of model: the cells of the table in docs/tools.md.

`tests/peers` holds every cell: what works is compared with a value computed in another way, what is refused with the
words of the refusal, and what is no task for a kind of model with what happens when it is tried all the same. After a
change here `PYTHONPATH=tests/tools python tests/tools/peer_cells.py` writes the page.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from peer_models import FAMILIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tools.md"
BEGIN, END = "<!-- cells -->\n", "\n<!-- end of the cells -->"
WORKS, REFUSED, NO_TASK = "works", "refused", "no task for it"


class Cell(NamedTuple):
    """What a tool does with a kind of model.

    why: for the table; "" where there is nothing to add. message: what whoever tries it reads (a pattern).
    """

    verdict: str
    why: str = ""
    message: str = ""


class Tool(NamedTuple):
    title: str
    cells: Mapping[str, Cell]


COLUMNS = {
    "encoder": "frankenstein, encoder",
    "decoder": "frankenstein, decoder",
    "standard": "standard (BERT-shaped)",
    "infinito": "infinito",
    "legacy": "legacy-1bit, ternary",
    "packed": "legacy-1bit, packed",
}


def _row(title: str, **others: Cell) -> Tool:
    """A tool that works with every kind but those named."""
    return Tool(title, {family: others.get(family, Cell(WORKS)) for family in FAMILIES})


def _causal_row(title: str, **others: Cell) -> Tool:
    """A tool of causal models."""
    encoder = Cell(NO_TASK, "it predicts no next token", "needs is_decoder=True; an encoder is FrankensteinForMaskedLM")
    return _row(title, encoder=encoder, standard=encoder, **others)


_PACKED_IS_READY = Cell(NO_TASK, "packed weights do not learn", "purely quantized models")
_TERNARY_HEAD = Cell(REFUSED, "TRL multiplies by one output matrix; a ternary head has none", "bitnet_head=True.*Call")
_NO_LINEAR = Cell(REFUSED, "packed layers take no adapter", "this model is packed.*Adapt the model it was packed from")
_NO_LAYER = Cell(WORKS, "0 layers are quantised, which is told: ternary layers stay", "0 layers were quantised")
_TWICE = Cell(
    REFUSED, "it is quantised already", "quantized with TernaryConfig but you are passing a BitsAndBytesConfig"
)

TOOLS = {
    "lora": _row(
        "PEFT: LoRA, all-linear; train, save, load",
        packed=_NO_LINEAR,
    ),
    "merge": _row(
        "PEFT: merge",
        legacy=Cell(REFUSED, "the layer would round most of the adapter away", "an adapter cannot be merged into"),
        packed=_NO_LINEAR,
    ),
    "qlora": _row(
        "PEFT and bitsandbytes: LoRA beside 4 bits",
        legacy=_NO_LAYER._replace(why="as LoRA: no layer is in 4 bits"),
        packed=_TWICE,
    ),
    "sft": _causal_row(
        "TRL: SFTTrainer",
        decoder=Cell(WORKS, "of a model with experts TRL leaves out the losses that balance its routers"),
        legacy=_TERNARY_HEAD,
        packed=_PACKED_IS_READY,
    ),
    "dpo": _causal_row("TRL: DPOTrainer", legacy=_TERNARY_HEAD, packed=_PACKED_IS_READY),
    "bits8": _row("bitsandbytes, 8 bits", legacy=_NO_LAYER, packed=_TWICE),
    "bits4": _row("bitsandbytes, 4 bits", legacy=_NO_LAYER, packed=_TWICE),
    "offload": _row("accelerate: layers on CPU and disk"),
    "choice": _causal_row("lm-eval: multiple choice (loglikelihood)"),
    "rolling": _causal_row("lm-eval: perplexity (loglikelihood_rolling)"),
    "until": _causal_row("lm-eval: generate_until"),
    "sentences": _row(
        "sentence-transformers: encode, train, save",
        packed=Cell(
            REFUSED,
            "it gives its pooling the number format of the first weight, and packed bytes are none",
            "only accepts floating point",
        ),
    ),
    "pipeline": _row("transformers: pipeline(...) with defaults"),
    "tokenizer": Tool(
        "AutoTokenizer without frankenlm",
        dict.fromkeys(FAMILIES, Cell(WORKS, "give `trust_remote_code=False`, or transformers asks before it looks")),
    ),
    "trackio": _row("trackio: --report_to trackio", packed=_PACKED_IS_READY),
}


def cells_of(tool: str):
    """Let a test run for each cell of a tool's row, as (family, cell)."""
    cells = TOOLS[tool].cells
    return pytest.mark.parametrize(("family", "cell"), list(cells.items()), ids=list(cells))


def render() -> str:
    """Return the table in Markdown, a row a tool, and below it why not all cells say `works`."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", f"|---|{'---|' * len(COLUMNS)}"]
    reasons: list[str] = []
    for title, cells in TOOLS.values():
        words = []
        for family in COLUMNS:
            cell = cells[family]
            if cell.why and cell.why not in reasons:
                reasons.append(cell.why)
            words.append(f"{cell.verdict} ({reasons.index(cell.why) + 1})" if cell.why else cell.verdict)
        lines.append(f"| {title} | {' | '.join(words)} |")
    notes = [f"{number}. {why[0].upper()}{why[1:]}." for number, why in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes])


def page() -> str:
    """Return docs/tools.md with the table as it is now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}{render()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
