"""Configuration and tokenizer of a model that comes as GGUF: transformers' reading of it, of a file without weights.

transformers reads both out of a GGUF file's metadata, but its readers stop at a tensor type they do not know. So they
are given a file that has the metadata, and the names of the tensors without their content.
"""

import importlib.util
import logging
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, BitNetConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..common.cli import UserError
from ..common.opening import MANY_LAYERS, check_fields, reading
from .gguf_header import MAGIC, GgufHeader

logger = logging.getLogger("frankenlm.pack")

STUB = "header.gguf"
# What llama.cpp and its forks call BitNets, and the activation of the files that do not name one.
BITNETS = {"bitnet": "silu", "bitnet-25": "relu2", "bitnet-b1.58": "relu2"}
TIED_BITNET = "bitnet"  # gguf's name for it
ROTATIONS = ("linear", "yarn")
F32 = 0


def check_gguf_package(option: str) -> None:
    """Raises UserError where the package gguf is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{option}: GGUF files are read with the package gguf: pip install gguf.")


def check_not_rotated(header: GgufHeader) -> None:
    """Raises ValueError for weights in a rotated basis, which give gibberish where activations are not rotated too."""
    rotated = [key for key in header.keys if key.startswith("prism.hadamard.")]
    if rotated:
        types = sorted({tensor.type_name for tensor in header.tensors.values() if tensor.type_name.startswith("P")})
        raise ValueError(
            f"{header.path.name} stores its weights ({', '.join(types) or 'dense'}) in a basis turned by a Hadamard "
            f"transform ({rotated[0]}), as Bonsai-2 does; packed layers do not turn their inputs. Take a model that is "
            "stored plainly, such as Ternary-Bonsai (Q2_0)."
        )


def gguf_config(header: GgufHeader) -> PreTrainedConfig:
    """Return the configuration that transformers reads in the metadata.

    Raises:
        ValueError: an architecture that transformers does not know in GGUF files, or positions it does not read.
    """
    architecture = header.architecture
    blocks = header.get(f"{architecture}.block_count", 0)
    if isinstance(blocks, int) and blocks > len(header.tensors):  # building so many would take forever
        raise ValueError(
            f"{architecture}.block_count={blocks} is more than its {len(header.tensors)} tensors can make."
        )
    with _stub(header) as folder:
        config = AutoConfig.from_pretrained(folder, gguf_file=STUB)
    check_fields(config.to_dict(), max(MANY_LAYERS, len(header.tensors)))
    if architecture in BITNETS:
        config = _as_bitnet(header, config)
    head_dim = header.get(f"{architecture}.attention.key_length")
    if head_dim is not None and "head_dim" in config.to_dict():  # of which transformers reads that of some families
        config.head_dim = head_dim
    for name in ("bos", "eos"):  # transformers reads them with the tokenizer only
        if getattr(config, f"{name}_token_id") is None:
            setattr(config, f"{name}_token_id", header.get(f"tokenizer.ggml.{name}_token_id"))
    scaling = _rope_scaling(header)
    if scaling:
        config.rope_parameters = {**config.rope_parameters, **scaling}
    config._name_or_path = ""  # transformers puts the file's general.name there
    return config


def gguf_tokenizer(header: GgufHeader) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that transformers makes of the metadata; None, and a warning, where there is none."""
    if "tokenizer.ggml.tokens" not in header.keys:
        logger.warning("%s has no tokenizer; the packed checkpoint has none either.", header.path.name)
        return None
    try:
        with _stub(header) as folder, reading(f"--model {header.path.name}", "tokenizer"):
            return AutoTokenizer.from_pretrained(folder, gguf_file=STUB)
    except UserError as error:
        logger.warning("%s The packed checkpoint has no tokenizer: put the original model's files there.", error)
        return None


def _as_bitnet(header: GgufHeader, config: PreTrainedConfig) -> BitNetConfig:
    """A BitNet's metadata are those of a llama; what else it has is in the class."""
    known = BitNetConfig().to_dict().keys() - {"architectures", "model_type", "hidden_act", "transformers_version"}
    fields = {name: value for name, value in config.to_dict().items() if name in known}
    act = header.get(f"{header.architecture}.hidden_activation", BITNETS[header.architecture])
    return BitNetConfig(**fields, hidden_act=act)


def _rope_scaling(header: GgufHeader) -> dict:
    prefix = f"{header.architecture}.rope.scaling"
    kind, factor = header.get(f"{prefix}.type", "none"), header.get(f"{prefix}.factor", 1.0)
    if kind == "none" or factor == 1.0:
        return {}
    if kind not in ROTATIONS:
        raise ValueError(f"{header.path.name}: {prefix}.type={kind!r} cannot be read; known: {', '.join(ROTATIONS)}.")
    original = header.get(f"{prefix}.original_context_length")
    return {"rope_type": kind, "factor": factor} | (
        {"original_max_position_embeddings": original} if kind == "yarn" and original else {}
    )


@contextmanager
def _stub(header: GgufHeader) -> Iterator[str]:
    """Yield a folder with a GGUF file of the same metadata, whose tensors are empty."""
    with tempfile.TemporaryDirectory() as folder:
        with header.path.open("rb") as file, (Path(folder) / STUB).open("wb") as stub:
            stub.write(MAGIC + struct.pack("<IQQ", header.version, len(header.tensors), len(header.keys)))
            for key, place in header.keys.items():
                file.seek(place.first)
                raw = file.read(place.last - place.first)
                if header.architecture in BITNETS:
                    key, raw = _as_llama(header.architecture, key, raw)
                stub.write(_text(key) + raw)
            for name in header.tensors:
                stub.write(_text(name) + struct.pack("<IQIQ", 1, 0, F32, 0))
            stub.write(bytes(2 * header.get("general.alignment", 32)))
        yield folder


def _as_llama(architecture: str, key: str, raw: bytes) -> tuple[str, bytes]:
    """transformers knows no BitNet in GGUF files; read as a llama, all its metadata are known."""
    if key == "general.architecture":
        return key, raw[:4] + _text("llama")
    return key.replace(f"{architecture}.", "llama.", 1) if key.startswith(f"{architecture}.") else key, raw


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
