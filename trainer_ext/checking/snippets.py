"""The smallest reproduction of a broken promise, for those who know transformers and not this command.

A snippet needs transformers and torch alone, or beside them the module that a class was named with: the tiny
configuration is written out, and the weights are drawn so that what is wrong is not hidden by an initialisation near
zero.
"""

import torch

from .opening import CheckPlan
from .subject import ModelUnderTest
from .tiny import NOTES

HEAD = """import torch
{imports}

torch.manual_seed(0)
config = {config}
model = {model}.eval()
for name, weight in model.named_parameters():
    if name.endswith(".weight") and weight.ndim > 1:  # initialised near zero, a fault is there and too small to see
        torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
a, b = torch.randint(4, config.vocab_size, (1, 9)), torch.randint(4, config.vocab_size, (1, 7))
both = torch.cat([a, b], 1)
with torch.no_grad():
    {given}
    {wanted}
print((given - wanted).abs().max() / wanted.abs().max())  # rounding is 1e-6
"""
_POSITIONS = "position_ids=torch.cat([torch.arange(9), torch.arange(7)])[None]{start}"
_SEQ_IDX = "seq_idx=torch.tensor([[0] * 9 + [1] * 7], dtype=torch.int32)"
_ENDS = (
    "cu_seq_lens_q=torch.tensor([0, 9, 16], dtype=torch.int32), cu_seq_lens_k=torch.tensor([0, 9, 16], "
    "dtype=torch.int32), max_length_q=9, max_length_k=9"
)
_ALONE = "wanted = model(b{off}).{said}"
_WHOLE = "wanted = model(both{off}).{said}[:, 9:]"
_CACHED = "out = model(a, use_cache=True)\n    given = "
# The call that should give what is wanted, for each promise that a few lines can show.
CALLS: dict[str, tuple[str, str]] = {
    "same input, same output": ("given = model(both{off}).{said}", "wanted = model(both{off}).{said}"),
    "batch independence": (
        "given = model(both.view(2, 8){off}).{said}[:1]",
        "wanted = model(both[:, :8]{off}).{said}",
    ),
    "packed rows, position_ids": (f"given = model(both, {_POSITIONS}{{off}}).{{said}}[:, 9:]", _ALONE),
    "packed rows, seq_idx": (f"given = model(both, {{beside}}{_SEQ_IDX}{{off}}).{{said}}[:, 9:]", _ALONE),
    "packed rows, cu_seq_lens": (f"given = model(both, {{beside}}{_ENDS}{{off}}).{{said}}[:, 9:]", _ALONE),
    "causality": ("given = model(both{off}).{said}[:, :9]", "wanted = model(a{off}).{said}"),
    "padding left, batch 1": (
        "mask = torch.tensor([[0] * 9 + [1] * 7])\n"
        "    given = model(both, attention_mask=mask{left}{off}).{said}[:, 9:]",
        _ALONE,
    ),
    "padding right, batch 1": (
        "mask = torch.tensor([[1] * 9 + [0] * 7])\n    given = model(both, attention_mask=mask{off}).{said}[:, :9]",
        "wanted = model(a{off}).{said}",
    ),
    "prefill in pieces": (f"{_CACHED}model(b, {{cache}}=out.{{cache}}, use_cache=True).{{said}}", _WHOLE),
    "cache": (
        "out, given = model(a, use_cache=True), []\n    for token in b.T:\n"
        "        out = model(token[None], {cache}=out.{cache}, use_cache=True)\n        given.append(out.{said})\n"
        "    given = torch.cat(given, 1)",
        _WHOLE,
    ),
}


def snippet(plan: CheckPlan, promise: str, subject: ModelUnderTest) -> str | None:
    """Return Python that shows how a tiny model breaks a promise; None where a few lines do not show it.

    Args:
        subject: the model of the plan, which says what it is called with.
    """
    opened = _opened(plan)
    if promise not in CALLS or opened is None:
        return None
    takes_positions = "position_ids" in subject.takes
    begin = f" + {subject.start}" if subject.start else ""
    words = {
        "off": ", use_cache=False" if plan.is_decoder and ("use_cache" in subject.takes or subject.swallows) else "",
        "start": begin,
        "cache": subject.cache_name or "cache",
        "left": f", position_ids=(mask.cumsum(1) - 1).clamp(min=0){begin}" if takes_positions else "",
        "beside": f"{_POSITIONS.format(start=begin)}, " if takes_positions or subject.swallows else "",
        "said": "logits" if subject.call(torch.tensor([[4]])).get("logits") is not None else "last_hidden_state",
    }
    given, wanted = (text.format(**words) for text in CALLS[promise])
    return HEAD.format(given=given, wanted=wanted, **opened)


def _opened(plan: CheckPlan) -> dict[str, str] | None:
    """How a tiny model is made: as its class was named, or by its family; None for saved ones and code beside them."""
    kind, family = plan.model_class, type(plan.config)
    if plan.saved is not None or family.__module__.startswith("transformers_modules"):
        return None
    ours = family.__module__.startswith("frankenlm.")
    if hasattr(kind, "from_config"):
        known = "import frankenlm.modeling  # which knows the family\n" if ours else ""
        return {
            "imports": f"{known}from transformers import AutoConfig, {kind.__name__}",
            "config": f"AutoConfig.for_model({', '.join([repr(plan.config.model_type), *_fields(plan)])})",
            "model": f"{kind.__name__}.from_config(config)",
        }
    module, _, name = plan.name.rpartition(":")
    module = module or ("frankenlm.modeling" if ours else "transformers")
    return {
        "imports": f"from {module} import {name}",
        "config": f"{name}.config_class({', '.join(_fields(plan))})",
        "model": f"{name}(config)",
    }


def _fields(plan: CheckPlan) -> list[str]:
    """The fields of a tiny configuration that are not the family's own, as Python."""
    usual = type(plan.config)().to_dict()
    return [
        f"{name}={value!r}"
        for name, value in plan.config.to_dict().items()
        if (name not in usual or usual[name] != value) and name not in NOTES
    ]
