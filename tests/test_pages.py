"""docs/: every page is in the site, every command on every page is one that its parser takes, the tutorial runs."""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from frankenlm import command
from frankenlm.trainer_ext.common.cli import OneLineParser
from frankenlm.trainer_ext.presets import RunParser, split_model_fields
from page_blocks import bad_fences, page_blocks

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "model_cards").glob("*.md"))]
# accelerate launch --config_file F scripts/train.py ..., python scripts/train.py ..., frankenlm train ...
CALL = re.compile(
    r"(?:^|\s)(?:scripts/(\w+)\.py|-m frankenlm\.scripts\.(\w+)|frankenlm (?!frankenlm )(\w[\w-]*))((?: .*)?)$"
)
CARD = re.compile(r"\]\((\.\./model_cards/\w+\.md)\)")
MEASURED = re.compile(r"(?<![\w.])[+-]?\d+\.\d+(?![\w.])")


def calls(page: Path) -> list[tuple[str, list[str]]]:
    """Return (verb, words) of every call of a command of ours in a page's shell blocks."""
    found = []
    for _, _, text in page_blocks(page, "bash", "sh"):
        for name, value in re.findall(r'^([A-Z]+)="([^"]*)"$', text, re.MULTILINE):
            text = text.replace(f"${name}", value)
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"\|\||&&|;|\|", line.partition(" #")[0]):
                match = CALL.search(part.split(" 2>")[0].rstrip(" &"))
                if match is not None and "accelerate" not in match[4]:
                    found.append((match[1] or match[2] or match[3], shlex.split(match[4])))
    return found


def parse(verb: str, words: list[str]) -> None:
    """Let a verb's parser take the words. Raises UserError where it does not."""
    verb = {file.stem: name for name, file in command.verbs().items()}.get(verb, verb)
    script = importlib.import_module(f"frankenlm.scripts.{command.verbs()[verb].stem}")
    if verb == "train":
        RunParser().parse_strictly(split_model_fields(words)[0])
    elif verb == "degrade":
        from frankenlm.degradation.cli import COMMANDS, with_underscores

        name, *words = with_underscores(words)
        parser = OneLineParser(allow_abbrev=False)
        COMMANDS[name][1](parser)
        parser.parse_strictly(words)
    else:
        script.build_parser().parse_strictly(words)


@pytest.mark.parametrize("page", [page for page in PAGES if calls(page)], ids=lambda page: page.stem)
def test_commands_of_a_page_are_understood(page):
    for verb, words in calls(page):
        if words not in (["--help"], []):
            parse(verb, words)


def test_commands_that_are_wrong_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\naccelerate launch scripts/train.py --preset mini \\\n    --max_step 3 || echo no\n```\n")
    ((verb, words),) = calls(page)
    assert (verb, words) == ("train", ["--preset", "mini", "--max_step", "3"])
    with pytest.raises(ValueError, match="max_step"):
        parse(verb, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_fence_is_one_that_the_site_knows(page):
    text = page.read_text(encoding="utf-8")
    assert not bad_fences(text)
    assert 2 * len(page_blocks(page)) == text.count("```"), "a block that no test would read"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("```yaml\na: 1\n```\n", []),
        ("```yaml small.yaml\na: 1\n```\n", ["1: ```yaml small.yaml"]),
        ("```\na\n```\n", []),
        ("  ```bash\nls\n```\n", ["1:   ```bash"]),
        ("```bash\nls\n````\n", ["3: ````"]),
        ("```bash\nls\n", ["the last block has no end"]),
    ],
)
def test_a_fence_that_the_site_does_not_know_would_be_found(text, lines):
    assert bad_fences(text) == lines


def test_the_site_has_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = [file for entry in site["nav"] for file in entry.values()]
    assert sorted(named) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
    overview = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}]({name})" in overview for name in named if name != "README.md")


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", text):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("repository", [None, "https://example.org/me/frankenlm/"])
def test_links_of_the_site_stay_in_it_or_lead_to_the_repository(repository):
    """The site holds docs/ alone."""
    (hook,) = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["hooks"]
    change = runpy.run_path(str(ROOT / hook))["on_page_markdown"]
    left = 0
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        shown = change(text, config={"repo_url": repository}, page=None, files=None)
        targets = re.findall(r"\]\(([^)#\s]+)", shown)
        assert len(targets) == len(re.findall(r"\]\(([^)#\s]+)", text)) - (0 if repository else text.count("](../"))
        for target in targets:
            assert "://" in target or (target in os.listdir(ROOT / "docs")), f"{page.name}: {target}"
        left += text.count("](../")
    assert left > 10
    assert change("[a/b.md](../a/b.md), [c](../d)", {"repo_url": None}) == "`a/b.md`, c (`d`)"
    assert change("[c](../d)", {"repo_url": "https://x.org/y/"}) == "[c](https://x.org/y/blob/HEAD/d)"


def test_figures_of_the_models_page_stand_where_it_says():
    """In the card that the table's row, or the paragraph, names."""
    page = ROOT / "docs" / "models.md"
    parts = re.split(r"\n\n|\n(?=\|)", page.read_text(encoding="utf-8"))
    claims = [(figure, card) for part in parts for card in CARD.findall(part)[:1] for figure in MEASURED.findall(part)]
    assert len(claims) >= 10
    for figure, card in claims:
        assert figure in (page.parent / card).read_text(encoding="utf-8"), f"{figure} is not in {card}"


def test_a_reader_of_both_pages_is_not_refused():
    """A folder that one page has filled is taken for the other."""
    pages = (ROOT / "README.md", ROOT / "docs" / "tutorial.md")
    first, second = (set(re.findall(r"--output(?:_dir)? (runs/\S+)", page.read_text("utf-8"))) for page in pages)
    assert len(first) > 4 and len(second) > 4 and not first & second


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    """As somebody follows it, block after block, from a clone."""
    for name in ("configs", "scripts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    tools = str(Path(sys.executable).parent)
    for kind, _, text in page_blocks(ROOT / "docs" / "tutorial.md", "bash", "python"):
        program = ["bash", "-euo", "pipefail", "-c"] if kind == "bash" else [sys.executable, "-c"]
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        done = subprocess.run([*program, text], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    runs = tmp_path / "runs" / "tutorial"
    assert (runs / "lab" / "report" / "report.html").is_file() and (runs / "legacy-packed" / "packing.json").is_file()
    log = (runs / "legacy" / "training.log").read_text()
    assert (log.count("command: "), log.count("held-out loss")) == (2, 1), "the first run was not killed"
