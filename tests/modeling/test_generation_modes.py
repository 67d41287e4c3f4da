"""Every way of transformers' generate(), without a warning; what a recurrent model cannot do is refused in a line."""

import logging
import warnings

import pytest
import torch
from transformers import DynamicCache, pipeline
from transformers.generation.streamers import BaseStreamer

from frankenlm.modeling import (
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
    byte_tokenizer,
)

SIZES = {"vocab_size": 261, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
INFINITO = SIZES | {"num_hidden_layers": 2, "memory_slots": 4, "memory_dim": 8, "memory_heads": 2, "memory_segment": 4}
NEW = 6
# What transformers' assisted decoding calls an assistant's generate() with is against its own advice.
TO_ASSISTANTS = "Passing `generation_config` together with generation-related arguments="


@pytest.fixture(scope="module")
def make(tiny_model, enliven):
    def build(family):
        torch.manual_seed(0)
        if family == "attention":
            return tiny_model("standard_attn", is_decoder=True, vocab_size=261)
        if family == "recurrent":
            return tiny_model(("retnet", "mamba", "titan_attn"), is_decoder=True, vocab_size=261)
        if family == "windowed":
            return tiny_model("standard_attn", is_decoder=True, vocab_size=261, attention_window=5)
        if family == "legacy-1bit":
            return enliven(Legacy1BitForCausalLM(Legacy1BitConfig(**SIZES)).eval())
        layers = [1] if family == "infinito" else []
        return enliven(InfinitoForCausalLM(InfinitoConfig(**INFINITO, memory_layers=layers)).eval())

    return build


CAN_FORGET = ("attention", "legacy-1bit", "infinito without memory")
CANNOT = ("recurrent", "windowed", "infinito")
every_family = pytest.mark.parametrize("family", [*CAN_FORGET, *CANNOT])


class Listener(BaseStreamer):
    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard += value.flatten().tolist()

    def end(self):
        self.heard.append(None)


@pytest.fixture
def quiet():
    """Warnings are errors, and so is what transformers says once in its log."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logging.Logger.warning_once.cache_clear()
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    logger.removeHandler(handler)
    said = [text for text in said if not text.startswith(TO_ASSISTANTS)]
    assert not [text for text in said if "deprecat" in text.lower() or "will be removed" in text.lower()]


@every_family
def test_generates_in_every_way_without_a_warning(family, make, quiet):
    model, ids = make(family), torch.arange(65, 74)[None].repeat(2, 1)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "pad_token_id": 0}
    greedy = model.generate(ids, do_sample=False, **options)
    assert greedy.shape == (2, 9 + NEW)
    for kind in ({"do_sample": True, "top_k": 5, "temperature": 0.7}, {"num_beams": 3, "num_return_sequences": 2}):
        assert model.generate(ids, **kind, **options).shape[1] == 9 + NEW
    streamer = Listener()
    model.generate(ids[:1], streamer=streamer, do_sample=False, **options | {"attention_mask": None})
    assert streamer.heard == [*greedy[0].tolist(), None]
    plain = model.generate(ids, do_sample=False, use_cache=False, **options)
    assert torch.equal(plain, greedy)


@every_family
def test_a_returned_cache_goes_on(family, make, quiet):
    model, ids = make(family), torch.arange(65, 74)[None]
    options = {"do_sample": False, "pad_token_id": 0}
    whole = model.generate(ids, max_new_tokens=2 * NEW, **options)
    first = model.generate(ids, max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True, **options)
    assert len(first.scores) == NEW and first.cache.get_seq_length() == 9 + NEW - 1
    second = model.generate(first.sequences, cache=first.cache, max_new_tokens=NEW, **options)
    assert torch.equal(second, whole)


@pytest.mark.parametrize("family", CAN_FORGET)
def test_drafts_are_taken_back(family, make, quiet):
    """Prompt lookup and an assistant change the speed, never the text; afterwards the cache is that of the text."""
    model, ids = make(family), torch.tensor([[65, 66, 67, 65, 66, 67, 65, 66]])
    options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    greedy = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **options), greedy)
    assistant = make("attention")
    assert torch.equal(model.generate(ids, assistant_model=assistant, **options), greedy)
    cache = model.new_cache()
    with torch.no_grad():
        model(ids, cache=cache)
        cache.activate_past_recording()
        assert cache.is_croppable
        expected = model(ids[:, :3], cache=cache).logits
        cache.crop(0)
        assert cache.get_seq_length() == 11
        cache.crop(-3)
        torch.testing.assert_close(model(ids[:, :3], cache=cache).logits, expected)


@pytest.mark.parametrize("family", CANNOT)
def test_drafts_are_refused_where_nothing_can_be_taken_back(family, make, quiet):
    model, ids = make(family), torch.arange(65, 74)[None]
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    for drafts in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": make("attention")}):
        with pytest.raises(ValueError, match=f"not supported with stateful models.*{type(model).__name__}") as caught:
            model.generate(ids, **drafts, **options)
        assert "\n" not in str(caught.value)
    asked = []
    target = make("attention")
    target.register_forward_pre_hook(lambda *_: asked.append(1))
    with pytest.raises(ValueError, match=f"{type(model).__name__} cannot be the assistant of another model"):
        target.generate(ids, assistant_model=model, **options)
    assert not asked  # before anything is computed
    cache = model.new_cache()
    with torch.no_grad():
        model(ids, cache=cache)
    assert not cache.is_croppable
    cache.crop(0)
    assert cache.get_seq_length() == 9


@every_family
def test_continuous_batching_is_refused_at_once(family, make):
    model = make(family)
    with pytest.raises(NotImplementedError, match=f"{type(model).__name__}: continuous batching.*use generate"):
        model.generate_batch([[65, 66], [67]], max_new_tokens=2)
    with pytest.raises(NotImplementedError, match="use generate"):
        model.init_continuous_batching()


def test_a_cache_that_prefix_tuning_brings_is_refused_by_its_name(make):
    with pytest.raises(ValueError, match=r"cache is a DynamicCache.*prefix tuning.*such as LoRA"):
        make("infinito")(torch.arange(65, 74)[None], cache=DynamicCache())


@pytest.mark.filterwarnings("error")
def test_the_pipeline_speaks_without_a_warning(make, quiet):
    model = make("legacy-1bit")
    write = pipeline("text-generation", model=model, tokenizer=byte_tokenizer(), device="cpu")
    (said,) = write("Hello", max_new_tokens=4, do_sample=False)
    assert said["generated_text"].startswith("Hello")
