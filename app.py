"""The page from a checkout, installed or not: what `frankenlm app` opens. A Space of Hugging Face runs this file."""

import sys

from frankenlm.scripts.app import main
from frankenlm.trainer_ext.common.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(main))
