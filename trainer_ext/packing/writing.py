"""Writing safetensors files a tensor at a time, with no more than one tensor in memory.

A safetensors file begins with the length of its header, and the header says where each tensor lies. Room for it is
kept free at the front and filled at the end; what is left over is spaces, as the format allows. A tensor must begin at
a multiple of its element's size: one that would disturb that for those after it waits until the end of its file.
"""

import json
import struct
from collections.abc import Iterable
from pathlib import Path

import torch

from ..common.files import write_json
from ..common.opening import INDEX, WEIGHTS

FORMATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
WIDEST = 8  # bytes of an element
ENTRY_BYTES = 160  # of the header, for a tensor besides its name: format, shape, offsets
METADATA = {"format": "pt"}  # transformers asks for it
SHARD_BYTES = 5_000_000_000


class ShardWriter:
    """Writes model.safetensors, or shards and their index, into a folder; at the end of `with` the files are whole.

    Args:
        folder: where to.
        names: those of all tensors that may come, for the room that the headers need.
        shard_bytes: after how many bytes the next file begins.
    """

    def __init__(self, folder: Path, names: Iterable[str], shard_bytes: int):
        self._folder, self._shard_bytes = folder, shard_bytes
        self._room = sum(len(name.encode()) + ENTRY_BYTES for name in names) // WIDEST * WIDEST + 1024
        self._places: list[dict[str, dict]] = []  # of each file, its header
        self._open_next()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self._close()
        else:
            self._file.close()

    def add(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], tensors: Iterable[torch.Tensor]) -> None:
        """Write a tensor, which comes in parts along its first axis."""
        size = dtype.itemsize * torch.Size(shape).numel()
        if self._end and self._end + size > self._shard_bytes:
            self._finish()
            self._open_next()
        if size % WIDEST:
            self._waiting[name] = dtype, shape, [part.clone() for part in tensors]
            self._end += size
        else:
            self._write(name, dtype, shape, tensors)
            self._end += size

    def _close(self) -> None:
        """Fill in what was left open, and give the files their names."""
        self._finish()
        if len(self._places) == 1:
            self._path(0).replace(self._folder / WEIGHTS)
            return
        weight_map, total = {}, 0
        for number, header in enumerate(self._places):
            final = f"model-{number + 1:05d}-of-{len(self._places):05d}.safetensors"
            self._path(number).replace(self._folder / final)
            weight_map |= dict.fromkeys(header, final)
            total += max((place["data_offsets"][1] for place in header.values()), default=0)
        write_json(self._folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def _path(self, number: int) -> Path:
        return self._folder / f".{number}.safetensors"

    def _open_next(self) -> None:
        self._file = self._path(len(self._places)).open("wb")
        self._file.seek(8 + self._room)
        self._places.append({})
        self._waiting: dict[str, tuple] = {}
        self._end = self._written = 0  # bytes of tensors in this file: with those that wait, and without

    def _write(self, name: str, dtype: torch.dtype, shape: tuple[int, ...], tensors: Iterable[torch.Tensor]) -> None:
        begin = self._written
        for part in tensors:
            assert part.dtype == dtype, f"{name}: {part.dtype} instead of {dtype}"
            self._written += self._file.write(part.contiguous().flatten().view(torch.uint8).numpy().data)
        assert self._written - begin == dtype.itemsize * torch.Size(shape).numel(), f"{name}: not of shape {shape}"
        place = {"dtype": FORMATS[dtype], "shape": list(shape), "data_offsets": [begin, self._written]}
        self._places[-1][name] = place

    def _finish(self) -> None:
        """Write the tensors that waited, wide elements first, and the header; close the file."""
        for name, (dtype, shape, tensors) in sorted(self._waiting.items(), key=lambda item: -item[1][0].itemsize):
            self._write(name, dtype, shape, tensors)
        header = json.dumps({"__metadata__": METADATA, **self._places[-1]}, separators=(",", ":")).encode()
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + header.ljust(self._room))
        assert len(header) <= self._room, "more tensors than were announced"
        self._file.close()
