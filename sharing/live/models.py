"""Which models may be opened, by name. A visitor's name is looked up here and never read as a path.

Names are those of an explicit list, and of the folders below a local runs folder: `../../x`, an absolute path or a
link that leads out of that folder is a name like any other that is not there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import frankenlm.modeling  # noqa: F401  registers the architectures
from frankenlm.trainer_ext.common.checkpoints import load_model, open_checkpoint, position_limit
from frankenlm.trainer_ext.common.checks import suggest
from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.common.objectives import OBJECTIVES
from frankenlm.trainer_ext.common.opening import check_runs, read_config, read_tokenizer, read_weights

KINDS = {"causal": OBJECTIVES["causal"], "masked": OBJECTIVES["mlm"]}
DEEPEST = 3  # folders below the runs folder in which models are looked for
MOST_RUNS = 200
LONGEST_NAME = 80  # characters of a visitor's text that an error repeats


class UnknownModel(UserError):
    """A name that is none of those that may be opened; the message says which there are."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory. kind: a key of KINDS. positions: tokens it has room for; None where they have no end."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    kind: str
    positions: int | None = None


class Catalogue:
    """Names of models -> where they lie.

    Args:
        listed: names -> folders or hub names, as they are.
        runs: the folder whose models are named `<runs>/<folder>`; None: none.
    """

    def __init__(self, listed: Mapping[str, str] | None = None, runs: Path | None = None):
        self.listed, self.runs = dict(listed or {}), runs

    def places(self) -> dict[str, str]:
        """Name -> folder or hub name, of all that may be opened now."""
        return self.listed | self._run_folders()

    def names(self, kind: str | None = None) -> list[str]:
        """The names that may be opened, all or of a kind."""
        return [name for name, place in self.places().items() if kind is None or kind_of_model(place) == kind]

    def place(self, name: object) -> str:
        """Return where the model of a name lies.

        Raises:
            UnknownModel: there is no such name.
        """
        places = self.places()
        if isinstance(name, str) and name in places:
            return places[name]
        shown = ascii(name[:LONGEST_NAME] if isinstance(name, str) else type(name).__name__)
        near = suggest(name[:LONGEST_NAME], places) if isinstance(name, str) else ""
        raise UnknownModel(f"there is no model {shown}.{near} There are: {', '.join(places) or 'none'}.")

    def _run_folders(self) -> dict[str, str]:
        if self.runs is None or not self.runs.is_dir():
            return {}
        root = self.runs.resolve()
        depths = ("/".join(["*"] * depth) for depth in range(1, DEEPEST + 1))
        found = sorted(path.parent for pattern in depths for path in root.glob(f"{pattern}/config.json"))
        inside = [path for path in found if path.resolve().is_relative_to(root)]
        return {f"{root.name}/{path.relative_to(root).as_posix()}": str(path) for path in inside[:MOST_RUNS]}


def kind_of_model(place: str) -> str | None:
    """Return which of KINDS the folder of a model says it is; None where it does not say."""
    try:
        fields: Any = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # opening it tells what is wrong
    names = fields.get("architectures") if isinstance(fields, Mapping) else None
    return _kind(names if isinstance(names, list) else [])


def _kind(architectures: list[Any]) -> str | None:
    return next((kind for kind, each in KINDS.items() if any(each.is_head(str(name)) for name in architectures)), None)


def open_model(
    name: str,
    place: str,
    kind: str = "causal",
    *,
    device: str = "cpu",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model and its tokenizer; of a causal one's generation settings only the token ids are kept.

    Args:
        name: what errors call it. place: a folder or hub name.

    Raises:
        UserError: one of another kind, or files that cannot be used.
    """
    option = "model" if place == name else name  # errors say both
    if kind == "causal":
        checkpoint = open_checkpoint(place, option=option, trust_remote_code=trust_remote_code)
        model = load_model(checkpoint, device=device, dtype=dtype, option=option)
        return LoadedModel(model, checkpoint.tokenizer, name, kind, checkpoint.limit)
    config = read_config(place, option=option, trust_remote_code=trust_remote_code)
    if _kind(config.architectures or []) != kind:
        raise UserError(f"{name}: holds {', '.join(config.architectures or ['no class'])}, which is no {kind} model.")
    tokenizer = read_tokenizer(place, option=option, trust_remote_code=trust_remote_code)
    model = read_weights(
        KINDS[kind].auto_model, place, config, option=option, trust_remote_code=trust_remote_code, dtype=dtype
    ).to(device)
    check_runs(model, place, option=option)
    return LoadedModel(model, tokenizer, name, kind, position_limit(config))
