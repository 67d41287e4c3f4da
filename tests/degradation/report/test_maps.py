"""Heat maps of several experiments in one report: each has its own, and none shows another's numbers."""

import pytest

from frankenlm.degradation.report.drawing.depth_map import change, maps_of, plot_depth, window_of_depth
from frankenlm.degradation.report.drawing.figures import figure_names
from frankenlm.degradation.report.result_files import run_of
from frankenlm.degradation.report.write import analyse
from simulated_results import PROMPTS, measure, read_csv, simulated_rows, write_experiment

# suffix, windows or layers -> where accuracy is half gone in each
RUNS = {
    ("iq", "@{}of3"): (0.9, 0.5, 0.1),
    ("iq", "@{}of2"): (0.3, 0.8),
    ("other", "@{}of3"): (0.1, 0.9, 0.5),
    ("iq", "@L{}"): (0.9, 0.1),
    ("other", "@L{}"): (0.1, 0.9),
    ("rec_after00000", "@{}of3"): (0.1, 0.1, 0.9),
    ("rec_after00050", "@{}of3"): (0.9, 0.9, 0.9),
    ("rec_after00000", "@L{}"): (0.5, 0.9),
    ("rec_after00050", "@L{}"): (0.9, 0.9),
}


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Four experiments over windows of depth and layers, two of them the steps of one recovery."""
    folder, rows = tmp_path_factory.mktemp("maps"), {}
    for (suffix, place), halves in RUNS.items():
        for number, half in enumerate(halves, start=1):
            group = f"mlp_down{place.format(number)}"
            rows.setdefault(suffix, []).extend(
                simulated_rows(
                    "mult_gauss", group, half, levels=(0.0, 0.6), repeats=2, prompts=PROMPTS[:3], suffix=suffix
                )
            )
    paths = [write_experiment(folder, own, "mult_gauss", suffix=suffix) for suffix, own in rows.items()]
    return analyse(paths, measure=measure, measure_texts=None, draws=5, progress=False).curves


def test_each_experiment_and_count_of_windows_has_a_map_of_its_own(curves):
    maps = maps_of(curves)
    assert {(run_of(experiment), windows) for _, experiment, windows in maps} == {
        (suffix, int(place[-1])) for suffix, place in RUNS if "of" in place and not suffix.endswith("50")
    }
    for (_, experiment, windows), own in maps.items():
        halves = RUNS[run_of(experiment), f"@{{}}of{windows}"]
        found = {window_of_depth(c.series.key.group)[1]: c for c in own if c.measure.name == "accuracy"}
        assert list(found) == list(range(1, windows + 1)) and {c.series.key.experiment for c in own} == {experiment}
        drop = [-change(found[number], 0.6) for number in found]
        assert drop[halves.index(min(halves))] > 0.3 + drop[halves.index(max(halves))]


def test_what_is_drawn_names_its_experiment(curves, tmp_path):
    own = next(own for (_, experiment, _), own in maps_of(curves).items() if run_of(experiment) == "other")
    plot = plot_depth(own, ("accuracy",), tmp_path, "depth")
    assert {row["experiment"] for row in read_csv(plot.csv)} == {own[0].series.key.experiment}
    assert "(other)" in plot.title


def test_every_map_has_a_name_of_its_own(curves):
    """Of layers too, and none of a step of training."""
    names = figure_names(curves)
    assert len(set(names.values())) == len(names)
    depth, layers = ([name for *_, name in names if name.startswith(kind)] for kind in ("depth_", "layers_"))
    assert len(depth) == 4 and len(layers) == 3 and "after00050" not in "".join(depth + layers)
    one = figure_names([curve for curve in curves if run_of(curve.series.key.experiment) == "other"])
    assert {"depth_mult_gauss", "layers_mult_gauss_mlp_down"} <= {name for *_, name in one}
