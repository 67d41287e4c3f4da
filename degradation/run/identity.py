"""What decides a text besides weights, prompts and settings: how texts are read and written, and where they stop.

Two models of one name, shape and weights still write different rows under another tokenizer, chat template, generation
configuration, picture processor, adapter or code. Each of them is a field of an experiment's identity, as text that is
short enough to be shown where two of them differ.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from frankenlm.trainer_ext.common.redaction import redact

from ..answers.sampling import resolve_sampling
from ..configs import ExperimentConfig
from ..records.row_keys import load_json
from ..weights.loading import short_name
from ..weights.parameter_index import unwrap

# of the state of a tokenizer: what a call leaves behind in it, and no text depends on
PASSING = ("truncation", "padding")
ADAPTER_FILE = "adapter_config.json"
# of an adapter's configuration: where its base lies, and who wrote it
NO_ADAPTER = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")


def reading_identity(
    config: ExperimentConfig,
    tokenizer: Any,
    processor: Any,
    generation: GenerationConfig,
    *,
    attention: str | None,
    adapter: Any = None,
    code: str | None = None,
    fills_masks: bool = False,
) -> dict[str, Any]:
    """Return the fields of `row_keys.READING_FIELDS`, as JSON values.

    Args:
        processor: of pictures and texts, None where no picture is shown.
        generation: the model's own settings, for what the experiment leaves open.
        attention: name of the implementation. adapter, code: see `adapter_of`, `code_of`.
        fills_masks: the model is shown texts without a template, and never stops.
    """
    template = None if fills_masks else (tokenizer if processor is None else processor).chat_template
    if not fills_masks:
        check_defaults(generation)
    sampling = resolve_sampling(config, GenerationConfig() if fills_masks else generation)
    return {
        "tokenizer": tokenizer_digest(tokenizer),
        "special_tokens": special_tokens(tokenizer),
        "chat_template": None if template is None else digest(template),
        "picture_processor": None if processor is None else processor_digest(processor),
        "sampling": sampling.as_row(config.max_new_tokens),
        "stop_ids": [] if fills_masks else stop_ids(generation, tokenizer),
        "attention": attention,
        "adapter": None if adapter is None else digest(adapter),
        "code": code,
    }


def check_defaults(generation: GenerationConfig) -> None:
    """Raise ValueError for settings of a checkpoint that no token can be drawn with."""
    for name, kind, low, high in (
        ("top_k", int, 0, 1 << 31),
        ("top_p", (int, float), 0, 1),
        ("min_p", (int, float), 0, 1),
    ):
        value = getattr(generation, name)
        if value is not None and not (isinstance(value, kind) and low <= value <= high):
            raise ValueError(f"{name}={value!r} in generation_config.json must be a number from {low} to {high}.")


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a JSON value."""
    # escapes: a lone surrogate has no UTF-8 form
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the digest of all that turns a text into ids and back: vocabulary, merges, rules, added tokens."""
    added = {
        str(index): [token.content, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized]
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    facts = {
        "vocabulary": tokenizer.get_vocab(),
        "added": added,
        "cleans_spaces": bool(tokenizer.init_kwargs.get("clean_up_tokenization_spaces")),
    }
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        facts["rules"] = {name: value for name, value in state.items() if name not in PASSING}
    else:
        # written in Python, with rules in the class and, mostly, in a file
        facts["class"] = type(tokenizer).__qualname__
        file = tokenizer.init_kwargs.get("vocab_file")
        if isinstance(file, str) and Path(file).is_file():
            facts["file"] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return digest(facts)


def special_tokens(tokenizer: Any) -> dict[str, Any]:
    """Return the special tokens by name: they are left out of texts, begin and end them."""
    found = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    others = sorted(set(map(str, tokenizer.all_special_tokens)) - set(found.values()))
    return found | ({"others": others} if others else {})


def processor_digest(processor: Any) -> str:
    """Return the digest of how a picture becomes numbers and tokens; texts are the tokenizer's."""
    pictures = processor.image_processor
    facts = {name: value for name, value in processor.to_dict().items() if name not in ("tokenizer", "chat_template")}
    return digest({"class": type(pictures).__qualname__, "pictures": pictures.to_dict(), "all": facts})


def stop_ids(generation: GenerationConfig, tokenizer: Any) -> list[int]:
    """Return the tokens that end an answer, ascending: those of the generation config and the tokenizer's.

    Raises:
        ValueError: the generation config names something that is no token id.
    """
    found = generation.eos_token_id
    ids = list(found) if isinstance(found, (list, tuple)) else [found]
    odd = [each for each in ids if each is not None and (not isinstance(each, int) or each < 0)]
    if odd:
        raise ValueError(f"eos_token_id={found!r} in generation_config.json: {odd[0]!r} is no token id.")
    return sorted({*ids, tokenizer.eos_token_id} - {None})


def read_generation(place: str, config: PreTrainedConfig) -> GenerationConfig:
    """Return a checkpoint's generation settings as loading the model finds them.

    Raises:
        ValueError: the file is there and cannot be used.
    """
    try:
        return GenerationConfig.from_pretrained(place)
    except OSError as error:
        if (Path(place) / "generation_config.json").is_file():
            raise ValueError(f"model {place}: its generation_config.json cannot be read: {error}") from error
        return GenerationConfig.from_model_config(config)  # most models have none
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"model {place}: its generation_config.json cannot be used: {error}") from error


def adapter_of(model: PreTrainedModel | str) -> Any:
    """Return what adapters on a model, in memory or in a folder, are made with, apart from weights; None without."""
    if isinstance(model, str):
        file = Path(model) / ADAPTER_FILE
        return _adapter(load_json(file.read_bytes())) if file.is_file() else None
    for layer in (model, unwrap(model)):
        found = layer.__dict__.get("peft_config")
        if found:
            return {name: _adapter(config.to_dict()) for name, config in found.items()}
    return None


def _adapter(fields: Any) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise ValueError(f"{ADAPTER_FILE} must hold a JSON object.")
    return {name: value for name, value in fields.items() if name not in NO_ADAPTER}


def code_of(place: str, config: PreTrainedConfig, trust_remote_code: bool) -> str | None:
    """Return the digest of the model code that a folder brings along, None where it is not run.

    Code of a model on the hub belongs to its revision, which is part of the weights' fingerprint.
    """
    folder = Path(place)
    if not (trust_remote_code and config.to_dict().get("auto_map") and folder.is_dir()):
        return None
    return digest([[path.name, path.read_text("utf-8", "backslashreplace")] for path in sorted(folder.glob("*.py"))])


def config_of(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the configuration of a model in memory as saving it would write it: with the name of its class."""
    model = unwrap(model)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    return config


def known_as(name: str) -> str:
    """Return what rows call a model: a hub name as it is, a folder by its last part, from wherever it is opened.

    Rows and their files are published; what looks like a token in a name is not.
    """
    folder = Path(name).expanduser()
    return redact(short_name(name) if folder.is_dir() else name)
