"""A tiny model of each kind that other people's tools meet, saved as a training run saves it: with its tokenizer."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.quantizer_ternary import pack_model
from frankenlm.trainer_ext.data.tokenizers import load_tokenizer, tell_lengths

POSITIONS = 48
TEXT = "the cat sat on a mat and saw dogs run over green hills"
# widths that bitsandbytes can hold in 4 bits on a CPU: inputs by 64, outputs by 32
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
# Every mixer of the family but Mamba-2's twin, narrow tables, a convolution, loops and experts
MIXED = {
    **SIZES,
    "layer_pattern": ["retnet", "titan_attn", "mamba", "ode"],
    "num_hidden_layers": 8,
    "num_loops": 2,
    "retention_heads": 2,
    "mamba_head_dim": 16,
    "mamba_state": 8,
    "norm_type": "derf",
    "embedding_norm": "rms",
    "factorized_embedding_dim": 64,
    "embedding_conv_kernel": 3,
    "num_experts": 3,
}
BERT = {
    **SIZES,
    "layer_pattern": ["standard_attn"],
    "position_type": "learned",
    "norm_style": "post",
    "type_vocab_size": 2,
    "use_bias": True,
    "head_transform": True,
}
MEMORY = {
    **SIZES,
    "memory_layers": [1],
    "memory_slots": 4,
    "memory_dim": 64,
    "memory_heads": 2,
    "memory_segment": 4,
    "exploration_sigma": 0.0,
}
FAMILIES = {
    "encoder": (FrankensteinForMaskedLM, FrankensteinConfig, MIXED),
    "decoder": (FrankensteinForCausalLM, FrankensteinConfig, {**MIXED, "is_decoder": True}),
    "standard": (FrankensteinForMaskedLM, FrankensteinConfig, BERT),
    "infinito": (InfinitoForCausalLM, InfinitoConfig, MEMORY),
    "legacy": (Legacy1BitForCausalLM, Legacy1BitConfig, SIZES),
    "packed": (Legacy1BitForCausalLM, Legacy1BitConfig, SIZES),
}
ENCODERS = ("encoder", "standard")
DECODERS = ("decoder", "infinito", "legacy", "packed")


def build_peer(family: str, gain: float = 1.5, **fields) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model in evaluation mode, wide enough that each of its parts shows, and a tokenizer as runs save it."""
    kind, config, own = FAMILIES[family]
    if family in ENCODERS:
        tokenizer = load_tokenizer("train", documents=[TEXT] * 4, vocab_size=300, objective="mlm")
    else:
        tokenizer = load_tokenizer("bytes", documents=[], objective="causal")
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if family in ENCODERS:
        ids["mask_token_id"] = tokenizer.mask_token_id
    torch.manual_seed(0)
    model = kind(config(vocab_size=len(tokenizer), **{**own, **ids, **fields})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=gain * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.2)
    if family == "packed":
        model = pack_model(model)
    tell_lengths(tokenizer, model)
    return model, tokenizer


def auto_model(family: str) -> type:
    """Return the Auto class that opens a model with its head."""
    return AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM


def open_peer(family: str, folder: Path, **options) -> PreTrainedModel:
    return auto_model(family).from_pretrained(folder, **options).eval()


def some_ids(model: PreTrainedModel, rows: int = 2, length: int = 20) -> dict[str, torch.Tensor]:
    """Return ids without special tokens and a mask; the first row begins with pads."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(40, 250, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[0, :5], mask[0, :5] = model.config.pad_token_id, 0
    return {"input_ids": ids, "attention_mask": mask}


def logits_of(model: torch.nn.Module, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits.float()


def save_peer(family: str, folder: Path, **fields) -> Path:
    """Save a model and its tokenizer below `folder`; return where."""
    model, tokenizer = build_peer(family, **fields)
    model.save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)
    return folder / family
