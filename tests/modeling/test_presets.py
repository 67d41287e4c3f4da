"""Presets: parameter counts to the unit, strict keys, and what each one promises."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM, list_presets, preset_files, read_preset

COUNTS = {
    "frankenstein": 311_750_953,
    "mini": 24_960_398,
    "standard": 124_492_880,
    "standard_hope": 123_423_056,
    "tinybert": 81_965_648,
    "embbert": 1_651_552,
}
FRANKENSTEIN = [name for name in list_presets() if read_preset(name).model_type == "frankenstein"]


def count_parameters(config) -> int:
    with torch.device("meta"):
        model = FrankensteinForMaskedLM(config)
    return sum(parameter.numel() for parameter in model.parameters())  # parameters() counts shared ones once


def test_every_preset_has_a_count_here():
    assert set(FRANKENSTEIN) == set(COUNTS)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameter_count(name, count):
    assert count_parameters(FrankensteinConfig.from_preset(name)) == count


@pytest.mark.parametrize(("name", "layers"), [("standard", 12), ("tinybert", 6)])
def test_bert_presets_count_what_bert_counts(name, layers):
    with torch.device("meta"):
        bert = BertForMaskedLM(BertConfig(vocab_size=30522, num_hidden_layers=layers))
    ours = count_parameters(FrankensteinConfig.from_preset(name, vocab_size=30522))
    assert ours == sum(parameter.numel() for parameter in bert.parameters())


@pytest.mark.parametrize("name", FRANKENSTEIN)
def test_norms_that_do_not_rescale_bring_their_two_safeguards(name):
    config = FrankensteinConfig.from_preset(name)
    if config.norm_type in ("derf", "dynamic_tanh"):
        assert (config.embedding_norm, config.head_bias_init) == ("rms", "unigram")


def test_unknown_preset_suggests():
    with pytest.raises(ValueError, match=r"preset='minni' is not known\. Did you mean 'mini'\?"):
        FrankensteinConfig.from_preset("minni")


def test_unknown_override_suggests():
    with pytest.raises(ValueError, match=r"unknown key 'hiden_size'\. Did you mean 'hidden_size'\?"):
        FrankensteinConfig.from_preset("mini", hiden_size=3)


def test_wrong_type_in_an_override_is_a_value_error():
    with pytest.raises(ValueError, match="hidden_size"):
        FrankensteinConfig.from_preset("mini", hidden_size="wide")


@pytest.fixture
def preset_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(preset_files, "PRESET_FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {model_type: frankenstein, hiden_size: 3}", r"unknown key 'hiden_size'\. Did you mean 'hidden_size'"),
        ("modle: {model_type: frankenstein}", r"unknown key 'modle'\. Did you mean 'model'"),
        ("model: {hidden_size: 3}", "must name its model_type"),
        ("model: {model_type: infinito}", "model_type 'infinito', not 'frankenstein'"),
        ("- just\n- a list", "expected a mapping of the sections"),
    ],
)
def test_bad_preset_file(preset_folder, text, message):
    (preset_folder / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        FrankensteinConfig.from_preset("broken")
