"""The exchange of weights with transformers' BertForMaskedLM, one to one."""

import re

import torch
from transformers import BertConfig, BertForMaskedLM

# ours -> BERT's, as regular expressions over parameter names
RENAMES = (
    (r"^model\.embeddings\.embed_tokens\.", "bert.embeddings.word_embeddings."),
    (r"^model\.embeddings\.embed_positions\.", "bert.embeddings.position_embeddings."),
    (r"^model\.embeddings\.embed_types\.", "bert.embeddings.token_type_embeddings."),
    (r"^model\.embeddings\.norm\.", "bert.embeddings.LayerNorm."),
    (r"^model\.layers\.(\d+)\.mixer\.q_proj\.", r"bert.encoder.layer.\1.attention.self.query."),
    (r"^model\.layers\.(\d+)\.mixer\.k_proj\.", r"bert.encoder.layer.\1.attention.self.key."),
    (r"^model\.layers\.(\d+)\.mixer\.v_proj\.", r"bert.encoder.layer.\1.attention.self.value."),
    (r"^model\.layers\.(\d+)\.mixer\.o_proj\.", r"bert.encoder.layer.\1.attention.output.dense."),
    (r"^model\.layers\.(\d+)\.norm1\.", r"bert.encoder.layer.\1.attention.output.LayerNorm."),
    (r"^model\.layers\.(\d+)\.ffn\.up_proj\.", r"bert.encoder.layer.\1.intermediate.dense."),
    (r"^model\.layers\.(\d+)\.ffn\.down_proj\.", r"bert.encoder.layer.\1.output.dense."),
    (r"^model\.layers\.(\d+)\.norm2\.", r"bert.encoder.layer.\1.output.LayerNorm."),
    (r"^lm_head\.dense\.", "cls.predictions.transform.dense."),
    (r"^lm_head\.norm\.", "cls.predictions.transform.LayerNorm."),
    (r"^lm_head\.decoder\.", "cls.predictions.decoder."),
)
# What a configuration must say to have BERT's layout.
BERT_LAYOUT = {
    "norm_type": "layer_norm",
    "norm_style": "post",
    "position_type": "learned",
    "layer_pattern": ["standard_attn"],
    "use_bias": True,
    "head_bias": True,
    "head_transform": True,
    "embedding_norm": None,
    "factorized_embedding_dim": None,
    "embedding_conv_kernel": 0,
    "num_experts": 0,
    "num_loops": 1,
    "loop_embedding": False,
    "use_bitnet": False,
    "attention_window": None,
    "is_decoder": False,
    "two_directions": False,
}
# BERT's field -> ours
FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "tie_word_embeddings": "tie_word_embeddings",
}


def bert_name(name: str) -> str:
    """Return BERT's name of one of our parameters."""
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    raise ValueError(f"parameter {name!r} has no counterpart in BertForMaskedLM.")


def bert_to_ours(bert: BertForMaskedLM, config_class: type) -> tuple:
    """Return our configuration and our state dict for a BertForMaskedLM."""
    if bert.config.is_decoder or bert.config.add_cross_attention:
        raise ValueError("from_bert takes an encoder: this BertForMaskedLM has is_decoder or add_cross_attention set.")
    copied = {ours: bert.config.to_dict()[theirs] for theirs, ours in FIELDS.items()}
    config = config_class(**{**BERT_LAYOUT, "head_bias_init": "zeros", **copied})
    theirs_to_ours = {bert_name(name): name for name in _our_names(config)}
    weights = {ours: bert.state_dict()[theirs] for theirs, ours in theirs_to_ours.items()}
    return config, weights


def ours_to_bert(model) -> BertForMaskedLM:
    """Return a BertForMaskedLM with the weights of a FrankensteinForMaskedLM of BERT's layout."""
    values = model.config.to_dict()
    for field, needed in BERT_LAYOUT.items():
        if values[field] != needed:
            raise ValueError(f"to_bert needs {field}={needed!r}, but this model has {values[field]!r}.")
    config = BertConfig(**{theirs: values[ours] for theirs, ours in FIELDS.items()})
    weights = {bert_name(name): tensor for name, tensor in model.state_dict().items()}
    weights["cls.predictions.bias"] = weights["cls.predictions.decoder.bias"]
    if config.type_vocab_size == 0:  # BERT always looks a type up: give it one that adds nothing
        config.type_vocab_size = 1
        weights["bert.embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.hidden_size)
    bert = BertForMaskedLM(config).to(model.dtype)
    bert.load_state_dict(weights, strict=True)
    bert.tie_weights()
    return bert.train(model.training)


def _our_names(config) -> list[str]:
    names = [f"model.embeddings.{table}.weight" for table in ("embed_tokens", "embed_positions")]
    names += ["model.embeddings.embed_types.weight"] if config.type_vocab_size else []
    modules = ["model.embeddings.norm", "lm_head.dense", "lm_head.norm", "lm_head.decoder"]
    parts = (
        "mixer.q_proj",
        "mixer.k_proj",
        "mixer.v_proj",
        "mixer.o_proj",
        "norm1",
        "ffn.up_proj",
        "ffn.down_proj",
        "norm2",
    )
    modules += [f"model.layers.{layer}.{part}" for layer in range(config.num_hidden_layers) for part in parts]
    return names + [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]
