"""From result files to measures and the report, on simulated experiments whose critical levels are known."""

import base64
import csv
import json
import math
import re
from html.parser import HTMLParser

import numpy
import pytest

from frankenlm.degradation import measures
from frankenlm.degradation.errors import DamagedRecords
from frankenlm.degradation.journal import encode_line
from frankenlm.degradation.measuring import measure_rows
from frankenlm.degradation.plots import layer_subset
from frankenlm.degradation.prompts import find_prompt, load_prompts
from frankenlm.degradation.report import analyse, measure_file, write_report

PROMPTS = load_prompts("iq_it")[:60:5]
LEVELS = {
    "mult_gauss": (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    "ablation": (0.0, 0.2, 0.4, 0.6, 0.8),
    "uni_quant": (None, 1024, 256, 64, 16, 4),
}
NAN_CELL, MISSING_CELL = (1, 7), (2, 3)  # repeat, level index


def falling(position, half, width, top=0.95, bottom=0.0):
    """A logistic curve that is half way from top to bottom at `half`."""
    return bottom + (top - bottom) / (1 + math.exp((position - half) / width))


def position_of(method, level):
    return (-11.0 if level is None else -math.log2(level)) if method == "uni_quant" else level


def simulated_rows(method, group, half, *, task="iq_it", levels=None, repeats=5, prompts=PROMPTS, seed=0, suffix="sim"):
    """Rows of one series: the share of right answers falls from 0.95 to 0 round `half`, loops and length rise."""
    generator = numpy.random.default_rng(seed)
    width = 0.8 if method == "uni_quant" else 0.06
    for repeat in range(repeats):
        shift = generator.normal(0, width / 3)
        for index, level in enumerate(levels or LEVELS[method]):
            if (repeat, index) == MISSING_CELL:
                continue
            right = falling(position_of(method, level), half + shift, width)
            looped = falling(position_of(method, level), half + shift + 2 * width, width, 0.0, 0.9)
            for prompt in prompts:
                is_nan = (repeat, index) == NAN_CELL
                yield {
                    "model_name": "maker/tiny-model", "model_variant": "it", "prompt_group": task,
                    "experiment_id": f"{method}|maker/tiny-model|{suffix}", "config_name": task,
                    "prompt_id": prompt.id, "prompt_text": prompt.text,
                    "completion": f"{generator.random() < right:d} {generator.random() < looped:d} "
                                  f"{generator.normal(60 + 200 * looped, 10):.1f}",
                    "level_value": level, "std_dev": level, "level_index": index, "repeat_index": repeat,
                    "is_baseline": index == 0, "param_group_name": group, "degradation_method": method,
                    "finish_reason": "nan" if is_nan else "length" if generator.random() < looped else "eos",
                    "status": "nan_logits" if is_nan else "ok", "attempt": 1,
                    "row_key": f"{group}{method}{index}{repeat}{prompt.id}",
                    "tokens_generated": 60, "perplexity": None,
                    "damage_rel_l2": relative_change(method, level),
                }  # fmt: skip


def relative_change(method, level):
    if not level:
        return 0.0
    return {"mult_gauss": level, "ablation": math.sqrt(level), "uni_quant": 12.0 / level}[method]


def measure(row, prompt):
    """What the simulation wrote into a completion, in place of the measures of texts."""
    right, looped, length = row["completion"].split()
    return {"correct": right == "1" and row["status"] == "ok", "looped": looped == "1", "tokens": float(length),
            "grade": "a text", "nothing": None}  # fmt: skip


def write_experiment(folder, rows, method, *, suffix="sim", cells=True, manifest=True):
    rows = list(rows)
    path = folder / f"outputs_{method}_tiny-model_{suffix}.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    journal = path.with_suffix(".journal")
    journal.mkdir()
    if manifest:
        content = {"schema_version": 1, "config_fields": {"prompts": "iq_it", "dtype": "float32"},
                   "runs": [{"versions": {"torch": "9.9.9"}}]}  # fmt: skip
        (journal / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    if cells:
        (journal / "cells.jsonl").write_bytes(b"".join(encode_line(record) for record in cell_records(rows)))
    return path


def cell_records(rows):
    seen = {}
    for row in rows:
        seen[row["param_group_name"], row["level_index"], row["repeat_index"]] = row
    for row in seen.values():
        position = position_of(row["degradation_method"], row["level_value"])
        start = position_of(row["degradation_method"], None if row["degradation_method"] == "uni_quant" else 0)
        steepness = (2 if row["param_group_name"] == "attn_only" else 5) + 0.2 * row["repeat_index"]
        logarithm = 3 + steepness * (position - start) ** 1.5
        broken = row["status"] == "nan_logits"
        yield {
            **{name: row[name] for name in ("param_group_name", "degradation_method", "level_value", "level_index",
                                            "repeat_index")},
            "perplexity": None if broken else math.exp(logarithm), "log_perplexity": None if broken else logarithm,
            "kl_to_baseline": None if broken else position - start, "rows": len(PROMPTS),
        }  # fmt: skip


def two_methods(folder, repeats=5):
    """Four series: two groups under noise, one under ablation, one quantised; one task."""
    noise = [*simulated_rows("mult_gauss", "attn_only", 0.45, seed=1, repeats=repeats),
             *simulated_rows("mult_gauss", "mlp_only", 0.2, seed=2, repeats=repeats)]  # fmt: skip
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
    found = [
        c for c in numbers["curves"] if (c["group"], c["method"], c["measure"]) == (group, method, name)
    ]  # fmt: skip
    assert len(found) == 1
    return found[0]


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- numbers


@pytest.mark.parametrize(
    ("group", "method", "half"),
    [("attn_only", "mult_gauss", 0.45), ("mlp_only", "mult_gauss", 0.2), ("attn_only", "ablation", 0.4),
     ("attn_only", "uni_quant", 32)],
)  # fmt: skip
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
        "ranking", "levels_mult_gauss", "levels_ablation", "levels_uni_quant", "rel_l2", "skills", "answers_mult_gauss",
        "perplexity_mult_gauss", "answers_ablation", "perplexity_ablation", "answers_uni_quant", "perplexity_uni_quant",
        "repeats",
    ]  # fmt: skip
    for plot in numbers["plots"]:
        assert len(read_csv(folder / plot["csv"])) >= 4, plot["csv"]
    assert [entry["figure"] for entry in numbers["plots_without_data"]] == ["layers by level"]
    assert "@L" in numbers["plots_without_data"][0]["reason"] and "layers by level" in text
    ranks = [row for row in read_csv(folder / numbers["plots"][0]["csv"]) if row["measure"] == "accuracy"]
    assert [row["rank"] for row in ranks] == ["1", "2", "3", "4"] and ranks[0]["group"] == "mlp_only"
    assert [float(row["half"]) for row in ranks] == sorted(float(row["half"]) for row in ranks)


def test_names_are_text_not_markup(tmp_path):
    rows = [{**row, "prompt_group": "<b>&$x$", "param_group_name": "attn_only<i>"}
            for row in simulated_rows("ablation", "attn_only", 0.4, repeats=2)]  # fmt: skip
    page = write_report([write_experiment(tmp_path, rows, "ablation")], tmp_path / "out", measure=measure,
                        measure_texts=None, draws=50)  # fmt: skip
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


@pytest.mark.parametrize(
    ("group", "layers"),
    [("attn_only@L3", (3,)), ("mlp_only@L0-5", (0, 5)), ("attn_only@L3,7", (3, 7)), ("attn_only", None),
     ("attn_only@first25%", None), ("attn_only@Last", None)],
)  # fmt: skip
def test_layer_subsets_of_names(group, layers):
    assert layer_subset(group) == layers


# --- results with little in them


def test_one_repeat_without_journal_and_baseline(tmp_path):
    rows = [row for row in simulated_rows("mult_gauss", "attn_only", 0.4, repeats=1) if not row["is_baseline"]]
    rows = [{**row, "damage_rel_l2": None} for row in rows]
    path = write_experiment(tmp_path, rows, "mult_gauss", cells=False, manifest=False)
    path.with_suffix(".journal").rmdir()
    page = write_report([path], tmp_path / "out", measure=measure, measure_texts=None, draws=50)
    numbers = json.loads((page.parent / "report.json").read_text())
    text = " ".join(numbers["warnings"])
    assert "one repeat only" in text and "No undamaged cell" in text and "no journal lies beside it" in text
    assert all(curve["L50"]["status"] == "nothing to compare" for curve in numbers["curves"])
    missing = {entry["figure"] for entry in numbers["plots_without_data"]}
    assert missing >= {"vulnerability ranking", "all groups over relative L2", "perplexity, mult_gauss", "every repeat"}
    assert "no undamaged cell" in numbers["broke_first"][0]["sentence"]


@pytest.mark.parametrize(("repeats", "warned"), [(2, True), (4, True), (5, False)])
def test_few_repeats_are_warned_of(tmp_path, repeats, warned):
    path = write_experiment(tmp_path, simulated_rows("ablation", "attn_only", 0.4, repeats=repeats), "ablation")
    found = analyse([path], measure=measure, measure_texts=None, draws=50)
    assert any(f"n_rep = {repeats} is below 5" in warning for warning in found.warnings) is warned


def test_a_damaged_line_of_the_journal_is_left_out_and_said(tmp_path):
    path = write_experiment(tmp_path, simulated_rows("ablation", "attn_only", 0.4, repeats=2), "ablation")
    cells = path.with_suffix(".journal") / "cells.jsonl"
    whole = analyse([path], measure=measure, measure_texts=None, draws=20).series[0].cells["kl_to_baseline"]
    lines = cells.read_bytes().splitlines(keepends=True)
    cells.write_bytes(b"".join([lines[0], lines[1].replace(b"kl", b"lk"), *lines[2:], b'{"v":1,"cr']))
    found = analyse([path], measure=measure, measure_texts=None, draws=20)
    assert any("2 damaged lines" in warning for warning in found.warnings)
    left = found.series[0].cells["kl_to_baseline"]
    assert numpy.isfinite(whole).sum() - numpy.isfinite(left).sum() == 1
    numpy.testing.assert_array_equal(left[numpy.isfinite(left)], whole[numpy.isfinite(left)])


def test_relative_change_comes_from_lesions_too(tmp_path):
    rows = [{**row, "damage_rel_l2": None} for row in simulated_rows("ablation", "attn_only", 0.4, repeats=2)]
    path = write_experiment(tmp_path, rows, "ablation")
    lesions = [
        {"group": "attn_only", "method": "ablation", "level_value": level, "level_index": index, "repeat_index": repeat,
         "rel_l2": 2 * level + repeat}
        for index, level in enumerate(LEVELS["ablation"]) if level for repeat in (0, 1)
    ]  # fmt: skip
    (path.with_suffix(".journal") / "lesions.jsonl").write_bytes(b"".join(map(encode_line, lesions)))
    series = analyse([path], measure=measure, measure_texts=None, draws=20).series[0]
    numpy.testing.assert_allclose(series.mean_rel_l2, [0, 0.9, 1.3, 1.7, 2.1])


def test_rows_without_an_answer_are_no_data(tmp_path):
    rows = list(simulated_rows("ablation", "attn_only", 0.4, repeats=2))
    rows[5] = {**rows[5], "status": "oom", "completion": None}
    found = analyse([write_experiment(tmp_path, rows, "ablation")], measure=measure, measure_texts=None, draws=20)
    assert len(found.rows) == len(rows) - 1 and found.series[0].answers.min() == len(PROMPTS) - 1
    text = " ".join(found.warnings)
    assert f"1 of {len(rows)} rows hold no answer" in text and "fewer answers than others: 1 of 10 in iq_it" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"a": 1}', "JSON list of rows"), ("[{}", "no JSON"), ("[]", "no row with an answer"),
     ('[{"model_name": "x"}]', "import-legacy"), (None, "no such result file")],
)  # fmt: skip
def test_files_that_are_no_results(tmp_path, content, message):
    path = tmp_path / "outputs_x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, DamagedRecords), match=message):
        analyse([path], measure=measure)


def test_the_same_rows_twice_are_refused_or_joined(tmp_path):
    rows = list(simulated_rows("ablation", "attn_only", 0.4, repeats=2))
    path = write_experiment(tmp_path, rows, "ablation")
    with pytest.raises(ValueError, match="given twice"):
        analyse([path, tmp_path / "." / path.name], measure=measure)
    copy = write_experiment(tmp_path, rows, "ablation", suffix="copy")
    with pytest.raises(ValueError, match="hold the same row"):
        analyse([path, copy], measure=measure, measure_texts=None)
    again = [*rows, {**rows[0], "attempt": 2, "completion": "0 1 999"}, {**rows[1], "attempt": 0}]
    joined = write_experiment(tmp_path, again, "ablation", suffix="joined")
    found = analyse([joined], measure=measure, measure_texts=None, draws=20)
    assert len(found.rows) == len(rows) and found.rows[0]["completion"] == "0 1 999"
    assert any("2 rows stood there twice" in warning for warning in found.warnings)


def test_runs_that_differ_in_settings_alone_stay_apart(tmp_path):
    files = []
    for suffix in ("dense", "4bit"):
        rows = simulated_rows("ablation", "attn_only", 0.4, repeats=2, suffix=suffix)
        files.append(write_experiment(tmp_path, rows, "ablation", suffix=suffix))
    found = analyse(files, measure=measure, measure_texts=None, draws=20)
    assert [series.label for series in found.series] == ["attn_only (dense)", "attn_only (4bit)"]


# --- measures of real texts


def real_rows():
    """Right answers at level 0, loops at 0.5, in two repeats."""
    for row in simulated_rows("mult_gauss", "attn_only", 0.4, levels=(0.0, 0.5), repeats=2):
        prompt = next(p for p in PROMPTS if p.text == row["prompt_text"])
        answer = prompt.answer[0] if isinstance(prompt.answer, tuple) else prompt.answer
        good = f"The answer is {answer}." if answer is not None else "A kite. A boat. A lamp."
        text = good if row["level_value"] == 0 else "the the the " * 20
        yield {**row, "completion": text, "status": "ok", "finish_reason": "eos"}


def test_measure_file_writes_rows_cells_and_curves(tmp_path):
    path = write_experiment(tmp_path, real_rows(), "mult_gauss")
    target = measure_file(path, tmp_path / "measures", draws=100)
    assert target.name == f"{path.stem}_measures.json"
    rows, cells, curves = (read_csv(target.parent / f"{path.stem}_{name}.csv") for name in ("rows", "cells", "curves"))
    assert len(rows) == 4 * len(PROMPTS) and len(cells) == 4
    assert {row["looped"] for row in rows if row["level_value"] == "0.5"} == {"1"}
    levels = {row["level"]: row for row in curves if row["measure"] == "accuracy"}
    assert levels["0"]["centre"] == "1" and levels["0.5"]["centre"] == "0"
    numbers = json.loads(target.read_text())
    assert {"self_bleu_4", "cell_distinct_2", "gzip_ratio"} <= {curve["measure"] for curve in numbers["curves"]}
    found = next(curve for curve in numbers["curves"] if curve["measure"] == "accuracy")
    assert found["L50"]["level"] == pytest.approx(0.5 * (1 - (1 + found["chance"]) / 2))
    assert found["L50"]["low"] == found["L50"]["level"]  # both repeats are alike
    assert all(entry["meaning"] for name, entry in numbers["measures"].items() if not name.startswith("accuracy/"))


@pytest.mark.slow
def test_more_processes_measure_the_same(tmp_path):
    rows = list(real_rows())
    one, two = (measure_rows(rows, measures.measure_row, find_prompt, measures.measure_cell, workers=n) for n in (1, 2))
    assert one.columns.keys() == two.columns.keys() and one.cells == two.cells
    for name, column in one.columns.items():
        numpy.testing.assert_array_equal(column, two.columns[name])


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="workers=0"):
        measure_rows([], measure, find_prompt, workers=0)


def test_prompts_of_a_file_of_ones_own_are_graded(tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"text": "How many?", "skill": "count", "grader": "number", "answer": 3}) + "\n")
    rows = [{**row, "prompt_text": "How many?", "completion": "3" if row["level_value"] == 0 else "4"}
            for row in simulated_rows("ablation", "attn_only", 0.4, repeats=2, prompts=PROMPTS[:1])]  # fmt: skip
    path = write_experiment(tmp_path, rows, "ablation")
    manifest = path.with_suffix(".journal") / "manifest.json"
    manifest.write_text(json.dumps({"runs": [{"manifest": {"config": {"prompts": str(own)}}}]}))
    series = analyse([path], draws=20).series[0]
    assert series.cells["accuracy/count"].tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
