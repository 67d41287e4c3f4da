"""What can be wrong with a model, found from its config.json, its tokenizer and a copy without weights."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from frankenlm import modeling  # noqa: F401  registers our architectures with the AutoModel classes
from frankenlm.trainer_ext.common import opening
from frankenlm.trainer_ext.common.checkpoints import check_device
from frankenlm.trainer_ext.common.checks import check_choice
from frankenlm.trainer_ext.common.cli import UserError, check_model_name, one_line
from frankenlm.trainer_ext.common.opening import reading

from ..configs import DTYPES, TARGETED, ExperimentConfig
from ..damage.quant4 import is_4bit
from ..layouts.families import OVERFLOWS_FLOAT16, READS_WEIGHTS
from ..offloaded import is_offloaded
from .groups import NothingThere, select_group
from .parameter_index import unwrap
from .targets import Group
from .units import UnitTable, carried, check_watched, find_units

PACKED = "frankenlm_ternary"  # quant_method of our packed checkpoints
BITSANDBYTES = "bitsandbytes"
IMAGE_MODELS = AutoModelForImageTextToText._model_mapping
MASKED_MODELS = AutoModelForMaskedLM._model_mapping
TOKEN_VARIABLE = "HF_TOKEN"


class LoadOptions(Protocol):
    """What a run says about loading, besides the experiment. device: cpu, cuda, cuda:1; None: the GPU if there is one.

    force_fp16: load in float16 what is known to overflow in it. device_map, max_memory, offload_folder: see
    `loading.open_model`.
    """

    device: str | None
    device_map: str | None
    max_memory: Mapping[int | str, str] | None
    offload_folder: str | None
    trust_remote_code: bool
    force_fp16: bool


class Checked(NamedTuple):
    """A model on which an experiment can be done: its configuration, and the attention it will compute with."""

    config: PreTrainedConfig
    attention: str | None


def check_model(name: str, config: ExperimentConfig, options: LoadOptions) -> Checked:
    """Check that an experiment can be done on a model, and return what is known of it. No weight is read.

    Raises:
        ValueError, on one line: no such model, a gated one without a token, no causal or masked language model, no
            tokenizer, weights in a packed or unknown quantised form, a picture for a text-only model, a type it
            overflows in, no such device, bitsandbytes missing, or a group the model does not have.
    """
    resolve_device(options.device)
    found = read_config(name, options.trust_remote_code)
    check_language_model(name, found)
    check_quantization(name, found, config.load_4bit)
    check_dtype(name, found, config.dtype, options.force_fp16)
    check_inputs(name, found, config)
    read_tokenizer(name, config.image is not None, options.trust_remote_code)
    empty = empty_model(found, options.trust_remote_code)
    check_group(name, empty, found, config)
    return Checked(found, attention_of(empty))


def check_given(model: PreTrainedModel, config: ExperimentConfig) -> None:
    """Raise ValueError where a model in memory is not loaded as the experiment says: its rows would not be true."""
    if str(model.dtype).removeprefix("torch.") != config.dtype:
        raise ValueError(f"dtype={config.dtype!r}, but the model given computes in {model.dtype}: set dtype to that.")
    in_4bit = any(is_4bit(module) for module in model.modules())
    if in_4bit != config.load_4bit:
        raise ValueError(
            f"load_4bit={config.load_4bit}, but the model given has {'' if in_4bit else 'no '}4-bit layers."
        )
    if in_4bit:
        check_4bit(type(unwrap(model)).__name__, unwrap(model).config)


def check_group(name: str, model: PreTrainedModel, model_config: PreTrainedConfig, config: ExperimentConfig) -> None:
    """Raise ValueError where a model, with weights or without, lacks the group or units that are to be damaged."""
    group = group_of(model, name, config)
    check_unit(config, group)
    check_targeting(config, group, name, model_config)


def attention_of(model: PreTrainedModel) -> str | None:
    """Return the name of the attention that a model computes with; it rounds as no other does."""
    return model.config._attn_implementation


def check_inputs(name: str, model_config: PreTrainedConfig, config: ExperimentConfig) -> None:
    """Raise ValueError where an experiment asks for a picture or a treatment of texts that the model does not know."""
    if config.image is not None and not takes_pictures(model_config):
        raise ValueError(
            f"image={config.image!r}: {name} ({model_config.model_type}) reads text only; choose a model that takes "
            "pictures, such as google/gemma-3-4b-it, or prompts without a picture."
        )
    if not fills_masks(model_config):
        return
    if config.system_prompt is not None:
        raise ValueError(f"system_prompt: {name} is a masked language model, which reads a text without turns.")
    if config.repetition_penalty != 1:
        raise ValueError(
            f"repetition_penalty={config.repetition_penalty}: {name} is a masked language model, in whose text every "
            "token was there before; leave it at 1."
        )


def check_unit(config: ExperimentConfig, group: Group) -> None:
    """Raise ValueError where whole heads are to be damaged in a group that has none."""
    without = [target.name for target in group.targets if target.head_dim is None or target.head_axis is None]
    if config.unit == "head" and without:
        raise ValueError(f"unit='head': no heads are known in {without[0]}; choose unit='row', 'column' or 'element'.")


def check_targeting(config: ExperimentConfig, group: Group, name: str, model_config: PreTrainedConfig) -> None:
    """Raise ValueError where units are to be removed that the group does not have, or that cannot be measured."""
    if config.method not in TARGETED:
        return
    table = find_units(group, config.unit)
    count = table.count
    most = max(config.resolved_levels)
    if most > count:
        raise ValueError(
            f"levels: {most:,} units are more than the {count:,} of unit={config.unit!r} in group {config.group!r}."
        )
    if config.importance != "magnitude" and (config.image is not None or fills_masks(model_config)):
        what = "a masked language model" if fills_masks(model_config) else "asked about a picture"
        raise ValueError(
            f"importance={config.importance!r}: {name} is {what}, where only importance='magnitude' is known."
        )
    if config.importance == "ablation" and config.unit == "element":
        raise ValueError("importance='ablation' asks the model once for every unit: choose a larger unit than element.")
    _check_measured(config, table)


def _check_measured(config: ExperimentConfig, table: UnitTable) -> None:
    """Raise ValueError where what units carry cannot be watched, or gradients reach no weights that are kept away."""
    targets = [own.target for own in table.targets]
    away = [target.name for target in targets if is_offloaded(target.root, target.name)]
    if config.importance == "gradient" and away:
        raise ValueError(f"importance='gradient': {away[0]} is offloaded; choose magnitude, activation or ablation.")
    if config.importance == "activation" or (config.importance == "ablation" and config.unit != "expert"):
        if config.unit != "element":
            targets = [carried(table, place).target for place in table.places]
        for target in targets:
            check_watched(target)


def location(name: str) -> str:
    """Return a hub name as it is, a folder's with the home folder written out."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def read_config(name: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return a model's configuration, by folder or hub name.

    Raises:
        ValueError: it cannot be had; the message says why and what to do, and never shows a token.
    """
    check_model_name("model", name)
    try:
        return opening.read_config(name, option="model", trust_remote_code=trust_remote_code)
    except UserError as error:
        unread = [cause for cause in _causes(error) if isinstance(cause, OSError)]
        if unread:
            raise ValueError(_why_not_read(name, unread[0])) from error
        raise


def _why_not_read(name: str, error: OSError) -> str:
    causes = _causes(error)
    if Path(name).expanduser().is_dir():
        return f"model {name}: its config.json cannot be read: {_safe(error)}"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        if os.environ.get(TOKEN_VARIABLE):
            return (
                f"model {name} is gated, and the token in {TOKEN_VARIABLE} gives no access to it: accept its licence "
                f"at https://huggingface.co/{name}."
            )
        return (
            f"model {name} is gated: accept its licence at https://huggingface.co/{name} and set the environment "
            f"variable {TOKEN_VARIABLE} to a token of your account."
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        private = "" if os.environ.get(TOKEN_VARIABLE) else f" If it is private, set {TOKEN_VARIABLE}."
        return f"model {name}: no folder of that name, and no such model on the hub.{private}"
    return f"model {name}: no folder of that name, not in the cache, and the hub cannot be reached."


def _causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _safe(error: BaseException) -> str:
    """Return an error's message on one line of at most 300 characters, without the token."""
    text, token = one_line(error), os.environ.get(TOKEN_VARIABLE)
    return (text.replace(token, "***") if token else text)[:300]


def takes_pictures(config: PreTrainedConfig) -> bool:
    return type(config) in IMAGE_MODELS.keys() and hasattr(config, "vision_config")  # noqa: SIM118  a lazy mapping


def fills_masks(config: PreTrainedConfig) -> bool:
    """Whether a checkpoint holds a masked language model, such as BERT, which fills in tokens and continues no text."""
    if any(each.endswith("ForMaskedLM") for each in config.architectures or ()):
        return True
    # also BertForPreTraining and models that were never saved; families of both kinds say which by is_decoder
    known = type(config) in MASKED_MODELS.keys()  # noqa: SIM118  a lazy mapping
    return known and not config.to_dict().get("is_decoder", False)


def auto_class(config: PreTrainedConfig) -> Any:
    """Return the Auto class that opens a model: with its picture tower where it has one."""
    if fills_masks(config):
        return AutoModelForMaskedLM
    return AutoModelForImageTextToText if takes_pictures(config) else AutoModelForCausalLM


def check_language_model(name: str, config: PreTrainedConfig) -> None:
    """Raise ValueError unless the checkpoint holds a model that continues text or fills in masked tokens."""
    held = config.architectures or []
    other = [each for each in held if each.endswith(("Classification", "QuestionAnswering"))]
    if other:
        raise ValueError(f"model {name}: holds {other[0]}, which is no language model and writes no text.")
    known = type(config) in auto_class(config)._model_mapping.keys()  # noqa: SIM118  a lazy mapping
    remote = auto_class(config).__name__ in (config.to_dict().get("auto_map") or {})
    if config.is_encoder_decoder or not (known or remote):
        raise ValueError(f"model {name}: {config.model_type} is no causal and no masked language model.")


def check_quantization(name: str, config: PreTrainedConfig, load_4bit: bool) -> None:
    """Raise ValueError where the stored weights cannot be damaged, or bitsandbytes is needed and missing."""
    stored = config.to_dict().get("quantization_config") or {}
    method = stored.get("quant_method")
    if method == PACKED:
        raise ValueError(
            f"model {name}: holds packed ternary weights, which cannot be damaged; use the unpacked checkpoint that "
            "scripts/pack.py was given."
        )
    in_4bit = method == BITSANDBYTES and stored.get("load_in_4bit")
    if method is not None and not in_4bit:
        raise ValueError(
            f"model {name}: is quantised by {method}; use its dense checkpoint, or load_4bit=True with it."
        )
    if in_4bit and not load_4bit:
        raise ValueError(f"model {name}: is stored in 4 bits; set load_4bit=True.")
    if load_4bit:
        check_4bit(name, config)
    if load_4bit and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("load_4bit=True needs bitsandbytes: pip install 'frankenlm[lab]'.")


def check_4bit(name: str, config: PreTrainedConfig) -> None:
    """Raise ValueError for a family that cannot compute with layers in 4 bits."""
    layer = READS_WEIGHTS.get(config.get_text_config().model_type)
    if layer:
        raise ValueError(
            f"load_4bit=True: {name} ({config.model_type}) multiplies with the weight of {layer} itself, which "
            "bitsandbytes holds as codes; leave it out, and load the dense model."
        )


def check_dtype(name: str, config: PreTrainedConfig, dtype: str, force_fp16: bool) -> None:
    """Raise ValueError for an unknown type, or float16 where the undamaged model overflows in it."""
    check_choice("dtype", dtype, DTYPES)
    if dtype == "float16" and config.get_text_config().model_type in OVERFLOWS_FLOAT16 and not force_fp16:
        raise ValueError(
            f"dtype='float16': {name} ({config.model_type}) overflows in it even undamaged; use bfloat16 or float32, "
            "or --force_fp16."
        )


def resolve_device(device: str | None) -> torch.device:
    """Return a device, a GPU with its number; None is the GPU of this process if there is one, else the CPU.

    Raises:
        UserError: there is no such device, or it is neither CPU nor CUDA.
    """
    own_gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if device is None:
        return own_gpu if torch.cuda.is_available() else _CPU
    found = check_device(device, "device")
    if found.type not in ("cpu", "cuda"):
        raise UserError(f"device {device}: the lab works on cpu and cuda only.")
    return own_gpu if found.type == "cuda" and found.index is None else found


_CPU = torch.device("cpu")


def read_tokenizer(name: str, with_image: bool, trust_remote_code: bool = False) -> tuple[PreTrainedTokenizerBase, Any]:
    """Return a model's tokenizer and, with pictures, its processor (else None).

    Raises:
        ValueError: it has none that can be used.
    """
    place, processor = location(name), None
    with reading(f"model {name}", "processor" if with_image else "tokenizer"):
        if with_image:
            processor = AutoProcessor.from_pretrained(place, trust_remote_code=trust_remote_code)
            if not hasattr(processor, "image_processor"):
                raise ValueError("it has no image processor")
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
        # where the files are missing, some classes quietly come with an empty vocabulary
        if set(tokenizer("word 7", add_special_tokens=False).input_ids) <= set(tokenizer.all_special_ids):
            raise ValueError("its vocabulary is empty")
    return tokenizer, processor


def empty_model(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return the model on the meta device: names and shapes without weights.

    Raises:
        UserError: the configuration's values do not fit each other.
    """
    with reading(f"model {config.name_or_path or config.model_type}", "config.json"), torch.device("meta"):
        return auto_class(config).from_config(config, trust_remote_code=trust_remote_code).eval()


def empty_group(
    name: str, model_config: PreTrainedConfig, config: ExperimentConfig, trust_remote_code: bool = False
) -> Group:
    """Return the experiment's group of a model without weights.

    Raises:
        ValueError: the model does not have it.
    """
    return group_of(empty_model(model_config, trust_remote_code), name, config)


def group_of(empty: PreTrainedModel, name: str, config: ExperimentConfig) -> Group:
    """Return the experiment's group of a model; raises ValueError, with the model's `name`, where it has none."""
    try:
        return select_group(empty, config.group, tied_policy=config.tied_policy, norm_gain=config.norm_gain)
    except NothingThere as error:
        raise NothingThere(f"model {name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"model {name}: {error}") from error
