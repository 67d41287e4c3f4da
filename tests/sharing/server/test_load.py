"""Many clients at once, against the command in a process of its own: nothing lost, nothing mixed, nothing kept."""

import itertools
import json
import random
import re
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from frankenlm.sharing.live.answers import stream
from frankenlm.sharing.live.options import Options

ROOT = Path(__file__).resolve().parents[3]
REQUESTS, CLIENTS = 200, 20
SENTENCE = "the cat sat on a mat and saw dogs run over green hills while birds sang"


def asked_for(names, seed):
    """REQUESTS requests of every shape, none like another."""
    rng = random.Random(seed)
    return [
        {
            "model": rng.choice(names),
            "prompt": " ".join(rng.choices(SENTENCE.split(), k=rng.randint(1, 12))),
            "max_tokens": rng.randint(1, 30),
            "temperature": rng.choice([0, 0.7, 1.2]),
            "top_p": rng.choice([0.8, 1]),
            "frequency_penalty": rng.choice([0, 0.5]),
            "stop": rng.choice([None, ["z", "ow"]]),
            "seed": number,
            "stream": rng.random() < 0.5,
        }
        for number in range(REQUESTS)
    ]


def given_alone(loaded, asked):
    options = Options(asked["max_tokens"], asked["temperature"], top_p=asked["top_p"])
    options = Options(**vars(options) | {"frequency_penalty": asked["frequency_penalty"]})
    pieces = stream(loaded.model, loaded.tokenizer, asked["prompt"], options, asked["stop"] or (), asked["seed"])
    return "".join(piece.text for piece in pieces)


def answer_to(client, asked):
    reply = client.completions.create(**asked)
    if asked["stream"]:
        return "".join(chunk.choices[0].text for chunk in reply)
    return reply.choices[0].text


class Served:
    """The command as a process."""

    def __init__(self, *words):
        command = [sys.executable, "-m", "frankenlm.scripts.serve", *map(str, words), "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = re.search(r"http://\S+:\d+", self.process.stdout.readline())[0]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        assert self.process.wait(60) == 0
        self.process.stdout.close()

    def client(self):
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=120)

    def resident_bytes(self):
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def busy(self):
        with urllib.request.urlopen(f"{self.address}/health", timeout=30) as reply:
            return json.loads(reply.read())["answers"]


def round_of(served, requests, leave=()):
    """Let CLIENTS ask; return (answers, seconds). Those numbered in `leave` go after the first chunk."""

    def ask(number):
        if number not in leave:
            return answer_to(client, requests[number])
        with client.completions.create(**requests[number] | {"stream": True, "max_tokens": 60, "stop": None}) as chunks:
            next(iter(chunks), None)

    started = time.monotonic()
    with served.client() as client, ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(ask, range(len(requests))))
    return answers, time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("names", [["gpt2"], ["hybrid"], ["infinito", "ternary"]], ids="-".join)
def test_nothing_is_lost_mixed_or_kept(saved, opened, names):
    requests = asked_for(names, seed=1)
    expected = [given_alone(opened(each["model"]), each) for each in requests]
    assert len(set(expected)) > 0.7 * REQUESTS
    leave = set(range(0, REQUESTS, 10))
    with Served(*(saved(name) for name in names)) as served:
        sizes = []
        for _ in range(2):
            answers, seconds = round_of(served, requests, leave)
            wrong = [
                n for n, pair in enumerate(zip(answers, expected, strict=True)) if n not in leave and len({*pair}) > 1
            ]
            assert not wrong, [(requests[n], answers[n], expected[n]) for n in wrong[:3]]
            deadline = time.monotonic() + 5
            while served.busy() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert served.busy() == 0
            sizes.append(served.resident_bytes())
            print(f"{names}: {REQUESTS} requests in {seconds:.1f} s, {sizes[-1] / 2**20:.0f} MiB")
        assert sizes[1] < 1.05 * sizes[0]


@pytest.mark.slow
def test_too_many_are_told_to_come_again(saved, opened):
    requests = asked_for(["gpt2"], seed=2)
    refused, lock = itertools.count(), threading.Lock()
    with Served(saved("gpt2"), "--max_queue", 2, "--batch_size", 2) as served:

        def ask(number):
            while True:
                try:
                    return answer_to(client, requests[number])
                except openai.RateLimitError as error:
                    assert error.code == "overloaded" and 1 <= int(error.response.headers["retry-after"]) <= 60
                    with lock:
                        next(refused)
                    time.sleep(0.05)

        with served.client() as client, ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(ask, range(REQUESTS)))
    assert next(refused) > 20
    assert answers == [given_alone(opened("gpt2"), each) for each in requests]
