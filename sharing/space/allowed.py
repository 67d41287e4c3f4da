"""The allow-list: a YAML file of models that are neither shipped nor below the runs folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from frankenlm.modeling.checks import check_choice, check_keys
from frankenlm.modeling.yaml_text import load_yaml
from frankenlm.trainer_ext.common.cli import UserError, user_mistakes

from ..live.models import KINDS

KEYS = ("model", "kind")
SHIPPED = Path(__file__).with_name("models.yaml")


@dataclass(frozen=True)
class AllowedModel:
    """place: a folder or hub name. kind: "causal" or "masked"; None: its folder says it."""

    place: str
    kind: str | None = None


def read_allowed(path: Path) -> dict[str, AllowedModel]:
    """Read an allow-list: name on the page -> model and kind.

    Raises:
        UserError: no such file, or one that is no such list.
    """
    if not path.is_file():
        raise UserError(f"--models {path}: no such file.")
    with user_mistakes():
        entries = load_yaml(path.read_text(encoding="utf-8"))
        if not isinstance(entries, Mapping):
            raise UserError(f"--models {path}: expected names with a model and a kind each.")
        return {str(name): _entry(f"--models {path}: {name}", fields) for name, fields in entries.items()}


def _entry(label: str, fields: object) -> AllowedModel:
    if not isinstance(fields, Mapping):
        raise UserError(f"{label}: expected a model and a kind.")
    check_keys(label, map(str, fields), KEYS)
    for key in KEYS:
        if not isinstance(fields.get(key), str) or not fields[key].strip():
            raise UserError(f"{label}: {key} is missing.")
    check_choice(f"{label}: kind", fields["kind"], KINDS)
    return AllowedModel(str(fields["model"]), str(fields["kind"]))
