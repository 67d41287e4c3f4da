"""torch.export and torch.compile(fullgraph=True): one program, the numbers of eager, at other batches and lengths."""

import pytest
import torch
from torch.export import Dim

from frankenlm.modeling import (
    FrankensteinForCausalLM,
    FrankensteinForSequenceClassification,
    FrankensteinForTokenClassification,
    InfinitoForCausalLM,
    InfinitoForQuestionAnswering,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.scan_linear import linear_scan_chunked
from tiny_infinito import ATTENTION_SLOTS, tiny_infinito
from tiny_legacy import tiny_legacy

MIXERS = ("retnet", "titan_memory", "mamba", "sigmoid_attn", "standard_attn", "ode")
PARTS = {"num_experts": 3, "top_k_experts": 2, "factorized_embedding_dim": 16, "embedding_conv_kernel": 3}


@pytest.fixture
def build(tiny_config, enliven):
    def build(case):
        if case.startswith("infinito"):
            head = InfinitoForQuestionAnswering if "spans" in case else InfinitoForCausalLM
            fields = ATTENTION_SLOTS | {"memory_slots": 92} if "attention" in case else {"memory_slots": 40}
            model = head(tiny_infinito(**fields))
        elif case.startswith("legacy"):
            model = Legacy1BitForCausalLM(tiny_legacy("legacy" if "ternary" in case else "modern twin"))
        elif "window" in case:
            head = FrankensteinForCausalLM if "decoder" in case else FrankensteinForTokenClassification
            fields = {"attention_window": 4, "position_type": "learned", "use_hope": False}
            model = head(tiny_config(("standard_attn", "titan_attn"), is_decoder="decoder" in case, **fields))
        else:
            head = FrankensteinForCausalLM if case == "decoder" else FrankensteinForSequenceClassification
            norm = "rms_norm" if case == "decoder" else "derf"
            mixers = ("retnet", "titan_attn") if case == "few" else MIXERS
            model = head(tiny_config(mixers, norm, case == "decoder", **PARTS))
        model = enliven(model.eval(), gain=1.0)
        # a rounded activation that falls the other way would be more than rounding: ternary layers stay in float32,
        # where their sums are exact
        return model if "ternary" in case else model.double()

    return build


CASES = ("few", "infinito", "infinito attention", "legacy ternary")
MORE = ("decoder", "encoder", "infinito spans", "legacy", "window encoder", "window decoder")
every_case = pytest.mark.parametrize("case", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])


def batch(rows, length, tokens):
    """Rows with pads at the left of one, at the right of another, and amid nothing."""
    ids = tokens(rows, length, seed=length)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    mask[1, length - 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(model, program, inputs):
    with torch.no_grad():
        expected, actual = (list(each(**inputs).values())[:1] for each in (model, program))
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    return expected[0]


@every_case
def test_exported_programs_serve_every_batch_and_length(case, build, tokens):
    model = build(case)
    shape = {0: Dim("batch", max=32), 1: Dim("length", max=96)}
    with torch.no_grad():
        inputs = batch(2, 21, tokens)
        program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, shape))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in names if name.startswith("frankenlm")], "it must run where we are not"
    module = program.module()
    values = [assert_same(model, module, batch(*size, tokens)) for size in ((2, 21), (5, 9), (3, 64))]
    assert values[0].masked_fill(values[0] < -1e300, 0).std() > 0.1


@pytest.mark.filterwarnings("ignore")  # torch's own, when it compiles autograd functions
@every_case
def test_models_compile_into_one_graph(case, build, tokens):
    torch.compiler.reset()
    model = build(case)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    model.config.use_cache = False
    assert_same(model, compiled, batch(2, 11, tokens))


def test_hyperbolic_programs_say_how_far_they_reach(tiny_model, tokens):
    model = tiny_model("titan_attn", "rms_norm", True, hope_damping=0.7)  # one centre serves 43 tokens
    inputs = {"input_ids": tokens(2, 21)}
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.UserError, match="length <= 43|max=43|length = Dim"):
        shape = {0: Dim("batch", max=32), 1: Dim("length", max=96)}
        torch.export.export(model, (), inputs, dynamic_shapes={"input_ids": shape})


def test_routers_count_alike_in_one_graph(tiny_model, tokens):
    """Losses and loads of a compiled mixture, pads included, are those of the one that sorts its tokens."""
    torch.compiler.reset()
    model = tiny_model("standard_attn", num_experts=3, dtype=torch.float64).train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inputs = batch(3, 10, tokens)
    labels = torch.where(inputs["attention_mask"] == 1, inputs["input_ids"], -100)
    losses, gradients = [], []
    for each in (model, compiled):
        model.zero_grad()
        output = each(**inputs, labels=labels)
        output.loss.backward()
        losses.append((output.loss.detach(), output.aux_loss.detach(), output.expert_load))
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_a_scan_in_one_chunk_keeps_documents_apart():
    """What an exported program does with packed rows."""

    class Scan(torch.nn.Module):
        def forward(self, q, k, v, log_decay, ids):
            return linear_scan_chunked(q, k, v, log_decay, 4, document_ids=ids)

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 13, 2, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    ids = torch.tensor([[0] * 5 + [1] + [2] * 7, [0] * 13])
    inputs = (q, k, v, torch.full((2, 13, 2), -0.1, dtype=torch.float64), ids)
    program = torch.export.export(Scan(), inputs).module()
    for actual, expected in zip(program(*inputs), Scan()(*inputs), strict=True):
        torch.testing.assert_close(actual, expected)
