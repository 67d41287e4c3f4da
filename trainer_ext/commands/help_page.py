"""The help page of scripts/train.py, read from a file: train_help.txt, which `python -m` of this module writes anew.

Its flags are those of transformers' TrainingArguments, whose import takes seconds. A test holds the page equal to what
the parser says.
"""

import os
from pathlib import Path
from unittest import mock

PAGE = Path(__file__).with_name("train_help.txt")
COLUMNS = 100


def help_page() -> str:
    """Return the page as it was written."""
    return PAGE.read_text(encoding="utf-8")


def format_page() -> str:
    """Return the page as the parser makes it, with the flags of a first run."""
    from ..presets import RunParser

    parser = RunParser()
    parser.hide_uncommon_flags()
    with mock.patch.dict(os.environ, COLUMNS=str(COLUMNS)):
        return parser.format_help()


if __name__ == "__main__":
    PAGE.write_text(format_page(), encoding="utf-8")
