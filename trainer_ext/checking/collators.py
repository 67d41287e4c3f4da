"""A data collator under test: whether the documents of its batches can be told apart, by whatever the batch holds.

It is given documents whose tokens are all different, so that every place of the batch says which document it is of.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers

from frankenlm.modeling import byte_tokenizer
from frankenlm.modeling.checks import suggest
from frankenlm.modeling.outputs import IGNORED_LABEL

from ..common.cli import UserError, is_memory_error, one_line
from .borders import NO_DOCUMENT, Collated, attended_places, collated
from .judging import BROKEN, HOLDS, REFUSES, UNKNOWN, Finding
from .measure import Difference, farthest
from .opening import imported
from .promises.packing import FORMS
from .rows import DOCUMENTS
from .trial import Trial

Collator = Callable[[list[dict]], Mapping[str, Any]]
UNREAD = "its attention_mask is of a kind that cannot be read"
FIRST = 10  # id of the first document's first token


def find_collator(name: str, arguments: str | None = None) -> Collator:
    """Return the collator that MODULE:NAME names, or transformers by that name.

    A class is called with `arguments` (JSON); what else it needs of a tokenizer and its pads is given.

    Raises:
        UserError: no such collator, arguments that are none, or a class that needs more.
    """
    found = imported("--collator", name) if ":" in name else getattr(transformers, name, None)
    if found is None:
        known = [each for each in dir(transformers) if "Collator" in each or each.endswith("data_collator")]
        raise UserError(f"--collator {name}: transformers has none of that name.{suggest(name, known)}")
    given = _arguments(arguments)
    if not isinstance(found, type):
        if given:
            raise UserError(f"--collator_args: {name} is no class, so nothing is made with them.")
        if not callable(found):
            raise UserError(f"--collator {name}: cannot be called with a list of rows.")
        return found
    try:
        return found(**{**_expected(found), **given})
    except Exception as error:  # what a user's class says of its arguments
        raise UserError(f"--collator {name}: cannot be made: {one_line(error)} (--collator_args)") from error


def _arguments(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UserError(f"--collator_args {text}: is no JSON: {one_line(error)}") from error
    if not isinstance(given, dict):
        raise UserError(f'--collator_args {text}: write a JSON object, such as {{"padding_free": true}}.')
    return given


def _expected(collator: type) -> dict[str, Any]:
    """What a collator is made with in any training: a tokenizer, its pad, and no masking, which borders do not need."""
    takes = inspect.signature(collator.__init__).parameters
    tokenizer = byte_tokenizer()
    usual = {
        "tokenizer": tokenizer,
        "processing_class": tokenizer,
        "pad_token_id": tokenizer.pad_token_id,
        "mlm": False,
        "return_tensors": "pt",
    }
    return {name: value for name, value in usual.items() if name in takes}


def collate(collator: Collator) -> Collated:
    """Let a collator make one batch of the documents of the check.

    Raises:
        ValueError: what it gives is no batch of these documents' ids.
    """
    batch = _called(collator)
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not torch.is_tensor(ids) or ids.ndim != 2:
        raise ValueError("it gives no input_ids (B, L)")
    numbers = torch.cat([torch.full((size,), number) for number, size in enumerate(DOCUMENTS)])
    inside = (ids >= FIRST) & (ids < FIRST + len(numbers))
    owners = torch.where(inside, numbers[(ids - FIRST).clamp(0, len(numbers) - 1)], NO_DOCUMENT)
    if set(owners.unique().tolist()) - {NO_DOCUMENT} != set(range(len(DOCUMENTS))):
        raise ValueError("its batch does not hold all tokens it was given")
    return collated(batch, ids, owners)


def _called(collator: Collator) -> Any:
    """Give a collator the documents, with labels or, where it does not take them, without."""
    try:
        return collator(_rows("input_ids", "attention_mask", "labels"))
    except (ValueError, TypeError, KeyError):  # those that pad know no labels, and those that make them take none
        return collator(_rows("input_ids", "attention_mask"))


def _rows(*columns: str) -> list[dict[str, list[int]]]:
    rows, first = [], FIRST
    for length in DOCUMENTS:
        ids = list(range(first, first + length))
        every = {"input_ids": ids, "attention_mask": [1] * length, "labels": ids[:]}
        rows.append({name: every[name] for name in columns})
        first += length
    return rows


def collator_findings(collator: Collator) -> tuple[list[Finding], Collated | None]:
    """Return what becomes of the promises of a collator, and its batch, if it makes one."""
    try:
        made = collate(collator)
    except Exception as error:  # a collator's way of saying no is its own
        if is_memory_error(error):
            raise
        return [
            Finding("collator: documents told apart", REFUSES, note=f"{type(error).__name__}: {one_line(error)}")
        ], None
    return [_told_apart(made), _labels_at_borders(made), _pads_told(made)], made


def _told_apart(made: Collated) -> Finding:
    name = "collator: documents told apart"
    if not bool(made.starts.any()):
        return Finding(name, HOLDS, note="each is a row of its own")
    told = made.told
    wrong = [form for form, starts in told.items() if not torch.equal(starts, made.starts)]
    if wrong:
        return Finding(name, BROKEN, note=f"{' and '.join(wrong)} begin documents elsewhere than they begin")
    if not told and made.has_other_mask:
        return Finding(name, UNKNOWN, note=UNREAD)
    if not told:
        note = f"documents share a row, and neither {', '.join(FORMS)} nor a mask of blocks tells where one ends"
        return Finding(name, BROKEN, note=note)
    return Finding(name, HOLDS, note=f"by {', '.join(told)}")


def _labels_at_borders(made: Collated) -> Finding:
    """Losses are shifted: the label of a document's first token is what the last token before it is asked for."""
    name = "collator: no label across a border"
    labels = made.batch.get("labels")
    if not torch.is_tensor(labels) or labels.shape != made.ids.shape:
        return Finding(name, UNKNOWN, note="it gives no labels for each token")
    if not bool(made.starts.any()):
        return Finding(name, HOLDS, note="no row has a border")
    crossing = int((labels[made.starts] != IGNORED_LABEL).sum())
    if crossing:
        note = f"{crossing} first tokens are to be predicted from the document before"
        return Finding(name, BROKEN, note=note)
    return Finding(name, HOLDS)


def _pads_told(made: Collated) -> Finding:
    name = "collator: pads told"
    pads = made.owners == NO_DOCUMENT
    if not bool(pads.any()):
        return Finding(name, HOLDS, note="no pads")
    attended, labels = attended_places(made.batch, made.owners), made.batch.get("labels")
    if made.has_other_mask:
        return Finding(name, UNKNOWN, note=UNREAD)
    if attended is None:
        return Finding(name, BROKEN, note="rows are padded, and there is no attention_mask")
    if not torch.equal(attended, ~pads):
        return Finding(name, BROKEN, note="attention_mask is 0 elsewhere than at the pads")
    if torch.is_tensor(labels) and labels.shape == pads.shape and bool((labels[pads] != IGNORED_LABEL).any()):
        return Finding(name, BROKEN, note="pads are to be predicted")
    return Finding(name, HOLDS)


def through_model(trial: Trial, made: Collated) -> Difference:
    """The promise of model and collator together: each document of the batch gives what it gives by itself."""
    subject = trial.subject
    inputs = {name: value for name, value in made.batch.items() if name not in ("input_ids", "labels")}
    # its tokenizer's pad, or what it sets between documents, may be no id of this model
    ids = torch.where(made.owners == NO_DOCUMENT, 0, made.ids.clamp(max=subject.vocabulary - 1))
    actual, joined = subject.outputs(ids, **inputs), subject.outputs(ids)
    pairs, astray = [], []
    for place in _places(made.owners):
        alone = subject.outputs(ids[place].clone())
        pairs.append((actual[place], alone))
        astray.append((joined[place], alone))
    return Difference(farthest(pairs), farthest(astray) if bool(made.starts.any()) else None)


def _places(owners: torch.Tensor) -> Sequence[tuple[slice, slice]]:
    """The row and the columns of each document."""
    found = []
    for number in range(len(DOCUMENTS)):
        rows, columns = (owners == number).nonzero(as_tuple=True)
        found.append((slice(int(rows[0]), int(rows[0]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)))
    return found
