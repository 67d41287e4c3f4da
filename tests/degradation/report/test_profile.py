"""The profile of a battery in the report: parts by level with intervals, as a radar, tables and JSON."""

import json

import pytest

from frankenlm.degradation.measures.names import PER_PART
from frankenlm.degradation.prompts import PARTS, load_prompts
from frankenlm.degradation.report.drawing.figures import figures_of
from frankenlm.degradation.report.drawing.plot_style import NothingToDraw
from frankenlm.degradation.report.drawing.profile_plot import MOST_LINES, plot_profile, shown_levels
from frankenlm.degradation.report.profile import profile_section, profiles
from frankenlm.degradation.report.write import analyse, write_report
from simulated_results import read_csv, write_experiment

ITEMS = load_prompts("battery_es")[:8]  # two of each part
LEVELS = (0.0, 0.2, 0.4)
# how many repeats of three answer the first item of each part, by level; nobody ever answers the second
RIGHT = {0.0: 3, 0.2: 2, 0.4: 0}


def rows(level_answers=RIGHT):
    for index, level in enumerate(LEVELS):
        for repeat in range(3):
            for prompt in ITEMS:
                first = prompt.id <= 4
                yield {
                    "model_name": "tiny/model",
                    "prompt_group": prompt.set,
                    "experiment_id": "mult_gauss|tiny/model|sim",
                    "prompt_id": prompt.id,
                    "prompt_text": prompt.text,
                    "completion": answer(prompt) if first and repeat < level_answers[level] else "",
                    "std_dev": level,
                    "level_value": level,
                    "level_index": index,
                    "repeat_index": repeat,
                    "is_baseline": index == 0,
                    "param_group_name": "attn_only",
                    "degradation_method": "mult_gauss",
                    "finish_reason": "eos",
                    "status": "ok",
                    "attempt": 1,
                    "row_key": f"{index}{repeat}{prompt.id}",
                    "tokens_generated": 5,
                    "perplexity": None,
                    "damage_rel_l2": level,
                }


def answer(prompt) -> str:
    if prompt.grader != "connected":
        return prompt.answer
    return (
        "Primero hay que hervir el agua en una tetera. Después se pone la bolsita en la taza. "
        "Espera unos minutos y añade azúcar, leche o limón."
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A result file of the answers above."""
    return write_experiment(tmp_path_factory.mktemp("profile"), rows(), "mult_gauss", cells=False)


@pytest.fixture(scope="module")
def curves(result):
    return analyse([result], measure_texts=None, draws=200, progress=False).curves


def test_scores_by_part_and_level(curves):
    [profile] = profiles(curves)
    assert profile["levels"] == list(LEVELS) and list(profile["scores"]) == ["score", *PARTS]
    for part in ("score", *PARTS):
        found = profile["scores"][part]
        assert found["centre"] == pytest.approx([RIGHT[level] / 3 / 2 for level in LEVELS])
        assert 0 <= found["low"][1] < found["centre"][1] < found["high"][1] <= 1
        chances = [prompt.chance or 0 for prompt in ITEMS if part in ("score", prompt.part)]
        assert found["chance"] == pytest.approx(sum(chances) / len(chances))
    assert profile["errors"]["no_answer"] == pytest.approx([1 - RIGHT[level] / 3 / 2 for level in LEVELS])
    assert not any(profile["errors"]["semantic"])
    assert "accuracy" not in {curve.measure.name for curve in curves}


def test_tables_and_radar(curves, tmp_path):
    page = "".join(profile_section(curves))
    assert "Profile" in page and "Word comprehension score (chance 25.0 %)" in page and "33.3\xa0% (" in page
    assert "Errors: no answer" in page and "like in meaning" not in page, "kinds that never happen have no line"
    plot = plot_profile(curves, tmp_path, "radar")
    table = read_csv(plot.csv)
    assert [row["measure"] for row in table] == [PER_PART + part for part in PARTS for _ in LEVELS]
    expected = [RIGHT[level] / 6 for level in LEVELS]
    assert [float(row["centre"]) for row in table[:3]] == pytest.approx(expected, rel=1e-4)
    assert plot.png.stat().st_size > 10_000
    titles = [title for title, *_ in figures_of(curves)]
    assert "profile by level" in titles and "score by part" in titles and "accuracy by sub-skill" not in titles


@pytest.mark.slow
def test_the_page_has_it_all(result, tmp_path):
    page = write_report([result], tmp_path / "out", measure_texts=None, draws=200, progress=False)
    assert "<h3>Profile</h3>" in page.read_text("utf-8")
    numbers = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    assert len(numbers["profiles"]) == 1
    plots = {plot["title"]: plot for plot in numbers["plots"]}
    assert {"Profile by level", "Score by part"} <= set(plots)
    assert all((tmp_path / "out" / plots["Profile by level"][kind]).is_file() for kind in ("png", "csv"))
    [said] = numbers["broke_first"]
    assert {f"{part.capitalize()} score" for part in PARTS} <= {*said["at_chance"], *said["unchanged"]}, "two questions"


def test_what_is_no_battery_has_no_profile(tmp_path):
    plain = [{**row, "prompt_text": f"Say {row['prompt_id']}."} for row in rows()]
    path = write_experiment(tmp_path, plain, "mult_gauss", cells=False)
    analysis = analyse([path], measure_texts=None, draws=50, progress=False)
    with pytest.raises(NothingToDraw, match="3 parts of a battery"):
        plot_profile(analysis.curves, tmp_path, "radar")


@pytest.mark.parametrize("count", [1, 2, 8, 9, 21])
def test_shown_levels(count):
    shown = shown_levels(count)
    assert shown[0] == 0 and shown[-1] == count - 1 and len(shown) == min(count, MOST_LINES)
