"""One of the processes of a sharded run: trains, writes which part of each parameter it holds, and trains on.

    torchrun --nproc_per_node 2 sharded_training.py FOLDER STEPS [words of scripts/train.py]

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


def telling(self, model, *args, **kwargs):
    loss = step(self, model, *args, **kwargs)
    held = {name: (weight.to_local().numel(), weight.numel()) for name, weight in model.named_parameters()}
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
