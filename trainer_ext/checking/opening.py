"""From what a user names to a model under test: a saved model with its weights, or a tiny one with random weights.

What is named wrongly is told before any weights are read or made.
"""

import importlib
import re
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

import frankenlm.modeling as ours
from frankenlm.modeling.checks import suggest

from ..common.cli import UserError, one_line
from ..common.objectives import OBJECTIVES
from ..common.opening import read_config, read_weights, reading
from .measure import distance
from .subject import ModelUnderTest, in_dtype
from .tiny import LARGEST, tiny_config
from .tiny_sizes import VOCABULARY
from .weights import redraw

CLASS_NAME = re.compile(r"[A-Z]\w*(Model|For[A-Z]\w*)")
HEADS = ("causal", "mlm")


@dataclass(frozen=True)
class CheckPlan:
    """What will be tried: known before a weight is read.

    name: as the user named it. model_class: what opens or makes it. saved: where its weights lie; None for random ones.
    """

    name: str
    model_class: Any
    config: PreTrainedConfig
    is_decoder: bool
    saved: str | None = None
    trust_remote_code: bool = False

    @property
    def weights(self) -> str:
        return "weights as saved" if self.saved else "tiny, random weights"


def plan_saved(
    name: str, *, tiny: bool = False, fields: dict[str, Any] | None = None, trust: bool = False
) -> CheckPlan:
    """Return the plan for a folder or a hub name.

    Args:
        tiny: take no weights; a small model like it, with random ones.
        fields: of the tiny configuration, as given.
        trust: run code that comes with it.

    Raises:
        UserError: no such model, or one that the check cannot try.
    """
    try:
        config = read_config(name, option="MODEL", trust_remote_code=trust)
    except UserError as error:
        raise UserError(f"{one_line(error)}{_kinds_like(name)}") from error
    _check_kind(name, config)
    head = _head_of(config)
    auto = OBJECTIVES[head].auto_model if head else AutoModel
    decoder = _is_decoder(config, head)
    if tiny:
        return CheckPlan(name, auto, _shrunk(name, type(config), config, fields), decoder, trust_remote_code=trust)
    return CheckPlan(name, auto, config, decoder, saved=name, trust_remote_code=trust)


def _kinds_like(name: str) -> str:
    """A hint where a name that is no model is a kind of model, or nearly."""
    kinds = model_types()
    if name in kinds:
        return f" A tiny one with random weights: --model_type {name}"
    # it may be any name at all, and of so many kinds one is always a little like it
    hint = "" if "/" in name else suggest(name, kinds, least=0.8)
    return hint.replace("Did you mean", "Did you mean --model_type")


def plan_type(model_type: str, fields: dict[str, Any] | None = None) -> CheckPlan:
    """Return the plan for a tiny model of a family, as `config.model_type` names it.

    Raises:
        UserError: no such family, or one that the check cannot try.
    """
    kinds = model_types()
    if model_type not in kinds:
        raise UserError(f"--model_type {model_type!r} is unknown.{suggest(model_type, kinds)}")
    with reading(f"--model_type {model_type}", "default configuration"):
        like = AutoConfig.for_model(model_type)
    _check_kind(model_type, like)
    config = _shrunk(model_type, type(like), like, _reading_forwards(like, _head_of_family(like), fields))
    head = _head_of_family(config)
    if head is None and type(config) not in transformers.MODEL_MAPPING:
        raise UserError(f"--model_type {model_type}: transformers lists no model of text for it; name a class.")
    model_class = OBJECTIVES[head].auto_model if head else AutoModel
    return CheckPlan(model_type, model_class, config, _is_decoder(config, head))


def plan_class(name: str, fields: dict[str, Any] | None = None) -> CheckPlan:
    """Return the plan for a tiny model of a class: of transformers, of frankenlm, or MODULE:CLASS.

    Raises:
        UserError: no such class, or one that the check cannot try.
    """
    found = find_class(name)
    with reading(f"MODEL {name}", "default configuration"):
        like = found.config_class()
    _check_kind(name, like)
    head = next((head for head in HEADS if OBJECTIVES[head].is_head(found.__name__)), None)
    config = _shrunk(name, found.config_class, like, _reading_forwards(like, head, fields))
    return CheckPlan(name, found, config, _is_decoder(config, head))


def plan_preset(name: str, fields: dict[str, Any] | None = None) -> CheckPlan:
    """Return the plan for a tiny version of one of our presets, with its kinds of layers and choices.

    Raises:
        UserError: no such preset.
    """
    presets = ours.list_presets()
    if name not in presets:
        raise UserError(f"--preset {name!r} is unknown.{suggest(name, presets)} Known: {', '.join(presets)}.")
    classes = {each.config_class.model_type: each.config_class for each in ours.FAMILIES}
    with reading(f"--preset {name}", "model"):
        like = classes[ours.read_preset(name).model_type].from_preset(name)
    config = _shrunk(name, type(like), like, fields)
    head = _head_of_family(config)
    return CheckPlan(name, OBJECTIVES[head].auto_model, config, head == "causal")


def is_class_name(name: str) -> bool:
    """Whether a name is meant as a class and not as a folder or a hub name."""
    return ":" in name or bool(CLASS_NAME.fullmatch(name))


def find_class(name: str) -> type[PreTrainedModel]:
    """Return a class of models by its name.

    Raises:
        UserError: no such class, or one that is no model.
    """
    if ":" in name:
        found = imported("MODEL", name)
    else:
        found = getattr(ours, name, None) or getattr(transformers, name, None)
    if found is None:
        known = [each for each in (*dir(transformers), *ours.__all__) if CLASS_NAME.fullmatch(each)]
        raise UserError(f"MODEL {name}: transformers has no class of that name.{suggest(name, known, least=0.8)}")
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)) or found.config_class is None:
        raise UserError(f"MODEL {name}: is no model of a family: name one such as LlamaForCausalLM.")
    return found


def imported(option: str, name: str) -> Any:
    """Return what MODULE:NAME names.

    Raises:
        UserError: no such module, or nothing of that name in it.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module meets while it is imported
        raise UserError(f"{option} {name}: {module_name} cannot be imported: {one_line(error)}") from error
    if not hasattr(module, attribute):
        raise UserError(f"{option} {name}: {module_name} has no {attribute!r}.{suggest(attribute, dir(module))}")
    return getattr(module, attribute)


def model_types() -> list[str]:
    """Return the names of all families."""
    return sorted(transformers.CONFIG_MAPPING.keys())


def _head_of(config: PreTrainedConfig) -> str | None:
    """What a saved model was made for, by the classes that its configuration names, or else by its family."""
    named = config.architectures or []
    by_name = next((head for head in HEADS if any(OBJECTIVES[head].is_head(each) for each in named)), None)
    if by_name or named:
        return by_name
    return _head_of_family(config)


def _head_of_family(config: PreTrainedConfig) -> str | None:
    """What a family is made for; where it is for both, as BERT is, its configuration says so."""
    heads = [head for head in HEADS if OBJECTIVES[head].has_head_for(config)]
    if len(heads) < 2:
        return heads[0] if heads else None
    return "causal" if config.to_dict().get("is_decoder") else "mlm"


def _reading_forwards(config: PreTrainedConfig, head: str | None, fields: dict[str, Any] | None) -> dict[str, Any]:
    """Add what makes a decoder of a class that could also be an encoder (BertLMHeadModel)."""
    switch = {"is_decoder": True} if head == "causal" and "is_decoder" in config.to_dict() else {}
    return {**switch, **(fields or {})}


def _is_decoder(config: PreTrainedConfig, head: str | None) -> bool:
    if head is not None:
        return head == "causal"
    causal, masked = (OBJECTIVES[each].has_head_for(config) for each in HEADS)
    return bool(config.to_dict().get("is_decoder")) or (causal and not masked)


def _check_kind(name: str, config: PreTrainedConfig) -> None:
    """Raises UserError for what is neither a decoder nor an encoder of text."""
    if config.is_encoder_decoder:
        raise UserError(
            f"{name}: is an encoder-decoder ({config.model_type}); check tries decoders and encoders of text alone."
        )
    fields = config.to_dict()
    if "vocab_size" in fields:
        return
    part = fields.get("text_config")
    if isinstance(part, dict):
        kind = part.get("model_type")
        raise UserError(f"{name}: has parts beside its text model; try that alone: --model_type {kind}.")
    raise UserError(f"{name}: {config.model_type} reads no tokens (it has no vocab_size), so there is nothing to try.")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _shrunk(name: str, config_class, like, fields) -> PreTrainedConfig:
    """Raises UserError where the family does not accept the tiny sizes, or given fields that it does not have."""
    known = like.to_dict()
    for field in fields or {}:
        if field not in known:
            raise UserError(f"--set {field}: the configuration of {name} has no such field.{suggest(field, known)}")
    with reading(name, "tiny configuration"):
        return tiny_config(config_class, like, **(fields or {}))


def open_subject(plan: CheckPlan, *, dtype: torch.dtype, device: str, seed: int) -> ModelUnderTest:
    """Read or make the model of a plan, in a number format, on a device.

    Raises:
        UserError: weights that cannot be used, a tiny model that cannot be built or run, or is not tiny.
    """
    if plan.saved is not None:
        model = read_weights(
            plan.model_class,
            plan.saved,
            plan.config,
            option="MODEL",
            dtype=dtype,
            trust_remote_code=plan.trust_remote_code,
        )
    else:
        model = _made(plan, seed)
        if dtype != torch.float32:
            model = in_dtype(model, dtype)
    return subject_of(model.to(device).eval(), plan.name, plan.is_decoder)


def subject_of(model: PreTrainedModel, name: str, is_decoder: bool) -> ModelUnderTest:
    """Return a model in memory, in evaluation mode, as it is tried.

    Raises:
        UserError: it cannot be run.
    """
    with reading(name, "model"):
        subject = ModelUnderTest(model, is_decoder, _vocabulary(model))
        subject.start = _first_position(subject)
    return subject


def _made(plan: CheckPlan, seed: int) -> PreTrainedModel:
    with reading(plan.name, "tiny model"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):
            size = sum(each.numel() for each in _build(plan).parameters())
        if size > LARGEST:
            raise UserError(
                f"{plan.name}: its tiny configuration has {size:,} parameters: say which fields make it large, with "
                "--set FIELD=VALUE."
            )
        model = _build(plan).float()
    redraw(model, seed)
    return model


def _build(plan: CheckPlan) -> PreTrainedModel:
    with warnings.catch_warnings(action="ignore"):  # of families about their own layers
        if hasattr(plan.model_class, "from_config"):
            return plan.model_class.from_config(plan.config, trust_remote_code=plan.trust_remote_code)
        return plan.model_class(plan.config)


def _vocabulary(model: PreTrainedModel) -> int:
    size = model.config.to_dict().get("vocab_size")
    return size if _is_size(size) else VOCABULARY


def _first_position(subject: ModelUnderTest) -> int:
    """The position of the first token: that which gives what the model gives without positions."""
    ids = torch.full((1, 5), subject.vocabulary // 2)
    reference = subject.outputs(ids)
    if "position_ids" not in subject.takes:
        return 0
    pad = subject.model.config.to_dict().get("pad_token_id")
    starts = dict.fromkeys([0, *([pad + 1] if isinstance(pad, int) else []), 1, 2])
    places = torch.arange(5)[None]
    far = {}
    for start in starts:
        try:
            far[start] = distance(subject.outputs(ids, position_ids=places + start), reference)
        except Exception:  # a model that refuses positions says so where they are tried
            continue
    return min(far, key=far.__getitem__) if far else 0
