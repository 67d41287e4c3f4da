"""What is asked wrongly: a clear reply in the API's shape, and a server that goes on."""

import json
import socket
import time
import urllib.error
import urllib.request

import openai
import pytest

from frankenlm.sharing.server.engine import Engine, EngineClosed, EngineLimits

GOOD = {"model": "gpt2", "prompt": "the cat", "max_tokens": 2, "seed": 1}
CHAT = {"model": "hybrid", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
JSON = {"Content-Type": "application/json"}


def post(address, body, path="/v1/completions", headers=JSON):
    """(status, reply, headers) of a request whose body may be anything."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read()), reply.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers


def refused(address, body, status, param=None, path="/v1/completions", **more):
    code, reply, _ = post(address, body, path, **more)
    assert code == status, reply
    error = reply["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert "\n" not in error["message"] and len(error["message"]) < 400
    return error


BAD_VALUES = [
    ("temperature", -1),
    ("temperature", "hot"),
    ("temperature", [0]),
    ("temperature", True),
    ("temperature", 10**400),
    ("top_p", 1.01),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("max_tokens", 10**100),
    ("max_tokens", 10_000),
    ("max_tokens", 2.5),
    ("max_tokens", "many"),
    ("n", 0),
    ("n", 129),
    ("n", 100),  # more than this server could ever take
    ("n", True),
    ("seed", 2**63),
    ("seed", "lucky"),
    ("stop", 5),
    ("stop", [""]),
    ("stop", ["a"] * 5),
    ("stop", "x" * 1000),
    ("stop", {"a": 1}),
    ("stream", "yes"),
    ("echo", 1),
    ("logprobs", 99),
    ("logprobs", True),
    ("frequency_penalty", 3),
    ("presence_penalty", -2.1),
    ("repetition_penalty", 0),
    ("top_k", 0),
    ("min_p", 2),
    ("logit_bias", {"a": 1}),
    ("logit_bias", {"5": 1000}),
    ("logit_bias", {"999999": 1}),
    ("logit_bias", [5]),
    ("stream_options", {"include_usage": True}),  # without stream
    ("stream_options", 3),
    ("suffix", "the end"),
    ("best_of", 3),
    ("prompt", 5),
    ("prompt", []),
    ("prompt", [1, "a"]),
    ("prompt", [[]]),
    ("prompt", [-1]),
    ("prompt", [100_000]),
    ("prompt", {"text": "a"}),
    ("prompt", "\ud800"),
    ("prompt", "word " * 1000),
    ("prompt", ["a"] * 300),
    ("model", 7),
    ("temprature", 1),
    ("<script>alert(1)</script>", 1),
    ("\ud800", 1),
    ("x" * 100_000, 1),
]


@pytest.mark.parametrize(
    ("name", "value"), BAD_VALUES, ids=[f"{name[:12]!a} {i}" for i, (name, _) in enumerate(BAD_VALUES)]
)
def test_the_field_that_is_wrong_is_named(address, name, value):
    param = name if len(name) < 40 else name[:37] + "..."
    error = refused(address, GOOD | {name: value}, 400, param)
    assert param.isascii() is False or param in error["message"] or name == "prompt"


BAD_CHATS = [
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "boss", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": "long " * 1000}]}, "messages"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"max_completion_tokens": 3}, "max_tokens"),  # beside max_tokens
    ({"logprobs": 3}, "logprobs"),
    ({"prompt": "hi"}, "prompt"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=range(len(BAD_CHATS)))
def test_chats_too(address, fields, param):
    body = CHAT | fields
    model = {"model": "infinito"} if "long" in str(fields) else {}
    refused(address, body | model, 400, param, "/v1/chat/completions")


def test_what_asks_for_nothing_is_taken(address):
    nothing = {
        "user": "me",
        "metadata": {},
        "store": False,
        "best_of": 1,
        "suffix": None,
        "logprobs": None,
        "stop": None,
    }
    assert post(address, GOOD | nothing)[0] == 200
    nothing = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": None}
    assert post(address, CHAT | nothing, "/v1/chat/completions")[0] == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b"[]", "must be a JSON object, not a list"),
        (b"null", "not null"),
        (b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b'{"model": "gpt2", "prompt": "a", "temperature": NaN}', "NaN is no number"),
        (b'{"model": "gpt2", "prompt": "a", "temperature": Infinity}', "Infinity is no number"),
        (b'{"temperature": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"model": "gpt2", "prompt": "' + b"\x01\x02" + b'"}', "not valid JSON"),
    ],
    ids=range(11),
)
def test_bodies_that_are_no_json(address, body, words):
    assert words in refused(address, body, 400)["message"]


def test_numbers_beyond_all_bounds(address):
    assert (
        "between 0 and 100"
        in refused(address, b'{"model": "gpt2", "temperature": 1e999}', 400, "temperature")["message"]
    )


def test_bodies_must_say_that_they_are_json(address):
    error = refused(address, GOOD, 415, headers={"Content-Type": "text/plain"})
    assert "application/json" in error["message"]


def test_bodies_that_are_too_large(address):
    error = refused(address, b" " * (4 * 2**20 + 1), 413)
    assert error["code"] == "body_too_large"


def test_a_megabyte_of_text_is_too_long_and_soon_said(address):
    """It is not put into tokens: six of them would keep everybody waiting for a minute and a half."""
    started = time.monotonic()
    for _ in range(6):
        error = refused(address, GOOD | {"prompt": "cat " * 1_000_000}, 400, "prompt")
        assert error["code"] == "context_length_exceeded" and "reads 128 tokens here" in error["message"]
        assert "4,000,000 characters" in error["message"]
    assert time.monotonic() - started < 10
    chat = {"model": "infinito", "messages": [{"role": "user", "content": "cat " * 250_000}]}
    refused(address, chat, 400, "messages", "/v1/chat/completions")


def test_ids_beyond_the_vocabulary_are_the_clients_mistake(address):
    error = refused(address, GOOD | {"prompt": [2**31 - 1]}, 400, "prompt")
    assert "token 2147483647 is beyond the vocabulary" in error["message"]


@pytest.mark.parametrize("model", ["../../x", "/etc/passwd", "gpt2/", "GPT2", "", "\0", "<b>x</b>", "x" * 10_000])
def test_models_are_names(address, model):
    error = refused(address, GOOD | {"model": model}, 404, "model")
    assert error["code"] == "model_not_found"
    assert "There are: gpt2, hybrid, infinito, ternary." in error["message"]
    assert error["message"].isprintable()


def test_control_characters_and_html_are_text_like_any_other(address):
    for prompt in ("\0\x01\x02\x1b[31m", "<script>alert(1)</script>", "\u202e\ufeff", "\U0010ffff"):
        assert post(address, GOOD | {"prompt": prompt})[0] == 200
    for text in ("", " ", "\n"):
        assert post(address, GOOD | {"prompt": text})[0] == 200


def test_other_addresses_and_methods(address):
    assert "POST /v1/completions" in refused(address, GOOD, 404, path="/v1/embeddings")["message"]
    refused(address, GOOD, 405, path="/health")
    for path in ("/docs", "/openapi.json", "/v1/../etc/passwd", "/v1/models/../../x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(address + path)


def test_a_key_is_asked_for(serve, engines):
    engine = Engine(engines["gpt2"].loaded, EngineLimits(slots=2))
    with serve({"gpt2": engine}, key="open sesame!") as address:
        for key in ("", "open sesame", "open sesame!!", "ä"):
            error = refused(address, GOOD, 401, headers=JSON | {"Authorization": f"Bearer {key}".encode()})
            assert error["code"] == "invalid_api_key"
            assert "sesame" not in error["message"]
        refused(address, GOOD, 401)
        assert urllib.request.urlopen(f"{address}/health").status == 200
        with openai.OpenAI(base_url=f"{address}/v1", api_key="open sesame!") as client:
            assert client.completions.create(**GOOD).choices
            assert [model.id for model in client.models.list()] == ["gpt2"]
    with pytest.raises(EngineClosed):
        engine.submit([])


def test_noise_on_the_line_does_no_harm(address):
    host, port = address.removeprefix("http://").split(":")
    for noise in (b"\x16\x03\x01\x02", b"GET\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(noise)
    assert post(address, GOOD)[0] == 200
