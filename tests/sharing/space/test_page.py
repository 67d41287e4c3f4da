"""The page as it is served: every name of its API, what it says of mistakes, and one look with a browser."""

import contextlib
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs gradio: pip install 'frankenlm[app]'")
from gradio_client import Client
from gradio_client.exceptions import AppError

from frankenlm.sharing.space.tabs.fill_mask import fill_mask
from frankenlm.sharing.space.tabs.generate import generate

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("generate", "fill_mask", "inside", "ternary", "damage", "damage_curve", "check", "compare")
OPTIONS = {
    "max_new_tokens": 8,
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "typical_p": 1,
    "repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "seed": 42,
    "stop": "",
}


@pytest.fixture(scope="module")
def client(site):
    with contextlib.closing(Client(site.url, verbose=False)) as client:
        yield client


def post(url: str, body: bytes) -> tuple[int, str]:
    """Send a request as it is; return status and answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_api_has_these_names(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {name.removeprefix("/") for name in named} == set(NAMES)
    for name, facts in named.items():
        assert facts["returns"], name
        assert not any(each["parameter_name"].startswith("param_") for each in facts["parameters"]), name
        needed = [each["parameter_name"] for each in facts["parameters"] if not each["parameter_has_default"]]
        assert not needed, f"{name} asks for {needed}, which the page fills in"


def test_generate(client, shelf):
    job = client.submit("tiny/infinito", "Return a list", *OPTIONS.values(), api_name="/generate")
    text, how = job.result(timeout=60)
    expected = list(generate(shelf, "tiny/infinito", "Return a list", **OPTIONS))[-1]
    assert text == expected[0] and how.startswith("8 tokens")
    assert job.outputs()[-1] == (text, how), "it streams"
    by_name = client.predict(model="tiny/infinito", prompt="Return a list", **OPTIONS, api_name="/generate")
    assert by_name[0] == text


def test_fill_mask(client, shelf):
    filled, table = client.predict("tiny/mini", "Return a list of the<mask> in<mask>.", api_name="/fill_mask")
    expected = fill_mask(shelf, "tiny/mini", "Return a list of the<mask> in<mask>.")
    assert filled == expected[0] and table["headers"] == ["mask", "guess", "probability"]
    assert table["data"] == expected[1]


def test_ternary(client):
    full, packed, table, verdict = client.predict("tiny/legacy-1bit", "Return", 8, 0, 1, api_name="/ternary")
    assert full == packed and "equal" in verdict and [row[0] for row in table["data"]] == ["float32", "packed"]


@pytest.mark.parametrize("name", ["inside", "damage", "damage_curve", "check", "compare"])
def test_the_others_answer_with_what_stands_in_their_boxes(client, name):
    given = client.view_api(return_format="dict", print_info=False)["named_endpoints"][f"/{name}"]["parameters"]
    assert all(each["parameter_has_default"] for each in given), "a visitor may press the button at once"
    assert client.submit(api_name=f"/{name}").result(timeout=120)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("generate", {"model": "../../x", "prompt": "a"}, "no model '../../x'"),
        ("generate", {"prompt": "x" * 1_000_000}, "1,000,000 characters; write at most 4,000"),
        ("generate", {"prompt": "<b>", "temperature": "warm"}, "temperature 'warm' is no number"),
        ("generate", {"prompt": "a", "max_new_tokens": 10**9}, "from 1 to 256"),
        ("generate", {"prompt": ["a"]}, "must be text"),
        ("fill_mask", {"sentence": "no gap"}, "Write &lt;mask&gt;"),
        ("fill_mask", {"sentence": "a\0<mask>"}, "NUL"),
        ("ternary", {"prompt": "a", "seed": -1}, "seed"),
    ],
)
def test_mistakes_are_told(client, name, values, message):
    with pytest.raises(AppError, match=message):
        client.predict(**values, api_name=f"/{name}")


def test_the_example_of_the_docs_runs(site, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "app.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(compile(block.replace("http://127.0.0.1:7860", site.url), "docs/app.md", "exec"), names)
    names["client"].close()
    assert names["filled"] and names["text"] and "tokens/s; as long as" in capsys.readouterr().out


def test_malformed_requests_do_no_harm(site, client):
    url = f"{site.url}gradio_api/call/generate"
    for body in (b"", b"{", b"[]", b'{"data": 5}', b'{"data": []}', b"[" * 100_000, b'{"data": [NaN]}', b"\xff"):
        status, _ = post(url, body)
        assert status in (200, 400, 422, 500), body[:20]
    event = json.loads(post(url, b'{"data": ["tiny/infinito"]}')[1])["event_id"]
    with urllib.request.urlopen(f"{url}/{event}", timeout=30) as answer:
        assert b"/generate takes 13 values, and got 1." in answer.read()
    assert post(f"{site.url}gradio_api/call/nothing", b'{"data": []}')[0] in (404, 500)
    assert client.predict("tiny/mini", "a<mask>", api_name="/fill_mask"), "the page goes on"


def test_no_file_of_this_machine_can_be_had(site):
    for path in ("/etc/passwd", "../../../../etc/passwd", "app.py"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{site.url}gradio_api/file={path}", timeout=30)
        caught.value.close()
        assert caught.value.code in (403, 404)


def test_a_visitor_fills_a_mask(window):
    """One look with a browser, on a telephone; test_browser.py does every tab."""
    visitor = window(390)
    visitor.open("Fill mask")
    visitor.write("Sentence", "This<mask> is deprecated.")
    visitor.press("Fill")
    assert visitor.read("With the likeliest tokens").endswith("is deprecated.")
    assert visitor.excess() == 0 and visitor.errors == []
    assert all(url.startswith((visitor.page.url.partition("?")[0], "data:")) for url in visitor.asked), "no web fonts"
