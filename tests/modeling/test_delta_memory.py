"""The delta memory of Titan attention: its scan in three forms, its oracle, its bounds, and what it adds to a layer."""

import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from frankenlm.modeling import FrankensteinConfig, FrankensteinForMaskedLM
from frankenlm.modeling.context import SequenceContext
from frankenlm.modeling.delta_memory import DeltaMemory
from frankenlm.modeling.scan_delta import delta_scan_chunked, delta_scan_naive

B, H, K, V = 2, 3, 6, 5
LENGTHS_AND_CHUNKS = [(length, chunk) for length in (1, 7, 37) for chunk in (1, 4, 8, 16, 37, 64)]


def scan_inputs(length, seed=0, dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(draw(B, H, length, K), dim=-1) for _ in range(2))
    v, log_alpha, eta = draw(B, H, length, V), F.logsigmoid(spread * draw(B, H, length)), draw(B, H, length).sigmoid()
    return [x.to(dtype) for x in (q, k, v, log_alpha, eta)]


def definition(q, k, v, log_alpha, eta):
    """M_t = M_{t-1} (alpha I - eta k k^T) + eta v k^T, o_t = M_t q_t, written out row by row."""
    outputs, identity = torch.empty(*v.shape, dtype=v.dtype), torch.eye(K, dtype=v.dtype)
    states = torch.zeros(B, H, V, K, dtype=v.dtype)
    for b in range(B):
        for h in range(H):
            memory = torch.zeros(V, K, dtype=v.dtype)
            for t in range(q.shape[2]):
                key, rate = k[b, h, t], eta[b, h, t]
                memory = memory @ (log_alpha[b, h, t].exp() * identity - rate * torch.outer(key, key))
                memory = memory + rate * torch.outer(v[b, h, t], key)
                outputs[b, h, t] = memory @ q[b, h, t]
            states[b, h] = memory
    return outputs, states


def assert_same(actual, expected, tolerance=1e-10):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("length", "chunk"), LENGTHS_AND_CHUNKS)
def test_all_forms_are_the_definition(length, chunk):
    inputs = scan_inputs(length)
    expected = definition(*inputs)
    assert expected[0].std() > 0.1
    assert_same(delta_scan_naive(*inputs), expected)
    assert_same(delta_scan_chunked(*inputs, chunk), expected)


def test_long_sequences_pass_through_several_segments():
    inputs = scan_inputs(1300)
    assert_same(delta_scan_chunked(*inputs, 32), delta_scan_naive(*inputs))


@pytest.mark.parametrize("split", [1, 8, 20, 36])
def test_a_split_sequence_goes_on_from_its_state(split):
    inputs = scan_inputs(37)
    whole, end = delta_scan_chunked(*inputs, 8)
    first, state = delta_scan_chunked(*(x[:, :, :split] for x in inputs), 8)
    second, final = delta_scan_chunked(*(x[:, :, split:] for x in inputs), 8, state)
    assert_same((torch.cat([first, second], dim=2), final), (whole, end))


@pytest.mark.parametrize("rule", [torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule])
@pytest.mark.parametrize("with_state", [False, True])
def test_equals_the_gated_delta_rule_of_transformers(rule, with_state):
    """beta = eta / alpha and alpha v for v; theirs scales q, has time before heads, and the state transposed."""
    q, k, v, log_alpha, eta = scan_inputs(70, dtype=torch.float32)
    state = torch.randn(B, H, V, K, generator=torch.Generator().manual_seed(1)) if with_state else None
    alpha = log_alpha.exp()
    theirs = [q * K**0.5, k, alpha[..., None] * v, log_alpha, eta / alpha]
    output, final = rule(
        *(x.transpose(1, 2) for x in theirs),
        initial_state=None if state is None else state.transpose(-1, -2),
        output_final_state=True,
    )
    expected = output.transpose(1, 2), final.transpose(-1, -2)
    for actual in (
        delta_scan_chunked(q, k, v, log_alpha, eta, 16, state),
        delta_scan_naive(q, k, v, log_alpha, eta, state),
    ):
        for one, other in zip(actual, expected, strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_gradients_are_those_of_the_recurrence(chunk):
    inputs = [x.requires_grad_() for x in scan_inputs(11)]
    weights = torch.randn(B, H, 11, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = torch.autograd.grad((delta_scan_naive(*inputs)[0] * weights).sum(), inputs)
    assert_same(torch.autograd.grad((delta_scan_chunked(*inputs, chunk)[0] * weights).sum(), inputs), expected)


def test_gradcheck():
    inputs = [x[:1, :1].clone().requires_grad_() for x in scan_inputs(7)]
    assert torch.autograd.gradcheck(lambda *x: delta_scan_chunked(*x, 3), inputs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_are_the_identity_step(side):
    q, k, v, log_alpha, eta = scan_inputs(20)
    real = slice(9, 20) if side == "left" else slice(0, 11)
    for gate in (log_alpha, eta):
        gate[..., : 9 if side == "left" else 0] = 0
        gate[..., 20 if side == "left" else 11 :] = 0
    output, state = delta_scan_chunked(q, k, v, log_alpha, eta, 8)
    expected = delta_scan_chunked(*(x[:, :, real] for x in (q, k, v, log_alpha, eta)), 8)
    assert_same((output[:, :, real], state), expected)


def test_step_matrix_has_the_eigenvalues_that_keep_the_state_bounded():
    _, k, _, log_alpha, eta = scan_inputs(50, spread=3.0)
    alpha = log_alpha.exp()
    steps = (
        alpha[..., None, None] * torch.eye(K, dtype=k.dtype) - eta[..., None, None] * k[..., :, None] * k[..., None, :]
    )
    eigenvalues = torch.linalg.eigvalsh(steps)
    expected = torch.cat([(alpha - eta)[..., None], alpha[..., None].expand(-1, -1, -1, K - 1)], dim=-1)
    torch.testing.assert_close(eigenvalues, expected, atol=1e-12, rtol=0)
    assert eigenvalues.abs().max() < 1


def test_state_stays_bounded_over_a_long_text_even_when_nothing_is_forgotten():
    q, k, v, log_alpha, eta = scan_inputs(6000, dtype=torch.float32)
    _, state = delta_scan_chunked(q, k, v, torch.full_like(log_alpha, -1e-4), torch.ones_like(eta), 32)
    assert state.isfinite().all() and state.abs().max() < 100


def test_stores_as_many_pairs_as_the_width_and_overwrites_old_ones():
    """With orthonormal keys, alpha = eta = 1 is exact storage; a second value for a key replaces the first."""
    keys = torch.linalg.qr(torch.randn(K, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    keys = torch.cat([keys, keys[:1]])[None, None]
    values = torch.randn(1, 1, K + 1, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gates = torch.zeros(1, 1, K + 1, dtype=torch.float64), torch.ones(1, 1, K + 1, dtype=torch.float64)
    _, state = delta_scan_chunked(keys, keys, values, *gates, 4)
    recalled = keys[:, :, :K] @ state.transpose(-1, -2)
    assert_same((recalled[:, :, 1:], recalled[:, :, 0]), (values[:, :, 1:K], values[:, :, K]))


def test_gates_start_where_they_should():
    config = FrankensteinConfig(
        hidden_size=64,
        num_attention_heads=8,
        num_hidden_layers=2,
        layer_pattern=["titan_attn"],
        use_titan_memory=True,
        vocab_size=30,
        intermediate_size=16,
    )
    memory = FrankensteinForMaskedLM(config).model.layers[0].mixer.memory
    alpha = memory.forget_proj.bias.sigmoid()
    assert alpha[0].item() == pytest.approx(0.98) and alpha[-1].item() == pytest.approx(0.999)
    assert (alpha.diff() > 0).all()
    assert set(memory.write_proj.bias.tolist()) == {-2.0} and set(memory.read_proj.bias.tolist()) == {-1.0}
    for projection in (memory.forget_proj, memory.write_proj, memory.read_proj):
        assert 0.015 < projection.weight.std() < 0.025


def memory_definition(memory: DeltaMemory, x, q, k, v, is_causal):
    """Section by section in float64: unit q and k, gates, scan (both ways: mean), RMSNorm per head, read gate."""
    alpha = torch.sigmoid(memory.forget_proj(x)).transpose(1, 2)
    eta = torch.sigmoid(memory.write_proj(x)).transpose(1, 2)
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    recalled, _ = delta_scan_naive(q, k, v, alpha.log(), eta)
    if not is_causal:
        backward, _ = delta_scan_naive(*(t.flip(2) for t in (q, k, v, alpha.log(), eta)))
        recalled = (recalled + backward.flip(2)) / 2
    recalled = recalled / (recalled.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return torch.sigmoid(memory.read_proj(x)).transpose(1, 2)[..., None] * recalled


@pytest.mark.parametrize("is_decoder", [False, True])
def test_the_memory_is_added_to_the_heads_of_the_attention(is_decoder, tiny_model, tokens):
    model = tiny_model("titan_memory", "rms_norm", is_decoder, dtype=torch.float64)
    plain = tiny_model("titan_attn", "rms_norm", is_decoder, dtype=torch.float64)
    mixer, other = model.model.layers[0].mixer, plain.model.layers[0].mixer
    other.load_state_dict({name: value for name, value in mixer.state_dict().items() if "memory" not in name})
    taken = {}

    def take(name):
        return lambda module, args, output: taken.update({name: args[0]})

    mixer.o_proj.register_forward_hook(take("with"))
    mixer.q_proj.register_forward_hook(take("x"))
    other.o_proj.register_forward_hook(take("without"))
    with torch.no_grad():
        model(tokens(2, 21))
        stream = taken["x"]
        context = SequenceContext.build(batch_size=2, length=21, device=stream.device, is_causal=is_decoder)
        plain.model.layers[0].mixer(stream, context, 0)
        expected = memory_definition(mixer.memory, stream, *mixer.heads(stream), is_decoder)
    difference = (taken["with"] - taken["without"]).unflatten(-1, (2, -1)).transpose(1, 2)
    assert difference.std() > 0.1
    torch.testing.assert_close(difference, expected, atol=1e-9, rtol=0)


def loudness(tiny_model, tokens, **fields):
    """The rms of what the memory of a fresh layer adds to the heads of the attention, over theirs."""
    model = tiny_model("titan_memory", "rms_norm", True, lively=False, **fields)
    mixer, heads = model.model.layers[0].mixer, {}
    mixer.memory.register_forward_hook(lambda module, args, output: heads.update(memory=output))
    mixer.o_proj.register_forward_hook(lambda module, args, output: heads.update(both=args[0]))
    with torch.no_grad():
        model(tokens(2, 21))
    memory = heads["memory"].transpose(1, 2).flatten(2)
    return (memory.square().mean() / (heads["both"] - memory).square().mean()).sqrt().item()


def test_a_fresh_memory_is_as_loud_as_its_configuration_says(tiny_model, tokens):
    assert loudness(tiny_model, tokens) > 5
    assert loudness(tiny_model, tokens, memory_read_bias=-4.0) < 1
    gate = torch.tensor(-1.0).sigmoid().item()  # both branches have a root mean square of 1
    assert loudness(tiny_model, tokens, memory_merge="normalized") == pytest.approx(gate, rel=0.1)


def test_what_merges_nothing_is_refused():
    with pytest.raises(ValueError, match="memory_merge=normalized does nothing without use_titan_memory=True"):
        FrankensteinConfig(memory_merge="normalized")
    with pytest.raises(ValueError, match=r"memory_merge='normalised' is not known\. Did you mean 'normalized'"):
        FrankensteinConfig(memory_merge="normalised", use_titan_memory=True)


def test_memory_chunk_does_not_matter(tiny_model, tokens):
    outputs = []
    for chunk in (1, 4, 21, 64):
        model = tiny_model("titan_memory", is_decoder=True, dtype=torch.float64, memory_chunk=chunk)
        with torch.no_grad():
            outputs.append(model(tokens(2, 21)).logits)
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], atol=1e-10, rtol=0)


def test_mini_with_memory_has_13860_more_parameters():
    counts = []
    for use_memory in (False, True):
        config = FrankensteinConfig.from_preset("mini", use_titan_memory=use_memory)
        with torch.device("meta"):
            counts.append(FrankensteinForMaskedLM(config).num_parameters())
    assert counts == [24_960_398, 24_960_398 + 13_860]


@pytest.mark.parametrize("is_decoder", [False, True])
def test_switched_off_it_leaves_nothing_behind(is_decoder, tiny_model, tokens):
    """The same weights, the same output bit for bit, and no parameter of the memory."""
    plain = tiny_model("titan_attn", is_decoder=is_decoder)
    off = tiny_model("titan_attn", is_decoder=is_decoder, use_titan_memory=False, memory_chunk=16)
    assert not [name for name, _ in off.named_parameters() if "memory" in name]
    with torch.no_grad():
        assert torch.equal(plain(tokens(2, 21)).logits, off(tokens(2, 21)).logits)


def test_gates_do_not_decay(tiny_model):
    exempt = tiny_model("titan_memory").no_weight_decay_names()
    for gate in ("forget_proj", "write_proj", "read_proj"):
        assert {f"model.layers.0.mixer.memory.{gate}.{part}" for part in ("weight", "bias")} <= exempt
