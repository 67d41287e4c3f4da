"""How a FrankensteinConfig becomes parts: the one place where the family's fields meet the parts' arguments."""

from torch import nn

from .bitlinear import linear_factory
from .configuration_frankenstein import FrankensteinConfig
from .feedforward import FeedForward, MixtureOfExperts
from .mixer_base import Mixer
from .mixers import build_mixer
from .norms import build_norm


def _attention_options(config: FrankensteinConfig) -> dict:
    return {
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "position_type": config.position_type,
        "rope_theta": config.rope_theta,
        "use_bias": config.use_bias,
        "qk_norm": bool(config.qk_norm),
        "attention_dropout": config.attention_dropout,
        "linear": linear_factory(config, config.use_bitnet),
    }


def _sigmoid_options(config: FrankensteinConfig) -> dict:
    return {**_attention_options(config), "qk_norm": config.qk_norm is not False}


def _titan_options(config: FrankensteinConfig) -> dict:
    return {
        **_attention_options(config),
        "use_hope": config.use_hope,
        "hope_damping": config.hope_damping,
        "hope_rho": config.hope_rho,
        "hope_base": config.hope_base,
        "hope_layer_scale": config.hope_layer_scale,
        "use_memory": config.use_titan_memory,
        "memory_chunk": config.memory_chunk,
    }


def _retention_options(config: FrankensteinConfig) -> dict:
    return {
        "hidden_size": config.hidden_size,
        "num_heads": config.retention_heads,
        "value_factor": config.retnet_value_factor,
        "rotary": config.retnet_rotary,
        "rope_theta": config.rope_theta,
        "decay": config.retnet_decay,
        "chunk_size": config.chunk_size,
        "use_bias": config.use_bias,
        "linear": linear_factory(config, config.use_bitnet),
    }


def _mamba_options(config: FrankensteinConfig) -> dict:
    return {
        "hidden_size": config.hidden_size,
        "expand": config.mamba_expand,
        "head_dim": config.mamba_head_dim,
        "state_size": config.mamba_state,
        "conv_kernel": config.mamba_conv,
        "chunk_size": config.chunk_size,
        "use_bias": config.use_bias,
        "linear": linear_factory(config, config.use_bitnet),
    }


def _ode_options(config: FrankensteinConfig) -> dict:
    options = _attention_options(config)
    del options["attention_dropout"]  # the field is deterministic
    return {
        **options,
        "solver": config.ode_solver,
        "steps": config.ode_steps,
        "time_input": config.ode_time_input,
        "linear": linear_factory(config, config.use_bitnet and config.ode_bitnet),
    }


MIXER_OPTIONS = {
    "standard_attn": _attention_options,
    "sigmoid_attn": _sigmoid_options,
    "titan_attn": _titan_options,
    "retnet": _retention_options,
    "mamba": _mamba_options,
    "ode": _ode_options,
}


def make_mixer(config: FrankensteinConfig, name: str) -> Mixer:
    """Build one mixer of the layer pattern."""
    return build_mixer(name, **MIXER_OPTIONS[name](config))


def make_norm(config: FrankensteinConfig, alpha: float, name: str | None = None) -> nn.Module:
    """Build a norm over the hidden size, by default of the config's type; `alpha` is the slope of derf and tanh."""
    return build_norm(name or config.norm_type, config.hidden_size, alpha=alpha, eps=config.layer_norm_eps)


def make_feed_forward(config: FrankensteinConfig) -> FeedForward | MixtureOfExperts:
    """Build the dense feed-forward, or the mixture when the config has experts."""
    options = {"use_bias": config.use_bias, "linear": linear_factory(config, config.use_bitnet)}
    sizes = (config.hidden_size, config.intermediate_size, config.hidden_act)
    if config.num_experts == 0:
        return FeedForward(*sizes, **options)
    return MixtureOfExperts(*sizes, num_experts=config.num_experts, top_k=config.top_k_experts, **options)
