"""The report of simulated experiments whose critical levels are known: its numbers, page and figures."""

import base64
import json
import math
import re
from html.parser import HTMLParser

import numpy
import pytest

from frankenlm.degradation.report.drawing.depth_map import plot_depth
from frankenlm.degradation.report.drawing.figures import figure_names
from frankenlm.degradation.report.drawing.plots import layer_subset
from frankenlm.degradation.report.page import table
from frankenlm.degradation.report.write import analyse, write_report
from simulated_results import PROMPTS, measure, read_csv, simulated_rows, write_experiment


def two_methods(folder, repeats=5):
    """Four series: two groups under noise, one under ablation, one quantised; one task."""
    noise = [
        *simulated_rows("mult_gauss", "attn_only", 0.45, seed=1, repeats=repeats),
        *simulated_rows("mult_gauss", "mlp_only", 0.2, seed=2, repeats=repeats),
    ]
    return [
        write_experiment(folder, noise, "mult_gauss"),
        write_experiment(folder, simulated_rows("ablation", "attn_only", 0.4, seed=3, repeats=repeats), "ablation"),
        write_experiment(folder, simulated_rows("uni_quant", "attn_only", -5.0, seed=4, repeats=repeats), "uni_quant"),
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of four series, made once: (folder, page, numbers)."""
    folder = tmp_path_factory.mktemp("report")
    page = write_report(two_methods(folder), folder / "out", measure=measure, measure_texts=None, draws=400)
    return folder / "out", page.read_text(encoding="utf-8"), json.loads((folder / "out/report.json").read_text())


def curve_of(numbers, group, method, name):
    found = [c for c in numbers["curves"] if (c["group"], c["method"], c["measure"]) == (group, method, name)]
    assert len(found) == 1
    return found[0]


# --- numbers


@pytest.mark.parametrize(
    ("group", "method", "half"),
    [
        ("attn_only", "mult_gauss", 0.45),
        ("mlp_only", "mult_gauss", 0.2),
        ("attn_only", "ablation", 0.4),
        ("attn_only", "uni_quant", 32),
    ],
)
def test_known_critical_levels_come_out(report, group, method, half):
    """Accuracy is half way to 0 at `half`; chance is above 0, so half way to chance lies a little before."""
    found = curve_of(report[2], group, method, "accuracy")
    assert found["L50"]["status"] == "reached" and found["L50"]["floor"] == pytest.approx(found["chance"])
    scale = numpy.log2 if method == "uni_quant" else float
    assert abs(scale(found["L50"]["level"]) - scale(half)) < (0.8 if method == "uni_quant" else 0.08)
    low, high = sorted((found["L50"]["low"], found["L50"]["high"]))
    assert low <= found["L50"]["level"] <= high
    assert found["spearman"]["rho"] < -0.8 and found["spearman"]["alternative"] == "fall"
    assert found["d_crit_answers"]["status"] == "reached"
    loops = curve_of(report[2], group, method, "looped")
    assert loops["L50"]["status"] == "reached" and loops["spearman"]["alternative"] == "rise"


def test_accuracy_and_chance_by_skill(report):
    skills = {prompt.skill for prompt in PROMPTS if prompt.answer is not None}
    found = {
        c["measure"].removeprefix("accuracy/") for c in report[2]["curves"] if c["measure"].startswith("accuracy/")
    }
    assert found == skills and len(skills) > 2
    for skill in skills:
        chances = [prompt.chance or 0 for prompt in PROMPTS if prompt.skill == skill and prompt.answer is not None]
        curve = curve_of(report[2], "attn_only", "ablation", f"accuracy/{skill}")
        assert curve["chance"] == pytest.approx(sum(chances) / len(chances))


def test_cells_are_means_of_their_rows(report, tmp_path):
    rows = list(simulated_rows("ablation", "attn_only", 0.4, seed=3))
    cells = {
        (float(c["level"]), int(c["repeat"])): c for c in read_csv(report[0] / "cells.csv") if c["method"] == "ablation"
    }
    expected = {}
    for row in rows:
        expected.setdefault((row["level_value"], row["repeat_index"]), []).append(measure(row, None))
    assert cells.keys() == expected.keys() and len(cells) == 5 * 5 - 1
    for key, found in expected.items():
        assert int(cells[key]["answers"]) == len(found)
        for name, column in (("accuracy", "correct"), ("looped", "looped"), ("tokens", "tokens")):
            mean = sum(values[column] for values in found) / len(found)
            assert float(cells[key][name]) == pytest.approx(mean, rel=1e-5)


def test_a_cell_of_nan_answers_counts_and_a_missing_one_does_not(report):
    curve = curve_of(report[2], "attn_only", "mult_gauss", "accuracy")
    assert [n == 4 for n in curve["n"]] == [False, False, False, True, False, False, False, False]
    broken = curve_of(report[2], "attn_only", "mult_gauss", "non_finite")
    assert broken["centre"][7] == pytest.approx(0.2) and sum(broken["centre"]) == pytest.approx(0.2)
    text = " ".join(report[2]["warnings"])
    assert "1 of 40 in iq_it: attn_only, mult_gauss" in text and "logits were not finite" in text
    assert "without a finite perplexity" in text
    perplexity = curve_of(report[2], "attn_only", "mult_gauss", "perplexity")
    assert perplexity["n"][7] == 4 and perplexity["L50"]["status"] == "reached"
    # its median, not its mean, which is that of the worst repeat
    assert perplexity["centre"][6] == pytest.approx(math.exp(3 + 2.4 * 0.8**1.5))


def test_levels_of_quantisation_in_json(report):
    curve = curve_of(report[2], "attn_only", "uni_quant", "accuracy")
    assert curve["levels"] == [None, 1024, 256, 64, 16, 4] and curve["rel_l2"][0] == 0
    assert curve["rel_l2"][1:] == pytest.approx([12 / n for n in (1024, 256, 64, 16, 4)])


def test_what_broke_first_says_what_is_known(report):
    said = {(e["group"], e["method"]): e for e in report[2]["broke_first"]}
    assert len(said) == 4
    entry = said["attn_only", "mult_gauss"]
    levels = [one["level"] for one in entry["order"]]
    assert levels == sorted(levels) and "accuracy" in entry["order"][0]["measure"]
    first = entry["order"][0]
    assert f"broke first, at σ = {first['level']:.3g}" in entry["sentence"] and "95 % interval" in entry["sentence"]
    assert 0 <= entry["first_before_second"] <= 1 and "bootstrap draws" in entry["sentence"]
    assert [one["level"] for one in said["attn_only", "uni_quant"]["order"]][0] > 4
    ranks = {entry["measure"]: entry["sentence"] for entry in report[2]["rankings"]}
    assert ranks["accuracy"].index("mlp_only") < ranks["accuracy"].index("attn_only, mult_gauss")


def test_equal_files_give_equal_reports(tmp_path):
    files = two_methods(tmp_path, repeats=2)[1:2]
    pages = [
        write_report(files, tmp_path / name, measure=measure, measure_texts=None, draws=50).parent
        for name in ("a", "b")
    ]
    for path in sorted(pages[0].rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (pages[1] / path.relative_to(pages[0])).read_bytes(), path.name


# --- page and figures


class Page(HTMLParser):
    """Collects what a page refers to, and checks that tags are closed."""

    VOID = {"meta", "img", "br", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.links, self.ids, self.text = [], [], [], set(), []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [values["src"]] if "src" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.ids |= {values["id"]} if "id" in values else set()
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_is_whole_and_needs_no_network(report):
    folder, text, numbers = report
    page = Page(text)
    assert not re.search(r"https?://|@import|url\(", text)
    pngs = sorted(path.read_bytes() for path in (folder / "plots").glob("*.png"))
    embedded = sorted(base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources)
    assert embedded == pngs and all(png.startswith(b"\x89PNG") for png in pngs)
    for link in page.links:
        assert link.removeprefix("#") in page.ids if link.startswith("#") else (folder / link).is_file()
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    said = " ".join(page.text)
    for piece in (*numbers["warnings"], *numbers["not_shown"], "9.9.9", *(e["lead"] for e in numbers["broke_first"])):
        assert piece in said


def test_every_figure_has_its_table_and_every_missing_one_its_reason(report):
    folder, text, numbers = report
    names = [plot["name"].removeprefix("maker-tiny-model_iq_it_") for plot in numbers["plots"]]
    assert names == [
        "ranking",
        "levels_mult_gauss",
        "levels_ablation",
        "levels_uni_quant",
        "rel_l2",
        "skills",
        "answers_mult_gauss",
        "perplexity_mult_gauss",
        "answers_ablation",
        "perplexity_ablation",
        "answers_uni_quant",
        "perplexity_uni_quant",
        "repeats",
    ]
    for plot in numbers["plots"]:
        assert len(read_csv(folder / plot["csv"])) >= 4, plot["csv"]
    assert [entry["figure"] for entry in numbers["plots_without_data"]] == ["layers by level"]
    assert "@L" in numbers["plots_without_data"][0]["reason"] and "layers by level" in text
    ranks = [row for row in read_csv(folder / numbers["plots"][0]["csv"]) if row["measure"] == "accuracy"]
    assert [row["rank"] for row in ranks] == ["1", "2", "3", "4"] and ranks[0]["group"] == "mlp_only"
    assert [float(row["half"]) for row in ranks] == sorted(float(row["half"]) for row in ranks)


def test_names_are_text_not_markup(tmp_path):
    rows = [
        {**row, "prompt_group": "<b>&$x$", "param_group_name": "attn_only<i>"}
        for row in simulated_rows("ablation", "attn_only", 0.4, repeats=2)
    ]
    page = write_report(
        [write_experiment(tmp_path, rows, "ablation")], tmp_path / "out", measure=measure, measure_texts=None, draws=50
    )
    text = page.read_text(encoding="utf-8")
    Page(text)
    assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;&amp;$x$" in text


def test_layers_have_a_heat_map(tmp_path):
    rows = [
        row
        for layer in (10, 0, 2)
        for row in simulated_rows(
            "mult_gauss", f"attn_only@L{layer}", 0.3 + layer / 30, levels=(0.0, 0.3, 0.6), repeats=2
        )
    ]
    path = write_experiment(tmp_path, rows, "mult_gauss")
    page = write_report([path], tmp_path / "out", measure=measure, measure_texts=None, draws=50)
    plot = page.parent / "plots/maker-tiny-model_iq_it_layers_mult_gauss_attn_only.csv"
    groups = [row["group"] for row in read_csv(plot) if row["measure"] == "accuracy"]
    assert list(dict.fromkeys(groups)) == ["attn_only@L0", "attn_only@L2", "attn_only@L10"]


def test_components_by_depth_have_a_heat_map(tmp_path):
    """Each component in each window, against its own baseline; a window without the component stays empty."""
    halves = {("attn_o", 1): 0.9, ("attn_o", 3): 0.5, ("mlp_down", 1): 0.1, ("mlp_down", 2): 0.4, ("mlp_down", 3): 0.8}
    rows = [
        row
        for (component, number), half in halves.items()
        for row in simulated_rows(
            "mult_gauss", f"{component}@{number}of3", half, levels=(0.0, 0.3, 0.6), repeats=3, prompts=PROMPTS[:6]
        )
    ]
    path = write_experiment(tmp_path, rows, "mult_gauss")
    curves = analyse([path], measure=measure, measure_texts=None, draws=20).curves
    assert ("maker/tiny-model", "iq_it", "depth_mult_gauss") in figure_names(curves)
    plot = plot_depth(curves, ("accuracy",), tmp_path, "depth").csv
    assert plot.with_suffix(".png").stat().st_size > 5000
    changes = {
        (row["component"], int(row["window"])): float(row["change"])
        for row in read_csv(plot)
        if row["measure"] == "accuracy" and row["level"] == "0.6"
    }
    assert changes.keys() == halves.keys()
    assert changes["mlp_down", 1] < -0.5 < -0.4 < changes["attn_o", 1] and changes["mlp_down", 3] > -0.4
    zero = [float(row["change"]) for row in read_csv(plot) if row["level"] in ("0", "0.0")]
    assert zero and not any(zero)


@pytest.mark.parametrize(
    ("group", "layers"),
    [
        ("attn_only@L3", (3,)),
        ("mlp_only@L0-5", (0, 5)),
        ("attn_only@L3,7", (3, 7)),
        ("attn_only", None),
        ("attn_only@first25%", None),
        ("attn_only@Last", None),
    ],
)
def test_layer_subsets_of_names(group, layers):
    assert layer_subset(group) == layers


def test_tables_fit_the_width_of_a_page():
    """Cells break between words, but neither within an interval nor before a percent sign; many columns are small."""
    narrow, wide = (table(["name"] * count, [["row"] * (count - 1) + ["3.3 % (0.0–6.7)"]]) for count in (8, 13))
    assert 'class="wide"' in narrow and 'class="wide many"' in wide
    assert "<td>3.3\u00a0% (0.0\u2060–\u20606.7)</td>" in narrow
    assert "<td>0.3 (0.2\u00a0to\u00a0not\u00a0reached) no change</td>" in table(
        ["a", "b"], [["row", "0.3 (0.2 to not reached) no change"]]
    )
    assert "<td>&lt;b&gt;</td>" in table(["a", "b"], [["row", "<b>"]])
