"""What a command of the lab left in its folder and said, for the tests of scripts/degrade.py."""

import json
import re


def exported(folder):
    (path,) = folder.glob("outputs_*.json")
    return json.loads(path.read_text(encoding="utf-8"))


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix not in ("", ".log")}


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"(error|stopped|storage):", line)]
    assert len(lines) == 1, lines
    return lines[0]
