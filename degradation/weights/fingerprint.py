"""By what the weights of a model are known again: two models of one name and shape must not share their rows.

A fingerprint reads samples, not all bytes: it tells checkpoints apart, it does not guard against forgery. A model in
memory and the folder it came from have different ones: whoever holds the model may have changed it.
"""

import hashlib
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from ..offloaded import value_of
from .tied import offloaded_twice

SAMPLE = 1 << 16  # bytes from the beginning, the middle and the end of a file
ELEMENTS = 64  # of every parameter
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "*.gguf")


def fingerprint_name(name: str, config: PreTrainedConfig) -> str:
    """Return the fingerprint of a model that is not loaded: of its files, or of its revision on the hub."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        # set by from_pretrained where a model comes from the hub or its cache
        return f"revision {config._commit_hash}"
    digest = hashlib.sha256()
    for path in sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - SAMPLE)):
                file.seek(start)
                digest.update(file.read(SAMPLE))
    return f"files {digest.hexdigest()[:16]}"


def fingerprint_model(model: PreTrainedModel) -> str:
    """Return the fingerprint of a model in memory, from evenly spaced elements of each of its parameters."""
    digest = hashlib.sha256()
    there_already = offloaded_twice(model)
    for name, _ in model.named_parameters():
        if name in there_already:
            continue
        flat = value_of(model, name).detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // ELEMENTS)].float().cpu()
        digest.update(name.encode() + sample.numpy().tobytes())
    return f"memory {digest.hexdigest()[:16]}"
