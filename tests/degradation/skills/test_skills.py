"""Skills on questions that the undamaged model can do: items, scores of answers, runs, and the order of the skills."""

import json

import numpy
import pytest
import torch

from frankenlm.degradation.answers.option_probe import LEAD, OptionProbe
from frankenlm.degradation.answers.rendering import render_prompts
from frankenlm.degradation.cli import main
from frankenlm.degradation.configs import get_config
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.report.bootstrap import STUDENT
from frankenlm.degradation.skills import measuring, table
from frankenlm.degradation.skills.items import BLOCKS, SIZE, SKILLS
from frankenlm.degradation.skills.measuring import measure_skills, plan_skills
from frankenlm.degradation.skills.order import (
    CALIPER,
    Questions,
    compare,
    difference,
    half_level,
    matched_difference,
    matched_pairs,
    student_p,
)
from frankenlm.degradation.skills.scores import margins, shares
from frankenlm.degradation.skills.table import questions_of, write_tables

LEVELS = numpy.array([0.0, 0.2, 0.4, 0.6, 0.8])
SMALL = get_config("smoke") | {"dtype": "float32", "levels": (0.0, 0.8), "n_rep": 2, "group": "mlp_only"}


# --- items


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.skill}-{block.topic}")
def test_a_block_has_four_answers_and_two_wordings_of_every_question(block):
    assert len(block.pairs) == len(set(block.answers)) == SIZE
    asked = [block.questions(wording) for wording in (0, 1)]
    assert len({*asked[0], *asked[1]}) == 2 * SIZE and all("{" not in text for text in asked[0] + asked[1])


def test_every_skill_has_equally_many_topics():
    counts = [sum(block.skill == skill for block in BLOCKS) for skill in SKILLS]
    assert set(counts) == {len(BLOCKS) / len(SKILLS)} and len({(b.skill, b.topic) for b in BLOCKS}) == len(BLOCKS)


# --- scores


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "frankenstein", "infinito"])
def test_scores_are_those_of_whole_sequences_read_one_by_one(family, tiny_model, tiny_tokenizer):
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    questions = ["What is it?", "And what of this one?", "Is it now?"]
    options = [["a", "no b"], ["c", "dd"], ["eee", "f"]]
    probe = OptionProbe(model, tokenizer, questions, options)
    assert probe.cached or family in ("frankenstein", "infinito")
    found = probe.measure()
    lead = tokenizer(LEAD, add_special_tokens=False)["input_ids"]
    for place, row in enumerate(render_prompts(questions, tokenizer, max_length=512).prompts):
        for column, option in enumerate(options[place]):
            answer = tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*row.ids, *lead, *answer]])
            with torch.inference_mode():
                logs = torch.log_softmax(model(input_ids=ids).logits[0, -len(answer) - 1 : -1].float(), -1)
            expected = logs[range(len(answer)), answer].double().sum().item()
            assert found[place, column].item() == pytest.approx(expected, rel=1e-4)


def test_what_a_model_thinks_of_answers_whatever_the_question_is_taken_off():
    habits = numpy.array([3.0, -2.0, 0.5, 9.0])
    blind = numpy.tile(habits, (SIZE, 1))
    assert shares(blind) == pytest.approx(numpy.full(SIZE, 1 / SIZE)) and not margins(blind).any()
    knows = blind + 4 * numpy.eye(SIZE)
    assert shares(knows) == pytest.approx(numpy.full(SIZE, numpy.exp(4) / (numpy.exp(4) + 3)))
    assert margins(knows) == pytest.approx(numpy.full(SIZE, 4.0))
    knows[0] = knows[0, [1, 0, 2, 3]]
    assert margins(numpy.stack([blind, knows]))[1, 0] < 0


# --- order


def skill(name, half, seed, repeats=5, topics=6, noise=0.05):
    """Questions whose shares fall along a logistic from 0.9 to 1/4, half way at `half`."""
    draw = numpy.random.default_rng(seed)
    middles = half + noise * draw.normal(size=(repeats, 1, 1)) + noise * draw.normal(size=(1, 1, topics))
    falls = 1 / (1 + numpy.exp((LEVELS[None, :, None] - middles) / 0.04))
    values = numpy.repeat(0.25 + 0.65 * falls / falls[:, :1], 3, axis=-1)
    margin = draw.uniform(0.5, 3.0, size=3 * topics)
    return Questions(name, numpy.repeat(numpy.arange(topics), 3), margin, values)


def test_a_planted_order_is_found_and_equal_skills_are_not_told_apart():
    early, late, equal = skill("a", 0.25, 1), skill("b", 0.55, 2), skill("c", 0.55, 3)
    half = half_level(early, LEVELS)
    assert half.low < 0.25 < half.high and half.value == pytest.approx(0.25, abs=0.08)
    found = {(pair.first, pair.second): pair for pair in compare({"mlp": ([early, late, equal], LEVELS)})}
    assert found["a", "b"].plain.low > 0 and found["a", "b"].p_holm < 0.05
    assert found["a", "b"].matched.low > 0 and found["a", "b"].pairs >= 10
    assert found["b", "c"].plain.low < 0 < found["b", "c"].plain.high and found["b", "c"].p_holm > 0.05
    back = difference(late, early, LEVELS)
    assert back.value == pytest.approx(-found["a", "b"].plain.value)


def test_skills_of_one_kind_differ_by_chance_as_often_as_they_should():
    """1 in 20 of differences between equals, give or take 60 tries."""
    tries = [difference(skill("a", 0.4, 2 * i), skill("b", 0.4, 2 * i + 1), LEVELS, draws=200) for i in range(60)]
    assert sum(each.p < 0.05 for each in tries) <= 7
    assert sum(each.low < 0 < each.high for each in tries) >= 53


def test_what_is_not_reached_or_too_little_is_said_to_be_so():
    never = skill("a", 5.0, 1)
    assert half_level(never, LEVELS).value == numpy.inf and half_level(never, LEVELS).reached == 0
    assert numpy.isnan(difference(never, skill("b", 0.4, 2), LEVELS).value)
    few = skill("c", 0.4, 3, repeats=2)
    assert numpy.isfinite(half_level(few, LEVELS).value) and numpy.isnan(half_level(few, LEVELS).low)


def test_matched_questions_are_near_and_taken_once():
    first, second = skill("a", 0.4, 1), skill("b", 0.4, 2, topics=4)
    ones, others = matched_pairs(first, second)
    assert len(set(ones)) == len(ones) == len(set(others)) == len(others) > 0
    assert (numpy.abs(first.margins[ones] - second.margins[others]) <= CALIPER).all()
    far = Questions("c", second.topics, second.margins + 50, second.values)
    estimate, pairs = matched_difference(first, far, LEVELS)
    assert pairs == 0 and numpy.isnan(estimate.value)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 28])
def test_p_values_are_those_of_students_table(freedom):
    assert student_p(STUDENT[freedom - 1], freedom) == pytest.approx(0.05, abs=2e-4)
    assert student_p(0.0, freedom) == pytest.approx(1.0)


# --- runs


@pytest.fixture
def few(monkeypatch):
    """One topic of each skill."""
    for module in (measuring, table):
        monkeypatch.setattr(module, "BLOCKS", BLOCKS[:: len(BLOCKS) // len(SKILLS)])


@pytest.fixture
def run(few, tiny_model, tiny_tokenizer, tmp_path):
    def run(config=SMALL):
        lab = Lab(tiny_model("llama"), RunOptions(output_dir=tmp_path), tokenizer=tiny_tokenizer())
        return measure_skills(lab, plan_skills(lab, [config]), tmp_path, progress=False)

    return run


def test_a_run_goes_on_and_its_tables_hold_what_lies_in_the_cells(run, monkeypatch):
    folder = run()
    cells = {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}
    assert set(cells) == {"baseline.json", "mlp_only_0.8_0.json", "mlp_only_0.8_1.json"}
    (folder / "cells" / "mlp_only_0.8_1.json").unlink()
    asked = []
    monkeypatch.setattr(measuring, "scores_of", lambda *given: asked.append(1) or measuring_scores(*given))
    assert run() == folder and len(asked) == 1
    assert {path.name: path.read_bytes() for path in (folder / "cells").iterdir()} == cells
    page = write_tables(folder).read_text()
    assert all(name in page for name in ("mlp_only", "L50", "p (Holm)"))
    baseline = json.loads(cells["baseline.json"])["scores"]
    damaged = {(0.8, i): json.loads(cells[f"mlp_only_0.8_{i}.json"]) for i in (0, 1)}
    skills, positions = questions_of(baseline, damaged, "mult_gauss")
    assert positions.tolist() == [0.0, 0.8] and all(each.values.shape[:2] == (2, 2) for each in skills)
    for each in skills:
        assert (each.margins > 0).all() and (each.values[0, 0] == each.values[1, 0]).all()
        assert (each.values[:, 0] != each.values[:, 1]).any()


measuring_scores = measuring.scores_of


def test_scores_of_another_experiment_are_not_mixed_in(run):
    run()
    with pytest.raises(ValueError, match="seed_base: 42, now 7"):
        run(SMALL | {"seed_base": 7})
    with pytest.raises(ValueError, match="needs units chosen"):
        run(SMALL | {"method": "targeted", "unit": "head", "group": "attn_o", "levels": (1,)})


def test_the_command_measures_and_prints_its_page(few, tiny_dir, tmp_path, capsys):
    words = "--group mlp_only --levels 0,0.8 --n_rep 1 --dtype float32 --log_level error"
    main(["skills", "--model", str(tiny_dir("llama")), *words.split(), "--output_dir", str(tmp_path)])
    (page,) = tmp_path.glob("skills_*/skills.md")
    assert str(page) in capsys.readouterr().out
