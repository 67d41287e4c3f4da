"""The row loop: rows that come and go get the text they would get alone."""

import gc
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from PIL import Image

from frankenlm.degradation.answers.batch_decoder import BatchDecoder
from frankenlm.degradation.answers.packed_linears import can_be_packed, packed_linears
from frankenlm.degradation.answers.rendering import render_prompts
from frankenlm.degradation.answers.requests import DecoderSettings, Request, is_out_of_memory
from frankenlm.degradation.answers.row_decoder import RowDecoder, RowsUnsupported
from frankenlm.degradation.answers.sampling import Sampler, SamplingSettings, sampling_key
from frankenlm.degradation.answers.state_decoder import StateDecoder

TEXTS = ["Hello there", "Tell me", "A dream of someone walking about", "x", "Say a number.", "Yes?", "Where to?"]
SAMPLED = SamplingSettings(True, 1.0, 64, 0.95, None, 1.0)
# names of the models in conftest.py; rows are tried with all of them but encoders
ROWS = (
    "gemma3",
    "gemma3_mm",
    "gemma2",
    "llama",
    "llama_tied",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gpt2",
    "gpt_neox",
    "phi3",
    "mixtral",
)
STATES = ("frankenstein", "infinito", "legacy_1bit")


@dataclass
class Limit:
    """A limit that only lack of memory lowers; `failed` holds how many rows took part each time."""

    size: int
    failed: list = field(default_factory=list)

    def __call__(self):
        return self.size

    def out_of_memory(self, rows):
        self.failed.append(len(rows))
        self.size = max(1, self.size // 2)
        return list(rows)


def requests():
    return [Request(i, sampling_key(42, 0, text, 0)) for i, text in enumerate(TEXTS)]


def decode_with(decoder, size):
    """Return prompt -> answer."""
    answers = [answer for group in decoder.answers(requests(), Limit(size)) for answer in group]
    assert sorted(answer.index for answer in answers) == list(range(len(TEXTS)))
    return {answer.index: answer for answer in answers}


def texts(answers):
    return {index: answer.tokens for index, answer in answers.items()}


@pytest.fixture
def lay_out(tiny_model, tiny_tokenizer):
    """lay_out(name, decoder class, ...) -> decoder on a tiny model."""

    def make(name, decoder=RowDecoder, sampling=SAMPLED, new_tokens=24, fixed_shape=False, stop=None, **model):
        tokenizer = tiny_tokenizer()
        rendering = render_prompts(TEXTS, tokenizer, max_length=512)
        stop = tokenizer.convert_tokens_to_ids("</turn>") if stop is None else stop
        settings = DecoderSettings(
            Sampler(sampling), frozenset([stop]), tokenizer.pad_token_id, new_tokens, fixed_shape
        )
        return decoder(tiny_model(name, **model), rendering, settings)

    return make


def recomputed(decoder, index):
    """The row by the plain forward of the whole sequence for every token, without cache, padding or company."""
    settings, ids, tokens = decoder.settings, decoder.rendering.prompts[index].ids, []
    key = np.array([requests()[index].key], dtype=np.uint32)
    while len(tokens) < settings.max_new_tokens:
        with torch.inference_mode():
            logits = decoder.model(torch.tensor([[*ids, *tokens]])).logits[:, -1]
        token = int(settings.sampler.choose(logits, key, np.array([len(tokens)]), [[*ids, *tokens]]).tokens[0])
        if token in settings.stop_ids:
            break
        tokens.append(token)
    return tuple(tokens)


@pytest.mark.parametrize("name", ROWS)
def test_rows_equal_the_plain_forward(name, lay_out):
    """With slots refilled (3 for 7 rows), sliding windows, experts, fused layers: as if each row were alone."""
    decoder = lay_out(name)
    found = texts(decode_with(decoder, 3))
    assert found == {index: recomputed(decoder, index) for index in range(len(TEXTS))}


@pytest.mark.parametrize(
    "name, decoder", [("gemma3", RowDecoder), ("llama_tied", BatchDecoder), ("infinito", StateDecoder)]
)
def test_text_does_not_change_with_the_layout_of_weights(name, decoder, lay_out):
    if not can_be_packed(torch.nn.Linear(8, 8)):
        pytest.skip("oneDNN's kernels do not run on this processor")
    made = lay_out(name, decoder)
    plain = texts(decode_with(made, 5))
    with packed_linears(made.model):
        layers = [module.forward for module in made.model.modules() if "forward" in vars(module)]
        assert texts(decode_with(made, 5)) == plain
        assert layers and all(layer.packed is not None or layer.together is not None for layer in layers)
        assert any(layer.together for layer in layers)


@pytest.mark.parametrize("name", ["gemma3", "llama"])
@pytest.mark.parametrize("fixed_shape", [False, True])
def test_text_does_not_change_with_the_batch(name, fixed_shape, lay_out):
    decoder = lay_out(name, fixed_shape=fixed_shape)
    one = decode_with(decoder, 1)
    for size in (3, 8, 16):
        answers = decode_with(decoder, size)
        assert texts(answers) == texts(one)
        assert all(answer.batch_size <= size for answer in answers.values())


@pytest.mark.parametrize("name", STATES)
def test_models_with_caches_of_their_own_let_rows_go(name, lay_out):
    """Rows leave one by one, and write what they write alone, by the plain forward, and in batches of generate()."""
    with pytest.raises(RowsUnsupported):
        lay_out(name)
    decoder = lay_out(name, StateDecoder)
    alone = texts(decode_with(decoder, 1))
    together = decode_with(decoder, 4)
    assert texts(together) == alone == texts(decode_with(lay_out(name, BatchDecoder), 4))
    assert alone[0] == recomputed(decoder, 0)
    assert len({answer.batch_shape for answer in together.values()}) == 2  # 7 rows, 4 at once


def test_a_row_that_has_left_costs_nothing(lay_out, monkeypatch):
    long = texts(decode_with(lay_out("legacy_1bit", StateDecoder, new_tokens=8), len(TEXTS)))
    decoder, rows, step = lay_out("legacy_1bit", StateDecoder, new_tokens=8, stop=long[0][3]), [], StateDecoder.step
    monkeypatch.setattr(
        StateDecoder, "step", lambda self, state, tokens: rows.append(len(tokens)) or step(self, state, tokens)
    )
    answers = decode_with(decoder, len(TEXTS))
    assert rows == sorted(rows, reverse=True) and rows[0] > rows[-1]
    # the first token of a row comes with the prompt, and the stop token is read by nobody
    assert sum(rows) == sum(len(each.tokens) - (each.finish_reason == "length") for each in answers.values())


def test_lack_of_memory_begins_the_rows_in_flight_anew(lay_out, monkeypatch):
    decoder, calls = lay_out("infinito", StateDecoder), []
    expected, step = texts(decode_with(decoder, 4)), StateDecoder.step

    def fail_once(self, state, ids):
        calls.append(len(ids))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return step(self, state, ids)

    monkeypatch.setattr(StateDecoder, "step", fail_once)
    limit = Limit(4)
    answers = [answer for group in decoder.answers(requests(), limit) for answer in group]
    assert {answer.index: answer.tokens for answer in answers} == expected and len(answers) == len(TEXTS)
    assert limit.size == 2


@pytest.mark.parametrize("fixed_shape", [False, True])
def test_prompts_of_unequal_length_stay_apart_where_pads_are_read(fixed_shape, tiny_model, lay_out, monkeypatch):
    model = tiny_model("legacy_1bit")
    expected = texts(decode_with(lay_out("legacy_1bit", BatchDecoder), 1))
    plain = type(model).forward

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return plain(self, input_ids=input_ids, attention_mask=None, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)
    decoder = lay_out("legacy_1bit", BatchDecoder, fixed_shape=fixed_shape)
    assert not decoder.hides_pads
    assert texts(decode_with(decoder, 4)) == expected
    with pytest.raises(RowsUnsupported, match="logits differ"):
        lay_out("legacy_1bit", StateDecoder)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_both_decoders_write_the_same(penalty, lay_out):
    sampling = SamplingSettings(True, 0.9, 20, 0.9, None, penalty)
    rows = decode_with(lay_out("qwen2", sampling=sampling), 3)
    batches = decode_with(lay_out("qwen2", BatchDecoder, sampling=sampling), 3)
    assert texts(rows) == texts(batches)
    for index, row in rows.items():
        assert row.finish_reason == batches[index].finish_reason
        assert row.logprob == pytest.approx(batches[index].logprob, abs=1e-4)
        assert row.entropy == pytest.approx(batches[index].entropy, abs=1e-4)


def test_greedy_is_the_librarys_greedy(lay_out):
    greedy = SamplingSettings(False, 1.0, 0, 1.0, None, 1.0)
    decoder = lay_out("llama", sampling=greedy)
    found = texts(decode_with(decoder, 3))
    for index in range(len(TEXTS)):
        ids = torch.tensor([decoder.rendering.prompts[index].ids])
        stop = sorted(decoder.settings.stop_ids)
        expected = decoder.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=stop,
            pad_token_id=decoder.settings.pad_id,
        )[0, ids.shape[1] :].tolist()
        expected = expected[: expected.index(stop[0])] if stop[0] in expected else expected
        assert list(found[index]) == expected


def test_a_picture_is_read_once_and_seen_by_every_row(tiny_model, tiny_processor):
    """Row loop = generate() with the picture in every row; another picture, another text."""
    processor, model = tiny_processor(), tiny_model("gemma3_mm")
    settings = DecoderSettings(Sampler(SAMPLED), frozenset([258]), 256, 20)
    found = []
    for seed in (1, 2):
        picture = Image.effect_mandelbrot((60, 40), (-2 * seed, -1.5, 1, 1.5), 50).convert("RGB")
        rendering = render_prompts(TEXTS, processor.tokenizer, max_length=512, processor=processor, picture=picture)
        rows = texts(decode_with(RowDecoder(model, rendering, settings), 3))
        assert rows == texts(decode_with(BatchDecoder(model, rendering, settings), 3))
        found.append(rows)
    assert found[0] != found[1]


@pytest.mark.parametrize("intact", [True, False])
def test_the_features_of_a_picture_are_kept_where_nothing_damages_them(intact, tiny_model, tiny_processor, monkeypatch):
    processor, model = tiny_processor(), tiny_model("gemma3_mm")
    picture = Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    rendering = render_prompts(TEXTS, processor.tokenizer, max_length=512, processor=processor, picture=picture)
    settings = DecoderSettings(Sampler(SAMPLED), frozenset([258]), 256, 12, picture_intact=intact)
    tower, read = model.get_encoder(modality="image"), []
    tower.register_forward_hook(lambda *_: read.append(1))
    decoder = RowDecoder(model, rendering, settings)
    cells = [texts(decode_with(decoder, 3)) for _ in range(3)]
    assert len(read) == (1 if intact else 3)
    assert cells[0] == cells[1] == cells[2] == texts(decode_with(BatchDecoder(model, rendering, settings), 3))


@pytest.mark.parametrize("decoder", [RowDecoder, BatchDecoder])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_without_finite_logits_stop_and_count(decoder, bad, lay_out, monkeypatch):
    made = lay_out("llama", decoder)
    healthy = decode_with(made, 7)
    poisoned = requests()[2].key
    choose = Sampler.choose

    def spoil(self, logits, keys, positions, seen=None):
        logits = logits.clone()
        hit = (keys == np.array(poisoned, dtype=np.uint32)).all(-1) & (positions >= 4)
        logits[torch.from_numpy(hit)] = bad
        return choose(self, logits, keys, positions, seen)

    monkeypatch.setattr(Sampler, "choose", spoil)
    sick = decode_with(made, 7)
    assert sick[2].finish_reason == "nan" and sick[2].tokens == healthy[2].tokens[:4]
    assert {i: a.tokens for i, a in sick.items() if i != 2} == {i: a.tokens for i, a in healthy.items() if i != 2}


@pytest.mark.parametrize("decoder", [RowDecoder, BatchDecoder])
@pytest.mark.parametrize("fixed_shape", [False, True])
@pytest.mark.parametrize("size", [2, *[pytest.param(size, marks=pytest.mark.slow) for size in (1, 4, 7)]])
def test_a_row_that_broke_leaves_nothing_in_its_slot(size, fixed_shape, decoder, lay_out):
    """Its keys and values are NaN, which no mask hides from the row that takes its place."""
    made = lay_out("llama", decoder, fixed_shape=fixed_shape)
    with torch.no_grad():
        made.model.get_input_embeddings().weight[ord("H")] = torch.nan  # stands in the first text alone
    alone = {}
    for request in requests():
        ((alone[request.index],),) = made.answers([request], Limit(1))
    assert [index for index, answer in alone.items() if answer.finish_reason == "nan"] == [0]
    found = decode_with(made, size)
    assert texts(found) == texts(alone)
    assert {i: a.finish_reason for i, a in found.items()} == {i: a.finish_reason for i, a in alone.items()}


def test_a_batch_without_room_is_gone_before_a_smaller_one_is_tried(lay_out, monkeypatch):
    made, caches, calls = lay_out("llama"), [], []
    forward = type(made.model).forward

    def fail_once(model, input_ids=None, **inputs):
        calls.append(1)
        if len(calls) == 6:
            caches.append(weakref.ref(inputs["cache"]))
            raise torch.OutOfMemoryError("no room")
        return forward(model, input_ids=input_ids, **inputs)

    class Looks(Limit):
        def out_of_memory(self, rows):
            gc.collect()
            assert caches[0]() is None, "what the failed batch took is still held"
            return super().out_of_memory(rows)

    monkeypatch.setattr(type(made.model), "forward", fail_once)
    limit = Looks(4)
    assert sum(len(group) for group in made.answers(requests(), limit)) == len(TEXTS)
    assert limit.failed == [4]


@pytest.mark.parametrize("decoder", [RowDecoder, BatchDecoder])
def test_running_out_of_memory_halves_and_goes_on(decoder, lay_out, monkeypatch):
    made = lay_out("llama", decoder)
    expected = texts(decode_with(made, 7))
    limit, forward = Limit(7), type(made.model).forward

    def fail_above(model, input_ids=None, **inputs):
        if len(input_ids) > 3:
            raise torch.OutOfMemoryError("no room for so many rows")
        return forward(model, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(made.model), "forward", fail_above)
    answers = [answer for group in made.answers(requests(), limit) for answer in group]
    assert limit.size == 3 and limit.failed == [7]
    assert {answer.index: answer.tokens for answer in answers} == expected


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_every_way_of_saying_that_memory_is_out(error, is_memory):
    assert is_out_of_memory(error) == is_memory


def test_other_errors_are_not_taken_for_memory(lay_out, monkeypatch):
    made = lay_out("llama")
    monkeypatch.setattr(type(made.model), "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decode_with(made, 2)


def test_time_and_company_are_accounted_for(lay_out):
    answers = decode_with(lay_out("llama", stop=10_000), 3)
    assert all(a.finish_reason == "length" and len(a.tokens) == 24 for a in answers.values())
    assert max(a.batch_size for a in answers.values()) == 3
    # shares add up to less than what the rows saw pass, as three were in flight
    assert 0 < sum(a.duration for a in answers.values()) < sum(a.batch_duration for a in answers.values())


def test_longest_expected_rows_begin_first(lay_out):
    wishes = [Request(i, sampling_key(42, 0, TEXTS[i], 0), expected_tokens=i) for i in range(len(TEXTS))]
    decoder = lay_out("llama", stop=10_000)
    order = [answer.index for group in decoder.answers(wishes, Limit(1)) for answer in group]
    assert order == sorted(order, reverse=True)


def test_a_model_that_mixes_rows_up_is_found_out(lay_out, tiny_model, monkeypatch):
    """The probe compares logits; it does not trust a model's signature."""
    model_class = type(tiny_model("llama"))
    forward = model_class.forward

    def ignores_masks(self, input_ids=None, attention_mask=None, **inputs):
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(model_class, "forward", ignores_masks)
    with pytest.raises(RowsUnsupported, match="logits differ|Error"):
        lay_out("llama")
