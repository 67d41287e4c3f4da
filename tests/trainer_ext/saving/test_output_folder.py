"""An output folder: only what a run wrote is deleted or overwritten, links are not written through."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from frankenlm.trainer_ext.common.cli import UserError
from frankenlm.trainer_ext.preflight import find_checkpoint
from frankenlm.trainer_ext.saving.checkpoint_record import RunRecord, write_record
from frankenlm.trainer_ext.saving.output_folder import check_links, clear, is_run, rotate
from frankenlm.trainer_ext.saving.training_csv import CSV_COLUMNS

FILES = ("model.safetensors", "optimizer.pt", "trainer_state.json")


def make_checkpoint(output_dir: Path, step: int, run: str | None = "mine", strangers=()) -> Path:
    """A checkpoint with its record (none without `run`), and files of somebody else."""
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"{name} {step}")
    if run is not None:
        write_record(folder, RunRecord(run=run), step, saved=step)
    for name in strangers:
        (folder / name).write_text("precious")
    return folder


def names(output_dir: Path) -> set[str]:
    return {path.name for path in output_dir.glob("checkpoint-*")}


def test_the_oldest_checkpoints_of_the_run_go(tmp_path):
    for step in (2, 4, 6, 8):
        make_checkpoint(tmp_path, step)
    rotate(tmp_path, "mine", 2, [], set())
    assert names(tmp_path) == {"checkpoint-6", "checkpoint-8"}


@pytest.mark.parametrize("limit", [None, 0])
def test_without_a_limit_all_stay(tmp_path, limit):
    for step in (2, 4):
        make_checkpoint(tmp_path, step)
    rotate(tmp_path, "mine", limit, [], set())
    assert len(names(tmp_path)) == 2


def test_the_best_and_the_newest_stay(tmp_path):
    folders = [make_checkpoint(tmp_path, step) for step in (2, 4, 6)]
    rotate(tmp_path, "mine", 1, [folders[0]], set(), is_over=True)
    assert names(tmp_path) == {"checkpoint-2"}


def test_folders_of_others_and_with_files_of_others_stay(tmp_path, caplog):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "mine.txt").write_text("precious")
    make_checkpoint(tmp_path, 1, run="other")
    make_checkpoint(tmp_path, 2, run=None)
    make_checkpoint(tmp_path, 3, strangers=["notes.txt"])
    for step in (6, 7):
        make_checkpoint(tmp_path, step)
    told = set()
    for _ in range(2):
        rotate(tmp_path, "mine", 1, [], told)
    assert names(tmp_path) == {f"checkpoint-{step}" for step in (1, 2, 3, 5, 7)}
    assert (tmp_path / "checkpoint-3" / "model.safetensors").exists()
    assert caplog.text.count("checkpoint-3 is not rotated: it holds notes.txt") == 1


@pytest.mark.parametrize("run", ["mine", None])
def test_an_earlier_run_is_replaced_but_for_files_of_others(tmp_path, run, caplog):
    make_checkpoint(tmp_path, 2, run=run)
    make_checkpoint(tmp_path, 4, run=run, strangers=["notes.txt"])
    (tmp_path / "training.csv").write_text("x")
    (tmp_path / "notes.txt").write_text("precious")
    clear(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"notes.txt", "checkpoint-4/notes.txt"}
    assert "checkpoint-4 stays: it holds notes.txt" in caplog.text


LINKS = [
    "model.safetensors",
    "training.csv",
    "README.md",
    "config.json",
    "cache.py",
    "checkpoint-2",
    "checkpoint-2/optimizer.pt",
    "checkpoint-2/resume.json",
]


@pytest.mark.parametrize("name", LINKS)
def test_links_under_our_names_are_refused(tmp_path, name):
    target, output_dir = tmp_path / "precious", tmp_path / "out"
    target.mkdir() if name == "checkpoint-2" else target.write_text("precious")
    (output_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (output_dir / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name} is a symbolic link"):
        check_links(output_dir)


def test_links_of_others_do_not_matter(tmp_path):
    (tmp_path / "latest").symlink_to(tmp_path / "nothing")
    check_links(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    check_links(tmp_path / "link")  # the folder itself may be one


def asked(folder: Path, overwrite: bool) -> SimpleNamespace:
    arguments = {"output_dir": str(folder), "resume_from_checkpoint": None, "overwrite_output_dir": overwrite}
    return SimpleNamespace(training=SimpleNamespace(**arguments))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "checkpoint-5/config.json"])
def test_a_folder_with_somebody_elses_files_is_refused(tmp_path, name, overwrite):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"holds {name}.*choose another folder"):
        find_checkpoint(asked(tmp_path, overwrite))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training.csv", ",".join(CSV_COLUMNS)),
        ("training.log", "2026-01-01 INFO frankenlm.train: x"),
        ("metrics.json", '{"versions": {"frankenlm": "1"}}'),
    ],
)
def test_what_a_failed_run_left_is_begun_anew(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert is_run(tmp_path)
    assert find_checkpoint(asked(tmp_path, False)) is None


def test_a_run_is_not_overwritten_unasked(tmp_path):
    make_checkpoint(tmp_path, 2)
    with pytest.raises(UserError, match="already holds a run"):
        find_checkpoint(asked(tmp_path, False))
    assert find_checkpoint(asked(tmp_path, True)) is None
