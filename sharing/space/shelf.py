"""The models that a visitor may open: what the repository ships, what lies below the runs folder, an allow-list.

A visitor's text is looked up among these names and never read as a path, so that `../../x` is a name like any other
that is not on the shelf.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import frankenlm.modeling  # noqa: F401  registers the architectures
from frankenlm.trainer_ext.common.checkpoints import keep_token_ids_only, position_limit
from frankenlm.trainer_ext.common.checks import suggest
from frankenlm.trainer_ext.common.cli import UserError, one_line
from frankenlm.trainer_ext.common.objectives import OBJECTIVES
from frankenlm.trainer_ext.common.opening import check_runs, read_config, read_tokenizer, read_weights

from .limits import Limits

TINY = Path(__file__).with_name("tiny")
KINDS = {"causal": OBJECTIVES["causal"], "masked": OBJECTIVES["mlm"]}
DEEPEST = 3  # folders below the runs folder in which models are looked for
MOST_RUNS = 200
LONGEST_NAME = 80  # characters of a visitor's text that an error repeats


@dataclass(frozen=True)
class Opened:
    """A model in memory. kind: "causal" or "masked". positions: tokens it has room for; None where they have no end.

    Hold `lock` while the model is read or changed: other visitors have the same one. What changes it (damage) puts it
    back before the lock is let go.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    kind: str
    positions: int | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)


class Shelf:
    """Names of models, and the last few of them in memory.

    Args:
        runs: the folder whose models are on the shelf, as `<runs>/<folder>`; None: none.
        listed: folders or hub names, as they are.
    """

    def __init__(self, runs: Path | None = None, listed: Sequence[str] = (), limits: Limits | None = None):
        self.runs, self.listed, self.limits = runs, tuple(listed), limits or Limits()
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, kind: str = "any") -> list[str]:
        """The names on the shelf of a kind: "causal", "masked", "ternary" (causal, with weights to pack) or "any"."""
        return [name for name, place in self._places().items() if kind == "any" or kind in self._kinds(place)]

    def open(self, name: str, kind: str = "any") -> Opened:
        """Return a model, loaded at its first use; the least recently used is forgotten when there are too many.

        Raises:
            gr.Error: no such name on the shelf, one of another kind, or files that cannot be used.
        """
        places = self._places()
        if name not in places:
            known = ", ".join(places) or "none"
            shown = repr(name[:LONGEST_NAME]) if isinstance(name, str) else repr(name)[:LONGEST_NAME]
            raise gr.Error(f"There is no model {shown}.{suggest(str(name)[:LONGEST_NAME], places)} There are: {known}.")
        if kind != "any" and kind not in self._kinds(places[name]):
            raise gr.Error(f"{name} is no {kind} model. Of that kind are: {', '.join(self.names(kind)) or 'none'}.")
        with self._lock:
            if name not in self._opened:
                try:
                    self._opened[name] = self._load(name, places[name])
                except UserError as error:
                    raise gr.Error(one_line(error)) from error
                while len(self._opened) > self.limits.kept_models:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(name)
            return self._opened[name]

    def _places(self) -> dict[str, str]:
        """Name on the shelf -> folder or hub name."""
        shipped = {f"tiny/{path.parent.name}": str(path.parent) for path in sorted(TINY.glob("*/config.json"))}
        return {name: name for name in self.listed} | shipped | self._run_folders()

    def _run_folders(self) -> dict[str, str]:
        if self.runs is None or not self.runs.is_dir():
            return {}
        root = self.runs.resolve()
        depths = ("/".join(["*"] * depth) for depth in range(1, DEEPEST + 1))
        found = sorted(path.parent for pattern in depths for path in root.glob(f"{pattern}/config.json"))
        inside = [path for path in found if path.resolve().is_relative_to(root)]
        return {f"{root.name}/{path.relative_to(root).as_posix()}": str(path) for path in inside[:MOST_RUNS]}

    def _kinds(self, place: str) -> set[str]:
        config = _fields(place)
        names = config.get("architectures") or []
        kinds = {kind for kind, objective in KINDS.items() if any(objective.is_head(str(name)) for name in names)}
        if config.get("use_bitnet") and "causal" in kinds and "quantization_config" not in config:
            kinds.add("ternary")
        return kinds

    def _load(self, name: str, place: str) -> Opened:
        config = read_config(place, option=name)
        kind = next((kind for kind in KINDS if kind in self._kinds(place)), None)
        if kind is None:
            raise UserError(f"{name} is neither a causal nor a masked language model.")
        tokenizer = read_tokenizer(place, option=name)
        model = read_weights(KINDS[kind].auto_model, place, config, option=name)
        if kind == "causal":
            keep_token_ids_only(model, tokenizer)
        check_runs(model, place, option=name)
        return Opened(model, tokenizer, name, kind, position_limit(config))


def _fields(place: str) -> Mapping[str, Any]:
    """The fields of config.json; none where it cannot be read, which opening then tells."""
    try:
        fields = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, Mapping) else {}
