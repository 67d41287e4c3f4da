"""Opening saved models, which are other people's files: whatever is wrong with one is a line, told before the work.

config.json, tokenizer and weights are read by transformers, whose classes meet damaged or odd values with any kind of
exception. Here they become a `UserError`, in one place; the traceback goes to the log at level debug.
"""

import contextlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from .cli import ADAPTER_CONFIG, UserError, base_of, check_model_name, is_memory_error, is_storage_error, one_line
from .logs import waiting
from .redaction import public_name

logger = logging.getLogger("frankenlm.opening")

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LONGEST_REASON = 300  # characters of another library's message
LONGEST_HEADER = 100_000_000  # bytes, which safetensors allows

# Fields that count modules: each is a turn of a loop while the model is built.
_LAYERS = re.compile(r"(layers?|blocks?|depth)$")
_PARTS = re.compile(r"(loops|experts|heads?)$")
MANY_LAYERS, MANY_PARTS = 128, 1000  # plausible whatever the weights say; more layers than tensors are not
# Elements a model may have for each that is stored: packed weights hold four in a byte, tied ones are stored once.
LARGEST_UNFOLDING = 16
SMALL = 50_000_000  # elements that fit into any memory


def read_config(
    name: str, *, option: str = "--model", trust_remote_code: bool = False, adapters: bool = False
) -> PreTrainedConfig:
    """Return the configuration of a saved model, by folder or hub name.

    Args:
        adapters: of the folder of an adapter, take that of the model that it is for; `read_weights` then opens both.
    Raises:
        UserError: no such model, or a config.json that is damaged, odd or of an unknown architecture.
    """
    check_model_name(option, name, adapters=adapters)
    folder = Path(name).expanduser()
    local = folder.is_dir()
    if adapters and (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return _config_of_base(folder, option, name, trust_remote_code)
    try:
        with reading(f"{option} {name}", "config.json"):
            fields, _ = PreTrainedConfig.get_config_dict(location(name))
        with reading(f"{option} {name}", "weights"):
            layers = max(MANY_LAYERS, len(stored_shapes(name)))
        with reading(f"{option} {name}", "config.json"):
            check_fields(fields, layers)
            return AutoConfig.from_pretrained(location(name), trust_remote_code=trust_remote_code)
    except UserError as error:
        if local or not isinstance(error.__cause__, OSError):
            raise
        raise UserError(
            f"{option} {name}: no folder of that name, and it cannot be fetched from the hub (unknown there, or no "
            "connection)."
        ) from error


def _config_of_base(folder: Path, option: str, name: str, trust_remote_code: bool) -> PreTrainedConfig:
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{option} {name}: holds an adapter, which needs the package peft: pip install peft.")
    base = base_of(folder)
    if base is None:
        raise UserError(f"{option} {name}: holds an adapter whose {ADAPTER_CONFIG} names no base model.")
    return read_config(base, option=f"{option} {name}: its base", trust_remote_code=trust_remote_code)


def read_tokenizer(name: str, *, option: str = "--model", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a saved model.

    Raises:
        UserError: it is missing, damaged or empty.
    """
    with reading(f"{option} {name}", "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(location(name), trust_remote_code=trust_remote_code)
        # where the files are missing, some classes quietly come with an empty vocabulary
        if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
            raise UserError(f"{option} {name}: has no tokenizer (its vocabulary is empty): put its files there.")
    return tokenizer


def read_weights(
    auto_class: Any,
    name: str,
    config: PreTrainedConfig,
    *,
    option: str = "--model",
    trust_remote_code: bool = False,
    dtype: str | torch.dtype = "auto",
) -> PreTrainedModel:
    """Load a saved model onto the CPU, in evaluation mode.

    Raises:
        UserError: weights that are missing, damaged, cut short, or of another shape than config.json says.
    """
    label = f"{option} {name}"
    with reading(label, "weights"), waiting(f"reading the weights of {public_name(name)}"):
        check_size(auto_class, name, config, label, trust_remote_code)
        model, report = auto_class.from_pretrained(
            location(name), trust_remote_code=trust_remote_code, dtype=dtype, output_loading_info=True
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise UserError(f"{label}: the checkpoint lacks {len(missing)} weights, such as {missing[0]}.")
        check_unused(sorted(report["unexpected_keys"]), len(stored_shapes(name)), label)
        check_token_ids(model, label)
    return model.eval()


def check_unused(unused: Sequence[str], stored: int, label: str) -> None:
    """Raises UserError where most of the weights have no place in the model: config.json is of another one.

    A few are usual: heads of the training that came before.
    """
    if 2 * len(unused) > stored > 0:
        raise UserError(
            f"{label}: the model that config.json describes has no place for {len(unused)} of the {stored} weights in "
            f"its file, such as {unused[0]}."
        )


def check_token_ids(model: PreTrainedModel, label: str) -> None:
    """Raises UserError for ids in generation_config.json that are no numbers."""
    if not model.can_generate():
        return
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.generation_config, field)
        for each in value if isinstance(value, list) else [value]:
            if each is not None and (not isinstance(each, int) or each < 0):
                raise UserError(f"{label}: {field}={value!r} in its generation_config.json is no token id.")


def check_runs(model: PreTrainedModel, name: str, *, option: str = "--model") -> None:
    """Let a model read one token: what its configuration and its weights make impossible is told before the work.

    Raises:
        UserError: it cannot be run, or what it computes is no number.
    """
    label = f"{option} {name}"
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with reading(label, "model"), torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        if logits.isnan().any():
            raise UserError(f"{label}: its weights give NaN, no numbers: they are damaged, or its training broke down.")


@contextlib.contextmanager
def reading(label: str, what: str) -> Iterator[None]:
    """Turn any error of other libraries, while they read `what` of a saved model, into a `UserError`.

    Full storage and memory stay what they are. `label` names the option and the model.
    """
    try:
        with held_back_logs("transformers"):
            yield
    except UserError:
        raise
    except Exception as error:
        # Which kinds there are is up to transformers, its 400 architectures and three file formats.
        if is_storage_error(error) or is_memory_error(error):
            raise
        logger.debug("%s: %s", label, what, exc_info=error)
        raise UserError(f"{label}: its {what} cannot be used: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Say on one line why something could not be read."""
    if isinstance(error, SafetensorError):
        return f"damaged or cut short ({one_line(error)})."
    if isinstance(error, RecursionError):
        return "nested too deep."
    text = one_line(error)
    text = text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."
    kind = type(error).__name__
    return text if isinstance(error, (OSError, ValueError)) or text == kind else f"{kind}: {text}"


def location(name: str) -> str:
    """A hub name as it is, a folder's with the home folder written out."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


# --- sizes, before anything of that size is built


def check_fields(fields: Any, layers: int) -> None:
    """Raises ValueError where config.json is no object, names no classes, or counts more modules than there can be.

    Building a billion layers takes forever, even without memory for them. layers: how many there can be.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"a JSON object is expected, not {type(fields).__name__}.")
    names = fields.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(each, str) for each in names)):
        raise ValueError(f"architectures={names!r}: a list of class names is expected.")
    _check_counts(fields, layers)


def _check_counts(fields: Mapping[str, Any], layers: int) -> None:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            _check_counts(value, layers)
        elif isinstance(value, (int, float)):
            for pattern, most in ((_LAYERS, layers), (_PARTS, MANY_PARTS)):
                if pattern.search(name) and value > most:
                    raise ValueError(f"{name}={value} is more than this checkpoint can hold ({most}).")


def check_size(
    auto_class: Any, name: str, config: PreTrainedConfig, label: str, trust_remote_code: bool = False
) -> None:
    """Raises UserError where config.json describes a far larger model than the weights file holds.

    Loading would make room for all of it before it found the shapes different. The model without memory is only built
    where a number in config.json exceeds every dimension in the file.
    """
    shapes = stored_shapes(name)
    if not shapes:
        return
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    if all(number <= largest for number in _numbers(config.to_dict())):
        return
    with torch.device("meta"):
        model = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    wanted = sum(parameter.numel() for parameter in model.parameters())
    held = sum(torch.Size(shape).numel() for shape in shapes.values())
    if wanted > SMALL and wanted > LARGEST_UNFOLDING * held:
        raise UserError(f"{label}: config.json describes {wanted:,} parameters, and its weights file holds {held:,}.")


def _numbers(value: Any) -> Iterator[int]:
    """All whole numbers in a configuration."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int):
        yield value


def stored_shapes(name: str) -> dict[str, list[int]]:
    """Return the shapes in a checkpoint's safetensors files, from their headers; {} where it has no such file here.

    Raises:
        SafetensorError: a file that is damaged or cut short.
    """
    shapes = {}
    for file in local_weight_files(name):
        try:
            with safe_open(file, framework="pt") as opened:
                shapes |= {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118  not a mapping
        except SafetensorError as error:
            raise SafetensorError(f"{where_it_ends(file)}: {error}") from error
    return shapes


def where_it_ends(file: Path) -> str:
    """Return a damaged safetensors file's name and, where its header is whole, the first tensor that is not."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, LONGEST_HEADER)))
        ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        beyond = [name for name, end in sorted(ends.items(), key=lambda item: item[1]) if 8 + length + end > size]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):  # the header itself is damaged
        beyond = []
    return f"{file.name} ends within {beyond[0]}" if beyond else file.name


def local_weight_files(name: str) -> list[Path]:
    """Return the safetensors files of a checkpoint, as far as they lie in its folder or in the hub's cache."""
    found = _find(name, WEIGHTS)
    if found is not None:
        return [found]
    index = _find(name, INDEX)
    if index is None:
        return []
    files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [path for path in (_find(name, file) for file in files) if path is not None]


def _find(name: str, file: str) -> Path | None:
    found = cached_file(
        location(name),
        file,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


# --- logs


@contextlib.contextmanager
def held_back_logs(name: str) -> Iterator[None]:
    """Hold back what a library says until its work has succeeded; where it fails, the error says it all."""
    library = logging.getLogger(name)
    buffer = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    handlers, propagate = library.handlers[:], library.propagate
    library.handlers, library.propagate = [buffer], False
    done = False
    try:
        yield
        done = True
    finally:
        library.handlers, library.propagate = handlers, propagate
        for record in buffer.buffer if done else ():
            library.handle(record)
        buffer.close()
