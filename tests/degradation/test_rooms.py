"""The README's table of rooms names every file of the lab, and no other; its links lead somewhere."""

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "degradation"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_table_of_rooms_names_every_file():
    section = README[README.index("## The files") :]
    rows = re.findall(r"^\| `?([a-z./]+)`? \| [^|]+ \| (.+) \|$", section, flags=re.MULTILINE)
    told = {room.strip("./"): set(re.findall(r"`(\w+)`", files)) for room, files in rows if room != "room"}
    there: dict[str, set[str]] = {}
    for path in FOLDER.rglob("*.py"):
        if path.stem != "__init__":
            room = path.parent.relative_to(FOLDER).as_posix().strip(".")
            there.setdefault(room, set()).add(path.stem)
    assert told == there


def test_links_lead_to_files():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links and all((FOLDER / link).exists() for link in links)
