"""A finished experiment for the tests of the store."""

import pytest

from record_rows import lesion
from store_files import ROWS, open_store


@pytest.fixture
def filled(tmp_path):
    """A folder with an exported experiment of 18 rows."""
    with open_store(tmp_path) as opened:
        for start in range(0, len(ROWS), 3):
            opened.append(ROWS[start : start + 3])
        opened.append_lesion(lesion())
        opened.export()
    return tmp_path
