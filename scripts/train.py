"""Train a small language model, from a preset to a checkpoint that AutoModel loads.

    accelerate launch scripts/train.py --preset mini --dataset builtin --output_dir runs/mini --max_steps 200
    accelerate launch scripts/train.py --preset mini --objective causal --dataset text.jsonl --tokenizer train \
        --vocab_size 8000 --model.hidden_size 192 --output_dir runs/causal
    accelerate launch scripts/train.py --config run.yaml --output_dir runs/again --resume_from_checkpoint last
    ACCELERATE_USE_CPU=true accelerate launch --config_file configs/accelerate/cpu_2.yaml scripts/train.py ...

The output folder holds the checkpoint, the tokenizer, the code, README.md (model card), metrics.json, training.csv,
training.png and training.log. `--help` lists the flags and exit codes, `--list_presets` the presets.
"""

import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import run_command


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        # written in advance, since the parser takes its flags from transformers' TrainingArguments: seconds of imports
        from frankenlm.trainer_ext.commands.help_page import help_page

        print(help_page(), end="")
        return
    from frankenlm.trainer_ext.presets import parse_run

    run = parse_run(argv)
    if run is not None:
        from frankenlm.trainer_ext.commands.train import train

        train(run)


if __name__ == "__main__":
    sys.exit(run_command(main))
