"""Lines of the console begin with their level, as errors do; those of the log file have the time before it."""

import io
import logging

import pytest
from transformers.utils import logging as transformers_logging

from frankenlm.trainer_ext.common.logs import RunLog


@pytest.mark.parametrize(("level", "kinds"), [("info", ["info", "warning", "error"]), ("error", ["error"])])
def test_lines_begin_with_their_level(level, kinds, capsys):
    ours = logging.getLogger("frankenlm.anything")
    with RunLog(level):
        ours.debug("not %s", "this")
        ours.info("report: %s", "a.json")
        ours.warning("only %d of %d", 3, 4)
        ours.error("failed")
    said = {"info": "report: a.json", "warning": "only 3 of 4", "error": "failed"}
    assert capsys.readouterr().err.splitlines() == [f"{kind}: {said[kind]}" for kind in kinds]


def test_so_do_those_of_transformers_for_as_long_as_a_run_lasts():
    console, library = io.StringIO(), logging.getLogger("transformers")
    handler = logging.StreamHandler(console)  # theirs writes to what was the error stream when they were imported
    library.addHandler(handler)
    try:
        with RunLog("info"):
            transformers_logging.get_logger("transformers.anything").warning("it is odd")
        assert console.getvalue() == "warning: [transformers] it is odd\n"
        assert handler.formatter is None
    finally:
        library.removeHandler(handler)


def test_the_file_has_the_time_and_the_name(tmp_path):
    with RunLog("error") as log:
        logging.getLogger("frankenlm.anything").info("kept")
        log.write_to(tmp_path / "training.log", append=False)
    line = (tmp_path / "training.log").read_text(encoding="utf-8")
    assert line.endswith("INFO    frankenlm.anything: kept\n") and line[:2] == "20"
