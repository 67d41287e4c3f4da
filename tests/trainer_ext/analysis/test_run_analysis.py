"""frankenlm analyze: from timing.csv, from an older run's training.csv, and from what is neither."""

import csv
import json

import pytest
from PIL import Image

from frankenlm.scripts.analyze_run import main
from frankenlm.trainer_ext.analysis.figure import windows
from frankenlm.trainer_ext.analysis.run_analysis import analyse, text_table
from frankenlm.trainer_ext.analysis.timing_file import COLUMNS, PARTS, TimingFile
from frankenlm.trainer_ext.common.cli import run_command


@pytest.fixture
def run(tmp_path):
    """Two log windows of two steps, an evaluation before them and a checkpoint behind: 20 seconds in all."""
    file = TimingFile(tmp_path / "timing.csv")
    nothing = dict.fromkeys(PARTS, 0.0)
    file.add(0, nothing)
    file.add(0, nothing | {"evaluation": 1.0})
    file.add(2, nothing | {"data": 1.0, "forward": 2.0, "backward": 4.0, "optimizer": 1.0})
    file.add(4, nothing | {"forward": 2.0, "backward": 4.0, "guard": 1.0, "optimizer": 1.0, "other": 1.0})
    file.add(4, nothing | {"saving": 2.0})
    return tmp_path


def test_table_figure_and_files(run, capsys):
    assert run_command(main, [str(run)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["part", "seconds", "share", "ms/step"]
    assert shown[3].split() == ["backward", "8.00", "40.0%", "2000.0"]
    assert shown[6].split() == ["evaluation", "1.00", "5.0%"]
    assert shown[9].split() == ["all", "20.00", "100.0%", "4", "steps"]
    facts = json.loads((run / "analysis.json").read_text())
    assert (facts["seconds"], facts["steps"], facts["source"], facts["notes"]) == (20.0, 4, "timing.csv", [])
    with (run / "analysis.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == list(PARTS) and rows[1]["milliseconds_per_step"] == "1000.0"
    with Image.open(run / "analysis.png") as image:
        assert image.height > 600


def test_the_host_s_clock_on_a_gpu_is_told(run):
    (run / "metrics.json").write_text('{"device": "cuda"}')
    assert "kernels of a GPU run behind it" in text_table(analyse(run))
    (run / "metrics.json").write_text('{"device": "cpu"}')
    assert "GPU" not in text_table(analyse(run))


def test_stretches_of_steps_are_few_and_lose_nothing(run):
    first, second = windows(analyse(run).rows)
    assert (first["first"], first["last"], first["backward"], first["data"]) == (0, 2, 2000.0, 500.0)
    assert (second["first"], second["last"], second["backward"], second["guard"]) == (2, 4, 2000.0, 500.0)
    many = [{"step": step, **dict.fromkeys(PARTS, 0.5)} for step in range(10_001)]
    stretches = windows(many)
    assert len(stretches) <= 120 and stretches[-1]["last"] == 10_000
    assert sum(s["forward"] * (s["last"] - s["first"]) for s in stretches) == pytest.approx(0.5 * 10_001 * 1000)


def test_an_older_run_gives_what_its_curve_tells(tmp_path, capsys):
    (tmp_path / "training.csv").write_text(
        "step,epoch,tokens_seen,loss,eval_loss,tokens_per_second,seconds\n"
        "0,0,0,,9.0,,4\n10,0.1,1000,8.0,,100,14\n20,0.2,2000,7.0,,50,34\n20,0.2,2000,,7.5,,40\n"
    )
    assert run_command(main, [str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "training steps                 30.00   75.0%    1500.0" in shown and "There is no timing.csv" in shown
    assert json.loads((tmp_path / "analysis.json").read_text())["parts"][1]["seconds"] == 10.0


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("notes.txt", "", "holds neither timing.csv nor training.csv"),
        ("timing.csv", "step,seconds\n", "its columns are not those of a timing.csv"),
        ("timing.csv", ",".join(COLUMNS) + "\n", "has no times yet"),
        ("timing.csv", ",".join(COLUMNS) + "\n1,x" + ",0" * 8, "could not convert string to float"),
        ("timing.csv", ",".join(COLUMNS) + "\n1,0", "a row is cut short"),
        ("training.csv", "step,tokens_seen,seconds\n1,5,2\n", "has no speeds"),
        ("training.csv", "step,tokens_per_second\n1,5\n", "tokens_seen"),
    ],
)
def test_what_is_no_run_is_told_in_one_line(tmp_path, capsys, name, text, told):
    (tmp_path / name).write_text(text)
    assert run_command(main, [str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.startswith("error: ") and error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_no_folder_is_told(tmp_path, capsys):
    assert run_command(main, [str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
