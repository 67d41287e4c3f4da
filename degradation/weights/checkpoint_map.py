"""The weights of a checkpoint as maps of its files: an undamaged copy that costs no memory of its own.

Maps are copy-on-write, so the files cannot be changed through them.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .parameter_index import canonical_name

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class CheckpointMap:
    """The tensors of a folder's safetensors files by canonical name.

    Raises:
        ValueError: the folder is none, or holds no such file.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        if not files:
            raise ValueError(
                f"restore_strategy='mmap_checkpoint': no safetensors files in {folder}; use subset_in_memory."
            )
        self.entries: dict[tuple[str, tuple[int, ...]], tuple[np.memmap, dict]] = {}
        for file in files:
            self._read_header(file)

    def _read_header(self, file: Path) -> None:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        data = np.memmap(file, dtype=np.uint8, mode="c", offset=8 + length)
        for name, entry in header.items():
            if name != "__metadata__":
                self.entries[canonical_name(name), tuple(entry["shape"])] = data, entry

    def get(self, canonical: str, like: torch.Tensor) -> torch.Tensor:
        """Return the mapped tensor of that name, which has the bits of `like`.

        Raises:
            ValueError: there is none of that name and shape, or its type or values differ.
        """
        data, entry = self.entries.get((canonical, tuple(like.shape)), (None, None))
        advice = "use restore_strategy='subset_in_memory'."
        if entry is None:
            raise ValueError(f"{self.folder.name} holds no {canonical} of shape {tuple(like.shape)}: {advice}")
        kind = _TYPES.get(entry["dtype"])
        if kind != like.dtype:
            raise ValueError(f"{canonical} is stored as {entry['dtype']} but loaded as {like.dtype}: {advice}")
        start, stop = entry["data_offsets"]
        assert stop - start == math.prod(like.shape) * like.element_size()
        mapped = torch.from_numpy(data[start:stop]).view(kind).view(like.shape)
        if not torch.equal(mapped.view(torch.uint8), like.detach().cpu().view(torch.uint8)):
            raise ValueError(f"{canonical} has other values than in {self.folder.name}: {advice}")
        return mapped


def checkpoint_folder(model: nn.Module) -> Path:
    """Return the folder a model was loaded from; of one from the hub, its folder in the local cache.

    Raises:
        ValueError: it is not known.
    """
    from huggingface_hub import try_to_load_from_cache

    name = model.config.name_or_path
    if name and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    cached = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
    if not isinstance(cached, str):
        raise ValueError(
            f"restore_strategy='mmap_checkpoint': the files of the model {name!r} are not known; use subset_in_memory."
        )
    return Path(cached).parent
