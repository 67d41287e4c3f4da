"""Many visitors at once: each gets the answer to what he asked, nothing piles up, and who leaves makes room."""

import contextlib
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

pytest.importorskip("gradio", reason="needs gradio: pip install 'frankenlm[app]'")
from gradio_client import Client

from frankenlm.modeling import byte_tokenizer
from frankenlm.sharing.space.shelf import Shelf
from frankenlm.sharing.space.tabs.generate import generate

pytestmark = pytest.mark.slow
VISITORS, REQUESTS = 20, 200
OPTIONS = (0.9, 40, 0.95, 0, 1, 1.1, 0, 1)  # temperature ... num_beams
PROMPTS = ("Return a list", "This module", "The<b>", "größer", "class Thread:", "\x07 bell", "If the", "42")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A model that takes seconds for an answer."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=512, n_layer=10, n_head=4, **ids)
    folder = tmp_path_factory.mktemp("load") / "runs"
    GPT2LMHeadModel(config).save_pretrained(folder / "slow")
    tokenizer.save_pretrained(folder / "slow")
    return folder


def asked(number: int) -> tuple:
    """What visitor `number` asks: (model, prompt, max_new_tokens, *options, seed, stop)."""
    draw = random.Random(number)
    model = draw.choice(("tiny/infinito", "tiny/legacy-1bit"))
    return (model, draw.choice(PROMPTS), draw.randint(1, 24), *OPTIONS, draw.randrange(5), draw.choice(("", "e\n\\n")))


def memory(pid: int) -> int:
    """The bytes of a process that lie in memory."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc to see how much memory a process takes")
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


def round_of_requests(url: str) -> dict[int, str]:
    """Let VISITORS ask REQUESTS times; return the texts by the number of the request."""

    def visit(first: int) -> dict[int, str]:
        with contextlib.closing(Client(url, verbose=False)) as client:
            numbers = range(first, REQUESTS, VISITORS)
            return {number: client.predict(*asked(number), api_name="/generate")[0] for number in numbers}

    with ThreadPoolExecutor(VISITORS) as pool:
        return {number: text for found in pool.map(visit, range(VISITORS)) for number, text in found.items()}


def test_none_is_lost_none_is_mixed_and_memory_stays(site):
    shelf = Shelf()
    wanted = {number: list(generate(shelf, *asked(number)))[-1][0] for number in range(REQUESTS)}
    assert len(set(wanted.values())) > REQUESTS / 3, "texts that tell answers apart"
    assert round_of_requests(site.url) == wanted
    first = memory(site.pid)
    assert round_of_requests(site.url) == wanted
    second = memory(site.pid)
    print(f"memory after the first round {first / 2**20:.0f} MiB, after the second {second / 2**20:.0f} MiB")
    assert second < 1.05 * first


def test_the_first_answers_come_soon(serve, runs, tmp_path):
    """Within 10 s on a machine that has a core to spare: what counts is the processor's time, and a start of disks."""
    start = time.monotonic()
    with serve(runs, tmp_path) as site:
        with contextlib.closing(Client(site.url, verbose=False)) as client:
            assert client.submit(api_name="/fill_mask").result(60)
            assert client.submit(api_name="/generate").result(60)
        waited = time.monotonic() - start
        times = Path(f"/proc/{site.pid}/stat").read_text().rpartition(")")[2].split()
    used = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    print(f"first answers of /fill_mask and /generate after {waited:.1f} s, {used:.1f} s of a processor")
    assert used < 10


def begin(url: str, *values: object) -> str:
    """Ask for an answer; return the event that it comes in."""
    body = json.dumps({"data": values}).encode()
    request = urllib.request.Request(f"{url}gradio_api/call/generate", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["event_id"]


@contextlib.contextmanager
def reading(url: str, event: str) -> Iterator:
    with urllib.request.urlopen(f"{url}gradio_api/call/generate/{event}", timeout=60) as lines:
        yield lines


def seconds_of_a_request(url: str) -> float:
    start = time.monotonic()
    with reading(url, begin(url, "tiny/infinito", "Return", 4, *OPTIONS, 1, "")) as lines:
        assert b"event: complete" in lines.read()
    return time.monotonic() - start


def test_who_leaves_makes_room(site):
    usual = min(seconds_of_a_request(site.url) for _ in range(3))
    start = time.monotonic()
    with reading(site.url, begin(site.url, "runs/slow", "a", 256, *OPTIONS, 1, "")) as lines:
        assert b"event: complete" in lines.read()
    whole = time.monotonic() - start
    assert whole > 1 + 3 * usual, "the slow model is slow enough to tell"
    for beams in (1, 4):  # a search says nothing until its end
        options = (0, *OPTIONS[1:-1], beams)
        with reading(site.url, begin(site.url, "runs/slow", "a", 256, *options, 1, "")) as lines:
            assert next(lines) == b"event: generating\n"
        assert seconds_of_a_request(site.url) < usual + whole / 2


def test_too_many_are_told(site):
    events, refused = [], []
    for _ in range(60):
        try:
            events.append(begin(site.url, "runs/slow", "a", 256, *OPTIONS, 1, ""))
        except urllib.error.HTTPError as error:
            with error:
                refused.append((error.code, error.read().decode()))
    assert 30 <= len(events) <= 40 and len(refused) >= 20
    assert all(code == 503 and "Queue is full" in text for code, text in refused), refused[0]
