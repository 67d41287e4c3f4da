"""Skills on questions that the undamaged model can do: items, scores of answers, runs, and the order of the skills."""

import json

import numpy
import pytest
import torch

from frankenlm.degradation.answers.option_probe import LEAD, OptionProbe
from frankenlm.degradation.answers.rendering import render_prompts
from frankenlm.degradation.cli import main
from frankenlm.degradation.configs import get_config
from frankenlm.degradation.errors import ConfigConflict
from frankenlm.degradation.lab import Lab, RunOptions
from frankenlm.degradation.report.bootstrap import STUDENT, holm
from frankenlm.degradation.report.critical import AT_CHANCE, NO_BASELINE
from frankenlm.degradation.skills import measuring, order, table
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
    student_quantile,
)
from frankenlm.degradation.skills.scores import known, margins, scores_as_written, shares
from frankenlm.degradation.skills.table import questions_of, write_tables
from frankenlm.trainer_ext.common.files import write_json

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


@pytest.mark.parametrize("lost", [None, float("nan"), -float("inf")])
def test_a_block_with_a_score_that_is_not_finite_is_not_known(lost):
    scores = (4 * numpy.eye(SIZE)).tolist()
    scores[1][2] = lost
    found = numpy.stack([scores_as_written(scores), 4 * numpy.eye(SIZE)])
    assert (shares(found)[0] == 1 / SIZE).all() and not margins(found)[0].any()
    assert (shares(found)[1] > 0.9).all() and known(found)[:, 0, 0].tolist() == [False, True]


# --- order


def skill(name, half, seed, repeats=5, topics=6, noise=(0.05, 0.05)):
    """Questions whose shares fall along a logistic from 0.9 to 1/4, half way at `half`."""
    draw = numpy.random.default_rng(seed)
    middles = half + noise[0] * draw.normal(size=(repeats, 1, 1)) + noise[1] * draw.normal(size=(1, 1, topics))
    falls = 1 / (1 + numpy.exp((LEVELS[None, :, None] - middles) / 0.04))
    values = numpy.repeat(0.25 + 0.65 * falls / falls[:, :1], 3, axis=-1)
    margin = draw.uniform(0.5, 2.5, size=(2, 3 * topics))
    return Questions(name, numpy.repeat(numpy.arange(topics), 3), margin, values)


def test_a_planted_order_is_found_and_equal_skills_are_not_told_apart():
    early, late, equal = skill("a", 0.25, 1), skill("b", 0.55, 2), skill("c", 0.55, 3)
    half = half_level(early, LEVELS)
    assert half.low < 0.25 < half.high and half.value == pytest.approx(0.25, abs=0.08)
    found = {(pair.first, pair.second): pair for pair in compare({"mlp": ([early, late, equal], LEVELS)})}
    assert found["a", "b"].plain.low > 0 and found["a", "b"].p_holm < 0.05
    assert found["a", "b"].matched.estimate.low > 0 and found["a", "b"].matched.pairs >= 10
    assert found["b", "c"].plain.low < 0 < found["b", "c"].plain.high and found["b", "c"].p_holm > 0.05
    back = difference(late, early, LEVELS)
    assert back.value == pytest.approx(-found["a", "b"].plain.value)


def matched_alone(*given, **words):
    return matched_difference(*given, **words).estimate


@pytest.mark.parametrize(("compared", "noise"), [(difference, (0.05, 0.05)), (matched_alone, (0.02, 0.08))])
def test_skills_of_one_kind_differ_by_chance_as_often_as_they_should(compared, noise):
    """1 in 20 of differences between equals, give or take 60 tries; noise: of repeats and of whole topics."""
    equals = [[skill(name, 0.4, 2 * i + side, noise=noise) for side, name in enumerate("ab")] for i in range(60)]
    tries = [compared(*pair, LEVELS, draws=200) for pair in equals]
    assert sum(each.p < 0.05 for each in tries) <= 7
    assert sum(each.low < 0 < each.high for each in tries) >= 53


def test_what_is_not_reached_or_too_little_is_said_to_be_so():
    never = skill("a", 5.0, 1)
    assert half_level(never, LEVELS).value == numpy.inf and half_level(never, LEVELS).reached == 0
    assert numpy.isnan(difference(never, skill("b", 6.0, 2), LEVELS).value)
    # the last level stands for it
    late = difference(skill("b", 0.4, 2), never, LEVELS)
    assert late.value == pytest.approx(LEVELS[-1] - half_level(skill("b", 0.4, 2), LEVELS).value) and late.reached < 0.5
    at_chance = skill("d", 0.4, 4)
    at_chance = Questions("d", at_chance.topics, at_chance.margins, 0.25 + 0 * at_chance.values)
    assert numpy.isnan(half_level(at_chance, LEVELS).value)
    assert all(numpy.isnan(difference(*pair, LEVELS).value) for pair in ((never, at_chance), (at_chance, never)))
    few = skill("c", 0.4, 3, repeats=2)
    assert numpy.isfinite(half_level(few, LEVELS).value) and numpy.isnan(half_level(few, LEVELS).low)


def test_matched_questions_are_near_and_taken_once():
    first, second = skill("a", 0.4, 1), skill("b", 0.4, 2, topics=4)
    ones, others = matched_pairs(first, second)
    assert len(set(ones)) == len(ones) == len(set(others)) == len(others) > 0
    assert (numpy.abs(first.margins[:, ones] - second.margins[:, others]) <= CALIPER).all()
    found = matched_difference(first, second, LEVELS)
    assert found.shares == pytest.approx((first.values[0, 0, ones].mean(), second.values[0, 0, others].mean()))
    assert found.estimate.value == difference(first[ones], second[others], LEVELS).value
    for wording in (0, 1):
        away = second.margins.copy()
        away[wording] += 50
        apart = matched_difference(first, Questions("c", second.topics, away, second.values), LEVELS)
        assert apart.pairs == 0 and numpy.isnan(apart.estimate.value)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 28])
def test_p_values_and_quantiles_are_those_of_students_table(freedom):
    assert student_p(STUDENT[freedom - 1], freedom) == pytest.approx(0.05, abs=2e-4)
    assert student_p(0.0, freedom) == pytest.approx(1.0)
    assert student_quantile(freedom) == pytest.approx(STUDENT[freedom - 1], abs=6e-4)
    between = freedom + 0.5
    assert student_quantile(freedom + 1) < student_quantile(between) < student_quantile(freedom)
    assert student_p(student_quantile(between), between) == pytest.approx(0.05)


def test_what_is_said_of_a_difference_does_not_hang_on_the_seed_of_its_draws(monkeypatch):
    first, second = skill("a", 0.35, 4, repeats=3), skill("b", 0.5, 5, repeats=3)
    p = []
    for seed in range(5):
        monkeypatch.setattr(order, "SEED", 1000 * seed)
        p.append(difference(first, second, LEVELS).p)
    assert max(p) < 1.15 * min(p)


def test_all_p_values_of_a_page_are_one_family():
    skills = [skill(name, half, seed) for seed, (name, half) in enumerate({"a": 0.25, "b": 0.45, "c": 0.55}.items())]
    found = compare({"mlp": (skills, LEVELS), "values": (skills, LEVELS)}, draws=200)
    plain, matched = [pair.plain.p for pair in found], [pair.matched.estimate.p for pair in found]
    raised = [*[pair.p_holm for pair in found], *[pair.matched_p_holm for pair in found]]
    assert raised == pytest.approx(holm([*plain, *matched]))


def test_tables_say_apart_what_is_not_reached_and_what_is_not_known():
    row = {"group": "mlp", "skill": "math", "chosen": 3, "topics": 2, "repeats": 1, "low": numpy.nan, "high": numpy.nan}
    row |= dict.fromkeys(("chosen_share", "undamaged_share", "most_severe_share", "reached"), 0.0)
    said = [table._order_text(row | {"L50": value})["L50"] for value in (0.5, numpy.inf, numpy.nan)]
    assert said == ["0.5", "not reached", AT_CHANCE]
    assert table._difference_text({table.DIFFERENCE: numpy.nan}, "") == NO_BASELINE


# --- runs


@pytest.fixture
def few(monkeypatch):
    """One topic of each skill."""
    for module in (measuring, table):
        monkeypatch.setattr(module, "BLOCKS", BLOCKS[:: len(BLOCKS) // len(SKILLS)])


@pytest.fixture
def run(few, tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("llama")

    def run(config=SMALL, chat_template=None):
        tokenizer = tiny_tokenizer()
        if chat_template is not None:
            tokenizer.chat_template = chat_template
        lab = Lab(model, RunOptions(output_dir=tmp_path), tokenizer=tokenizer)
        return measure_skills(lab, plan_skills(lab, [config]), tmp_path, progress=False)

    return run


def test_a_run_goes_on_and_its_tables_hold_what_lies_in_the_cells(run, monkeypatch):
    folder = run()
    cells = {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}
    assert set(cells) == {"baseline.json", "mlp_only_0.8_0.json", "mlp_only_0.8_1.json"}
    (folder / "cells" / "mlp_only_0.8_1.json").unlink()
    half = folder / "cells" / ".0123456789abcdef.json"  # a run killed while it wrote
    half.write_text('{"group": "mlp_only", "lev')
    asked = []
    monkeypatch.setattr(measuring, "scores_of", lambda *given: asked.append(1) or measuring_scores(*given))
    assert run() == folder and len(asked) == 1
    assert write_tables(folder).is_file()
    half.unlink()
    assert {path.name: path.read_bytes() for path in (folder / "cells").iterdir()} == cells
    page = write_tables(folder).read_text()
    assert all(name in page for name in ("mlp_only", "L50", "p (Holm)"))
    baseline = json.loads(cells["baseline.json"])["scores"]
    damaged = {(0.8, i): json.loads(cells[f"mlp_only_0.8_{i}.json"]) for i in (0, 1)}
    skills, positions = questions_of(baseline, damaged, "mult_gauss")
    assert positions.tolist() == [0.0, 0.8] and all(each.values.shape[:2] == (2, 2) for each in skills)
    for each in skills:
        assert (each.margins[0] > 0).all() and (each.values[0, 0] == each.values[1, 0]).all()
        assert (each.values[:, 0] != each.values[:, 1]).any()


measuring_scores = measuring.scores_of


def test_what_is_missing_or_not_finite_is_told_and_does_not_stop_the_tables(few, tmp_path, caplog):
    names = [f"{block.skill}/{block.topic}" for block in table.BLOCKS]
    scores = {level: {name: ((4 - 4 * level) * numpy.eye(SIZE)).tolist() for name in names} for level in (0, 0.4, 0.8)}
    write_json(tmp_path / "settings.json", {"model": "tiny", "method": "mult_gauss"})
    (tmp_path / "cells").mkdir()
    write_json(tmp_path / "cells" / "baseline.json", {"scores": {"0": scores[0], "1": scores[0]}})
    for level, repeat in ((0.4, 0), (0.8, 0), (0.8, 1)):
        facts = {"group": "mlp_only", "level_value": level, "repeat_index": repeat, "rel_l2": level}
        lost = {names[0]: numpy.full((SIZE, SIZE), numpy.nan).tolist()} if (level, repeat) == (0.8, 0) else {}
        write_json(tmp_path / "cells" / f"{level}_{repeat}.json", facts | {"scores": scores[level] | lost})
    page = write_tables(tmp_path).read_text()
    for note in (
        "mlp_only: repeat 1 is left out, levels that other repeats have are missing: 0.4.",
        f"mlp_only, level 0.8, repeat 0: 1 of {len(names)} topics have scores that are not finite",
    ):
        assert note in page and note in caplog.text


def test_a_model_whose_scores_are_not_finite_ends_with_a_sentence(run, monkeypatch):
    nothing = {
        f"{block.skill}/{block.topic}": numpy.full((SIZE, SIZE), numpy.nan).tolist() for block in measuring.BLOCKS
    }
    monkeypatch.setattr(measuring, "scores_of", lambda *given: nothing)
    with pytest.raises(ValueError, match="answers none of the questions"):
        run()


def test_scores_of_another_experiment_are_not_mixed_in(run, monkeypatch):
    folder = run()
    with pytest.raises(ConfigConflict, match="seed_base: 42 -> 7"):
        run(SMALL | {"seed_base": 7})
    with monkeypatch.context() as other:
        other.setattr(measuring, "LEAD", "It is")
        with pytest.raises(ConfigConflict, match='lead: "The answer is" -> "It is"'):
            run()
    with pytest.raises(ConfigConflict, match="chat_template: .* -> "):
        run(chat_template="{% for message in messages %}{{ message.content }} and so on{% endfor %}")
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "tokenizer"}))
    with pytest.raises(ConfigConflict, match=r'tokenizer: "\(not there\)" -> '):
        run()
    with pytest.raises(ValueError, match="needs units chosen"):
        run(SMALL | {"method": "targeted", "unit": "head", "group": "attn_o", "levels": (1,)})


def test_the_command_measures_and_prints_its_page(few, tiny_dir, tmp_path, capsys):
    words = "--group mlp_only --levels 0,0.8 --n_rep 1 --dtype float32 --log_level error"
    main(["skills", "--model", str(tiny_dir("llama")), *words.split(), "--output_dir", str(tmp_path)])
    (page,) = tmp_path.glob("skills_*/skills.md")
    assert str(page) in capsys.readouterr().out
