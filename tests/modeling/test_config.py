"""FrankensteinConfig: fields, aliases, round trips, and a clear error for every impossible combination."""

import pytest
from huggingface_hub.errors import StrictDataclassError

from frankenlm.modeling import FrankensteinConfig, FrankensteinForCausalLM, FrankensteinForMaskedLM
from frankenlm.modeling import configuration_frankenstein as configuration
from frankenlm.modeling.feedforward import ACTIVATIONS
from frankenlm.modeling.frankenstein_block import make_mixer
from frankenlm.modeling.mixer_ode import SOLVERS
from frankenlm.modeling.mixer_retention import DECAYS
from frankenlm.modeling.mixers import MIXERS
from frankenlm.modeling.norms import NORMS
from frankenlm.modeling.ternary import SCALE_AXES, SCHEMES

IMPOSSIBLE = [
    ({"norm_type": "derff"}, r"norm_type='derff' is not known\. Did you mean 'derf'\?"),
    ({"layer_pattern": ["retnett"]}, r"layer_pattern entry='retnett' is not known\. Did you mean 'retnet'\?"),
    ({"layer_pattern": []}, "layer_pattern is empty"),
    ({"num_hidden_layers": 6, "num_loops": 4}, "num_loops=4 must divide num_hidden_layers=6"),
    ({"num_hidden_layers": 3}, "layer_pattern has 6 entries but there are only 3 physical layers"),
    ({"num_attention_heads": 5}, "num_attention_heads=5 must divide hidden_size=384"),
    ({"retention_heads": 7}, "retention_heads=7 must divide hidden_size=384"),
    ({"mamba_head_dim": 100}, "mamba_head_dim=100 must divide"),
    ({"hidden_size": 18, "mamba_head_dim": 6}, "odd head width; rotary and hyperbolic"),
    ({"hope_rho": 1.0}, r"hope_rho=1.0 must lie in \[0, 1\)"),
    ({"hope_damping": 0.0}, "hope_damping=0.0 must be positive"),
    ({"layer_pattern": ["standard_attn"]}, "can tell the order of tokens"),
    ({"layer_pattern": ["titan_attn", "ode"], "use_hope": False}, "can tell the order of tokens"),
    ({"attention_window": 0}, "attention_window=0 must be positive"),
    ({"num_experts": 2, "top_k_experts": 3}, "top_k_experts=3 exceeds num_experts=2"),
    ({"num_experts": -1}, "num_experts=-1 must not be negative"),
    ({"dropout": 1.5}, r"dropout=1.5 must lie in \[0, 1\)"),
    ({"attention_dropout": -0.1}, "attention_dropout=-0.1 must lie in"),
    ({"initializer_range": -1.0}, "initializer_range=-1.0 must not be negative"),
    ({"router_aux_loss_coef": -1.0}, "router_aux_loss_coef=-1.0 must not be negative"),
    ({"vocab_size": 10, "pad_token_id": 10}, "pad_token_id=10 must lie in 0..vocab_size-1 = 9"),
    ({"ode_bitnet": True}, "ode_bitnet=True does nothing without use_bitnet=True"),
    ({"bitnet_head": True}, "bitnet_head=True does nothing without use_bitnet=True"),
    ({"norm_style": "post", "final_norm_type": "rms_norm"}, "does nothing with norm_style='post'"),
    ({"embedding_conv_depthwise": True}, "does nothing without an embedding_conv_kernel"),
    ({"num_heads": 2, "num_attention_heads": 4}, "num_heads=2 and num_attention_heads=4 name the same field"),
    ({"activation_bits": 16}, "activation_bits=16"),
    ({"vocab_size": 0}, "vocab_size=0 must be positive"),
    ({"use_titan_memory": True, "layer_pattern": ["retnet"]}, "has no titan_attn"),
    ({"ode_solver": "rk5"}, "Did you mean 'rk4'"),
    ({"w_scheme": "ternary"}, "w_scheme='ternary' is not known"),
]


@pytest.mark.parametrize(("fields", "message"), IMPOSSIBLE, ids=lambda value: str(value)[:40])
def test_impossible_combination_names_field_and_value(fields, message):
    with pytest.raises(ValueError, match=message):
        FrankensteinConfig(**fields)


def test_wrong_type_is_refused():
    with pytest.raises(StrictDataclassError, match="hidden_size"):
        FrankensteinConfig(hidden_size="large")


def test_values_set_by_hand_are_checked_when_a_model_is_built():
    config = FrankensteinConfig()
    config.num_attention_heads = 5
    with pytest.raises(ValueError, match="num_attention_heads=5"):
        FrankensteinForMaskedLM(config)


def test_choices_are_the_tables_of_the_parts():
    """The configuration travels without the parts, so it repeats their names; here they are held together."""
    assert set(configuration.NORM_NAMES) == set(NORMS)
    assert set(FrankensteinConfig.CHOICES["hidden_act"]) == set(ACTIVATIONS)
    assert set(FrankensteinConfig.CHOICES["ode_solver"]) == set(SOLVERS)
    assert set(FrankensteinConfig.CHOICES["retnet_decay"]) == set(DECAYS)
    assert set(FrankensteinConfig.CHOICES["w_scheme"]) == set(SCHEMES)
    assert set(FrankensteinConfig.CHOICES["scale_axis"]) == set(SCALE_AXES)


def test_seed_names_are_aliases():
    config = FrankensteinConfig(num_layers=6, num_loops=2, num_heads=4, ffn_hidden_size=99, ffn_activation="gelu")
    assert (config.num_hidden_layers, config.num_physical_layers) == (12, 6)
    assert (config.num_attention_heads, config.intermediate_size, config.hidden_act) == (4, 99, "gelu")
    assert "num_layers" not in config.to_dict()


@pytest.mark.parametrize("name", sorted(MIXERS))
@pytest.mark.parametrize("fields", [{"position_type": "none"}, {"position_type": "none", "use_hope": False}])
def test_position_rule_agrees_with_the_mixers(name, fields):
    """The configuration's rule of which mixers carry position is what the mixers say of themselves."""
    config = FrankensteinConfig(position_type="rope")
    config.__dict__.update(fields)
    carries = make_mixer(config, name).carries_position
    config.layer_pattern = [name]
    if carries:
        config.check_consistency()
    else:
        with pytest.raises(ValueError, match="can tell the order of tokens"):
            config.check_consistency()


def test_json_round_trip(tmp_path):
    config = FrankensteinConfig(num_loops=2, num_hidden_layers=12, eos_token_id=[1, 2], final_norm_type="rms_norm")
    config.save_pretrained(tmp_path)
    loaded = FrankensteinConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.num_hidden_layers == 12  # the logical depth is stored, not multiplied again


@pytest.mark.parametrize(("head", "is_decoder"), [(FrankensteinForMaskedLM, True), (FrankensteinForCausalLM, False)])
def test_head_of_the_other_direction_is_refused(head, is_decoder):
    with pytest.raises(ValueError, match=f"needs is_decoder={not is_decoder}"):
        head(FrankensteinConfig(is_decoder=is_decoder))
