"""Standard output and error that cannot end a run: encodings, closed pipes, full disks, no stream."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from frankenlm.trainer_ext.common import output_streams
from frankenlm.trainer_ext.common.cli import EXIT_OUTPUT_CLOSED, EXIT_STORAGE, run_command
from frankenlm.trainer_ext.common.output_streams import OutputClosed, SturdyStream, say, stop_if_unread

ODD = "größe 🌍 \u2028 \udcff end"


class Broken(io.StringIO):
    """A stream that takes `capacity` characters, then fails with an error number."""

    encoding = "utf-8"

    def __init__(self, number: int, capacity: int = 0):
        super().__init__()
        self.number, self.capacity = number, capacity

    def write(self, text: str) -> int:
        if self.tell() + len(text) > self.capacity:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "größe 🌍 \u2028 \\udcff end"),
        ("cp1252", "größe \\U0001f30d \\u2028 \\udcff end"),
        ("ascii", "gr\\xf6\\xdfe \\U0001f30d \\u2028 \\udcff end"),
    ],
)
def test_any_character_on_any_console(encoding, shown):
    beneath = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    stream = SturdyStream(beneath)
    print(ODD, file=stream, end="", flush=True)
    assert beneath.buffer.getvalue().decode(encoding) == shown
    assert stream.failure is None and stream.encoding == encoding


def said(monkeypatch, number, **more):
    """The exit code of a command that prints and works on, the stream it printed to, and whether its work was done."""
    done = []

    def main(argv):
        print("one line")
        done.append(True)

    monkeypatch.setattr("sys.stdout", Broken(number, **more))
    return run_command(main), sys.stdout, done


def test_a_reader_who_leaves_early_changes_nothing(monkeypatch, capsys):
    code, _, done = said(monkeypatch, errno.EPIPE)
    assert (code, done, capsys.readouterr().err) == (0, [True], "")


def test_a_full_disk_under_standard_output_is_told_after_the_work(monkeypatch, capsys):
    code, _, done = said(monkeypatch, errno.ENOSPC)
    assert (code, done) == (EXIT_STORAGE, [True])
    assert capsys.readouterr().err == "storage: standard output cannot be written: No space left on device\n"


def test_what_was_written_before_stays(monkeypatch):
    code, stream, _ = said(monkeypatch, errno.EPIPE, capacity=8)
    assert code == 0 and stream.getvalue() == "one line"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_process_without_a_stream(name, monkeypatch):
    monkeypatch.setattr(f"sys.{name}", None)

    def main(argv):
        for stream in (sys.stdout, sys.stderr):
            print(ODD, file=stream, flush=True)
            assert stream.isatty() is False and stream.encoding

    assert run_command(main) == 0
    assert getattr(sys, name) is None


def test_errors_are_told_on_a_broken_console(monkeypatch):
    def main(argv):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("sys.stderr", Broken(errno.ENOSPC))
    assert run_command(main) == EXIT_STORAGE


def test_what_only_prints_ends_with_its_reader(monkeypatch):
    def main(argv):
        print("one line")
        stop_if_unread()
        raise AssertionError("nobody reads this")

    monkeypatch.setattr("sys.stdout", Broken(errno.EPIPE))
    assert run_command(main) == EXIT_OUTPUT_CLOSED == 141
    stop_if_unread()  # an ordinary stream
    assert issubclass(OutputClosed, Exception)


PRINTING = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("output_streams", sys.argv[1])
streams = importlib.util.module_from_spec(spec)
spec.loader.exec_module(streams)
with streams.sturdy_output() as out:
    for _ in range(9):
        print("abc" * 9000)
    out.flush()
sys.exit(6 if out.failure and not out.closed_by_reader else 0)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("target", "code"), [("> /dev/full", EXIT_STORAGE), ("| head -c 3", 0), (">&-", 0)])
def test_real_streams_leave_no_traceback(target, code):
    """Python flushes once more at its end; that must stay silent, and keep the exit code."""
    line = f'"$0" -c "$1" "$2" {target}; exit ${{PIPESTATUS[0]}}'
    words = ["bash", "-c", line, sys.executable, PRINTING, output_streams.__file__]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(
    "before, shown", [("50%|##", "50%|##\nfailed"), ("done\n", "done\nfailed"), ("\r  \r", "\r  \rfailed")]
)
def test_what_ends_a_run_stands_on_a_line_of_its_own(monkeypatch, before, shown):
    beneath = io.StringIO()
    monkeypatch.setattr(sys, "stderr", SturdyStream(beneath))
    sys.stderr.write(before)
    say("failed")
    assert beneath.getvalue() == shown + "\n"
