"""Push a model to the Hub: its files and no others, a whole card, and nothing secret.

    frankenlm push runs/mini me/mini --license apache-2.0 --dry_run
    HF_TOKEN=... frankenlm push runs/mini me/mini --license apache-2.0
    frankenlm push runs/mini-packed me/mini-packed --license apache-2.0 --base_model me/mini --private

MODEL is a folder: what `train`, `pack`, or transformers' save_pretrained left. Pushed are the weights (safetensors
alone), configuration, tokenizer, code, records and card; checkpoints, logs and pickles stay. Before anything is sent
the model is opened, its weights are looked through for NaN, the front matter of the card is made whole from what was
measured, and every file is searched for secrets and local paths. --dry_run shows files and card, and sends nothing.
The token is read from HF_TOKEN in the environment, and from nowhere else. docs/push.md tells more.
"""

import argparse
import sys
from collections.abc import Sequence

from frankenlm.trainer_ext.common.cli import OneLineParser, run_command


def build_parser() -> OneLineParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="folder of a saved model")
    add("repo", metavar="REPO", help="OWNER/NAME on the Hub")
    add("--dry_run", action="store_true", help="show files and card, and send nothing")
    add(
        "--license",
        default="",
        metavar="ID",
        help="license of the weights, by its name on the Hub: mit, ...",
    )
    add("--language", nargs="+", default=[], metavar="CODE", help="of the text it knows: en, es, ...")
    add("--datasets", nargs="+", default=[], metavar="NAME", help="that it was trained on, by their names on the Hub")
    add("--base_model", default="", metavar="NAME", help="that it was made from, by its name on the Hub")
    add("--include", nargs="+", default=[], metavar="PATTERN", help="further files, such as 'evaluation_*.png'")
    add("--hide_local_paths", action="store_true", help="push the last part of each local path in its place")
    add(
        "--not_secret", nargs="+", default=[], metavar="FILE:LINE", help="places that were looked at and hold no secret"
    )
    add("--private", action="store_true", help="a repository that only its owners see, where it is new")
    add("--revision", metavar="BRANCH", help="push to this branch")
    add("--create_pr", action="store_true", help="open a pull request")
    add("--trust_remote_code", action="store_true", help="run model code that comes with MODEL, to look at it")
    add("--message", default="Model and card", help="of the commit (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_strictly(sys.argv[1:] if argv is None else argv)
    # after the help page and slips of the pen, which need not wait for torch
    from frankenlm.sharing.hub.command import push_model

    push_model(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
