"""trackio: what the trainer logs of every family lies in a local folder, number by number; offline, in its process."""

import json
import os
import sqlite3
import subprocess
import sys

import pytest

from peer_cells import TOOLS, WORKS, cells_of

# trackio reads where to write when it is imported, and a test before may have put a stand-in in its place
RUN = """
import json, sys
from pathlib import Path
import torch
from frankenlm.trainer_ext import FrankenTrainer, FrankenTrainingArguments
from peer_models import open_peer, some_ids

records, place = {}, Path(sys.argv[1])
for folder in sys.argv[2:]:
    family = Path(folder).name
    model = open_peer(family, folder)
    inputs = some_ids(model, rows=4, length=12)
    rows = [{"input_ids": ids, "attention_mask": mask, "labels": ids} for ids, mask in zip(*inputs.values())]
    args = FrankenTrainingArguments(
        str(place / family), max_steps=2, logging_steps=1, use_cpu=True, disable_tqdm=True, save_strategy="no",
        eval_strategy="no", report_to=["trackio"], project=family, run_name="first", per_device_train_batch_size=2,
    )
    try:
        trainer = FrankenTrainer(model, args, train_dataset=rows)
        trainer.train()
        records[family] = trainer.state.log_history
    except ValueError as error:
        records[family] = str(error)
(place / "records.json").write_text(json.dumps(records))
"""


@pytest.fixture(scope="module")
def tracked(saved, tmp_path_factory):
    place = tmp_path_factory.mktemp("tracked")
    environment = {**os.environ, "TRACKIO_DIR": str(place / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)}
    folders = [str(saved(family)) for family in TOOLS["trackio"].cells]
    command = [sys.executable, "-c", RUN, str(place), *folders]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return place, json.loads((place / "records.json").read_text())


@pytest.mark.slow  # trackio waits some seconds at the end of each run; test_reporters.py holds what it is given
@cells_of("trackio")
def test_every_number_is_there(family, cell, tracked):
    place, records = tracked
    if cell.verdict != WORKS:
        assert cell.message in records[family]
        return
    with sqlite3.connect(place / "trackio" / f"{family}.db") as database:
        rows = database.execute("select run_name, metrics from metrics order by id").fetchall()
    assert {name for name, _ in rows} == {"first"}
    entries = [json.loads(text) for _, text in rows]
    told = {(entry["train/global_step"], name): value for entry in entries for name, value in entry.items()}
    wanted = [record for record in records[family] if "loss" in record]
    assert len(wanted) == 2
    for record in wanted:
        for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
            assert told[record["step"], f"train/{name}"] == pytest.approx(record[name])
