"""A peer of a benchmark in an interpreter that has what it needs; requests and answers are lines of JSON."""

import contextlib
import json
import subprocess
from pathlib import Path

from frankenlm.trainer_ext.common.cli import UserError


class PeerProcess:
    """A script that answers a line of JSON with a line of JSON, until its standard input ends."""

    def __init__(self, python: Path, script: Path, *words: object):
        self._script = script
        command = [str(word) for word in (python, script, *words)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, **pipes)

    def time(self, **request: object) -> dict[str, float]:
        """Return what the script answers to a request.

        Raises:
            UserError: the script has ended.
        """
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            raise UserError(f"{self._script.name} ended with exit code {code}; run it by itself to see why.")
        return json.loads(answer)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # a request that an ended script did not take
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
