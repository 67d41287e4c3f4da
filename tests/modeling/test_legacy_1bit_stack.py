"""Legacy-1bit token by token: its definition written again, causality, padding, the cache."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from frankenlm.modeling import Legacy1BitForCausalLM, Legacy1BitModel
from tiny_infinito import assert_same
from tiny_legacy import KINDS, VOCAB, tiny_legacy

every_kind = pytest.mark.parametrize("kind", KINDS)


def padded(ids, pads, side="left"):
    mask = torch.ones_like(ids)
    for row, count in enumerate(pads):
        mask[row, slice(0, count) if side == "left" else slice(ids.shape[1] - count, None)] = 0
    return mask


# --- the definition, written again: one row, token by token, in float64


def naive_linear(layer, x, config, part):
    weight, bias = layer.weight, 0 if layer.bias is None else layer.bias
    if config.use_bitnet and part:
        x = x / (x.square().mean() + 1e-6).sqrt()
        step = max(x.abs().max().item(), 1e-5) / 127
        x = (x / step).round().clamp(-128, 127) * step
        scale = weight.abs().mean()
        weight = (weight / scale).round().clamp(-1, 1) * scale
    return weight @ x + bias


def naive_norm(norm, x, config):
    if config.norm_type == "rms_norm":
        return norm.weight * x / (x.square().mean() + 1e-6).sqrt()
    return norm.weight * (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() + norm.bias


def naive_turn(head, position, config):
    """Rotary in the complex plane: feature i and i + half are one number."""
    if config.position_type != "rope":
        return head
    half = len(head) // 2
    angles = position * 1e4 ** (-torch.arange(half, dtype=torch.float64) * 2 / len(head))
    turned = torch.complex(head[:half], head[half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag])


def naive_logits(model, ids):
    """The model's logits for one row of ids (L,), token by token and head by head."""
    config, trunk = model.config, model.model
    table = trunk.embeddings.embed_tokens.weight
    if config.use_bitnet and config.bitnet_embedding:
        table = (table / table.abs().mean()).round().clamp(-1, 1) * table.abs().mean()
    stream = [table[token] for token in ids.tolist()]
    if config.position_type == "learned":
        stream = [x + trunk.embeddings.embed_positions.weight[t] for t, x in enumerate(stream)]
    if config.embedding_norm == "rms":
        stream = [x / (x.square().mean() + 1e-6).sqrt() for x in stream]
    activation = {"relu": lambda x: x.clamp_min(0), "relu2": lambda x: x.clamp_min(0) ** 2}[config.hidden_act]
    for layer in trunk.layers:
        attention, keys, values = layer.attention, [], []
        for t, x in enumerate(stream):
            normed = naive_norm(layer.norm1, x, config)
            q, k, v = (
                naive_linear(each, normed, config, config.bitnet_attention).view(config.num_attention_heads, -1)
                for each in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            keys.append(torch.stack([naive_turn(head, t, config) for head in k]))
            values.append(v)
            heads = []
            for h, head in enumerate(q):
                query = naive_turn(head, t, config)
                scores = torch.stack([query @ key[h] for key in keys]) / len(query) ** 0.5
                heads.append(sum(w * value[h] for w, value in zip(scores.softmax(0), values, strict=True)))
            stream[t] = x + naive_linear(attention.o_proj, torch.cat(heads), config, config.bitnet_attention)
        for t, x in enumerate(stream):
            up = naive_linear(layer.ffn.up_proj, naive_norm(layer.norm2, x, config), config, config.bitnet_ffn)
            stream[t] = x + naive_linear(layer.ffn.down_proj, activation(up), config, config.bitnet_ffn)
    head = model.lm_head.decoder
    return torch.stack(
        [naive_linear(head, naive_norm(trunk.norm_f, x, config), config, config.bitnet_head) for x in stream]
    )


@pytest.mark.parametrize("kind", ["legacy", "modern", "twin", "modern twin", "tied ternary", "embedding norm"])
def test_equals_its_definition(kind, build_legacy, tokens):
    model, ids = build_legacy(kind), tokens(1, 11)
    with torch.no_grad():
        expected = naive_logits(model, ids[0])
        assert expected.std() >= 1
        assert_same(model(ids).logits[0], expected, 1e-8)  # activations are rounded: equal codes, sums in another order


def test_the_twin_is_gpt2(build_legacy, tokens):
    model = build_legacy("twin", head_bias=False)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_positions=96, n_embd=32, n_layer=3, n_head=2, n_inner=44, activation_function="relu",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        )
    ).eval().double()  # fmt: skip
    ours, weights = model.state_dict(), {}
    names = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn.c_proj": "attention.o_proj",
        "mlp.c_fc": "ffn.up_proj",
        "mlp.c_proj": "ffn.down_proj",
    }
    for i in range(3):
        for kind in ("weight", "bias"):
            for name, own in names.items():
                tensor = ours[f"model.layers.{i}.{own}.{kind}"]
                weights[f"transformer.h.{i}.{name}.{kind}"] = tensor.t() if tensor.ndim == 2 else tensor
            parts = [ours[f"model.layers.{i}.attention.{x}_proj.{kind}"] for x in "qkv"]
            weights[f"transformer.h.{i}.attn.c_attn.{kind}"] = torch.cat(parts).t()
    for kind in ("weight", "bias"):
        weights[f"transformer.ln_f.{kind}"] = ours[f"model.norm_f.{kind}"]
    weights["transformer.wte.weight"] = ours["model.embeddings.embed_tokens.weight"]
    weights["transformer.wpe.weight"] = ours["model.embeddings.embed_positions.weight"]
    weights["lm_head.weight"] = ours["lm_head.decoder.weight"]
    assert not theirs.load_state_dict(weights, strict=False).missing_keys
    with torch.no_grad():
        assert_same(model(tokens(2, 30)).logits, theirs(tokens(2, 30)).logits)


# --- what must not matter, and what must


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at", [1, 2, 17, 33])
def test_the_future_is_not_seen(kind, dtype, at, build_legacy, tokens):
    model, ids = build_legacy(kind, dtype=dtype), tokens(2, 34)
    changed = torch.cat([ids[:, :at], (ids[:, at:] + 1) % VOCAB], dim=1)
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :at], after[:, :at])
    assert (before[:, at:] - after[:, at:]).abs().max() > 0.1


def test_without_is_decoder_the_stack_looks_both_ways(build_legacy, tokens):
    model, ids = build_legacy(), tokens(2, 20)
    encoder = Legacy1BitModel(tiny_legacy(is_decoder=False)).double().eval()
    encoder.load_state_dict(model.model.state_dict())
    changed = torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % VOCAB], dim=1)
    with torch.no_grad():
        assert (encoder(ids)[0] - encoder(changed)[0])[:, 0].abs().max() > 1e-3
    assert encoder(ids).get("cache") is None
    with pytest.raises(ValueError, match="needs is_decoder=True"):
        Legacy1BitForCausalLM(tiny_legacy(is_decoder=False))


def test_order_matters(build_legacy, tokens):
    for kind in ("legacy", "modern"):
        model, ids = build_legacy(kind), tokens(1, 12)
        swapped = ids[:, [1, 0, *range(2, 12)]]
        with torch.no_grad():
            assert (model(ids).logits - model(swapped).logits)[:, -1].abs().max() > 1e-3


@every_kind
def test_rows_do_not_meet(kind, build_legacy, tokens):
    model, ids = build_legacy(kind), tokens(4, 34)
    with torch.no_grad():
        assert_same(model(ids[1:2]).logits, model(ids).logits[1:2])


@every_kind
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mask_type", [torch.long, torch.bool, torch.float32])
def test_padding_changes_nothing(kind, attention, mask_type, build_legacy, tokens):
    model, ids, pads = build_legacy(kind, attn_implementation=attention), tokens(2, 30), 7
    filler = tokens(2, pads, seed=3)
    mask = torch.ones(2, 30 + pads, dtype=torch.long)
    with torch.no_grad():
        expected = model(ids).logits
        left_mask, right_mask = (mask.index_fill(1, torch.arange(start, start + pads), 0) for start in (0, 30))
        left = model.model(torch.cat([filler, ids], 1), attention_mask=left_mask.to(mask_type)).last_hidden_state
        right = model.model(torch.cat([ids, filler], 1), attention_mask=right_mask.to(mask_type)).last_hidden_state
        assert_same(model.lm_head(left[:, pads:]), expected)
        assert_same(model.lm_head(right[:, :30]), expected)
    assert not left[:, :pads].any() and not right[:, 30:].any()


def test_a_row_of_pads_and_a_row_of_one_token_are_finite(build_legacy, tokens):
    model, ids = build_legacy(), tokens(3, 9)
    output = model(ids, attention_mask=padded(ids, (9, 8, 0)), labels=ids)
    assert output.logits.isfinite().all() and output.loss.isfinite()
    assert_same(output.logits[1, 8:], model(ids[1:2, 8:]).logits[0])


@every_kind
def test_eager_is_sdpa(kind, build_legacy, tokens):
    ids = tokens(2, 30)
    with torch.no_grad():
        eager, sdpa = (build_legacy(kind, attn_implementation=name)(ids).logits for name in ("eager", "sdpa"))
    assert_same(eager, sdpa)


def test_states_and_attentions(build_legacy, tokens):
    model = build_legacy(attn_implementation="eager")
    output = model(tokens(2, 9), output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 9, 32)] * 4
    assert [weights.shape for weights in output.attentions] == [(2, 2, 9, 9)] * 3
    assert_same(output.attentions[0].sum(-1), torch.ones(2, 2, 9, dtype=torch.float64))
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
    assert model(tokens(2, 9)).hidden_states is None


def test_contradictions_are_refused(build_legacy, tokens):
    model, ids = build_legacy(), tokens(2, 10)
    with pytest.raises(ValueError, match="exactly one of"):
        model()
    with pytest.raises(ValueError, match="sequence is empty"):
        model(ids[:, :0])
    with pytest.raises(ValueError, match="max_position_embeddings=96"):
        model(tokens(1, 97))
    with pytest.raises(ValueError, match="max_position_embeddings=96"):
        model.generate(ids, max_new_tokens=100, pad_token_id=0)
    assert build_legacy("modern")(tokens(1, 200)).logits.shape == (1, 200, VOCAB)


# --- the cache


@every_kind
@pytest.mark.parametrize("sizes", [[1] * 30, [10, 1, 1, 7, 11], [3, 27]], ids=str)
def test_a_text_in_pieces_is_the_text(kind, sizes, build_legacy, tokens):
    model, ids = build_legacy(kind), tokens(3, 30)
    mask = padded(ids, (5, 1, 0))
    cache, logits, start = model.new_cache(), [], 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, use_cache=False)
        for size in sizes:
            stop = start + size
            logits.append(model(ids[:, start:stop], attention_mask=mask[:, :stop], cache=cache).logits)
            start = stop
    assert expected.cache is None
    assert_same(torch.cat(logits, dim=1)[mask.bool()], expected.logits[mask.bool()])


@every_kind
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_cache_is_generation_without(kind, beams, build_legacy, tokens):
    model, prompts = build_legacy(kind), tokens(3, 9)
    options = {
        "attention_mask": padded(prompts, (5, 0, 2)),
        "max_new_tokens": 20,
        "do_sample": False,
        "pad_token_id": 0,
        "num_beams": beams,
    }
    cached = model.generate(prompts, **options)
    assert torch.equal(cached, model.generate(prompts, use_cache=False, **options))
    assert len({tuple(row) for row in cached[:, 9:].tolist()}) == 3


def test_only_a_window_forgets(build_legacy, tokens):
    assert build_legacy().can_forget() and not build_legacy()._is_stateful and build_legacy("window")._is_stateful
    model, prompt = build_legacy(), tokens(1, 4).repeat(1, 3)
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **options), model.generate(prompt, **options))
