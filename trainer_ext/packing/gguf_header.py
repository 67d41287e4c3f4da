"""The header of a GGUF file: its metadata, and where its tensors lie.

Read here and not with `gguf.GGUFReader`, which refuses a file with one tensor of a type it does not know. Layout:
llama.cpp's specification of GGUF, versions 2 and 3. Nothing is trusted: every length is held against the file's end.
"""

import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .gguf_types import I2_S_ID, OTHERS, Q2_0_64, Q2_0_128, Q2_0_ID, REFUSED, BlockType, i2_s_bytes

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
# type number -> struct's letter; 8 is a text, 9 an array
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
MOST_AXES = 4
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


class KeyValue(NamedTuple):
    """A value of the metadata (None for an array) and its bytes in the file, type number first."""

    value: Any
    first: int
    last: int


class GgufTensor(NamedTuple):
    """A tensor: its shape as PyTorch has it, type, place and size; the type's block where it is not gguf's to read."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    type_name: str
    path: Path
    offset: int
    nbytes: int
    block: BlockType | None


@dataclass(frozen=True)
class GgufHeader:
    """What the headers of a model's GGUF files say."""

    path: Path
    version: int
    keys: dict[str, KeyValue]
    tensors: dict[str, GgufTensor]

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the metadata."""
        return self.keys[key].value if key in self.keys else default

    @property
    def architecture(self) -> str:
        """The model's architecture in llama.cpp's words."""
        return self.get("general.architecture")


class _Reader:
    """Reads a file from the front and knows where it ends."""

    def __init__(self, file: BinaryIO, path: Path):
        self._file, self._path = file, path
        self.size = path.stat().st_size

    @property
    def position(self) -> int:
        return self._file.tell()

    def take(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise ValueError(f"{self._path.name} is cut short: its header goes on beyond its {self.size:,} bytes.")
        return self._file.read(count)

    def number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def skip_array(self) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind in NUMBERS:
            self.take(count * struct.calcsize(f"<{NUMBERS[kind]}"))
        elif kind == TEXT and count <= self.size // 8:
            for _ in range(count):
                self.take(self.number("Q"))
        else:
            raise ValueError(f"{self._path.name} is damaged: its metadata has an array of {count:,} of type {kind}.")


def read_header(path: Path) -> GgufHeader:
    """Return the header of a GGUF file, and of its other shards where it is one.

    Raises:
        ValueError: no GGUF file, of another version or byte order, cut short, damaged, a shard that is missing, or a
            tensor whose type cannot be read; the message names the file and the tensor.
    """
    header = _read_one(path)
    count = header.get("split.count", 1)
    if not isinstance(count, int):
        raise ValueError(f"{path.name} is damaged: its split.count is {count!r}, not a number of shards.")
    for shard in _other_shards(path, count):
        further = _read_one(shard)
        twice = header.tensors.keys() & further.tensors.keys()
        if twice:
            raise ValueError(f"{shard.name}: holds {min(twice)}, which another shard holds too.")
        header.tensors.update(further.tensors)
    if not isinstance(header.architecture, str):
        raise ValueError(f"{path.name} is damaged: its metadata lacks general.architecture.")
    promised = header.get("split.tensors.count")
    if promised is not None and promised != len(header.tensors):
        raise ValueError(f"{path.name}: {promised} tensors are promised, and its shards hold {len(header.tensors)}.")
    if not header.tensors:
        raise ValueError(f"{path.name} holds no tensors.")
    return header


def _other_shards(path: Path, count: int) -> list[Path]:
    found = SHARD.search(path.name)
    if found is None:
        if count > 1:
            raise ValueError(f"{path.name} is one of {count} shards: name it as it was, -00001-of-{count:05d}.gguf.")
        return []
    number, count = map(int, found.groups())
    if number != 1:
        raise ValueError(f"{path.name} is shard {number} of {count}: give the first one, -00001-of-{count:05d}.gguf.")
    base = path.name[: found.start()]
    shards = [path.with_name(f"{base}-{each:05d}-of-{count:05d}.gguf") for each in range(2, count + 1)]
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{shard.name} is missing: all {count} shards must lie side by side.")
    return shards


def _read_one(path: Path) -> GgufHeader:
    with path.open("rb") as file:
        reader = _Reader(file, path)
        if reader.size < 4 or reader.take(4) != MAGIC:
            raise ValueError(f"{path.name} does not begin with GGUF, so it is no GGUF file.")
        version = reader.number("I")
        if version not in VERSIONS:
            raise ValueError(f"{path.name} is GGUF of version {version}; versions 2 and 3, little-endian, can be read.")
        tensor_count, key_count = reader.number("Q"), reader.number("Q")
        keys = {}
        for _ in range(key_count):
            name = reader.text()
            keys[name] = _key_value(reader, path, name)
        entries = [_tensor_entry(reader, path) for _ in range(tensor_count)]
        align = keys["general.alignment"].value if "general.alignment" in keys else ALIGNMENT
        if not isinstance(align, int) or align < 1 or align & (align - 1):
            raise ValueError(f"{path.name} is damaged: general.alignment={align!r} is no power of two.")
        start = -(-reader.position // align) * align
        tensors = _placed(path, entries, start, reader.size, align)
    return GgufHeader(path, version, keys, tensors)


def _key_value(reader: _Reader, path: Path, name: str) -> KeyValue:
    first = reader.position
    kind = reader.number("I")
    if kind == ARRAY:
        reader.skip_array()
        value = None
    elif kind == TEXT:
        value = reader.text()
    elif kind in NUMBERS:
        value = reader.number(NUMBERS[kind])
    else:
        raise ValueError(f"{path.name} is damaged: {name} in its metadata is of type {kind}.")
    return KeyValue(value, first, reader.position)


def _tensor_entry(reader: _Reader, path: Path) -> tuple[str, tuple[int, ...], int, int]:
    name, axes = reader.text(), reader.number("I")
    if axes > MOST_AXES:
        raise ValueError(f"{path.name} is damaged: {name} has {axes} axes.")
    shape = tuple(reader.number("Q") for _ in range(axes))[::-1]  # ggml names the fastest axis first
    if 0 in shape:
        raise ValueError(f"{path.name} is damaged: {name} has the shape {shape}.")
    return name, shape, reader.number("I"), reader.number("Q")


def _placed(path: Path, entries: list[tuple], start: int, end: int, align: int) -> dict[str, GgufTensor]:
    """Return the tensors by name, each with its size and held against the file's end."""
    q2_0 = _q2_0_of(path, entries, end - start, align)
    tensors: dict[str, GgufTensor] = {}
    for name, shape, type_id, offset in entries:
        type_name, block, nbytes = _storage(name, shape, type_id, q2_0)
        if name in tensors:
            raise ValueError(f"{path.name} is damaged: it holds {name} twice.")
        if start + offset + nbytes > end:
            raise ValueError(
                f"{path.name} is cut short: {name} ends at byte {start + offset + nbytes:,} of its {end:,}. "
                "Copy or download it again."
            )
        tensors[name] = GgufTensor(name, shape, type_id, type_name, path, start + offset, nbytes, block)
    return tensors


def _storage(name: str, shape: tuple[int, ...], type_id: int, q2_0: BlockType) -> tuple[str, BlockType | None, int]:
    """Return a type's name, its block where gguf does not read it, and the bytes of a tensor of it."""
    count = prod(shape)
    if type_id == I2_S_ID:
        return "I2_S", None, i2_s_bytes(_in_blocks(name, count, 128, "I2_S") * 128)
    block = q2_0 if type_id == Q2_0_ID else OTHERS.get(type_id)
    if block is not None:
        _in_blocks(name, shape[-1] if shape else 1, block.weights, block.name)
        return block.name, block, count // block.weights * block.bytes
    kind, (weights, size) = _known_type(name, type_id)
    _in_blocks(name, shape[-1] if shape else 1, weights, kind)
    return kind, None, count // weights * size


def _known_type(name: str, type_id: int) -> tuple[str, tuple[int, int]]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if type_id in REFUSED or type_id not in set(GGMLQuantizationType):
        kind = f"type {REFUSED[type_id]}" if type_id in REFUSED else f"type number {type_id}"
        raise ValueError(
            f"{name} is of {kind}, which cannot be read. Convert the original model to TQ2_0, or pack that one itself."
        )
    kind = GGMLQuantizationType(type_id)
    return kind.name, GGML_QUANT_SIZES[kind]


def _in_blocks(name: str, count: int, weights: int, kind: str) -> int:
    if count % weights:
        raise ValueError(f"{name} is damaged: {count} weights are no multiple of {weights}, as type {kind} needs.")
    return count // weights


def _q2_0_of(path: Path, entries: list[tuple], room: int, align: int) -> BlockType:
    """Return which of two blocks the number of Q2_0 stands for in this file: the one that fills the tensors' room.

    llama.cpp's has 64 weights, that of PrismML's fork had 128 (its files of before June 2026); the number is the same.
    """
    ends = sorted([offset for *_, offset in entries] + [room])

    def filled(block: BlockType) -> int:
        """How many tensors such blocks would fill up to where the next one begins."""
        places = [
            (prod(shape) // block.weights * block.bytes, offset, next((end for end in ends if end > offset), offset))
            for _, shape, type_id, offset in entries
            if type_id == Q2_0_ID and shape and shape[-1] % block.weights == 0
        ]
        return sum(0 <= end - offset - size < align for size, offset, end in places)

    return max((Q2_0_64, Q2_0_128), key=filled)
