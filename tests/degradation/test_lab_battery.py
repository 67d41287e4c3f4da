"""A battery from prompt to profile on a tiny model, and its questions read by likelihood."""

import pytest
import torch

from frankenlm.degradation import Lab, RunOptions
from frankenlm.degradation.configs import CONFIGS
from frankenlm.degradation.flags import LISTS
from frankenlm.degradation.harness import Harness
from frankenlm.degradation.likelihood_tasks import sets_with_choices
from frankenlm.degradation.prompts import PARTS, load_prompts
from frankenlm.degradation.report.profile import profile_section, profiles
from frankenlm.degradation.report.write import analyse, write_report
from frankenlm.scripts.degrade import main
from small_runs import SMALL, rows_of

BATTERIES = ("battery_en", "battery_es")


def test_configurations():
    assert "prompts" in LISTS
    for name in BATTERIES:
        config = CONFIGS[name]
        assert (config.prompts, config.name_suffix) == (name, name) and config.max_new_tokens >= 100


def test_from_prompts_to_a_profile(lab, tmp_path):
    """An item of each part in Spanish, asked of a tiny model."""
    rows = lab(SMALL | {"prompts": "battery_es", "max_prompts": 4, "n_rep": 1})
    assert len(rows) == 2 * 4 and {row["prompt_skill"] for row in rows} == set(PARTS)
    [path] = (tmp_path / "results").glob("*.json")
    curves = analyse([path], measure_texts=None, draws=20, progress=False).curves
    [profile] = profiles(curves)
    assert list(profile["scores"]) == ["score", *PARTS]
    for part in PARTS:
        assert all(0 <= value <= 1 for value in profile["scores"][part]["centre"])
    errors = sum(torch.tensor(values) for values in profile["errors"].values())
    right = {c.measure.name: c for c in curves}["score"].stats["centre"]
    assert (errors <= 1 + 1e-6).all() and (errors >= 1 - torch.tensor(right) - 1e-6).all(), "an answer has one kind"
    assert "Profile" in profile_section(curves)[0]


@pytest.mark.slow
def test_both_languages_in_one_command(tiny_dir, tmp_path, capsys):
    """Killed by nobody, run twice: the second time nothing is written."""
    words = ["--model", str(tiny_dir("llama")), "--config", "smoke", "--dtype", "float32", "--max_new_tokens", "12"]
    words += ["--prompts", *BATTERIES, "--max_prompts", "16", "--output_dir", str(tmp_path / "out")]
    main(["run", *words])
    paths = sorted((tmp_path / "out").glob("*.json"))
    assert [path.stem.rpartition("_b")[2] for path in paths] == ["attery_en", "attery_es"]
    rows = [rows_of(path) for path in paths]
    assert [len(each) for each in rows] == [4 * 16] * 2
    main(["run", *words])
    assert [rows_of(path) for path in paths] == rows
    page = write_report(paths, tmp_path / "report", draws=50, progress=False).read_text("utf-8")
    assert page.count("<h3>Profile</h3>") == 2 and page.count("<h3>Profile by level</h3>") == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("default", "error:::frankenlm")  # those of other libraries are theirs
def test_choices_by_likelihood(tiny_model, tiny_tokenizer, tmp_path):
    """The harness's choice is the choice that our own sum of log-probabilities finds likeliest."""
    pytest.importorskip("lm_eval")
    assert set(BATTERIES) < set(sets_with_choices())
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    harness = Harness(["battery_es"])
    assert list(harness.tasks) == ["battery_es_word_comprehension", "battery_es_sentence_comprehension"]
    lab = Lab(model, RunOptions(output_dir=tmp_path, progress=False, harness=harness), tokenizer=tokenizer)
    config = SMALL | {"prompts": "battery_es", "max_prompts": 4, "levels": (0.0,), "n_rep": 1}
    path = lab.run(lab.plan(config))
    curves = {c.measure.name: c for c in analyse([path], measure_texts=None, draws=20, progress=False).curves}
    for part in ("word comprehension", "sentence comprehension"):
        items = [prompt for prompt in load_prompts("battery_es") if prompt.part == part]
        right = [likeliest(model, tokenizer, prompt) == prompt.answer for prompt in items]
        found = curves[f"lm_eval/battery_es_{part.replace(' ', '_')}/acc"]
        assert found.values[0, 0] == pytest.approx(sum(right) / len(right))


@torch.no_grad()
def likeliest(model, tokenizer, prompt) -> str:
    asked = tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    sums = {}
    for choice in prompt.choices:
        answer = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        scores = model(torch.tensor([asked + answer])).logits[0].log_softmax(-1)[len(asked) - 1 : -1]
        sums[choice] = float(scores[torch.arange(len(answer)), answer].sum())
    return max(sums, key=sums.get)
