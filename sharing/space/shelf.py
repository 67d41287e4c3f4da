"""The models that a visitor may open: what the repository ships, what lies below the runs folder, an allow-list.

live/models.py looks names up; here models stay in memory, and what is wrong is told in words that the visitor reads.
"""

import html
import json
import logging
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
from frankenlm.trainer_ext.common.opening import location, reading, stored_shapes

from ..live.models import Catalogue, LoadedModel, kind_of_model, open_model
from .allowed import AllowedModel
from .limits import Limits

logger = logging.getLogger("frankenlm.page")

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
        first: a model that is named before all others, a folder or hub name.
        allowed: more of them, by the names on the page.
    """

    def __init__(
        self,
        runs: Path | None = None,
        *,
        first: str | None = None,
        allowed: Mapping[str, AllowedModel] | None = None,
        limits: Limits | None = None,
    ):
        listed = {} if first is None else {first: AllowedModel(location(first))}
        self.listed = listed | shipped_models() | dict(allowed or {})
        self.catalogue = Catalogue({name: model.place for name, model in self.listed.items()}, runs)
        self.limits = limits or Limits()
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    def names(self, kind: str = "any") -> list[str]:
        """The names on the shelf of a kind: "causal", "masked", "ternary" (causal, with weights to pack) or "any"."""
        return [name for name, place in self.catalogue.places().items() if kind in self._kinds(name, place)]

    def open(self, name: str, kind: str = "any") -> Opened:
        """Return a model, loaded at its first use; the least recently used is forgotten when there are too many.

        Raises:
            gr.Error: no such name on the shelf, one of another kind, or files that cannot be used.
        """
        with told():
            return self.find(name, kind)

    def find(self, name: str, kind: str = "any") -> Opened:
        """As `open`; raises UserError instead."""
        place = self.catalogue.place(name)
        if kind not in self._kinds(name, place):
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
        kind = self._kind(name, place) or "causal"  # which says what is wrong with it
        stored, most = stored_numbers(name, place), self.limits.parameters
        if stored > most:
            raise UserError(f"{name} has {stored:,} parameters; this page opens models of at most {most:,}.")
        try:
            found = open_model(name, place, kind)
        except UserError as error:  # a visitor need not know where on this machine it lies
            raise UserError(one_line(error).replace(f"{name} {place}", name).replace(place, name)) from error
        return Opened(found.model, found.tokenizer, name, kind, found.positions)

    def _kind(self, name: str, place: str) -> str | None:
        declared = self.listed[name].kind if name in self.listed else None
        return declared or kind_of_model(place)

    def _kinds(self, name: str, place: str) -> set[str]:
        kinds = {"any", self._kind(name, place)} - {None}
        fields = _fields(place)
        if "causal" in kinds and fields.get("use_bitnet") and "quantization_config" not in fields:
            kinds.add("ternary")
        return kinds


def shipped_models() -> dict[str, AllowedModel]:
    """The tiny models of the repository, by name."""
    return {f"tiny/{path.parent.name}": AllowedModel(str(path.parent)) for path in sorted(TINY.glob("*/config.json"))}


def stored_numbers(name: str, place: str) -> int:
    """How many numbers a model's weight files hold, as far as they are here."""
    with reading(name, "weights"):
        return sum(math.prod(shape) for shape in stored_shapes(place).values())


def _fields(place: str) -> Mapping[str, Any]:
    try:
        fields = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # opening it tells what is wrong
    return fields if isinstance(fields, Mapping) else {}


class Declined(gr.Error):
    """What a visitor asked for cannot be had; the message says what can, and may repeat what he wrote.

    The page shows it as HTML, so it is escaped. No traceback goes to the log.
    """

    def __init__(self, message: str):
        super().__init__(html.escape(message, quote=False), print_exception=False)


@contextmanager
def told() -> Iterator[None]:
    """Turn the errors of our functions into words that the visitor reads."""
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        # orderly ends have one-line messages: UserError, Failed and the lab's errors
        if isinstance(error, UserError) or hasattr(error, "exit_code"):
            raise Declined(one_line(error)) from error
        logger.exception("an error of the page itself")
        raise Declined(f"the page met an error of its own ({type(error).__name__}); its log has more.") from error
