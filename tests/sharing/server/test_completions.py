"""What the official client of the OpenAI API gets: the same as one answer alone, in every shape."""

import math
import threading

import openai
import pytest
import torch

from frankenlm.sharing.live.answers import stream
from frankenlm.sharing.live.options import Options
from frankenlm.trainer_ext.generation.generate import chat_ids, derive_seed, prompt_ids

MODELS = ("gpt2", "hybrid", "infinito", "ternary")


def alone(loaded, prompt, seed, stop=(), **options):
    pieces = list(stream(loaded.model, loaded.tokenizer, prompt, Options(**options), stop, seed))
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason, sum(piece.tokens for piece in pieces)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_completion_is_the_answer_given_alone(client, opened, name, streamed):
    expected = alone(opened(name), "the cat", 7, max_new_tokens=24, temperature=0.9, top_p=0.9, frequency_penalty=0.5)
    asked = {"model": name, "prompt": "the cat", "max_tokens": 24, "temperature": 0.9, "top_p": 0.9, "seed": 7}
    asked["frequency_penalty"] = 0.5
    if streamed:
        chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].text for chunk in chunks[:-1])
        found = text, chunks[-2].choices[0].finish_reason, chunks[-1].usage.completion_tokens
        assert chunks[-1].choices == [] and len({chunk.id for chunk in chunks}) == 1
    else:
        reply = client.completions.create(**asked)
        found = reply.choices[0].text, reply.choices[0].finish_reason, reply.usage.completion_tokens
        assert reply.usage.prompt_tokens == len(prompt_ids(opened(name).tokenizer, "the cat"))
    assert found == expected


@pytest.mark.parametrize("name", MODELS)
def test_answers_decoded_together_are_those_given_alone(client, opened, name):
    """Nine at once on four slots, of unequal prompts, lengths and settings."""
    asked = [
        {"prompt": "the cat sat on a mat"[: 3 + number], "seed": number, "temperature": number % 3 * 0.6}
        | {"max_tokens": 4 + 2 * number}
        for number in range(9)
    ]
    found = [None] * len(asked)

    def ask(number):
        reply = client.completions.create(model=name, **asked[number])
        found[number] = reply.choices[0].text, reply.choices[0].finish_reason, reply.usage.completion_tokens

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each, got in zip(asked, found, strict=True):
        options = {"max_new_tokens": each["max_tokens"], "temperature": each["temperature"]}
        assert got == alone(opened(name), each["prompt"], each["seed"], **options), each


def test_more_answers_and_more_prompts(client, opened):
    loaded, prompts = opened("gpt2"), ["the cat", "green hills while"]
    reply = client.completions.create(model="gpt2", prompt=prompts, n=2, max_tokens=8, seed=5)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    seeds = [5, derive_seed(5, 1)]
    expected = [alone(loaded, prompt, seed, max_new_tokens=8)[0] for prompt in prompts for seed in seeds]
    assert [choice.text for choice in reply.choices] == expected
    assert len({*expected}) == 4
    ids = [prompt_ids(loaded.tokenizer, prompt) for prompt in prompts]
    reply = client.completions.create(model="gpt2", prompt=ids, max_tokens=8, seed=5)
    assert [choice.text for choice in reply.choices] == expected[::2]
    reply = client.completions.create(model="gpt2", prompt=ids[0], max_tokens=8, seed=5)
    assert reply.choices[0].text == expected[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_strings(client, opened, streamed):
    whole, _, _ = alone(opened("gpt2"), "the cat", 3, max_new_tokens=30)
    stop = whole[5:8]
    asked = {"model": "gpt2", "prompt": "the cat", "max_tokens": 30, "seed": 3, "stop": [stop, "never"]}
    if streamed:
        chunks = list(client.completions.create(**asked, stream=True))
        text, reason = "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].choices[0].finish_reason
    else:
        choice = client.completions.create(**asked).choices[0]
        text, reason = choice.text, choice.finish_reason
    assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_without_a_seed_answers_differ(client):
    texts = {client.completions.create(model="gpt2", prompt="a", max_tokens=12).choices[0].text for _ in range(4)}
    assert len(texts) == 4


@pytest.mark.parametrize("name", ["gpt2", "ternary"])
def test_logprobs_and_echo_are_the_models_own(client, opened, name):
    loaded = opened(name)
    ids = prompt_ids(loaded.tokenizer, "the cat")
    asked = {"model": name, "prompt": "the cat", "max_tokens": 5, "temperature": 0, "echo": True, "logprobs": 2}
    reply = client.completions.create(**asked)
    found = reply.choices[0].logprobs
    answer = loaded.model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=5, do_sample=False
    )[0]
    with torch.no_grad():
        logprobs = loaded.model(answer[None]).logits[0].log_softmax(-1)
    expected = logprobs[range(len(answer) - 1), answer[1:]].tolist()
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert found.token_logprobs[1:] == pytest.approx(expected, abs=1e-3)
    for top, row in zip(found.top_logprobs[1:], logprobs, strict=False):
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-3)
    assert reply.choices[0].text.startswith("the cat")
    assert found.text_offset[:2] == [0, len(loaded.tokenizer.decode(ids[:1]))]
    assert found.text_offset[len(ids)] == len("the cat")
    scored = client.completions.create(**asked | {"max_tokens": 0, "prompt": ids})
    assert scored.choices[0].text == "the cat" and scored.choices[0].finish_reason == "length"
    assert scored.choices[0].logprobs.token_logprobs == found.token_logprobs[: len(ids)]
    assert scored.usage.completion_tokens == 0
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == reply.choices[0].text
    streamed = [value for chunk in chunks for value in chunk.choices[0].logprobs.token_logprobs]
    assert streamed == found.token_logprobs


@pytest.mark.parametrize("name", ["hybrid", "ternary"])
def test_a_chat_goes_through_the_tokenizers_template(client, opened, name):
    loaded = opened(name)
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]
    expected = alone(loaded, chat_ids(loaded, messages), 4, max_new_tokens=16)
    asked = {"model": name, "seed": 4, "max_completion_tokens": 16}
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    developer = [{"role": "developer", "content": "be short"}, {"role": "user", "content": parts}]
    for said in (messages, developer):
        choice = client.chat.completions.create(**asked, messages=said).choices[0]
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", *expected[:2])
    stream_of = client.chat.completions.create(**asked, messages=messages, stream=True, logprobs=True, top_logprobs=2)
    chunks = list(stream_of)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected[0]
    assert chunks[-1].choices[0].finish_reason == expected[1]
    tokens = [each for chunk in chunks if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert len(tokens) == expected[2] - (expected[1] == "stop")
    assert all(len(each.top_logprobs) == 2 and math.isfinite(each.logprob) for each in tokens)


def test_a_tokenizer_without_a_template_cannot_chat(client):
    with pytest.raises(openai.BadRequestError, match="no chat template.*use /v1/completions") as caught:
        client.chat.completions.create(model="gpt2", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "no_chat_template"


def test_bias_and_the_dialect(client):
    bias = {"model": "gpt2", "prompt": "a", "max_tokens": 3, "temperature": 0, "logit_bias": {"70": 100}, "logprobs": 0}
    reply = client.completions.create(**bias)
    assert len({*reply.choices[0].logprobs.tokens}) == 1
    extra = {"repetition_penalty": 1000, "top_k": 5, "min_p": 0.1, "typical_p": 0.9, "no_repeat_ngram_size": 1}
    reply = client.completions.create(**bias | {"max_tokens": 20, "temperature": 1}, extra_body=extra)
    assert len(reply.choices[0].logprobs.tokens) == len({*reply.choices[0].logprobs.tokens})


def test_models_are_listed(client, address):
    assert [model.id for model in client.models.list()] == list(MODELS)
    assert client.models.retrieve("gpt2").owned_by == "frankenlm"
    with pytest.raises(openai.NotFoundError, match="Did you mean 'gpt2'"):
        client.models.retrieve("gtp2")
