"""Output folders of reports, measurements and exports: what we wrote is replaced, what others wrote is left alone."""

import json
import os

import pytest

from frankenlm.degradation.errors import DamagedRecords
from frankenlm.degradation.records.export_again import export_command
from frankenlm.degradation.report.drawing.figures import LONGEST, figure_names
from frankenlm.degradation.report.drawing.plot_style import Plot
from frankenlm.degradation.report.write import analyse, measure_file, write_report
from frankenlm.degradation.report.written_files import check_free
from record_rows import CONFIG, NAMES, make_row
from simulated_results import PROMPTS, measure, simulated_rows, write_experiment

OPTIONS = {"measure": measure, "measure_texts": None, "draws": 20, "progress": False}
ROWS = list(simulated_rows("mult_gauss", "attn_only", 0.4, repeats=2, levels=(0.0, 0.3), prompts=PROMPTS[:2]))
STEM = "outputs_mult_gauss_tiny-model_sim"


@pytest.fixture(autouse=True)
def quick_figures(monkeypatch):
    """Drawing takes a second a report; what counts here is which files are written, as test_report.py draws them."""

    def draw_all(curves, folder):
        drawn = {}
        for (model, task, name), stem in figure_names(curves).items():
            plot = Plot(stem, name, name, folder / f"{stem}.png", folder / f"{stem}.csv")
            plot.png.write_bytes(b"png")
            plot.csv.write_bytes(b"csv")
            drawn.setdefault((model, task), []).append(plot)
        return drawn, []

    monkeypatch.setattr("frankenlm.degradation.report.write.draw_all", draw_all)


@pytest.fixture
def results(tmp_path):
    return write_experiment(tmp_path, ROWS, "mult_gauss", cells=False)


def report(results, folder):
    return write_report([results], folder, **OPTIONS)


def measures(results, folder):
    return measure_file(results, folder, **OPTIONS)


def picture(folder):
    """What lies below a folder: links by their target, files by their content."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


FILES = [
    (report, "report.html"),
    (report, "report.json"),
    (report, "cells.csv"),
    (report, "curves.csv"),
    (report, "plots/maker-tiny-model_iq_it_ranking.png"),
    (report, "plots/maker-tiny-model_iq_it_repeats.csv"),
    (measures, f"{STEM}_measures.json"),
    (measures, f"{STEM}_rows.csv"),
    (measures, f"{STEM}_cells.csv"),
    (measures, f"{STEM}_curves.csv"),
]


@pytest.mark.parametrize("kind", ["file", "record of another", "link", "link to nothing", "folder", "device"])
@pytest.mark.parametrize(("write", "name"), FILES, ids=[name for _, name in FILES])
def test_what_is_not_ours_stays_and_nothing_is_written(write, name, kind, results, tmp_path):
    folder, theirs = tmp_path / "out", tmp_path / "theirs"
    place = folder / name
    place.parent.mkdir(parents=True)
    theirs.write_text("precious")
    if kind == "file":
        place.write_text("precious")
    elif kind == "record of another":
        place.write_text('{"written": ["report.html"], "bootstrap": 1}')
    elif kind == "folder":
        place.mkdir()
    elif kind == "device":
        os.mkfifo(place)
    else:
        place.symlink_to(theirs if kind == "link" else tmp_path / "nothing")
    before = picture(folder)
    with pytest.raises(ValueError, match="move it away") as refused:
        write(results, folder)
    assert str(place) in str(refused.value) and "\n" not in str(refused.value)
    assert picture(folder) == before and theirs.read_text() == "precious"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_the_folder_of_figures_is_a_folder(kind, results, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "theirs").mkdir()
    if kind == "file":
        (folder / "plots").write_text("precious")
    else:
        (folder / "plots").symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match="plots is a file or a link where a folder"):
        report(results, folder)
    assert not list((tmp_path / "theirs").iterdir()) and [path.name for path in folder.iterdir()] == ["plots"]


@pytest.mark.parametrize("write", [report, measures])
def test_what_we_wrote_is_replaced_beside_what_others_put_there(write, results, tmp_path):
    folder = tmp_path / "out"
    write(results, folder)
    (folder / "notes.txt").write_text("precious")
    first = picture(folder)
    write(results, folder)
    assert picture(folder) == first


def test_figures_that_a_later_report_lacks_stay_known_as_ours(results, tmp_path):
    others = [{**row, "model_name": "other"} for row in ROWS]
    other = write_experiment(tmp_path, others, "mult_gauss", suffix="other", cells=False)
    folder = tmp_path / "out"
    report(results, folder)
    figure = next(folder.glob("plots/*_repeats.png"))
    report(other, folder)
    assert figure.is_file() and f"plots/{figure.name}" in json.loads((folder / "report.json").read_text())["written"]
    report(results, folder)


@pytest.mark.parametrize("write", [report, measures])
def test_what_a_killed_run_left_is_known_as_ours(write, results, tmp_path, monkeypatch):
    module = "frankenlm.degradation.report.write.write_csv"

    def killed(*words, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, killed)
        with pytest.raises(KeyboardInterrupt):
            write(results, tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert write(results, tmp_path / "out").is_file()


def test_a_report_of_an_earlier_version_is_ours(results, tmp_path):
    folder = tmp_path / "out"
    report(results, folder)
    record = json.loads((folder / "report.json").read_text())
    del record["written"]
    (folder / "report.json").write_text(json.dumps(record))
    report(results, folder)


@pytest.mark.parametrize("names", ["x", [3, None, ["a"]], ["../theirs", "/etc/passwd", "a\0b", "\ud800"], {"a": 1}])
def test_odd_lists_in_a_record(names, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"bootstrap": 1, "not_shown": [], "written": names}))
    (tmp_path.parent / "theirs").write_text("")
    assert check_free(tmp_path, "report.json", ["cells.csv"]) == []


def test_figures_of_names_that_look_alike_or_are_long_have_files_of_their_own(tmp_path):
    names = ("a/b", "a-b", "m" * 400, "m" * 401)
    rows = [{**row, "model_name": name} for name in names for row in ROWS]
    path = write_experiment(tmp_path, rows, "mult_gauss", cells=False)
    found = figure_names(analyse([path], **OPTIONS).curves)
    assert len(set(found.values())) == len(found) and {key[0] for key in found} == set(names)
    assert max(len(stem.encode()) for stem in found.values()) <= LONGEST + 11


# --- export


@pytest.fixture
def experiment(tmp_path):
    """A finished experiment of two rows: (JSON file, journal)."""
    from frankenlm.degradation.records.store import Store

    with Store.open(tmp_path, *NAMES, config_fields=CONFIG, manifest={}) as store:
        store.append([make_row(1), make_row(2)])
        store.export()
        return store.files.json_path, store.files.journal_dir


@pytest.mark.parametrize(
    "content", [b"precious", b'{"a": 1}', b"[1, 2]", b'[{"timestamp": "2025", "std_dev": 0}]', b"\x89PNG"]
)
def test_export_leaves_a_file_of_somebody_else_alone(content, experiment, tmp_path):
    from frankenlm.degradation.records.store import Store

    experiment[0].write_bytes(content)
    before = picture(tmp_path)
    with pytest.raises(ValueError, match="holds no rows of this program: move it away"):
        export_command(experiment[1])
    with pytest.raises(ValueError, match="holds no rows of this program: move it away"):
        Store.open(tmp_path, *NAMES, config_fields=CONFIG, manifest={})
    assert {name: text for name, text in picture(tmp_path).items() if not name.endswith("lock")} == {
        name: text for name, text in before.items() if not name.endswith("lock")
    }


@pytest.mark.parametrize("end", [0, 1, 10, 700, -5])
def test_export_makes_a_cut_file_of_ours_anew(end, experiment):
    whole = experiment[0].read_bytes()
    experiment[0].write_bytes(whole[:end])
    assert export_command(experiment[0]).read_bytes() == whole


@pytest.mark.parametrize("place", ["json", "lesions.jsonl", "rank-00000.jsonl", "lock"])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_export_writes_through_no_link_and_onto_no_folder(place, kind, experiment, tmp_path):
    path = experiment[0] if place == "json" else experiment[1] / place
    theirs = tmp_path / "theirs"
    theirs.write_bytes(path.read_bytes() if path.exists() else b"precious")
    path.unlink(missing_ok=True)
    path.mkdir() if kind == "folder" else path.symlink_to(theirs)
    before = picture(tmp_path)
    with pytest.raises(ValueError, match="move it away"):
        export_command(experiment[1])
    assert picture(tmp_path) == before


def test_export_of_a_folder_that_is_no_journal(tmp_path):
    (tmp_path / "x.journal").mkdir()
    (tmp_path / "x.json").write_text('[{"row_key": "a"}]')
    before = picture(tmp_path)
    with pytest.raises(ValueError, match="so it is no journal"):
        export_command(tmp_path / "x.json")
    assert picture(tmp_path) == before


def test_export_does_not_put_nothing_in_the_place_of_rows(experiment):
    json_path, journal = experiment
    whole = json_path.read_bytes()
    (journal / "rank-00000.jsonl").unlink()
    with pytest.raises(DamagedRecords, match=r"rank-00000\.jsonl is gone, but .* holds 2 rows: --rebuild"):
        export_command(journal)
    (journal / "rank-00000.jsonl").write_bytes(b"")
    with pytest.raises(DamagedRecords, match="every row of the journal is gone"):
        export_command(journal)
    assert json_path.read_bytes() == whole


@pytest.mark.parametrize(
    "changes", [{"param_group_name": 3}, {"level_index": None}, {"attempt": "1"}, {"row_key": ["a"]}, {"status": {}}]
)
def test_a_row_of_the_journal_that_cannot_be_placed_is_set_aside(changes, experiment):
    from frankenlm.degradation.records.journal import encode_line, read_rows

    json_path, journal = experiment
    path = journal / "rank-00000.jsonl"
    first, second = read_rows(path)
    path.write_bytes(encode_line({**first, **changes}) + encode_line(second))
    export_command(journal)
    assert [row["prompt_id"] for row in json.loads(json_path.read_bytes())] == [second["prompt_id"]]
    assert len(read_rows(journal / "rank-00000.jsonl.quarantine")) == 1
