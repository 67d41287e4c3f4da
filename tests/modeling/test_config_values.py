"""Odd values in the configurations: one line that names field and value, at once, wherever the value comes from."""

import json
import time
from dataclasses import fields
from typing import get_args

import pytest
import torch
from transformers import AutoConfig

from frankenlm.modeling import FrankensteinConfig, InfinitoConfig, Legacy1BitConfig

CONFIGS = (FrankensteinConfig, InfinitoConfig, Legacy1BitConfig)
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id")
NAN, INF, HUGE = float("nan"), float("inf"), 10**18
OF_ANOTHER_TYPE = ["much", [], {}, 1j, b"1", [[0.5]]]


def own_fields(config_class) -> dict[str, type]:
    own = config_class.__dict__["__annotations__"]
    return {field.name: field.type for field in fields(config_class) if field.name in own}


def kinds(annotation) -> set:
    return set(get_args(annotation)) or {annotation}


every_config = pytest.mark.parametrize("config_class", CONFIGS, ids=lambda c: c.model_type)


def refusal(config_class, **values) -> str:
    with pytest.raises(ValueError) as caught:
        config_class(**values)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


@every_config
def test_every_number_has_a_range(config_class):
    numbers = {name for name, kind in own_fields(config_class).items() if kinds(kind) & {int, float}}
    assert numbers - set(TOKENS) == set(config_class.RANGES) and len(numbers) > 12


@every_config
def test_numbers_that_are_none(config_class):
    for name, allowed in config_class.RANGES.items():
        for value in (NAN, INF, -INF, -HUGE, *([] if allowed.holds(HUGE) else [HUGE])):
            assert f"{name}=" in refusal(config_class, **{name: value}), name


@every_config
def test_numbers_below_their_range(config_class):
    for name, allowed in config_class.RANGES.items():
        kind = own_fields(config_class)[name]
        below = -1 if int in kinds(kind) else -0.5
        values = [below, 0] if allowed.lowest == 1 or allowed.lowest_is_out else [below] if allowed.lowest == 0 else []
        for value in values:
            assert f"{name}={value} must" in refusal(config_class, **{name: value})


@every_config
def test_values_of_another_type(config_class):
    for name, kind in own_fields(config_class).items():
        wrong = list(OF_ANOTHER_TYPE) if str not in kinds(kind) and kind is not str else OF_ANOTHER_TYPE[1:]
        wrong += [] if type(None) in kinds(kind) else [None]
        wrong += [1.5] if float not in kinds(kind) else []
        for value in wrong:
            if isinstance(value, list) and any("list" in str(part) for part in kinds(kind)) and not value:
                continue
            text = refusal(config_class, **{name: value})
            assert text.startswith(f"{name}={value!r} is of type {type(value).__name__}, but must be "), text


@every_config
@pytest.mark.parametrize("name", TOKENS)
def test_special_tokens_lie_in_the_vocabulary(config_class, name):
    for value in (-1, 100, HUGE):
        assert f"{name}={value} must lie in 0..vocab_size-1 = 99" in refusal(
            config_class, vocab_size=100, **{name: value}
        )
    config_class(vocab_size=100, **{name: 99})
    assert "eos_token_id=[0, 100]" in refusal(config_class, vocab_size=100, eos_token_id=[0, 100])


@pytest.mark.parametrize(
    ("config_class", "values", "named"),
    [
        (FrankensteinConfig, {"hidden_size": 2**20, "num_attention_heads": 2**10}, "hidden_size=1048576"),
        (FrankensteinConfig, {"num_experts": 60000, "intermediate_size": 10**6}, "num_experts"),
        (
            InfinitoConfig,
            {"max_position_embeddings": 2**31, "hidden_size": 2**14},
            "max_position_embeddings=2147483648",
        ),
        (Legacy1BitConfig, {"intermediate_size": 2**24, "num_hidden_layers": 4096}, "intermediate_size=16777216"),
    ],
)
def test_sizes_that_multiply_to_the_absurd(config_class, values, named):
    text = refusal(config_class, **values)
    assert named in text and "parameters" in text


@pytest.mark.parametrize("layers", [10**9, 1e9, "1e9", True])
@every_config
def test_too_many_layers_fail_at_once(config_class, layers, tmp_path):
    started = time.process_time()
    text = refusal(config_class, num_hidden_layers=layers)
    assert text.startswith(f"num_hidden_layers={layers!r} ")
    config_class().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": layers}))
    for load in (config_class.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(ValueError, match=r"^num_hidden_layers=") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
    assert time.process_time() - started < 5


def test_a_value_set_later_is_checked_too():
    config = Legacy1BitConfig()
    with pytest.raises(ValueError, match=r"^hidden_size='wide' is of type str, but must be int\.$"):
        config.hidden_size = "wide"
    config.dtype = torch.bfloat16  # not a field of ours
    config.anything = object()


def test_aliases_are_checked_before_they_are_multiplied():
    assert "num_layers='6'" in refusal(FrankensteinConfig, num_layers="6", num_loops=3)
    assert "num_layers=1000000000" in refusal(FrankensteinConfig, num_layers=10**9)
    assert "num_labels=1000000000" in refusal(FrankensteinConfig, num_labels=10**9)


def test_long_values_are_shortened():
    assert len(refusal(InfinitoConfig, hidden_size="x" * 10**6)) < 200
