"""Exact bits whatever the pieces, threads, shards and devices; which element lies where."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import damaged_tensors
from damaged_tensors import DTYPES, KEY, LEVELS, damaged, same_bits, special_values, weights
from frankenlm.degradation.damage.blocks import damage_rows
from frankenlm.degradation.damage.layout import Layout, draw_words
from frankenlm.degradation.damage.methods import METHODS, MethodOptions, TensorRequest, prepare
from frankenlm.degradation.damage.noise import words
from frankenlm.degradation.damage.tensor_summary import Summary

# --- the same bits however the work is cut


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_pieces_threads_or_device_path(method, dtype):
    tensor = weights(301, 777, dtype=dtype)
    expected = damaged(tensor, method)
    for how in ({"size": 1000}, {"size": 1 << 24}, {"threads": 3}, {"size": 4096, "threads": 2}, {"on_device": True}):
        assert same_bits(damaged(tensor, method, **how), expected), how


@pytest.mark.parametrize("method", METHODS)
def test_lesion_sums_do_not_depend_on_threads(method):
    tensor = weights(301, 777)
    layout = Layout.whole(tensor.shape)
    rows = tensor.view(1, -1)
    sums = []
    for how in ({"threads": 1}, {"threads": 3}, {"on_device": True}):
        request = TensorRequest(LEVELS[method], MethodOptions(), KEY, layout, tensor.dtype, Summary("t", rows, layout))
        sums.append(damage_rows(rows, torch.empty_like(rows), layout, *prepare(method, request), **how))
    assert np.array_equal(sums[0], sums[1])
    assert np.allclose(sums[0], sums[2], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_shards_of_rows_and_of_columns(method):
    tensor = weights(64, 48)
    expected = damaged(tensor, method)
    whole = Summary("whole", tensor.view(1, -1), Layout.whole(tensor.shape))
    for part in range(4):
        rows = Layout.sliced((64, 48), (64, 48), 0, 16 * part, 16)
        shard = tensor[16 * part : 16 * part + 16].contiguous()
        assert same_bits(damaged(shard, method, layout=rows, summary=whole), expected[16 * part : 16 * part + 16])
        columns = Layout.sliced((64, 48), (64, 48), 1, 12 * part, 12)
        shard = tensor[:, 12 * part : 12 * part + 12].contiguous()
        found = damaged(shard, method, layout=columns, summary=whole)
        assert same_bits(found, expected[:, 12 * part : 12 * part + 12].contiguous())


@pytest.mark.parametrize("method", ["mult_gauss", "add_gauss", "ablation"])
def test_noise_does_not_depend_on_the_type(method):
    half = weights(200, 100, dtype=torch.bfloat16)
    # bfloat16 values are exact in float32: only the last rounding may differ
    assert same_bits(damaged(half, method), damaged(half.float(), method).bfloat16())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_cuda_gives_the_same_bits(method, dtype):
    for tensor in (weights(301, 777, dtype=dtype), special_values(dtype)):
        if method == "uni_quant" and not torch.isfinite(tensor).all():
            continue
        assert same_bits(damaged(tensor.cuda(), method).cpu(), damaged(tensor, method))


FORKED = """
import multiprocessing, sys, torch
helpers, given, found, key = *sys.argv[1:4], tuple(map(int, sys.argv[4:]))
sys.path.insert(0, helpers)
from damaged_tensors import damage_tensor
tensor = torch.load(given, weights_only=True)
damage_tensor(tensor, "ablation", 0.3, key, threads=2)  # the threads are there before the fork
with multiprocessing.get_context("fork").Pool(1) as pool:
    work = pool.apply_async(damage_tensor, (tensor, "ablation", 0.3, key), {"threads": 2})
    torch.save(work.get(timeout=100), found)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_work_in_a_forked_process(tmp_path):
    """In a process of its own: a test worker has threads of its own, whose locks a fork would inherit."""
    tensor = weights(500, 400)
    torch.save(tensor, tmp_path / "given.pt")
    helpers = Path(damaged_tensors.__file__).parent
    command = [sys.executable, "-c", FORKED, *map(str, (helpers, tmp_path / "given.pt", tmp_path / "found.pt", *KEY))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert same_bits(found, damaged(tensor, "ablation", threads=2))


# --- layouts


SLICES = [
    ((64, 48), (64, 48), 0, 16, 5),
    ((64, 48), (64, 48), 1, 5, 7),
    ((60, 7), (4, 3, 5, 7), 1, 2, 1),
    ((9, 11), (9, 11), 1, 3, 1),
    ((5, 4097), (5, 4097), 1, 1, 4095),
    ((6, 10, 8), (6, 2, 5, 8), 1, 1, 1),
]


@pytest.mark.parametrize("size", [8, 1000, 1 << 16])
@pytest.mark.parametrize("arguments", SLICES)
def test_layout_of_a_slice(arguments, size):
    shape, view_shape, dim, start, length = arguments
    layout = Layout.sliced(*arguments)
    # a part of a larger storage, as a flattened parameter is
    index = torch.arange(-3, math.prod(shape))[3:].view(shape)
    expected = index.view(view_shape).narrow(dim, start, length).reshape(-1)
    rows = layout.rows_of(index)
    assert torch.equal(rows.reshape(-1), expected) and layout.numel == len(expected)
    places, drawn = torch.zeros(rows.shape, dtype=torch.int64), torch.zeros(rows.shape, dtype=torch.int64)
    for piece in layout.pieces(size):
        assert torch.equal(piece.of(rows).reshape(-1), torch.from_numpy(layout.flat_index(piece)))
        assert piece.start == 0 or layout.starts(piece)[0] % size == 0
        piece.of(places).add_(1)
        out = np.empty(piece.numel, dtype=np.uint32)
        draw_words(layout, KEY, piece, out)
        piece.of(drawn).copy_(torch.from_numpy(out.astype(np.int64)).view(piece.of(drawn).shape))
    assert (places == 1).all()
    field = torch.from_numpy(words(KEY, 0, math.prod(shape)).astype(np.int64))
    assert torch.equal(drawn.reshape(-1), field[expected])


def test_words_over_the_border_of_the_counter():
    layout = Layout((1 << 20, 1 << 15), 4, 100, 1 << 20, offset=2**34 - (1 << 20) - 50)
    for piece in layout.pieces():
        out = np.empty(piece.numel, dtype=np.uint32)
        draw_words(layout, KEY, piece, out)
        expected = [words(KEY, int(start), 100) for start in layout.starts(piece)]
        assert np.array_equal(out, np.concatenate(expected))


@pytest.mark.parametrize(
    "arguments", [((4, 4), (4, 5), 0, 0, 1), ((4, 4), (4, 4), 1, 2, 3), ((4, 4), (4, 4), 0, -1, 1)]
)
def test_wrong_slices(arguments):
    with pytest.raises(ValueError, match="slice"):
        Layout.sliced(*arguments)
