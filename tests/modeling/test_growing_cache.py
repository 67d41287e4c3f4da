"""GrowingLayer is a DynamicLayer in everything that can be seen of it."""

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig, StaticCache
from transformers.cache_utils import DynamicLayer

from frankenlm.modeling.growing_cache import SMALLEST_ROOM, GrowingLayer, grow_layers


def new(columns, rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed + 31 * columns)
    return [torch.randn(rows, 3, columns, 4, generator=generator) for _ in range(2)]


def written(layer, columns, rows=2, seed=0):
    """Write columns into the rooms of a GrowingLayer, as a native step does; give them to another layer."""
    keys, values = new(columns, rows, seed)
    if not isinstance(layer, GrowingLayer):
        return layer.update(keys, values)
    rooms, past = layer.rooms(keys, columns), layer.get_seq_length()
    for room, states in zip(rooms, (keys, values), strict=True):
        room[:, :, past : past + columns] = states
    layer.advance(columns)
    return layer.keys, layer.values


STEPS = {
    "update 5": lambda layer, _: layer.update(*new(5)),
    "update 1": lambda layer, rows: layer.update(*new(1, rows)),
    "written 1": lambda layer, rows: written(layer, 1, rows),
    "written 300": lambda layer, rows: written(layer, SMALLEST_ROOM + 44, rows),
    "crop 2": lambda layer, _: layer.crop(-2),
    "crop nothing": lambda layer, _: layer.crop(0),
    "crop all": lambda layer, _: layer.crop(-1000),
    "reorder": lambda layer, rows: layer.reorder_cache(torch.arange(rows).flip(0)),
    "repeat": lambda layer, _: layer.batch_repeat_interleave(2),
    "select": lambda layer, _: layer.batch_select_indices(torch.tensor([1, 0])),
    "reset": lambda layer, _: layer.reset(),
    "assign": lambda layer, _: setattr(layer, "keys", layer.keys * 2),
    "offload": lambda layer, _: layer.offload(),
}
STORIES = [
    ["update 5", "written 1", "update 1", "crop 2", "written 1", "reorder", "written 1"],
    ["written 1", "update 1", "written 300", "update 1", "crop nothing"],
    ["update 5", "repeat", "written 1", "select", "update 1", "crop all", "written 1"],
    ["written 300", "reset", "update 5", "written 1", "assign", "written 1", "offload", "crop 2"],
]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("story", STORIES, ids=str)
def test_equals_a_dynamic_layer(story, inference):
    ours, theirs = GrowingLayer(), DynamicLayer()
    with torch.inference_mode(inference), torch.no_grad():
        for step in story:
            rows = 2 if theirs.keys is None else theirs.keys.shape[0]
            STEPS[step](ours, rows)
            STEPS[step](theirs, rows)
            assert ours.get_seq_length() == theirs.get_seq_length(), step
            assert ours.get_mask_sizes(3) == theirs.get_mask_sizes(3) and ours.is_initialized == theirs.is_initialized
            for part in ("keys", "values"):
                found, expected = getattr(ours, part), getattr(theirs, part)
                assert (found is None) == (expected is None) and (found is None or torch.equal(found, expected)), step


def test_a_token_costs_no_copy_of_the_others():
    layer = GrowingLayer()
    with torch.no_grad():
        layer.update(*new(5))
        before = layer.keys.data_ptr()
        for _ in range(SMALLEST_ROOM - 5):
            layer.update(*new(1))
        assert layer.keys.data_ptr() == before
        layer.update(*new(1))
        assert layer.keys.data_ptr() != before


def test_gradients_pass():
    layer = GrowingLayer()
    keys, values = (tensor.requires_grad_() for tensor in new(3))
    layer.update(keys, values)
    found, _ = layer.update(*new(1))
    found.sum().backward()
    assert torch.equal(keys.grad, torch.ones_like(keys))


def test_what_inference_mode_made_is_read_outside():
    layer = GrowingLayer()
    with torch.inference_mode():
        layer.update(*new(3))
    with torch.no_grad():
        keys, _ = layer.update(*new(2))
    assert torch.equal(keys, torch.cat([new(3)[0], new(2)[0]], 2))


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_has_memory_of_its_own(way):
    layer = GrowingLayer()
    with torch.no_grad():
        layer.update(*new(3))
        other = way(layer)
        for mine, seed in ((layer, 1), (other, 2)):
            mine.crop(-1)
            written(mine, 1, seed=seed)
        assert torch.equal(layer.keys[:, :, 2:], new(1, seed=1)[0])
        assert torch.equal(other.keys[:, :, 2:], new(1, seed=2)[0])
        assert torch.equal(other.keys[:, :, :2], layer.keys[:, :, :2])


def test_other_keys_are_refused():
    layer = GrowingLayer()
    with torch.no_grad():
        layer.update(*new(3))
        for other in (new(1, rows=3)[0], new(1)[0].double(), new(1)[0][..., :2]):
            with pytest.raises(ValueError, match="the cache holds keys of shape"):
                layer.rooms(other, 1)


def test_which_caches_grow():
    cache = DynamicCache()
    with torch.no_grad():
        cache.update(*new(3), 0)
        keys = cache.layers[0].keys
        layers = grow_layers(cache, 2)
        assert [type(layer) for layer in cache.layers] == [GrowingLayer] * 2 and layers is cache.layers
        assert layers[0].keys.data_ptr() == keys.data_ptr() and layers[1].get_seq_length() == 0
        assert grow_layers(cache, 2) is cache.layers and grow_layers(cache, 1) is None and grow_layers(None, 1) is None
    windowed = DynamicCache(config=MistralConfig(num_hidden_layers=2, sliding_window=4))
    static = StaticCache(config=LlamaConfig(num_hidden_layers=2), max_cache_len=8)
    for other in (windowed, static):
        before = list(other.layers)
        assert grow_layers(other, 2) is None and other.layers == before
