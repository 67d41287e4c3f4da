"""Masked language models: every token filled in from the others, pseudo-perplexity, whole experiments and refusals."""

import json

import numpy as np
import pytest
import torch

from frankenlm.degradation import get_config, run_experiment
from frankenlm.degradation.answers.mask_filling import MaskDecoder, render_texts
from frankenlm.degradation.answers.masked_probe import SCORED_EVERY, WINDOW, MaskedTextProbe
from frankenlm.degradation.answers.requests import DecoderSettings, Request
from frankenlm.degradation.answers.sampling import Sampler, SamplingSettings
from frankenlm.degradation.lab import Lab
from frankenlm.degradation.measures.measure import perplexity_text
from frankenlm.degradation.records.row_keys import check_row
from frankenlm.degradation.report.result_files import read_results
from frankenlm.degradation.report.write import write_report
from frankenlm.degradation.run import runner
from frankenlm.degradation.run.estimate import dry_run
from frankenlm.degradation.weights.model_checks import fills_masks
from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM

MODELS = ("bert", "roberta", "frankenstein")
TEXTS = ("Rain falls on tin.", "No.", "A longer sentence, about nothing much at all.")
GREEDY = SamplingSettings(False, 1.0, 0, 1.0, None, 1.0)
DRAWN = SamplingSettings(True, 1.0, 20, 0.9, None, 1.0)
SMALL = get_config("smoke") | {"dtype": "float32", "levels": (0.0, 0.4), "n_rep": 2, "group": "mlp_only"}


@pytest.fixture
def masked(tiny_model, tiny_config):
    """masked(name) -> a masked language model; ours too."""

    def make(name):
        if name != "frankenstein":
            return tiny_model(name)
        torch.manual_seed(0)
        fields = tiny_config(name).to_diff_dict() | {"is_decoder": False, "pad_token_id": 256}
        model = FrankensteinForMaskedLM(FrankensteinConfig(**fields)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def reader(tiny_mask_tokenizer):
    return tiny_mask_tokenizer()


class Limit:
    """So many copies a call; memory for at most `room` of them."""

    def __init__(self, size):
        self.size = size

    def __call__(self):
        return self.size

    def out_of_memory(self, rows):
        self.size = max(1, self.size // 2)
        return list(rows)


class Counts(Limit):
    """Notes how many copies each failed call had."""

    def __init__(self, size):
        super().__init__(size)
        self.failed = []

    def out_of_memory(self, rows):
        self.failed.append(len(rows))
        return super().out_of_memory(rows)


def narrow(forward, room):
    """A forward with memory for `room` copies."""

    def run(input_ids, **inputs):
        if len(input_ids) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **inputs)

    return run


def one_by_one(model, reader, text):
    """Each token masked alone in a call of its own: log-probabilities [tokens, vocabulary] and the tokens."""
    ids = reader(text)["input_ids"]
    found = []
    for place in range(1, len(ids) - 1):
        masked = torch.tensor([ids])
        masked[0, place] = reader.mask_token_id
        with torch.no_grad():
            found.append(model(input_ids=masked).logits[0, place].log_softmax(-1))
    return torch.stack(found), torch.tensor(ids[1:-1])


def answers(model, reader, settings=GREEDY, limit=None, fixed_shape=False):
    rendering = render_texts(TEXTS, reader, 100)
    decoding = DecoderSettings(Sampler(settings), frozenset(), 0, 1, fixed_shape)
    decoder = MaskDecoder(model, rendering, decoding, reader)
    requests = [Request(place, (7, place)) for place in range(len(TEXTS))]
    return [answer for group in decoder.answers(requests, limit or Limit(8)) for answer in group]


@pytest.mark.parametrize("name", MODELS)
def test_every_token_is_filled_in_from_all_the_others(name, masked, reader):
    model = masked(name)
    for text, answer in zip(TEXTS, answers(model, reader), strict=True):
        expected, ids = one_by_one(model, reader, text)
        assert list(answer.tokens) == expected.argmax(-1).tolist()
        assert len(answer.tokens) == len(ids) and answer.finish_reason == "filled"
        assert answer.logprob == pytest.approx(float(expected.max(-1).values.mean()), abs=1e-4)
        assert answer.entropy == pytest.approx(float(-(expected.exp() * expected).sum(-1).mean()), abs=1e-4)


@pytest.mark.parametrize("fixed_shape", [False, True])
@pytest.mark.parametrize("size", [1, 3, 16, 100])
def test_the_text_does_not_depend_on_the_batch(size, fixed_shape, masked, reader):
    model = masked("bert")
    expected = [answer.tokens for answer in answers(model, reader, DRAWN)]
    found = answers(model, reader, DRAWN, Limit(size), fixed_shape)
    assert [answer.tokens for answer in found] == expected
    assert expected != [answer.tokens for answer in answers(model, reader)], "drawn, not the likeliest"


def test_fixed_shapes_have_as_many_copies_in_every_call(masked, reader, monkeypatch):
    model, sizes = masked("bert"), []
    model.register_forward_pre_hook(lambda _, args, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True)
    found = answers(model, reader, limit=Limit(8), fixed_shape=True)
    assert set(sizes) == {8} == {answer.batch_shape[0] for answer in found}


def test_copies_without_room_are_halved(masked, reader, monkeypatch):
    model, limit = masked("bert"), Limit(16)
    expected = [answer.tokens for answer in answers(model, reader)]
    monkeypatch.setattr(model, "forward", narrow(model.forward, 5))
    assert [answer.tokens for answer in answers(model, reader, limit=limit)] == expected
    assert limit.size == 4


def test_a_row_that_is_given_up_leaves_the_others(masked, reader, monkeypatch):
    class GivesUp(Limit):
        def out_of_memory(self, rows):
            return []

    model, calls = masked("bert"), []
    forward = model.forward

    def once(**inputs):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", once)
    assert [answer.index for answer in answers(model, reader, limit=GivesUp(8))] == [1, 2]


def test_logits_that_are_not_finite_end_the_row(masked, reader):
    model = masked("bert")
    with torch.no_grad():
        model.get_output_embeddings().bias[5] = torch.nan
    assert [(answer.finish_reason, answer.tokens, answer.logprob) for answer in answers(model, reader)] == [
        ("nan", (), None)
    ] * len(TEXTS)


@pytest.mark.parametrize("name", MODELS)
def test_pseudo_perplexity_is_the_mean_over_masked_tokens(name, masked, reader):
    """Against a call for each token; the text ends in the middle of a window."""
    model = masked(name)
    text = ("The kettle sang, and nobody in the house was listening to it. " * 3)[: 2 * WINDOW + 21]
    probe = MaskedTextProbe(model, reader, text)
    before = probe.remember()
    pieces = [one_by_one(model, reader, text[at : at + WINDOW]) for at in range(0, len(text), WINDOW)]
    logprobs, ids = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    assert len(ids) == len(text) == len(probe.ids)
    logprobs, ids = logprobs[::SCORED_EVERY], ids[::SCORED_EVERY]
    nll = -logprobs.gather(1, ids[:, None]).double()
    assert before.log_perplexity == pytest.approx(float(nll.mean()), rel=1e-5)
    assert before.perplexity == pytest.approx(np.exp(float(nll.mean())), rel=1e-4)
    assert before.kl is None and probe.measure().kl == 0

    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    damaged, _ = one_by_one(model, reader, text[:WINDOW])
    assert probe.kept_every == 1
    whole = logprobs[: WINDOW // SCORED_EVERY]
    first = (whole.exp() * (whole - damaged[::SCORED_EVERY])).sum(-1).mean()
    short = MaskedTextProbe(model, reader, text[:WINDOW])
    short.undamaged = whole
    assert short.measure().kl == pytest.approx(float(first), rel=1e-3)


def test_a_long_text_keeps_predictions_at_equal_steps(masked, reader):
    text = "The kettle sang. " * 100
    probe = MaskedTextProbe(masked("bert"), reader, text)
    probe.remember()
    every = probe.kept_every
    assert every == 1700 // SCORED_EVERY // 128 == 3
    assert len(probe.undamaged) == -(-425 // every)
    expected = torch.cat([one_by_one(probe.model, reader, text[at : at + WINDOW])[0] for at in (0, WINDOW)])
    expected = expected[:: SCORED_EVERY * every]
    assert torch.allclose(probe.undamaged[: len(expected)], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", pytest.param("roberta", marks=pytest.mark.slow), "frankenstein"])
def test_a_whole_experiment(name, masked, reader, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "perplexity_text", lambda: perplexity_text()[:200])
    model = masked(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = run_experiment(SMALL, model=model, tokenizer=reader, output_dir=tmp_path, progress=False)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(rows) == 2 * 2 * 4
    for row in rows:
        check_row(row)
        assert (row["decoder"], row["finish_reason"], row["status"]) == ("masks", "filled", "ok")
        assert row["tokens_generated"] == row["tokens_in"]
        assert row["perplexity"] is None or row["perplexity"] > 1
    (file,) = read_results([path])
    cells = file.cells
    scored = [cell for cell in cells if cell["kl_to_baseline"] is not None]
    assert {cell["level_value"]: cell["kl_to_baseline"] > 0 for cell in scored} == {0.0: False, 0.4: True}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    page = write_report([path], tmp_path / "report", progress=False)
    assert "pseudo-perplexity" in page.read_text(encoding="utf-8")


def test_a_folder_is_opened_as_what_it_holds(tiny_dir, tmp_path):
    lab = Lab(str(tiny_dir("bert")))
    planned = lab.plan(SMALL)
    assert planned.fills_masks
    estimate = dry_run(str(tiny_dir("bert")), planned.config, planned.model_config, planned.prompts)
    assert estimate.parts["cache"] == 0 and estimate.parts["activations"] > 0
    assert f"{estimate.batch_size} masked copies at once" in estimate.table()
    path = run_experiment(
        SMALL | {"perplexity": False}, model=str(tiny_dir("bert")), output_dir=tmp_path, progress=False
    )
    assert {row["decoder"] for row in json.loads(path.read_text())} == {"masks"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"system_prompt": "Be brief."}, "reads a text without turns"),
        ({"repetition_penalty": 1.2}, "every token was there before; leave it at 1"),
        ({"image": "kitchen"}, "reads text only"),
        ({"max_seq_length": 10}, "prompts are never cut"),
    ],
)
def test_what_a_masked_model_cannot_do(fields, message, tiny_dir):
    with pytest.raises(ValueError) as refused:
        Lab(str(tiny_dir("bert"))).plan(SMALL | fields)
    assert message in " ".join(str(refused.value).split())


def test_a_model_in_memory_is_checked_too(tiny_model, reader):
    model = tiny_model("bert")
    for fields, message in (({"system_prompt": "Be brief."}, "without turns"), ({"image": "kitchen"}, "text only")):
        with pytest.raises(ValueError, match=message):
            Lab(model, tokenizer=reader).plan(SMALL | fields)
    model.config.architectures = ["BertForPreTraining"]  # of the checkpoint it was loaded from
    assert Lab(model, tokenizer=reader).plan(SMALL).fills_masks


@pytest.mark.parametrize(
    ("limit", "message"), [(12, "more than the 12 positions"), (3, "perplexity needs 4 positions")]
)
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_positions_are_counted_as_the_model_counts_them(name, limit, message, tiny_model, reader):
    offset = 257 if name == "roberta" else 0  # positions of RoBERTa begin behind the padding token, here 256
    with pytest.raises(ValueError, match=message):
        Lab(tiny_model(name, max_position_embeddings=limit + offset), tokenizer=reader).plan(SMALL)
    assert Lab(tiny_model(name, max_position_embeddings=66 + offset), tokenizer=reader).plan(SMALL)


def test_a_call_without_room_in_fixed_shapes_is_halved_by_what_it_held(masked, reader, monkeypatch):
    model, limit = masked("bert"), Counts(16)
    expected = [answer.tokens for answer in answers(model, reader)]
    monkeypatch.setattr(model, "forward", narrow(model.forward, 5))
    found = answers(model, reader, limit=limit, fixed_shape=True)
    assert [answer.tokens for answer in found] == expected
    assert limit.failed == [16, 8] and {tuple(answer.batch_shape)[0] for answer in found[1:]} == {4}


def test_a_prompt_longer_than_the_positions_is_refused(tiny_model, reader):
    with pytest.raises(ValueError, match="more than the 12 positions"):
        Lab(tiny_model("bert", max_position_embeddings=12), tokenizer=reader).plan(SMALL)


def test_a_tokenizer_without_a_mask_is_refused(masked, tiny_tokenizer):
    with pytest.raises(ValueError, match="has no mask token"):
        Lab(masked("bert"), tokenizer=tiny_tokenizer()).plan(SMALL)


def test_causal_models_stay_what_they_were(tiny_config):
    assert [
        name
        for name in ("llama", "gpt2", "gemma3", "gemma3_mm", "frankenstein", "infinito", "legacy_1bit")
        if fills_masks(tiny_config(name))
    ] == []
    assert all(fills_masks(tiny_config(name)) for name in ("bert", "roberta"))
    assert not fills_masks(tiny_config("bert", is_decoder=True))


@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertModel", "BertForMaskedLM"])
def test_checkpoints_of_encoders_are_masked_models(architecture, tiny_config):
    """BertLMHeadModel would open them too, and continue texts without ever having learnt to."""
    assert fills_masks(tiny_config("bert", architectures=[architecture]))
