"""Tiny models of many families, made from their configurations, and a byte tokenizer with a chat template.

tiny_model(name) -> a fresh model in eval mode; the same name, the same weights.
tiny_dir(name)   -> a folder with that model and its tokenizer (its processor too for gemma3_mm), made once a session.
tiny_config(name) -> its configuration. tiny_tokenizer(padding_side), tiny_mask_tokenizer() (of the models in MASKED)
and tiny_processor() -> what such a folder holds.
The names are TINY_MODELS. Text: ids 0-255 are bytes, the special tokens follow them.
"""

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from frankenlm.degradation import run_experiment
from frankenlm.degradation.run import limits
from frankenlm.modeling import FrankensteinConfig, InfinitoConfig, Legacy1BitConfig
from frankenlm.modeling.tokenization_bytes import byte_letters
from small_runs import SMALL, rows_of

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
IMAGE = {"boi_token": "<image>", "image_token": "<patch>", "eoi_token": "</image>"}
TURN, END_TURN = "<turn>", "</turn>"
MASK = "<mask>"
LETTERS = [*byte_letters(), *SPECIAL.values(), TURN, END_TURN, *IMAGE.values(), MASK]
IDS = {letter: index for index, letter in enumerate(LETTERS)}
VOCAB = 272  # a few more rows than tokens, as real models have
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<turn>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "</turn>\n{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
TOKENS = {
    "vocab_size": VOCAB,
    "pad_token_id": IDS["<pad>"],
    "bos_token_id": IDS["<bos>"],
    "eos_token_id": [IDS["<eos>"], IDS[END_TURN]],
}
GROUPED = SHAPE | TOKENS | {"num_key_value_heads": 2, "max_position_embeddings": 2048}
GEMMA3 = GROUPED | {
    "num_hidden_layers": 6,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 16,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
BERT = SHAPE | {"vocab_size": VOCAB, "pad_token_id": IDS["<pad>"], "max_position_embeddings": 2048}
OWN = (
    SHAPE
    | TOKENS
    | {"eos_token_id": IDS["<eos>"], "max_position_embeddings": 2048, "dropout": 0.0, "attention_dropout": 0.0}
)

# name -> (model class, configuration class, its fields)
TINY_MODELS = {
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA3),
    "gemma3_mm": ("Gemma3ForConditionalGeneration", "Gemma3Config", {
        "text_config": GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4, "boi_token_index": IDS["<image>"],
        "eoi_token_index": IDS["</image>"], "image_token_index": IDS["<patch>"],
        "pad_token_id": TOKENS["pad_token_id"], "bos_token_id": TOKENS["bos_token_id"],
        "eos_token_id": TOKENS["eos_token_id"],
    }),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED | {
        "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
    }),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "llama_tied": ("LlamaForCausalLM", "LlamaConfig", GROUPED | {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED | {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED | {"head_dim": 8}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", GROUPED | {
        "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    }),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", TOKENS | {
        "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 2048, "n_inner": 48,
    }),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SHAPE | TOKENS | {"max_position_embeddings": 2048}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GROUPED | {"original_max_position_embeddings": 2048}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 4, "sliding_window": None}),
    "bert": ("BertForMaskedLM", "BertConfig", BERT),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", BERT),
    "frankenstein": ("FrankensteinForCausalLM", FrankensteinConfig, OWN | {
        "is_decoder": True, "layer_pattern": ["standard_attn", "retnet"], "position_type": "rope",
        "retention_heads": 4, "chunk_size": 8,
    }),
    "infinito": ("InfinitoForCausalLM", InfinitoConfig, OWN | {
        "memory_layers": [1, 2], "memory_slots": 5, "memory_dim": 8, "memory_heads": 2, "memory_segment": 4,
        "exploration_sigma": 0.0,
    }),
    "legacy_1bit": ("Legacy1BitForCausalLM", Legacy1BitConfig, OWN),
}  # fmt: skip
MASKED = {name for name, (model, *_) in TINY_MODELS.items() if model.endswith("ForMaskedLM")}


def _class(name):
    return getattr(transformers, name, None) or getattr(__import__("frankenlm.modeling", fromlist=[name]), name)


def _config(name, **overrides):
    _, config_class, fields = TINY_MODELS[name]
    config_class = _class(config_class) if isinstance(config_class, str) else config_class
    return config_class(**fields | overrides)


@torch.no_grad()
def _enliven(model):
    """Redraw the weights so that every part matters and the next token is neither certain nor a coin toss.

    Matrices N(0, 1 / columns); tables of embeddings and heads N(0, 4 / columns), for logits with a spread of about 2;
    vectors plus N(0, 0.1^2).
    """
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2:
            parameter.add_(0.1 * noise)
        else:
            gain = 2 if any(part in name for part in ("embed", "wte", "head")) else 1
            parameter.copy_(gain * noise / parameter.shape[-1] ** 0.5)


def _model(name, *, dtype=torch.float32, **overrides):
    torch.manual_seed(0)
    model = _class(TINY_MODELS[name][0])(_config(name, **overrides))
    _enliven(model)
    return model.eval().to(dtype)


def _tokenizer(padding_side="right", chat_template=TEMPLATE):
    backend = Tokenizer(models.BPE(vocab=IDS, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **SPECIAL,
        extra_special_tokens=[TURN, END_TURN],
        model_specific_special_tokens=IMAGE,
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _mask_tokenizer():
    """The same without a chat template, with a mask token, and <bos> and <eos> around every text."""
    tokenizer = _tokenizer(chat_template=None)
    tokenizer.mask_token = MASK
    ends = [(letter, IDS[letter]) for letter in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> $B <eos>", special_tokens=ends
    )
    return tokenizer


def _processor():
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    pictures = Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Gemma3Processor(pictures, _tokenizer(), chat_template=TEMPLATE, image_seq_length=4)


@pytest.fixture(autouse=True)
def plenty_of_memory(monkeypatch):
    """What else the machine's memory holds must not stop or slow a tiny experiment."""
    monkeypatch.setattr(limits, "HostReader", lambda: lambda: 0.2)


@pytest.fixture(scope="session")
def tiny_config():
    """tiny_config(name, **fields) -> configuration."""
    return _config


@pytest.fixture(scope="session")
def tiny_model():
    """tiny_model(name, *, dtype, **fields of the configuration) -> model in eval mode."""
    return _model


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """tiny_tokenizer(padding_side="right", chat_template=...) -> byte tokenizer."""
    return _tokenizer


@pytest.fixture(scope="session")
def tiny_mask_tokenizer():
    """tiny_mask_tokenizer() -> byte tokenizer of a masked language model."""
    return _mask_tokenizer


@pytest.fixture(scope="session")
def tiny_processor():
    """tiny_processor() -> processor for text and 56-px pictures of four tokens."""
    return _processor


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory):
    """tiny_dir(name) -> Path of a folder that from_pretrained opens; its last part is `tiny-{name}`."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def make(name):
        if name not in made:
            folder = root / f"tiny-{name}"
            _model(name).save_pretrained(folder)
            reader = _processor() if name == "gemma3_mm" else _mask_tokenizer() if name in MASKED else _tokenizer()
            reader.save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make


@pytest.fixture
def lab(tiny_model, tiny_tokenizer, tmp_path):
    """lab(config, folder="results") runs an experiment on a tiny Llama in this process, returns its rows."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()

    def run(config=SMALL, folder="results", **options):
        options = {"model": model, "tokenizer": tokenizer, "progress": False, **options}
        return rows_of(run_experiment(config, output_dir=tmp_path / folder, **options))

    run.model = model
    return run


@pytest.fixture(scope="module")
def unbroken(tiny_model, tiny_tokenizer, tmp_path_factory):
    """The rows of SMALL, in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    path = run_experiment(
        SMALL, model=tiny_model("llama"), tokenizer=tiny_tokenizer(), output_dir=folder, progress=False
    )
    return rows_of(path)
