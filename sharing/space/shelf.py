"""The models that a visitor may open: what the repository ships, what lies below the runs folder, an allow-list.

live/models.py looks names up; here models stay in memory, and what is wrong is told in words that the visitor reads.
"""

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from frankenlm.trainer_ext.common.cli import UserError, one_line
from frankenlm.trainer_ext.common.opening import reading, stored_shapes

from ..live.models import KINDS, Catalogue, LoadedModel, kind_of_model, open_model
from .limits import Limits

TINY = Path(__file__).with_name("tiny")


@dataclass(frozen=True)
class Opened(LoadedModel):
    """A model in memory: model, tokenizer, name, kind ("causal" or "masked"), positions (None: no end), and its lock.

    Hold the lock while the model is read or changed: other visitors have the same one. What changes it (damage) puts it
    back before the lock is let go. It is a plain Lock, because the steps of a generator run in different threads: what
    holds it must not take it again.
    """

    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)


class Shelf:
    """Names of models, and the last few of them in memory.

    Args:
        runs: the folder whose models are on the shelf, as `<runs>/<folder>`; None: none.
        listed: names -> folders or hub names; they come first. The shipped models are always there.
    """

    def __init__(self, runs: Path | None = None, listed: Mapping[str, str] | None = None, limits: Limits | None = None):
        self.catalogue = Catalogue(dict(listed or {}) | shipped_models(), runs)
        self.limits = limits or Limits()
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    def names(self, kind: str = "any") -> list[str]:
        """The names on the shelf of a kind: "causal", "masked", "ternary" (causal, with weights to pack) or "any"."""
        return [name for name, place in self.catalogue.places().items() if kind == "any" or kind in kinds_of(place)]

    def open(self, name: str, kind: str = "any") -> Opened:
        """Return a model, loaded at its first use; the least recently used is forgotten when there are too many.

        Raises:
            gr.Error: no such name on the shelf, one of another kind, or files that cannot be used.
        """
        with told():
            place = self.catalogue.place(name)
            if kind != "any" and kind not in kinds_of(place):
                known = ", ".join(self.names(kind)) or "none"
                raise UserError(f"{name} is not of the kind that is asked for here ({kind}). There are: {known}.")
            with self._lock:
                loading = self._loading.setdefault(name, threading.Lock())
            with loading:  # others go on with their models
                return self._keep(name, self._opened.get(name) or self._load(name, place))

    def _keep(self, name: str, opened: Opened) -> Opened:
        with self._lock:
            self._opened[name] = opened
            self._opened.move_to_end(name)
            while len(self._opened) > self.limits.kept_models:
                self._opened.popitem(last=False)
        return opened

    def _load(self, name: str, place: str) -> Opened:
        kind = kind_of_model(place) or "causal"  # of a hub's model the folder is not here to say
        stored, most = stored_numbers(name, place), self.limits.parameters
        if stored > most:
            raise UserError(f"{name} has {stored:,} parameters; this page opens models of at most {most:,}.")
        found = open_model(name, place, kind)
        return Opened(found.model, found.tokenizer, name, kind, found.positions)


def shipped_models() -> dict[str, str]:
    """The tiny models of the repository, by name."""
    return {f"tiny/{path.parent.name}": str(path.parent) for path in sorted(TINY.glob("*/config.json"))}


def kinds_of(place: str) -> set[str]:
    """What a folder's config.json says that the model in it is; a name of the hub may be any."""
    if not Path(place).is_dir():
        return {*KINDS, "ternary"}
    kinds = {kind_of_model(place)} - {None}
    fields = _fields(place)
    if "causal" in kinds and fields.get("use_bitnet") and "quantization_config" not in fields:
        kinds.add("ternary")
    return kinds


def stored_numbers(name: str, place: str) -> int:
    """How many numbers a model's weight files hold, as far as they are here."""
    with reading(name, "weights"):
        return sum(math.prod(shape) for shape in stored_shapes(place).values())


def _fields(place: str) -> Mapping[str, Any]:
    try:
        return json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


@contextmanager
def told() -> Iterator[None]:
    """Turn the errors of our functions into words that the visitor reads."""
    try:
        yield
    except Exception as error:
        # orderly ends have one-line messages: UserError, Failed and the lab's errors
        if isinstance(error, gr.Error) or not (isinstance(error, UserError) or hasattr(error, "exit_code")):
            raise
        raise gr.Error(one_line(error), print_exception=False) from error
