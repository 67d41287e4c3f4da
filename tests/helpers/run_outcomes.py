"""What a training run left in its folder, and what two equal runs must agree in."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from frankenlm.trainer_ext.saving.training_csv import read_csv

# what a resumed run must repeat bit for bit; the rest are timings
CURVES = ("step", "tokens_seen", "loss", "eval_loss", "learning_rate", "grad_norm", "aux_loss", "expert_load_min")


def curves(folder: Path) -> list[dict]:
    return [{name: row[name] for name in CURVES if name in row} for row in read_csv(folder / "training.csv")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def assert_same_run(one: Path, other: Path):
    assert curves(one) == curves(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
