"""The command: its flags, its address, its key, what it logs, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest

from frankenlm.scripts import serve as script
from frankenlm.sharing.server.engine import Engine, EngineLimits
from frankenlm.sharing.server.serving import KEY_VARIABLE, is_local, named_models, read_key, take_address
from frankenlm.trainer_ext.common.cli import EXIT_USER_MISTAKE, UserError, run_command

ROOT = Path(__file__).resolve().parents[3]
SECRET, PROMPT = "a-key-nobody-knows", "the cat called Montezuma"


def mistake(capsys, *words):
    capsys.readouterr()  # a fixture may have drawn a bar
    assert run_command(script.main, [*map(str, words)]) == EXIT_USER_MISTAKE
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1
    return out.err


def test_mistakes_are_one_line_before_anything_is_opened(capsys, tmp_path, saved):
    assert "unknown argument '--prot'. Did you mean '--port'?" in mistake(capsys, "x", "--prot", 1)
    assert "between 0 and 65535" in mistake(capsys, "x", "--port", 70000)
    for flag in ("max_tokens", "max_context", "batch_size"):
        assert f"--{flag} 0" in mistake(capsys, "x", f"--{flag}", 0)
    assert "--max_queue -1" in mistake(capsys, "x", "--max_queue", -1)
    assert "--threads" in mistake(capsys, "x", "--threads", 0)
    assert "no such folder" in mistake(capsys, tmp_path / "none" / "x")
    assert "no such address" in mistake(capsys, saved("gpt2"), "--host", "not an address")
    assert "debug" in mistake(capsys, saved("gpt2"), "--log_level", "debug")  # at which prompts could be logged
    assert "no such address" in mistake(capsys, saved("gpt2"), "--host", "a" * 100)


def test_a_port_that_is_taken(capsys, saved):
    with take_address("127.0.0.1", 0) as taken:
        taken.listen()
        assert "choose another" in mistake(capsys, saved("gpt2"), "--port", taken.getsockname()[1])


def test_names_of_models(tmp_path):
    (tmp_path / "a=b").mkdir()
    words = ["gpt2", "org/model", f"{tmp_path}/runs/mine/", "small=runs/best", f"{tmp_path}/a=b"]
    assert list(named_models(words)) == ["gpt2", "org/model", "mine", "small", "a=b"]
    assert named_models(["small=runs/best"]) == {"small": "runs/best"}
    for words in (["./x/mine", "./y/mine"], ["a=x", "a=y"], ["=x"], ["a\nb=x"], ["x" * 200 + "=y"]):
        with pytest.raises(UserError, match="name"):
            named_models(words)


def test_the_key_is_of_the_environment():
    assert read_key({}) is None
    assert read_key({KEY_VARIABLE: SECRET}) == SECRET
    for key in ("", "short", " padded by spaces ", "größer als nichts", "two\nlines of it"):
        with pytest.raises(UserError, match=KEY_VARIABLE) as caught:
            read_key({KEY_VARIABLE: key})
        assert not key or key not in str(caught.value)


def test_what_is_local():
    assert all(map(is_local, ("127.0.0.1", "::1", "localhost", "127.8.8.8")))
    assert not any(map(is_local, ("0.0.0.0", "::", "192.168.0.1", "example.org")))


def lines_of(stream, found):
    for line in stream:
        found.append(line)


@pytest.fixture
def process(saved):
    """The command in a process of its own, with what it writes; ended, if the test has not done so."""
    words = [sys.executable, "-m", "frankenlm.scripts.serve", f"cat={saved('hybrid')}", "--port", "0", "--threads", "1"]
    environment = os.environ | {KEY_VARIABLE: SECRET, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT, env=environment, **pipes) as running:
        running.out, running.err = [], []
        readers = [
            threading.Thread(target=lines_of, args=pair)
            for pair in ((running.stdout, running.out), (running.stderr, running.err))
        ]
        for reader in readers:
            reader.start()
        yield running
        if running.poll() is None:
            running.kill()
        for reader in readers:
            reader.join()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def test_it_says_where_it_is_serves_and_ends_in_order(process):
    line = wait_for(lambda: process.out or process.poll())[0]
    address = re.fullmatch(r"serving cat at (http://127\.0\.0\.1:\d+)/v1\n", line)[1]
    with openai.OpenAI(base_url=f"{address}/v1", api_key=SECRET, max_retries=0) as client:
        asked = {"model": "cat", "prompt": PROMPT, "temperature": 0, "max_tokens": 1000}
        asked["logit_bias"] = {"0": -100}  # it must not end by itself
        leaving = client.completions.create(**asked, stream=True)
        next(iter(leaving))
        assert health(address)["answers"] == 1
        leaving.close()
        wait_for(lambda: health(address)["answers"] == 0, 5)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(**asked | {"model": PROMPT})
        urllib.request.urlopen(f"{address}/health?key={SECRET}").close()
        staying = client.completions.create(**asked | {"max_tokens": 60}, stream=True)
        next(iter(staying))
        process.send_signal(signal.SIGTERM)
        chunks = list(staying)
        assert chunks[-1].choices[0].finish_reason == "length"
    assert process.wait(20) == 0
    wait_for(lambda: process.err and "ended" in process.err[-1], 5)
    logged = "".join(process.err)
    assert re.search(r"^info: POST /v1/completions 200 \d+\.\d\d s$", logged, re.MULTILINE)
    assert "404" in logged and "Traceback" not in logged
    assert SECRET not in logged and "Montezuma" not in logged


def health(address):
    with urllib.request.urlopen(f"{address}/health", timeout=10) as reply:
        return json.loads(reply.read())


def test_a_client_that_hangs_up_on_a_whole_answer_ends_it(address):
    """Without streaming nothing is sent on the way, so that only the line itself can tell."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({"model": "infinito", "prompt": "a", "max_tokens": 100, "n": 16, "logit_bias": {"258": -100}})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection((host, int(port))) as line:
        line.sendall(f"{head}\r\n\r\n{body}".encode())
        wait_for(lambda: health(address)["answers"] == 16, 5)
    wait_for(lambda: health(address)["answers"] == 0, 3)


def test_answers_under_way_when_the_server_closes_are_told(serve, opened):
    engine = Engine(opened("hybrid"), EngineLimits(slots=2))
    with (
        serve({"cat": engine}) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client,
    ):
        asked = {"model": "cat", "prompt": "the cat", "max_tokens": 1000, "logit_bias": {"0": -100}}
        chunks = iter(client.completions.create(**asked, stream=True))
        next(chunks)
        engine.close()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(chunks)
        with pytest.raises(openai.InternalServerError, match="shutting down") as caught:
            client.completions.create(**asked)
        assert caught.value.status_code == 503 and caught.value.code == "shutting_down"
        with pytest.raises(urllib.error.HTTPError, match="503"):
            health(address)
