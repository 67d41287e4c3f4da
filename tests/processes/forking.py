"""Python processes that begin with their imports done: a server imports once and forks a child for each piece of code.

    with ForkServer("import torch, transformers") as server:
        done = server.run("print(torch.__version__, sys.argv[1:])", "a word")    # what subprocess.run would return

A start costs milliseconds where an interpreter's own costs seconds. A child has what `python -c CODE WORDS` has: its
words, folder, environment and output, and an end of its own. What is read while modules are imported (HF_HOME,
PYTHONHASHSEED) is the server's, and is given to that.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path

# An import hook refuses our package, which an editable install would otherwise bring.
WITHOUT_FRANKENLM = """
import sys
class NoFrankenlm:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "frankenlm":
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, NoFrankenlm())
"""


class ForkServer:
    """A process that has run `preamble` and runs pieces of code behind it, each in a fork of itself."""

    def __init__(self, preamble: str, *, env: Mapping[str, str] | None = None, options: tuple[str, ...] = ()):
        command = [sys.executable, *options, __file__, preamble]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def run(
        self, code: str, *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        """Run code to its end. env replaces the server's environment; its PYTHONPATH is put before the server's."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            ask = {"code": code, "words": [str(word) for word in words], "cwd": cwd and str(cwd)}
            ask |= {"env": env and dict(env), "out": str(out), "err": str(err)}
            print(json.dumps(ask), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
            assert answer, "the fork server has ended"
            texts = [path.read_text(encoding="utf-8", errors="replace") for path in (out, err)]
        return subprocess.CompletedProcess(["python", "-c", code, *ask["words"]], int(answer), *texts)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _become(ask: dict) -> None:
    """Give this process the streams, folder, environment and words that were asked for."""
    for stream, path in enumerate((os.devnull, ask["out"], ask["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT if stream else os.O_RDONLY, 0o600), stream)
    if ask["cwd"]:
        os.chdir(ask["cwd"])
    if ask["env"] is not None:
        os.environ.clear()
        os.environ.update(ask["env"])
        sys.path[:0] = [place for place in ask["env"].get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = ["-c", *ask["words"]]


def _run(code: str, names: dict) -> None:
    """Run code and end as an interpreter would, but for taking all modules to pieces, which takes a second."""
    status = 0
    try:
        exec(code, names)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if status and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _serve() -> dict | None:
    """Fork a child for each request; return the request in the child, None in the server at its end."""
    for line in sys.stdin:
        ask = json.loads(line)
        child = os.fork()
        if not child:
            return ask
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


if __name__ == "__main__":
    sys.path[0] = ""  # as under -c, not this file's folder
    names = {"__name__": "__main__", "sys": sys}
    exec(sys.argv[1], names)
    asked = _serve()
    if asked is not None:
        _become(asked)
        _run(asked["code"], names)
