"""Lines of the console begin with their level, as errors do; those of the log file have the time before it."""

import io
import logging
import sys
import threading
import time

import pytest

from frankenlm.trainer_ext.common.logs import RunLog, waiting


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
            logging.getLogger("transformers.anything").critical("it is odd")  # said at any verbosity
        assert console.getvalue() == "critical: [transformers] it is odd\n"
        assert handler.formatter is None
    finally:
        library.removeHandler(handler)


def test_the_file_has_the_time_and_the_name(tmp_path):
    with RunLog("error") as log:
        logging.getLogger("frankenlm.anything").info("kept")
        log.write_to(tmp_path / "training.log", append=False)
    line = (tmp_path / "training.log").read_text(encoding="utf-8")
    assert line.endswith("INFO    frankenlm.anything: kept\n") and line[:2] == "20"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("seconds", "said"), [(0.0, True), (60.0, False)])
def test_a_wait_says_what_it_is_and_how_long_it_has_been(seconds, said, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with waiting("packing", seconds):
        if said:
            wait_for(lambda: "packing: 00:00" in sys.stderr.getvalue())
    assert bool(sys.stderr.getvalue()) is said
    assert not any(thread.name == "waiting" for thread in threading.enumerate())


def test_nobody_is_told_where_nobody_waits(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with pytest.raises(RuntimeError), waiting("packing", 0.0):
        assert not any(thread.name == "waiting" for thread in threading.enumerate())
        raise RuntimeError
    assert sys.stderr.getvalue() == ""


def wait_for(happened):
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end, "nothing was said"
        time.sleep(0.01)
