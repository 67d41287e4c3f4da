"""tests/processes/forking.py: a fork has what `python -c` has, and an end of its own."""

import json
import os
import signal

import pytest

from forking import WITHOUT_FRANKENLM, ForkServer

SAY = "import os; print(json.dumps([sys.argv, os.getcwd(), dict(os.environ)])); print('aside', file=sys.stderr)"


@pytest.fixture(scope="module")
def server():
    with ForkServer(WITHOUT_FRANKENLM + "import json; seen = []") as server:
        yield server


def test_words_place_surroundings_and_both_streams(server, tmp_path):
    done = server.run(SAY, "a b", 3, cwd=tmp_path, env={"ONLY": "this"})
    argv, place, surroundings = json.loads(done.stdout)
    assert (argv, surroundings, done.stderr, done.returncode) == (["-c", "a b", "3"], {"ONLY": "this"}, "aside\n", 0)
    assert os.path.samefile(place, tmp_path)


def test_a_path_is_put_before_the_others(server, tmp_path):
    (tmp_path / "only_here.py").write_text("value = 5")
    code = "import only_here; sys.exit(only_here.value)"
    assert server.run(code, env={"PYTHONPATH": str(tmp_path)}).returncode == 5
    assert "No module named 'only_here'" in server.run(code).stderr


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import frankenlm", 1, "No module named 'frankenlm'"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import atexit; atexit.register(print, 'last', file=sys.stderr)", 0, "last\n"),
    ],
)
def test_ends(server, code, status, said):
    done = server.run(code)
    assert done.returncode == status and said in done.stderr and bool(said) == bool(done.stderr)


def test_no_fork_sees_what_another_did(server):
    for _ in range(2):
        assert server.run("seen.append(1); print(len(seen))").stdout == "1\n"
