"""The models that the repository ships: small, whole, and what their cards say."""

import configparser
import json
import re
from pathlib import Path

import pytest

from frankenlm.sharing.space.train_tiny import RECIPES, TINY, held_out, main, plain
from frankenlm.trainer_ext.cards import library_versions
from frankenlm.trainer_ext.common.cli import run_command

ROOT = Path(__file__).resolve().parents[3]
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def number(card: str, measure: str) -> float:
    return float(re.search(rf"\| {re.escape(measure)} \| ([\d.,]+) \|", card)[1].replace(",", ""))


def test_they_are_small_and_whole():
    assert {path.name for path in TINY.iterdir()} == set(RECIPES)
    assert sum(path.stat().st_size for path in TINY.glob("*/*.safetensors")) <= 900_000
    for name in RECIPES:
        assert {path.name for path in (TINY / name).iterdir()} - {"generation_config.json"} == FILES
        for file in ("config.json", "tokenizer_config.json"):
            assert "auto_map" not in json.loads((TINY / name / file).read_text(encoding="utf-8")), "no code goes along"


def test_a_wheel_has_them():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["frankenlm.sharing.space"].split(", ")
    found = {path for pattern in patterns for path in TINY.parent.glob(pattern)}
    assert found >= {path for path in TINY.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", RECIPES)
def test_cards_say_what_they_are_not(name):
    card = (TINY / name / "README.md").read_text(encoding="utf-8")
    assert "## What it is not" in card and f"train_tiny {name}" in card and str(ROOT) not in card
    assert number(card, "loss before training") > number(card, "unigram cross-entropy") - 0.5
    measure = "loss (nats a token, at masked tokens)" if name == "mini" else "loss (nats a token)"
    assert number(card, measure) < number(card, "unigram cross-entropy") - 1


def test_weights_are_computed_with_in_float32(shelf):
    for name in RECIPES:
        assert {parameter.dtype for parameter in shelf.open(f"tiny/{name}").model.parameters()} == {
            shelf.open("tiny/mini").model.dtype
        }
    assert str(shelf.open("tiny/mini").model.dtype) == "torch.float32"


def test_what_is_kept_of_a_file():
    assert plain({"auto_map": {}, "dtype": "float16", "a": 1}) == {"dtype": "float32", "a": 1}
    assert plain({"tokenizer_class": "x"}) == {"tokenizer_class": "x"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["minny"], "'minny' is no tiny model; there are infinito, legacy-1bit, mini"),
        (["mini", "--steps", "0"], "--steps 0: must be at least 1"),
        (["--output_dir", ""], "--output_dir"),
        (["--stepps", "3"], "Did you mean '--steps'"),
    ],
)
def test_mistakes(words, message, capsys):
    assert run_command(main, words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_is_the_cards(name):
    card = (TINY / name / "README.md").read_text(encoding="utf-8")
    python = re.search(r"docstrings of Python ([\d.]+)\)", card)[1]
    if library_versions()["python"] != python:
        pytest.skip(f"the built-in text is that of Python {python}")
    assert held_out(TINY / name)["bits_per_byte"] == pytest.approx(number(card, "bits per byte"), abs=0.002)


@pytest.mark.slow
def test_the_script_makes_one(tmp_path, capsys):
    assert run_command(main, ["mini", "--steps", "2", "--output_dir", str(tmp_path)]) == 0
    assert {path.name for path in (tmp_path / "mini").iterdir()} == FILES
    card = (tmp_path / "mini" / "README.md").read_text(encoding="utf-8")
    assert "--output_dir runs/tiny-mini" in card and str(tmp_path) not in card
