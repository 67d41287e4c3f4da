"""Layers on the disk and in the CPU's memory (accelerate's device maps): the same numbers, generation included."""

import pytest
import torch

from peer_cells import cells_of
from peer_models import DECODERS, logits_of, open_peer, some_ids

PLACES = (pytest.param("disk", marks=pytest.mark.slow), pytest.param("stack", marks=pytest.mark.slow), "ends", "memory")


def placed(model, place) -> dict:
    """Options of from_pretrained that put all of a model, its layers alone, all but its layers, or as much of it as
    does not fit into the memory allowed, onto the disk."""
    if place == "disk":
        return {"device_map": {"": "disk"}}
    if place == "memory":
        largest = max(sum(each.nbytes for each in layer.parameters()) for layer in model.model.layers)
        return {"device_map": "auto", "max_memory": {"cpu": 2 * largest}}
    parts = [*(f"model.{name}" for name, _ in model.model.named_children()), "lm_head"]
    parts += [f"model.{name}" for name, _ in model.model.named_parameters(recurse=False)]
    on_disk = [part for part in parts if (part == "model.layers") == (place == "stack")]
    return {"device_map": {part: "disk" if part in on_disk else "cpu" for part in parts}}


def devices(model) -> dict[str, str]:
    return {name: each.device.type for name, each in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("place", PLACES)
@cells_of("offload")
def test_offloaded_models_compute_the_same(family, cell, place, saved, tmp_path):
    whole = open_peer(family, saved(family))
    away = open_peer(family, saved(family), offload_folder=tmp_path, **placed(whole, place))
    before = devices(away)
    assert list(before.values()).count("meta") >= 3, "something is away"
    inputs = some_ids(whole)
    expected = logits_of(whole, **inputs)
    assert (logits_of(away, **inputs) - expected).norm() < 2e-6 * expected.norm()
    if family in DECODERS:
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
        assert torch.equal(away.generate(**inputs, **options), whole.generate(**inputs, **options))
    assert devices(away) == before, "nothing was left in memory"
