"""Whole decoders against GPT-2 and Llama with the same weights, with padding on either side."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def some_padding(length, batch=3):
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, :4], mask[2, -3:] = 0, 0
    return mask


def assert_same_logits(ours, theirs, ids, mask=None, **theirs_inputs):
    with torch.no_grad():
        actual = ours(ids, attention_mask=mask).logits
        expected = theirs(ids, attention_mask=mask, **theirs_inputs).logits
    real = torch.ones_like(ids).bool() if mask is None else mask.bool()
    assert expected.std() >= 1
    assert (actual - expected)[real].abs().max() <= 1e-5 * expected[real].abs().max()


def check_against(theirs, ours, tokens):
    assert_same_logits(ours, theirs, tokens(3, 21))
    mask = some_padding(21)
    assert_same_logits(ours, theirs, tokens(3, 21), mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))


def copy_linear(ours, weight, bias=None):
    ours.weight.copy_(weight)
    if bias is not None:
        ours.bias.copy_(bias)


@torch.no_grad()
def test_pre_norm_decoder_equals_gpt2(tiny_model, tokens, enliven):
    config = GPT2Config(
        vocab_size=61,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_inner=48,
        n_positions=96,
        activation_function="gelu",
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    theirs = enliven(GPT2LMHeadModel(config).eval())
    theirs.transformer.wte.weight.mul_(3)
    options = {"position_type": "learned", "use_bias": True, "hidden_act": "gelu", "head_bias": False}
    ours = tiny_model(is_decoder=True, **options)
    ours.model.embeddings.embed_tokens.weight.copy_(theirs.transformer.wte.weight)
    ours.model.embeddings.embed_positions.weight.copy_(theirs.transformer.wpe.weight)
    for mine, block in zip(ours.model.layers, theirs.transformer.h, strict=True):
        for norm, source in ((mine.norm1, block.ln_1), (mine.norm2, block.ln_2)):
            norm.load_state_dict(source.state_dict())
        targets = (mine.mixer.q_proj, mine.mixer.k_proj, mine.mixer.v_proj)
        weights, biases = block.attn.c_attn.weight.T.chunk(3), block.attn.c_attn.bias.chunk(3)
        for target, weight, bias in zip(targets, weights, biases, strict=True):
            copy_linear(target, weight, bias)
        copy_linear(mine.mixer.o_proj, block.attn.c_proj.weight.T, block.attn.c_proj.bias)
        copy_linear(mine.ffn.up_proj, block.mlp.c_fc.weight.T, block.mlp.c_fc.bias)
        copy_linear(mine.ffn.down_proj, block.mlp.c_proj.weight.T, block.mlp.c_proj.bias)
    ours.model.norm_f.load_state_dict(theirs.transformer.ln_f.state_dict())
    check_against(theirs, ours, tokens)


@torch.no_grad()
def test_rotary_swiglu_decoder_equals_llama(tiny_model, tokens, enliven):
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=96,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    )
    theirs = enliven(LlamaForCausalLM(config).eval())
    ours = tiny_model(norm="rms_norm", is_decoder=True, hidden_act="swiglu", head_bias=False)
    ours.model.embeddings.embed_tokens.weight.copy_(theirs.model.embed_tokens.weight)
    for mine, block in zip(ours.model.layers, theirs.model.layers, strict=True):
        mine.norm1.weight.copy_(block.input_layernorm.weight)
        mine.norm2.weight.copy_(block.post_attention_layernorm.weight)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            copy_linear(getattr(mine.mixer, name), getattr(block.self_attn, name).weight)
        for name in ("up_proj", "gate_proj", "down_proj"):
            copy_linear(getattr(mine.ffn, name), getattr(block.mlp, name).weight)
    ours.model.norm_f.weight.copy_(theirs.model.norm.weight)
    check_against(theirs, ours, tokens)
