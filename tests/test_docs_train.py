"""docs/train.md: every command and every block of Python on the page runs, as it stands there.

The files that the page shows are laid into one folder with some texts; its first run is shared. Commands run in this
process, but for those that start processes of their own.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from transformers import Trainer, TrainingArguments
from transformers.integrations import integration_utils

from frankenlm import command
from frankenlm.trainer_ext.saving.checkpoint_record import read_record
from frankenlm.trainer_ext.saving.saved_checkpoints import checkpoint_folders
from guarded_runs import batches, model_of
from page_blocks import page_blocks

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "train.md"
BLOCKS = page_blocks(PAGE)
FILES = {name: text for _, name, text in BLOCKS if name}
COMMANDS = [line for kind, _, text in BLOCKS if kind == "bash" for line in text.splitlines()]
FIRST, LAUNCH = COMMANDS[0], "accelerate launch"


def marked(line: str):
    """A command as a parameter; slow where it trains anew, as the page's first run and the one that goes on do."""
    trains = re.search(r"(train|sweep) .*--output_dir", line) and not re.search("--(resume_from|dry_run)", line)
    return pytest.param(line, id=line[10:40], marks=[pytest.mark.slow] if trains else [])


def test_the_page_has_its_blocks():
    assert set(FILES) == {"small.yaml", "rates.yaml", "chosen.yaml", "chat.jsonl", "lora.yaml"}
    assert FIRST.startswith("frankenlm train") and len(COMMANDS) > 15
    assert {kind for kind, _, _ in BLOCKS} == {"bash", "yaml", "json", "python"}
    for verb in ("train", "evaluate", "sweep", "analyze"):
        assert any(line.startswith(f"frankenlm {verb} ") for line in COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What somebody has who follows the page: its files, some texts, a checkout, and the first run."""
    folder = tmp_path_factory.mktemp("page")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "texts").mkdir()
    for number in range(6):
        text = f"Text {number} speaks of cats, of rain and of hills that are {number} miles away. " * 30
        (folder / "texts" / f"{number}.txt").write_text(text)
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["frankenlm"])
        assert command.main(shlex.split(FIRST)[1:]) == 0
    return folder


@pytest.mark.parametrize("line", [marked(line) for line in COMMANDS[1:] if LAUNCH not in line])
def test_command(folder, monkeypatch, capsys, line):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["frankenlm"])
    reporters = re.search(r"--report_to ([\w,]+)", line)
    if reporters:  # their packages are a choice of the user's
        for name in reporters[1].split(","):
            monkeypatch.setattr(integration_utils, f"is_{name}_available", lambda: True)
        for name in ("trackio", "torch.utils.tensorboard"):
            monkeypatch.setitem(sys.modules, name, MagicMock(__version__="0.1"))
    program, *words = shlex.split(line)
    assert program == "frankenlm" and command.main(words) == 0, capsys.readouterr().err
    written = re.search(r"--output_dir (\S+)", line)
    if written and "--dry_run" not in line:
        assert (folder / written[1] / ("sweep.md" if words[0] == "sweep" else "metrics.json")).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in COMMANDS if LAUNCH in line])
def test_launched_command(folder, line):
    assert subprocess.run(line, shell=True, cwd=folder).returncode == 0
    assert (folder / "runs" / "two" / "metrics.json").is_file()


@pytest.mark.parametrize("block", [text for kind, _, text in BLOCKS if kind == "python"])
def test_python(block, tmp_path):
    names = {"__name__": "__page__"}
    exec(compile(block, PAGE.name, "exec"), names)
    runs = set()
    for steps in (2, 4):  # the second goes on, and one checkpoint is left
        trainer = Trainer(
            model_of(),
            TrainingArguments(
                str(tmp_path), max_steps=steps, save_steps=1, save_total_limit=1, use_cpu=True, report_to="none"
            ),
            train_dataset=batches(4),
        )
        names["train_safely"](trainer)
        assert [path.name for path in checkpoint_folders(tmp_path)] == [f"checkpoint-{steps}"]
        runs.add(read_record(tmp_path / f"checkpoint-{steps}").run)
    assert len(runs) == 1
