"""Presets: YAML files with up to three sections, read strictly.

`model` becomes config.json, `data` and `training` are the recipe that scripts/train.py starts from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .checks import check_choice, check_keys
from .yaml_text import load_yaml, plain

PRESET_FOLDER = Path(__file__).resolve().parent / "presets"
SECTIONS = ("model", "data", "training")


@dataclass(frozen=True)
class Preset:
    """One preset file. `model` holds the configuration's fields without `model_type`, which stands by itself."""

    name: str
    path: Path
    model_type: str
    model: Mapping = field(default_factory=dict)
    data: Mapping = field(default_factory=dict)
    training: Mapping = field(default_factory=dict)


def list_presets() -> dict[str, Path]:
    """Return the file of every preset by its name, in alphabetical order."""
    return {path.stem: path for path in sorted(PRESET_FOLDER.glob("*.yaml"))}


def read_preset(name: str) -> Preset:
    """Read one preset.

    Raises:
        ValueError: unknown preset or section (with a did-you-mean), or a file that is not a YAML mapping.
    """
    presets = list_presets()
    check_choice("preset", name, presets)
    try:
        sections = plain(load_yaml(presets[name].read_text(encoding="utf-8-sig")))
    except ValueError as error:  # not UTF-8, or no YAML
        raise ValueError(f"preset {name!r} ({presets[name]}): {error}") from error
    if not isinstance(sections, dict) or not all(isinstance(value, dict) for value in sections.values()):
        raise ValueError(f"preset {name!r}: expected a mapping of the sections {', '.join(SECTIONS)}.")
    check_keys(f"preset {name!r}", sections, SECTIONS)
    model = dict(sections.get("model", {}))
    if "model_type" not in model:
        raise ValueError(f"preset {name!r}: section 'model' must name its model_type.")
    return Preset(
        name=name,
        path=presets[name],
        model_type=model.pop("model_type"),
        model=model,
        data=sections.get("data", {}),
        training=sections.get("training", {}),
    )
