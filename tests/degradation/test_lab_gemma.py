"""Tiny Gemma-3 models, text and multimodal, through the three configurations; pictures under damage."""

import pytest

from frankenlm.degradation import get_config, run_experiment
from frankenlm.degradation.answers.row_decoder import RowDecoder
from frankenlm.degradation.lab import Lab, RunOptions
from small_runs import rows_of

CONFIGS = ("dreams_it", "iq_it", "cookie_theft_it")
LOADS = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "4bit": {"dtype": "bfloat16", "load_4bit": True},
}
WALK = (("gemma3", "bf16"), ("gemma3_mm", "fp32"), ("gemma3_mm", "4bit"))


@pytest.fixture(scope="module")
def wide_gemma(tiny_model, tiny_tokenizer, tiny_processor, tmp_path_factory):
    """wide_gemma(name) -> folder of a tiny Gemma-3 whose layers are as wide as a 4-bit block."""
    sizes, made = {"hidden_size": 64, "intermediate_size": 128}, {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("wide") / f"tiny-{name}"
            if name == "gemma3":
                tiny_model(name, **sizes).save_pretrained(folder)
                tiny_tokenizer().save_pretrained(folder)
            else:
                text = tiny_model(name).config.text_config
                for field, value in sizes.items():
                    setattr(text, field, value)
                tiny_model(name, text_config=text).save_pretrained(folder)
                tiny_processor().save_pretrained(folder)
            made[name] = folder
        return made[name]

    return make


@pytest.mark.filterwarnings("ignore:.*MatMul4Bit.*")
@pytest.mark.parametrize(
    ("name", "load"),
    [
        pytest.param(name, load, marks=[] if (name, load) in WALK else [pytest.mark.slow])
        for name in ("gemma3", "gemma3_mm")
        for load in LOADS
    ],
)
def test_gemma3_goes_through_the_three_configurations(name, load, wide_gemma, tmp_path):
    """From the saved folder; pictures where the model takes them; the damaged level differs from the baseline."""
    for config_name in CONFIGS:
        config = get_config(config_name) | {
            "levels": (0.0, 0.5),
            "n_rep": 1,
            "max_prompts": 3,
            "max_new_tokens": 5,
            "max_batch_size": 2,
            "max_seq_length": 1024,
            "perplexity": False,
            "group": "mlp_only",
            **LOADS[load],
        }
        if config.image is not None and name == "gemma3":
            with pytest.raises(ValueError, match="reads text only"):
                Lab(str(wide_gemma(name)), RunOptions(output_dir=tmp_path)).plan(config)
            continue
        rows = rows_of(run_experiment(config, model=str(wide_gemma(name)), output_dir=tmp_path, progress=False))
        assert len(rows) == 6 and {row["status"] for row in rows} == {"ok"}
        assert all(row["image_used"] == (config.image is not None) for row in rows)
        assert all(row["load_4bit"] == (load == "4bit") and row["decoder"] == "rows" for row in rows)
        found = [(row["completion"], row["mean_logprob"]) for row in rows]
        assert all(undamaged != damaged for undamaged, damaged in zip(found[:3], found[3:], strict=True))


@pytest.mark.parametrize(
    ("group", "intact"),
    [
        ("attn_only", True),
        ("embed_only", True),
        ("attn_only+vision", False),
        ("vision_mlp", False),
        ("projector", False),
    ],
)
def test_pictures_are_read_again_where_damage_reaches_them(group, intact, wide_gemma, tmp_path, monkeypatch):
    made = []
    probe = RowDecoder._probe
    monkeypatch.setattr(RowDecoder, "_probe", lambda self: made.append(self) or probe(self))
    config = get_config("cookie_theft_it") | {
        "dtype": "float32",
        "group": group,
        "levels": (0.0, 0.5),
        "n_rep": 1,
        "max_prompts": 1,
        "max_new_tokens": 3,
        "perplexity": False,
    }
    run_experiment(config, model=str(wide_gemma("gemma3_mm")), output_dir=tmp_path, progress=False)
    (decoder,) = made
    assert decoder.keep_picture == intact and (decoder._picture is not None) == intact
