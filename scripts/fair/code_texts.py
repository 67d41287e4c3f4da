"""Write the long text of the memory tables, the standard library's source: train, validation and test.jsonl.

    python scripts/fair/code_texts.py --output_dir runs/texts/code

Nothing is downloaded: these are the documents of `builtin-code`, one module a line (topic and text), each in the split
that a hash of its path says (90 / 5 / 5 in a hundred). Another version of Python has other modules, so that the losses
of two versions are no pair; `version.txt` says which one it was.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence

from frankenlm.scripts.fair.fetch_texts import SPLITS, split_of
from frankenlm.trainer_ext.common.cli import OneLineParser, check_output_dir, path_value, run_command, user_mistakes
from frankenlm.trainer_ext.common.files import write_text
from frankenlm.trainer_ext.data.builtin_text import builtin_documents


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=path_value, required=True, help="folder for the files")
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    check_output_dir(args.output_dir)
    with user_mistakes():  # a Python without its library's source
        documents = builtin_documents("builtin-code")
    lines: dict[str, list[str]] = {name: [] for name in SPLITS}
    for document in documents:
        row = {"topic": document.topic, "text": document.text}
        lines[split_of(document.topic)].append(json.dumps(row, ensure_ascii=False))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        write_text(args.output_dir / f"{name}.jsonl", "\n".join(rows) + "\n")
        print(f"{args.output_dir / f'{name}.jsonl'}: {len(rows):,} modules")
    write_text(args.output_dir / "version.txt", f"Python {platform.python_version()}\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
