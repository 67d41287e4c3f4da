"""The smallest reproduction of a broken promise, for those who know transformers and not this command.

A snippet needs transformers and torch alone: the tiny configuration is written out, and the weights are drawn so that
what is wrong is not hidden by an initialisation near zero.
"""

from typing import Any

from .opening import CheckPlan

HEAD = """import torch
from transformers import AutoConfig, {auto}

torch.manual_seed(0)
config = AutoConfig.for_model({fields})
model = {auto}.from_config(config).eval()
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
_ALONE = "wanted = model(b{off}).logits"
_WHOLE = "wanted = model(both{off}).logits[:, 9:]"
_CACHED = "out = model(a, use_cache=True)\n    given = "
# The call that should give what is wanted, for each promise that a few lines can show.
CALLS: dict[str, tuple[str, str]] = {
    "packed rows, position_ids": (f"given = model(both, {_POSITIONS}{{off}}).logits[:, 9:]", _ALONE),
    "packed rows, seq_idx": (f"given = model(both, {_POSITIONS}, {_SEQ_IDX}{{off}}).logits[:, 9:]", _ALONE),
    "packed rows, cu_seq_lens": (f"given = model(both, {_POSITIONS}, {_ENDS}{{off}}).logits[:, 9:]", _ALONE),
    "causality": ("given = model(both{off}).logits[:, :9]", "wanted = model(a{off}).logits"),
    "padding left, batch 1": (
        "mask = torch.tensor([[0] * 9 + [1] * 7])\n"
        "    given = model(both, attention_mask=mask{left}{off}).logits[:, 9:]",
        _ALONE,
    ),
    "padding right, batch 1": (
        "mask = torch.tensor([[1] * 9 + [0] * 7])\n    given = model(both, attention_mask=mask{off}).logits[:, :9]",
        "wanted = model(a{off}).logits",
    ),
    "prefill in pieces": (f"{_CACHED}model(b, {{cache}}=out.{{cache}}, use_cache=True).logits", _WHOLE),
    "cache": (
        "out, given = model(a, use_cache=True), []\n    for token in b.T:\n"
        "        out = model(token[None], {cache}=out.{cache}, use_cache=True)\n        given.append(out.logits)\n"
        "    given = torch.cat(given, 1)",
        _WHOLE,
    ),
}


def snippet(plan: CheckPlan, promise: str, *, start: int = 0, cache: str = "cache", left: bool = False) -> str | None:
    """Return Python that shows how a tiny model breaks a promise; None where a few lines do not show it.

    Args:
        start: the position of a document's first token.
        cache: what the model calls its cache.
        left: whether it takes the positions of padded tokens.
    """
    if promise not in CALLS or plan.saved is not None:
        return None
    given, wanted = CALLS[promise]
    begin = f" + {start}" if start else ""
    positions = f", position_ids=(mask.cumsum(1) - 1).clamp(min=0){begin}" if left else ""
    words = {"off": ", use_cache=False" if plan.is_decoder else "", "start": begin, "cache": cache, "left": positions}
    auto = "AutoModelForCausalLM" if plan.is_decoder else "AutoModelForMaskedLM"
    return HEAD.format(auto=auto, fields=_written(plan), given=given.format(**words), wanted=wanted.format(**words))


def _written(plan: CheckPlan) -> str:
    """The fields of a tiny configuration that are not the family's own, as Python."""
    usual = type(plan.config)().to_dict()
    fields: dict[str, Any] = {}
    for name, value in plan.config.to_dict().items():
        if name not in usual or usual[name] != value:
            fields[name] = value
    fields = {
        name: value for name, value in fields.items() if name not in ("transformers_version", "dtype", "architectures")
    }
    return ", ".join([repr(plan.config.model_type), *(f"{name}={value!r}" for name, value in fields.items())])
