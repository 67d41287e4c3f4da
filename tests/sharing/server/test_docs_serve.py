"""docs/serve.md: its commands, requests and Python run as they stand there; its tables are those of the code."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from frankenlm.scripts.serve import build_parser
from frankenlm.sharing.server import requests
from frankenlm.sharing.server.engine import Engine, EngineLimits

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
(PYTHON,) = [block for kind, block in BLOCKS if kind == "python"]
NAMED = re.compile(r"`([a-z_]+)`")


@pytest.fixture(scope="module")
def mine(serve, opened):
    """The page's model at an address of ours."""
    with serve({"mine": Engine(opened("hybrid"), EngineLimits(max_tokens=64))}) as address:
        yield address


def test_every_command_is_of_a_kind_that_is_tried():
    assert len(COMMANDS) == 10
    assert {shlex.split(line)[0].partition("=")[0] for line in COMMANDS} == {
        "pip",
        "frankenlm",
        "curl",
        "FRANKENLM_API_KEY",
        "docker",  # test_container.py reads the Dockerfile
    }


@pytest.mark.parametrize("line", [line for line in COMMANDS if "frankenlm serve" in line])
def test_commands_are_understood(line):
    words = shlex.split(line.partition("frankenlm serve")[2])
    assert build_parser().parse_strictly(words).models


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("curl")])
def test_curl(line, mine):
    words = shlex.split(line.replace("http://127.0.0.1:8000", mine))
    done = subprocess.run([*words, "--silent", "--fail-with-body"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "mine" in done.stdout


def test_python(mine, capsys):
    exec(compile(PYTHON.replace("http://127.0.0.1:8000", mine), "docs/serve.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_field_is_on_the_page():
    said = set(NAMED.findall(TEXT))
    known = {*requests.COMMON, *requests.IGNORED, "prompt", "messages", "echo", "logprobs", "top_logprobs"}
    assert known - {"model"} <= said
    ignored = TEXT[TEXT.index("`user`") : TEXT.index("concern OpenAI's own books")]
    assert set(NAMED.findall(ignored)) == requests.IGNORED


def test_the_defaults_are_the_flags():
    defaults = {action.dest: action.default for action in build_parser()._actions}
    for flag, value in re.findall(r"`--(\w+)` \((\d+)\)", TEXT):
        assert defaults[flag] == int(value)
    limits = EngineLimits()
    assert (limits.slots, limits.queue) == (defaults["batch_size"], defaults["max_queue"])
    assert (limits.context, limits.max_tokens) == (defaults["max_context"], defaults["max_tokens"])
