"""Whether a checkpoint may be gone on from: told in its record, heeded by rotation and by resuming."""

import json

import pytest

from frankenlm.trainer_ext.saving.checkpoint_record import RECORD, Health, RunRecord, read_record, write_record
from frankenlm.trainer_ext.saving.output_folder import rotate
from frankenlm.trainer_ext.saving.saved_checkpoints import STATE, examine

SICK = Health("its parameters hold NaN or Inf")


@pytest.fixture
def run():
    return RunRecord()


def checkpoint(folder, step, run, health=None):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    state = {"global_step": step, "max_steps": 9, "log_history": [], "stateful_callbacks": {}}
    (path / STATE).write_text(json.dumps(state))
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).write_text(name)
    write_record(path, run, step, step, health)
    return path


def left(folder) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def test_health_is_recorded_and_read(tmp_path, run):
    health = Health("its evaluation loss is nan", 2.5, {"skip": 3})
    assert read_record(checkpoint(tmp_path, 1, run, health)).health == health
    path = checkpoint(tmp_path, 2, run)
    assert read_record(path).health == Health() and examine(path, 1).is_whole
    raw = json.loads((path / RECORD).read_text())
    del raw["health"]  # as earlier versions wrote it
    (path / RECORD).write_text(json.dumps(raw))
    assert read_record(path).health == Health()
    raw["health"] = {"fault": None, "mood": "fine"}
    (path / RECORD).write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="resume.json is damaged"):
        read_record(path)


def test_a_sick_checkpoint_is_not_gone_on_from(tmp_path, run):
    saved = examine(checkpoint(tmp_path, 1, run, SICK), 1)
    assert not saved.is_whole and saved.fault == "not healthy: its parameters hold NaN or Inf"


@pytest.mark.parametrize("limit", [1, 2])
def test_the_last_healthy_checkpoint_outlives_every_sick_one(tmp_path, run, limit):
    for step in (1, 2):
        checkpoint(tmp_path, step, run)
    for step in (3, 4, 5):
        newest = checkpoint(tmp_path, step, run, SICK)
        rotate(tmp_path, run.run, limit, (newest,), set())
        assert 2 in left(tmp_path) and step in left(tmp_path) and len(left(tmp_path)) == 2
    newest = checkpoint(tmp_path, 6, run)
    rotate(tmp_path, run.run, limit, (newest,), set())
    assert left(tmp_path) == [6] if limit == 1 else len(left(tmp_path)) == 2
