"""trackio: what the trainer logs of every family lies in a local folder, number by number; offline, in its process."""

import csv
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


def run(place, *words) -> None:
    environment = {**os.environ, "TRACKIO_DIR": str(place / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def entries_of(place, project) -> list[dict]:
    """What trackio keeps of a project's only run, in order."""
    with sqlite3.connect(place / "trackio" / f"{project}.db") as database:
        rows = database.execute("select run_name, metrics from metrics order by id").fetchall()
    assert len({name for name, _ in rows}) == 1
    return [json.loads(text) for _, text in rows]


@pytest.fixture(scope="module")
def tracked(saved, tmp_path_factory):
    place = tmp_path_factory.mktemp("tracked")
    run(place, "-c", RUN, place, *(saved(family) for family in TOOLS["trackio"].cells))
    return place, json.loads((place / "records.json").read_text())


@pytest.mark.slow  # trackio waits some seconds at the end of each run; test_reporters.py holds what it is given
@cells_of("trackio")
def test_every_number_is_there(family, cell, tracked):
    place, records = tracked
    if cell.verdict != WORKS:
        assert cell.message in records[family]
        return
    entries = entries_of(place, family)
    told = {(entry["train/global_step"], name): value for entry in entries for name, value in entry.items()}
    wanted = [record for record in records[family] if "loss" in record]
    assert len(wanted) == 2
    for record in wanted:
        for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
            assert told[record["step"], f"train/{name}"] == pytest.approx(record[name])


@pytest.mark.slow
def test_the_command_tracks_what_training_csv_has(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(f"The cat {n} sat on a mat and saw dogs run." for n in range(200)))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = [word for name, size in sizes.items() for word in (f"--model.{name}", size)]
    words = "--preset legacy-1bit --dataset text.txt --cache_dir cache --max_steps 3 --logging_steps 1 --eval_steps 3"
    rest = "--batch_size 2 --use_cpu --disable_tqdm true --output_dir out --report_to trackio --project cats"
    run(tmp_path, "-m", "frankenlm.scripts.train", *words.split(), *model, *rest.split())
    told = {}
    for entry in entries_of(tmp_path, "cats"):
        told.setdefault(entry["train/global_step"], {}).update(entry)
    with open(tmp_path / "out" / "training.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert len(rows) == 3
    for row in rows:
        for name in ("loss", "learning_rate", "grad_norm"):
            assert told[int(row["step"])][f"train/{name}"] == pytest.approx(float(row[name]), rel=1e-4)
    assert "eval/loss" in told[3]
