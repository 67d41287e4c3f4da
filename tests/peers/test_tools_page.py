"""docs/tools.md shows the cells as they are, no cell is empty, and a test stands behind each row."""

import re
from pathlib import Path

import pytest

from peer_cells import COLUMNS, NO_TASK, PAGE, REFUSED, TOOLS, WORKS, page, render
from peer_models import FAMILIES

HERE = Path(__file__).parent


def test_the_page_is_made_of_the_cells():
    assert PAGE.read_text(encoding="utf-8") == page(), "PYTHONPATH=tests/tools python tests/tools/peer_cells.py"


@pytest.mark.parametrize("tool", TOOLS)
def test_no_cell_is_empty(tool):
    cells = TOOLS[tool].cells
    assert list(cells) == list(FAMILIES) == list(COLUMNS)
    for cell in cells.values():
        assert cell.verdict in (WORKS, REFUSED, NO_TASK)
        assert cell.verdict == WORKS or (cell.why and cell.message), "a refusal has a reason and its words"


def test_the_table_has_a_column_a_family_and_a_row_a_tool():
    table = [line for line in render().splitlines() if line.startswith("|")]
    assert len(table) == len(TOOLS) + 2
    assert {line.count("|") for line in table} == {len(FAMILIES) + 2}
    assert not any(re.search(r"\|\s*\|", line) for line in table[2:])
    told = re.findall(r"\((\d+)\)", "\n".join(table))
    notes = [line.split(".")[0] for line in render().splitlines() if re.match(r"\d+\. ", line)]
    assert sorted(set(told), key=int) == notes


def test_a_test_walks_each_row():
    found = [
        name
        for path in sorted(HERE.glob("test_*.py"))
        for name in re.findall(r"^@cells_of\(\"(\w+)\"\)\n(?:@[^\n]*\n)*def test_", path.read_text(), re.MULTILINE)
    ]
    assert sorted(found) == sorted(TOOLS)
