"""The promise of a saved model: opened again it is the same."""

import tempfile

import torch

from ..measure import Difference, distance
from ..trial import Trial


def save_and_load(trial: Trial) -> Difference:
    """save_pretrained, then from_pretrained of the same class."""
    subject = trial.subject
    ids = trial.rows.draw(2)
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(folder)
        again = type(subject.model).from_pretrained(folder, dtype=subject.dtype)
    reference = subject.outputs(ids)
    difference = distance(subject.beside(again).outputs(ids), reference)
    with torch.random.fork_rng(devices=[]):
        other = type(subject.model)(again.config)  # what a model is whose weights were not read
    return Difference(difference, distance(subject.beside(other).outputs(ids), reference))
