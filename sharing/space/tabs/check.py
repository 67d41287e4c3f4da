"""The tab Check: the promises of `frankenlm check`, tried on a model of the shelf with its weights as they are."""

import time
from collections.abc import Iterator

import gradio as gr

from frankenlm.trainer_ext.checking.judging import Finding, Judge
from frankenlm.trainer_ext.checking.opening import subject_of
from frankenlm.trainer_ext.checking.promises.table import PROMISES
from frankenlm.trainer_ext.checking.report import HEADER, cells_of, verdict_line
from frankenlm.trainer_ext.checking.rows import Rows, special_ids
from frankenlm.trainer_ext.checking.trial import Trial
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.opening import reading

from ..parts import choose_model, on_shelf, told
from ..shelf import Opened, Shelf

TITLE = "Check"
LARGEST = 20_000_000  # parameters: a second copy is made in double precision, and asked many times
LONGEST = 60.0  # seconds; what is left then is said to be untried
SEED = 0
ABOUT = """What any language model promises, tried on this one with its weights as they are: that no token sees the
future, that pads, other rows and other documents of a row change nothing, that the cache continues what it began. The
*difference* is what was measured; *a fault shows* what a broken promise would give."""
WIDTHS = ["230px", "110px", "130px", "120px", "560px"]  # on a telephone the table is wider than its frame


def check(opened: Opened, seconds: float = LONGEST) -> Iterator[tuple[list[Finding], int]]:
    """Yield the findings so far, and how many promises there are; the lock is let go between two promises.

    Raises:
        UserError: a model that is too large to be tried here, or one that cannot be run.
    """
    size = opened.model.num_parameters()
    if size > LARGEST:
        raise UserError(
            f"{opened.name} has {size:,} parameters; models of at most {LARGEST:,} are checked here. On your own "
            f"machine: frankenlm check {opened.name}"
        )
    end = time.monotonic() + seconds
    with opened.lock:
        subject = subject_of(opened.model, opened.name, opened.kind == "causal")
        with reading(opened.name, "model"):
            judge = Judge(Trial(subject, Rows(subject.vocabulary, special_ids(opened.model.config), SEED)))
    findings: list[Finding] = []
    for name, promise in PROMISES.items():
        if time.monotonic() > end:
            return
        with opened.lock:
            findings.append(judge.judge(name, promise))
        yield findings, len(PROMISES)


def summary(opened: Opened, findings: list[Finding], promises: int) -> str:
    """Return what has been found, as Markdown; while promises are left, how many."""
    if not findings:
        return f"No promise of {opened.name} could be tried in time."
    left = promises - len(findings)
    line = verdict_line(opened.name, findings)
    return f"{line} {left} of {promises} promises are untried." if left else f"**{line}**"


def rows_of(findings: list[Finding]) -> list[list[str]]:
    """Return the table: a row for each promise."""
    return [[*cells_of(each), each.note] for each in findings]


def check_model(
    models: Shelf,
    model: str,
    progress: gr.Progress = gr.Progress(),  # noqa: B008  how gradio hands it over
) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield (verdict, table) after each promise, the last time with all of them."""
    with told():
        opened = models.open(model)
        findings, promises = [], len(PROMISES)
        for findings, promises in check(opened):
            progress((len(findings), promises), desc=findings[-1].promise)
            yield summary(opened, findings, promises), rows_of(findings)
        yield summary(opened, findings, promises), rows_of(findings)


def build(models: Shelf) -> None:
    """Lay the tab out; /check streams (verdict, table)."""
    gr.Markdown(ABOUT)
    model = choose_model(models)
    with gr.Row():
        button, halt = gr.Button("Check", variant="primary"), gr.Button("Stop")
    words = gr.Markdown(label="Verdict")
    headers = [*HEADER, "note"]
    table = gr.Dataframe(
        headers=headers, label="Promises", interactive=False, wrap=True, column_widths=WIDTHS, max_height=800
    )
    trying = button.click(on_shelf(check_model, models), model, [words, table], api_name="check", concurrency_limit=1)
    halt.click(None, cancels=trying, queue=False, api_visibility="private")
