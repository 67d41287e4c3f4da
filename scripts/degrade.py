"""The degradation lab: damage a model's weights step by step, let it answer, and measure what breaks.

    accelerate launch -m frankenlm.scripts.degrade run --config smoke --model DIR --output_dir results --group attn_only
    frankenlm degrade run --config iq_it dreams_it --model google/gemma-3-4b-it --group attn_only mlp_only
    frankenlm degrade dry-run --config iq_it --model google/gemma-3-4b-it --group mlp_only
    frankenlm degrade groups --model google/gemma-3-4b-it
    frankenlm degrade report results/outputs_*.json --output_dir results/report

A run that was stopped, killed or out of memory goes on where it stood when the same command is given again.
Exit codes: 0 done, 1 failed, 2 a mistake found before anything was loaded, 3 memory nearly used up, 4 rows of another
configuration under the same name, 5 another process works on the experiment, 6 storage full or read-only, 7 damaged or
newer records, 130 / 143 ended by SIGINT / SIGTERM.
"""

import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import run_command


def main(argv: Sequence[str] | None = None) -> None:
    from frankenlm.degradation.cli import main as run

    run(sys.argv[1:] if argv is None else argv, __doc__)


if __name__ == "__main__":
    sys.exit(run_command(main))
