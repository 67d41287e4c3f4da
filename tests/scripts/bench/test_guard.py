"""scripts/bench/guard.py: a tiny round, and a mistake as one line."""

import json

from frankenlm.scripts.bench import guard
from frankenlm.trainer_ext.common.cli import run_command


def test_tiny_run(tmp_path, capsys):
    output = tmp_path / "guard.json"
    words = ["--batch", "1", "--length", "8", "--rounds", "1", "--output", str(output)]
    assert run_command(guard.main, words) == 0
    (rows,) = json.loads(output.read_text(encoding="utf-8"))["tables"].values()
    assert [row["part"] for row in rows] == ["step", "guard", "rolling copy"]
    assert rows[0]["percent of the step"] == 100 and all(row["seconds"] > 0 for row in rows)
    assert run_command(guard.main, ["--rounds", "0"]) == 2
    assert capsys.readouterr().err == "error: --rounds 0: must be at least 1.\n"
