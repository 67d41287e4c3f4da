"""Safetensors files written a tensor at a time: what safetensors reads back, whatever the sizes."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from frankenlm.trainer_ext.packing.stored import SafetensorsStore, StoredTensor, parts
from frankenlm.trainer_ext.packing.writing import FORMATS, ShardWriter

TENSORS = {
    "a": torch.randn(3, 5),
    "odd bytes": torch.arange(5, dtype=torch.int8),
    "odd halves": torch.randn(7).bfloat16(),
    "b": torch.randn(8, 16).half(),
    "number": torch.tensor(3),
    "empty": torch.empty(0, 4),
    "truth": torch.tensor([True]),
    "tiles": torch.arange(128, dtype=torch.uint8).reshape(1, 2, 64),
    "wide": torch.randn(3, dtype=torch.float64),
    'n"ämé\n': torch.randn(1),
}


def write(folder, shard_bytes):
    with ShardWriter(folder, TENSORS, shard_bytes) as writer:
        for name, tensor in TENSORS.items():
            halves = tensor.split(2) if tensor.dim() else [tensor]
            writer.add(name, tensor.dtype, tuple(tensor.shape), iter(halves))


@pytest.mark.parametrize("shard_bytes", [10**9, 100, 1])
def test_reads_back(shard_bytes, tmp_path):
    write(tmp_path, shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert read.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor), name
    assert (len(files) == 1) is (shard_bytes == 10**9) and not list(tmp_path.glob(".*"))
    with safe_open(files[0], framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    if len(files) > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
        for name, file in index["weight_map"].items():
            assert name in load_file(tmp_path / file)
    assert {torch.float32, torch.bfloat16, torch.uint8} < FORMATS.keys()


def test_an_error_leaves_no_open_file(tmp_path):
    with pytest.raises(AssertionError, match="not of shape"), ShardWriter(tmp_path, ["a"], 100) as writer:
        writer.add("a", torch.float32, (2, 2), [torch.zeros(1, 2)])


def test_stores_read_rows(tmp_path):
    write(tmp_path, 100)
    store = SafetensorsStore(sorted(tmp_path.glob("*.safetensors")))
    assert store.tensors["b"] == StoredTensor((8, 16), "F16", 256) and store.tensors["truth"].nbytes == 1
    assert torch.equal(store.rows("b", 2, 5), TENSORS["b"][2:5])
    for name, tensor in TENSORS.items():
        flat = [part.reshape(-1) for part in parts(store, name)]
        assert torch.equal(torch.cat(flat), tensor.reshape(-1)) if flat else tensor.numel() == 0, name


def test_a_file_cut_short_is_named(tmp_path):
    write(tmp_path, 10**9)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    last = max(SafetensorsStore([file]).tensors, key=lambda name: content.index(b'"' + json.dumps(name)[1:].encode()))
    for keep, where in (
        (len(content) - 1, f"model.safetensors ends within {last}"),
        (20, "model.safetensors"),
        (0, "mod"),
    ):
        file.write_bytes(content[:keep])
        with pytest.raises(ValueError, match=f"damaged or cut short: {where}"):
            SafetensorsStore([file])
