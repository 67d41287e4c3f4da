"""One of the processes of a launched run: trains, and trains again from the first checkpoint.

    torchrun --nproc_per_node 2 launched_twice.py FOLDER STEPS [words of scripts/train.py]

FOLDER/whole is a run of STEPS steps, FOLDER/again one that goes on from its first checkpoint. FOLDER/shards-RANK.json
has (numbers held, numbers in all) of every parameter while it trains.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from frankenlm.scripts.train import main
from frankenlm.trainer_ext import FrankenTrainer
from frankenlm.trainer_ext.common.cli import run_command
from frankenlm.trainer_ext.saving.saved_checkpoints import checkpoint_folders

folder, steps, words = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
rank = int(os.environ["RANK"])
step = FrankenTrainer.training_step


def named(model):
    return list(model.named_parameters())


def telling(self, model, *args, **kwargs):
    loss = step(self, model, *args, **kwargs)
    local = {name: getattr(weight, "to_local", lambda weight=weight: weight)() for name, weight in named(model)}
    held = {name: (local[name].numel(), weight.numel()) for name, weight in named(model)}
    (folder / f"shards-{rank}.json").write_text(json.dumps(held))
    return loss


FrankenTrainer.training_step = telling
code = run_command(main, [*words, "--max_steps", steps, "--output_dir", str(folder / "whole")])
if code == 0:
    if rank == 0:
        first = checkpoint_folders(folder / "whole")[0]
        shutil.copytree(first, folder / "again" / first.name)
    resumed = ["--max_steps", steps, "--output_dir", str(folder / "again"), "--resume_from_checkpoint", "last"]
    torch.distributed.barrier()
    code = run_command(main, [*words, *resumed])
sys.exit(code)
