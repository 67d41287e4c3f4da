"""Packed decoders of transformers decode in one operator call what their layers, called one by one, decode."""

import copy
import io
import logging
import pickle

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaForCausalLM,
    StaticCache,
    TextStreamer,
)
from transformers.models.llama.modeling_llama import LlamaModel

from frankenlm.kernels import ops
from frankenlm.modeling import Legacy1BitConfig, Legacy1BitForCausalLM, native_decoder, native_ops
from frankenlm.modeling.quantizer_ternary import TernaryConfig, adopt, pack_model
from packed_decoders import FAMILIES, SIZES, layer_by_layer, native_calls, packed_decoder
from tiny_legacy import TINY

if not native_ops.native_code_runs():
    pytest.skip("no compiler here: the step is native only", allow_module_level=True)

# Of the largest logit: half of the differences, and all of them. One sum that ends in another last bit can move one
# int8 code by 1, which is felt in the second digit or the third.
TOLERANCE = {torch.float32: (1e-6, 3e-2), torch.bfloat16: (1e-2, 6e-2)}


def assert_like(found, expected):
    half, every = TOLERANCE[expected.dtype]
    error = (found.float() - expected.float()).abs() / expected.float().abs().max()
    assert error.median() <= half and error.max() <= every


def prompt(rows=2, length=9, pads=3):
    ids = torch.randint(1, SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, :pads] = 0
    return ids, mask


@torch.no_grad()
def logits_of_steps(model, steps, padded):
    """Logits of a prompt and of some steps of 1 or more tokens after it, (B, tokens, V)."""
    ids, mask = prompt(pads=3 if padded else 0)
    output = model(ids, attention_mask=mask, use_cache=True)
    logits, cache = [output.logits[:, -1:]], output.cache
    for number, length in enumerate(steps):
        mask = torch.cat([mask, torch.ones(2, length, dtype=torch.long)], 1)
        positions = (mask.cumsum(1) - 1)[:, -length:]
        new = (torch.arange(2 * length).view(2, length) * 7 + number) % 60 + 1
        given = {"attention_mask": mask, "position_ids": positions} if padded else {}
        logits.append(model(new, cache=cache, use_cache=True, **given).logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family, dtype, padded):
    options = {"qwen2": {"input_norm": True}, "llama": {"head": True}, "qwen3": {"group_size": 32}}.get(family, {})
    model = packed_decoder(family, dtype, **options)
    steps = [1, 1, 4, 1, 11, 1]
    with native_calls() as calls:
        found = logits_of_steps(model, steps, padded)
    assert calls == [9, *steps]
    with layer_by_layer():
        expected = logits_of_steps(model, steps, padded)
    assert_like(found, expected)


@torch.no_grad()
def states_of_steps(stack):
    ids, mask = prompt()
    cache, states = DynamicCache(), []
    for length in (9, 1, 3, 1):
        mask = mask if not states else torch.cat([mask, torch.ones(2, length, dtype=torch.long)], 1)
        states.append(stack(ids[:, :length], attention_mask=mask, cache=cache, use_cache=True).last_hidden_state)
    return torch.cat(states, 1)[:, 3:]


@torch.no_grad()
def test_a_long_prompt_goes_in_blocks():
    model = packed_decoder("qwen2")
    ids, mask = prompt(rows=3, length=150, pads=60)
    with native_calls() as calls:
        output = model(ids, attention_mask=mask, use_cache=True)
        found = [
            output.logits,
            model(ids[:, :70], attention_mask=torch.cat([mask, mask[:, 80:]], 1), cache=output.cache).logits,
        ]
    assert calls == [150, 70] and native_decoder.BLOCK < 3 * 150
    with layer_by_layer():
        output = model(ids, attention_mask=mask, use_cache=True)
        expected = [
            output.logits,
            model(ids[:, :70], attention_mask=torch.cat([mask, mask[:, 80:]], 1), cache=output.cache).logits,
        ]
    real = mask.bool()
    assert_like(found[0][real], expected[0][real])
    assert_like(found[1], expected[1])


@pytest.mark.parametrize("group_size", [None, 64])
@pytest.mark.parametrize("path", ["scalar", "sse41", "avx2", "avx_vnni", "avx512_vnni"])
def test_paths_and_threads(path, group_size):
    """Any number of threads gives the same bits, more of them than there are cores or heads included."""
    stack = packed_decoder("llama", group_size=group_size, hidden_size=320, intermediate_size=700).model
    before, threads = ops.which_path(), torch.get_num_threads()
    with layer_by_layer():
        expected = states_of_steps(stack)
    try:
        ops.use_path(path)
        torch.set_num_threads(1)
        alone = states_of_steps(stack)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            with native_calls() as calls:
                assert torch.equal(states_of_steps(stack), alone)
            assert calls == [9, 1, 3, 1]
    except ValueError as missing:
        pytest.skip(str(missing))
    finally:
        ops.use_path(before)
        torch.set_num_threads(threads)
    assert_like(alone, expected)


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 5, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "repetition": {"repetition_penalty": 1.3},
}


def texts(model, ids, mask, **options):
    torch.manual_seed(1)
    return model.generate(
        ids, attention_mask=mask, max_new_tokens=24, pad_token_id=0, **{"do_sample": False, **options}
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_generate(family, way):
    model = packed_decoder(family)
    ids, mask = prompt()
    if way == "prompt lookup":
        ids, mask = ids[1:].repeat(1, 2), mask[1:].repeat(1, 2)
    with native_calls() as calls:
        found = texts(model, ids, mask, **WAYS[way])
    assert calls[0] >= ids.shape[1] and len(calls) >= (8 if way == "prompt lookup" else 24)
    with layer_by_layer():
        assert torch.equal(found, texts(model, ids, mask, **WAYS[way]))


def test_assisted_decoding():
    model, assistant = packed_decoder("llama"), packed_decoder("llama", num_hidden_layers=1, seed=3)
    ids, mask = prompt(rows=1, pads=0)
    with native_calls() as calls:
        found = texts(model, ids, mask, assistant_model=assistant)
    assert max(calls[1:]) > 1
    assert torch.equal(found, texts(model, ids, mask))


class Said(TextStreamer):
    def __init__(self):
        self.ids = []

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        pass


def test_streamer():
    model, said = packed_decoder("mistral"), Said()
    ids, mask = prompt(rows=1, pads=0)
    assert texts(model, ids, mask, streamer=said)[0].tolist() == said.ids


@pytest.mark.parametrize("made", ["returned", "plain", "with config"])
def test_a_cache_is_continued(made):
    model = packed_decoder("qwen3")
    ids, mask = prompt(rows=1, pads=0)
    whole = texts(model, ids, mask)
    cache = {"plain": DynamicCache(), "with config": DynamicCache(config=model.config), "returned": None}[made]
    first = model.generate(
        ids, attention_mask=mask, cache=cache, max_new_tokens=10, do_sample=False, return_dict_in_generate=True
    )
    kept = copy.deepcopy(first.cache)
    rest = {"attention_mask": torch.ones_like(first.sequences), "max_new_tokens": 14, "do_sample": False}
    with native_calls() as calls:
        assert torch.equal(model.generate(first.sequences, cache=first.cache, **rest), whole)
    assert len(calls) == 14
    with layer_by_layer():
        assert torch.equal(model.generate(first.sequences, cache=kept, **rest), whole)


def test_a_static_cache_goes_the_old_way():
    model = packed_decoder("llama")
    ids, mask = prompt()
    whole = texts(model, ids, mask)
    with native_calls() as calls, torch.no_grad():
        cache = StaticCache(config=model.config, max_cache_len=64)
        logits = model(ids, attention_mask=mask, cache=cache, use_cache=True).logits
    assert not calls and torch.equal(logits[:, -1].argmax(-1), whole[:, ids.shape[1]])


def with_hook(model):
    model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def with_forward(model):
    layer = model.model.layers[0].self_attn.q_proj
    layer.forward = type(layer).forward.__get__(layer)


CHANGES = {
    "hook": with_hook,
    "forward": with_forward,
    "training": lambda model: model.train(),
    "half": torch.nn.Module.half,
    "fewer layers": lambda model: setattr(model.config, "num_hidden_layers", 2),
    "a layer gone": lambda model: model.model.layers.pop(-1),
    "another norm": lambda model: setattr(model.model.layers[2], "input_layernorm", torch.nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_models_go_the_old_way(change):
    model, cache = packed_decoder("llama"), DynamicCache()
    token = torch.tensor([[5]])
    with torch.no_grad(), native_calls() as calls:
        model(token, cache=cache, use_cache=True)
        assert calls == [1]
        CHANGES[change](model)
        model(token, cache=DynamicCache(), use_cache=True)
    assert calls == [1]


CALLS = {
    "gradients": {},
    "no cache": {"cache": None, "use_cache": False},
    "attentions": {"output_attentions": True},
    "hidden states": {"output_hidden_states": True},
    "four axes": {"attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)},
    "many rows": {"input_ids": torch.ones(257, 1, dtype=torch.long)},
    "documents": {"cache": None, "position_ids": torch.zeros(1, 1, dtype=torch.long)},
    "another mask": {"attention_mask": torch.ones(1, 3, dtype=torch.long)},
    "positions of other rows": {"position_ids": torch.zeros(3, 1, dtype=torch.long)},
}


@pytest.mark.parametrize("case", CALLS)
def test_other_calls_go_the_old_way(case):
    model = packed_decoder("llama", attn_implementation="eager" if case == "attentions" else "sdpa")
    given = {"input_ids": torch.tensor([[5]]), "cache": DynamicCache(), "use_cache": True}
    with native_calls() as calls, torch.set_grad_enabled(case == "gradients"):
        try:
            model(**given | CALLS[case])
        except (ValueError, RuntimeError):
            assert case in ("another mask", "positions of other rows")
        assert not calls
        with torch.no_grad():
            model(**given | {"cache": DynamicCache()})  # hooks that capture outputs stay behind, silent
        assert calls == [1]


def test_both_attentions_and_embeddings_given():
    ids, mask = prompt()
    for kind in ("eager", "sdpa"):
        model = packed_decoder("bitnet", attn_implementation=kind)
        with native_calls() as calls, torch.no_grad():
            cache = DynamicCache()
            rows = model.model.embed_tokens(ids)
            found = model(inputs_embeds=rows, attention_mask=mask, cache=cache, use_cache=True).logits
        with torch.no_grad():
            expected = model(ids, attention_mask=mask).logits
        assert calls == [9]
        assert_like(found[mask.bool()], expected[mask.bool()])


def copied(model, tmp_path):
    yield "deepcopy", copy.deepcopy(model)
    yield "pickle", pickle.loads(pickle.dumps(model))
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    yield "torch.save", torch.load(stream, weights_only=False)
    model.save_pretrained(tmp_path)
    yield "saved", AutoModelForCausalLM.from_pretrained(tmp_path)


def test_copies_decode_natively_and_are_of_their_own(tmp_path):
    model = packed_decoder("llama", head=True)
    assert type(model.model).__name__ == "LlamaModel" and isinstance(model.model, LlamaModel)
    ids, mask = prompt()
    expected = texts(model, ids, mask)
    for name, other in copied(model, tmp_path):
        with native_calls() as calls:
            assert torch.equal(texts(other, ids, mask), expected), name
        assert len(calls) == 24, name
        other.model.layers[0].register_forward_hook(lambda *_: None)
        with native_calls() as calls:
            texts(other, ids, mask)
        assert not calls, name
    with native_calls() as calls:
        texts(model, ids, mask)
    assert len(calls) == 24
    assert '"LlamaForCausalLM"' in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_the_stack_alone_and_other_formats(tmp_path):
    model = packed_decoder("llama")
    model.save_pretrained(tmp_path)
    stack = AutoModel.from_pretrained(tmp_path)
    assert isinstance(stack, LlamaModel) and native_decoder.decodes_natively(stack)
    model.to(torch.bfloat16)
    with native_calls() as calls:
        ids, mask = prompt()
        texts(model, ids, mask)
    assert len(calls) == 24


@pytest.mark.slow
def test_compiled_calls_go_the_old_way():
    model = packed_decoder("llama", num_hidden_layers=1)
    ids, mask = prompt()
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, use_cache=False).logits
        with native_calls() as calls:
            compiled = torch.compile(model, backend="eager")
            found = compiled(ids, attention_mask=mask, cache=DynamicCache(), use_cache=True).logits
    assert not calls
    assert_like(found[mask.bool()], expected[mask.bool()])


def test_one_line_says_why_not(caplog):
    caplog.set_level(logging.INFO, "frankenlm.packed")
    windowed = packed_decoder("mistral", sliding_window=8)
    assert "not in one call: some layers attend within a window" in caplog.text
    assert not native_decoder.decodes_natively(windowed.model) and type(windowed.model).__name__ == "MistralModel"
    with native_calls() as calls:
        ids, mask = prompt()
        texts(windowed, ids, mask)
    assert not calls
    plain = LlamaForCausalLM(packed_decoder("llama").config.__class__(**SIZES))
    native_decoder.install(plain.model)
    assert "layer 0 has a Linear where a packed layer is expected" in caplog.text
    caplog.clear()
    gemma = GemmaForCausalLM(GemmaConfig(**{**SIZES, "head_dim": 16}))
    native_decoder.install(gemma.model)
    assert caplog.text.count("GemmaModel is none of transformers'") == 1
    assert type(gemma.model).__module__.endswith("modeling_gemma") and not hasattr(gemma.model, "native_base")


def test_models_that_are_left_alone(caplog):
    """Our own families, which have operators of their own, and a model that has been here before."""
    caplog.set_level(logging.INFO, "frankenlm.packed")
    ours = pack_model(Legacy1BitForCausalLM(Legacy1BitConfig(**TINY)))
    model = packed_decoder("llama")
    assert adopt(model, TernaryConfig(plain_layers=True)).model.native_base is LlamaModel
    assert not hasattr(ours.base_model, "native_base") and "not in one call" not in caplog.text
