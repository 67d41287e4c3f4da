"""Tiny models and the text they learn from."""

import hashlib
import pydoc_data.topics

import pytest
import torch

from causal_cases import CASES
from forking import WITHOUT_FRANKENLM, ForkServer
from frankenlm.modeling import (
    FrankensteinConfig,
    FrankensteinForCausalLM,
    FrankensteinForMaskedLM,
    InfinitoForCausalLM,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.mixers import MIXERS
from frankenlm.modeling.norms import NORMS
from tiny_infinito import tiny_infinito
from tiny_legacy import tiny_legacy

VOCAB = 61
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "retention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
    "position_type": "rope",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "chunk_size": 8,
    "mamba_head_dim": 16,
    "mamba_state": 8,
    "head_bias_init": "zeros",
}


# Mixers that are another one with something switched on; tests that walk the table of mixers walk these too.
VARIANTS = {"titan_memory": ("titan_attn", {"use_titan_memory": True, "memory_chunk": 8})}

WALKED = [*sorted(MIXERS), *VARIANTS]


def crossed() -> list:
    """Mixers x norms x directions; the quick tests have every two of the three together, the slow ones the rest."""
    return [
        pytest.param(
            *(mixer, norm, is_decoder),
            id=f"{('encoder', 'decoder')[is_decoder]}-{norm}-{mixer}",
            marks=[pytest.mark.slow] if (row + column + is_decoder) % 2 else [],
        )
        for row, mixer in enumerate(WALKED)
        for column, norm in enumerate(sorted(NORMS))
        for is_decoder in (False, True)
    ]


def _tiny_config(mixer="standard_attn", norm="layer_norm", is_decoder=False, **overrides):
    names = [mixer] if isinstance(mixer, str) else list(mixer)
    pattern = [VARIANTS[name][0] if name in VARIANTS else name for name in names]
    for name in VARIANTS.keys() & set(names):
        overrides = VARIANTS[name][1] | overrides
    pointwise = norm in ("derf", "dynamic_tanh")
    fields = TINY | {"layer_pattern": pattern, "norm_type": norm, "embedding_norm": "rms" if pointwise else None}
    fields["num_hidden_layers"] = max(2, len(pattern)) * overrides.get("num_loops", 1)
    return FrankensteinConfig(**fields | {"is_decoder": is_decoder} | overrides)


@torch.no_grad()
def _enliven(model, gain=2.0, seed=1):
    """Redraw the weights so that every part matters: at init a broken part can hide behind tiny branches.

    Matrices get N(0, gain^2 / fan_in), the token table N(0, 16 / width), vectors are shifted by noise of 0.3.
    Same seed, same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        factor = 4.0 if "embed_tokens" in name else gain  # the table is the output matrix too
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim >= 2:
            parameter.copy_(noise * factor / parameter[0].numel() ** 0.5)
        else:
            parameter.add_((0.3 * noise).to(parameter.dtype))
    return model


def _tiny_model(
    mixer="standard_attn", norm="layer_norm", is_decoder=False, *, lively=True, gain=2.0, dtype=None, **overrides
):
    torch.manual_seed(0)
    config = _tiny_config(mixer, norm, is_decoder, **overrides)
    model = (FrankensteinForCausalLM if is_decoder else FrankensteinForMaskedLM)(config).eval()
    if lively:
        _enliven(model, gain)
        with torch.no_grad():
            assert model(torch.arange(20)[None]).logits.std() >= 1, "too quiet for an equality test to mean anything"
    return model.to(dtype) if dtype is not None else model


@pytest.fixture(scope="session")
def tiny_config():
    """tiny_config(mixer or pattern, norm, is_decoder, **fields) -> FrankensteinConfig, without dropout."""
    return _tiny_config


@pytest.fixture(scope="session")
def tiny_model():
    """tiny_model(mixer(s), norm, is_decoder, *, lively, gain, dtype, **fields) -> language model in eval mode."""
    return _tiny_model


@pytest.fixture(scope="session")
def enliven():
    """enliven(module) -> the same module with weights that make every part matter."""
    return _enliven


@pytest.fixture(scope="session")
def tokens():
    """tokens(batch, length) -> random ids of the tiny vocabulary, from a generator of their own."""

    def draw(batch, length, seed=0):
        return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture(scope="session")
def text_bytes():
    """Real English as byte ids below 128, {"train": (N,), "validation": (M,)}, split by a hash of the topic."""
    parts = {"train": [], "validation": []}
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        share = int(hashlib.sha256(topic.encode()).hexdigest(), 16) % 10
        parts["train" if share else "validation"].append(text)
    return {name: torch.tensor(list("\n".join(texts).encode("ascii", "replace"))) for name, texts in parts.items()}


@pytest.fixture(scope="session")
def build_infinito(enliven):
    """build_infinito(**fields) -> a lively float64 model in eval mode."""

    def make(*, dtype=torch.float64, **fields):
        torch.manual_seed(0)
        return enliven(InfinitoForCausalLM(tiny_infinito(**fields)).eval()).to(dtype)

    return make


@pytest.fixture(scope="session")
def build_legacy(enliven):
    """build_legacy(kind, **fields) -> a lively float64 model in eval mode."""

    def make(kind="legacy", *, dtype=torch.float64, **fields):
        torch.manual_seed(0)
        return enliven(Legacy1BitForCausalLM(tiny_legacy(kind, **fields)).eval()).to(dtype)

    return make


@pytest.fixture(scope="module")
def build_causal(tiny_model):
    """build_causal(case) -> the model of a causal case, in float64; made once, never changed."""
    models = {}

    def make(case):
        if case not in models:
            mixers, fields = CASES[case]
            models[case] = tiny_model(mixers, "rms_norm", is_decoder=True, dtype=torch.float64, **fields)
        return models[case]

    return make


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """Runs code where frankenlm is not installed; the folders it loads from have names of their own."""
    modules = tmp_path_factory.mktemp("stranger")
    env = {"HF_MODULES_CACHE": str(modules), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    imports = "import torch, transformers\nfrom transformers import AutoModel, AutoTokenizer, PreTrainedModel\n"
    with ForkServer(WITHOUT_FRANKENLM + imports, env=env, options=("-W", "error::FutureWarning")) as server:
        yield server
