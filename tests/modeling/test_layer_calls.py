"""Layers are called, never read past: hooks, adapters, 4- and 8-bit layers and offloading live in the call."""

import copy

import accelerate
import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import BitsAndBytesConfig

from frankenlm import modeling
from frankenlm.modeling import (
    FrankensteinForSequenceClassification,
    InfinitoConfig,
    InfinitoForCausalLM,
    Legacy1BitConfig,
    Legacy1BitForCausalLM,
)
from frankenlm.modeling.full_linear import FullPrecisionLinear, apply_full_together
from frankenlm.modeling.quantizer_ternary import pack_model

# The sizes are those that bitsandbytes' 4-bit product takes on a CPU.
SIZES = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
EVERYTHING = {
    **SIZES,
    "use_titan_memory": True,
    "memory_chunk": 8,
    "num_experts": 2,
    "qk_norm": True,
    "ode_time_input": True,
    "hidden_act": "swiglu",
    "factorized_embedding_dim": 64,
    "embedding_conv_kernel": 3,
    "head_transform": True,
}
MIXERS = ("retnet", "titan_attn", "mamba", "ode", "standard_attn", "sigmoid_attn")
FRANKENSTEINS = {
    "encoder": {"type_vocab_size": 2, "position_type": "learned"},
    "decoder": {"is_decoder": True},
    "post-norm": {"is_decoder": True, "norm_style": "post"},
    "loops": {"num_loops": 2, "loop_embedding": True},
    "bitnet": {"is_decoder": True, "use_bitnet": True},
}
INFINITO = {"num_hidden_layers": 3, "memory_layers": [1], "memory_slots": 6, "memory_segment": 4, "memory_heads": 2}
LEGACY = {
    "legacy-1bit": {},
    "legacy-full": {"use_bitnet": False},
    "legacy-tied": {
        "bitnet_embedding": False,
        "bitnet_head": False,
        "tie_word_embeddings": True,
        "norm_type": "rms_norm",
    },
}
FAMILIES = [*FRANKENSTEINS, "classifier", "infinito", *LEGACY]
ROUNDING = {"bitnet", "legacy-1bit", "legacy-tied"}
every_family = pytest.mark.parametrize("family", FAMILIES)
# PEFT asks transformers by a name that transformers has given another.
peft_speaks_old_names = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def make(tiny_config, tiny_model, enliven):
    """make(family) -> a tiny lively model in eval mode, the same each time."""

    def build(family):
        torch.manual_seed(0)
        if family in FRANKENSTEINS:
            return tiny_model(MIXERS, "layer_norm", gain=1.0, **EVERYTHING | FRANKENSTEINS[family])
        if family == "classifier":
            model = FrankensteinForSequenceClassification(tiny_config(MIXERS, "derf", **EVERYTHING | {"num_labels": 3}))
        elif family == "infinito":
            model = InfinitoForCausalLM(InfinitoConfig(**SIZES, **INFINITO, dropout=0.0, attention_dropout=0.0))
        else:
            model = Legacy1BitForCausalLM(Legacy1BitConfig(**SIZES, **LEGACY[family]))
        return enliven(model.eval(), gain=1.0)

    return build


def is_causal_lm(model) -> bool:
    return model.config.is_decoder and hasattr(model, "lm_head")


def runs(model, ids) -> dict:
    """Logits of a pass in evaluation and in training, and, of a causal model, of a step with a cache."""
    found = {"training": model.train()(ids).logits}
    model.eval()
    with torch.no_grad():
        found["evaluation"] = model(ids).logits
        if is_causal_lm(model):
            cache = model(ids[:, :-1], use_cache=True).cache
            found["step"] = model(ids[:, -1:], cache=cache).logits
    return found


def parametrised(model) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if any(True for _ in module.parameters(False))}


def silent_layers(model, call) -> list[str]:
    """Return the layers with parameters whose hooks a call of the model does not reach."""
    fired = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: fired.add(name)) for name, module in model.named_modules()
    ]
    call()
    for hook in hooks:
        hook.remove()
    return sorted(parametrised(model).keys() - fired)


def modules_passed(model, call) -> list[str]:
    """Return the classes of the modules that a call of the model hands to another module's call."""
    passed = []

    def look(module, args, kwargs):
        passed.extend(type(given).__name__ for given in (*args, *kwargs.values()) if isinstance(given, nn.Module))

    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in model.modules()]
    call()
    for hook in hooks:
        hook.remove()
    return passed


@every_family
def test_hooks_of_every_layer_fire(family, make, tokens):
    model, ids = make(family), tokens(4, 21)
    assert not silent_layers(model.train(), lambda: model(ids))
    model.eval()
    with torch.no_grad():
        assert not silent_layers(model, lambda: model(ids))
        if is_causal_lm(model):
            cache = model(ids, use_cache=True).cache
            assert not silent_layers(model, lambda: model(ids[:, :1], cache=cache))


@pytest.mark.parametrize("family", ["bitnet", "legacy-1bit"])
def test_hooks_of_packed_layers_fire(family, make, tokens):
    model, ids = pack_model(make(family)), tokens(2, 21)
    with torch.no_grad():
        assert not silent_layers(model, lambda: model(ids))
        cache = model(ids, use_cache=True).cache
        assert not silent_layers(model, lambda: model(ids[:, :1], cache=cache))


def test_every_family_is_walked(make):
    families = {type(make(family)).config_class.model_type for family in FAMILIES}
    assert families == {family.config_class.model_type for family in modeling.FAMILIES}


def hide_parameters(model) -> None:
    """Let every layer have its parameters during its own call only; before and after they are NaN."""
    for module in parametrised(model).values():
        real = dict(module._parameters)
        absent = {name: p if p is None else nn.Parameter(torch.full_like(p, float("nan"))) for name, p in real.items()}

        def call(*args, forward=module.forward, module=module, real=real, absent=absent, **kwargs):
            module._parameters.update(real)
            try:
                return forward(*args, **kwargs)
            finally:
                module._parameters.update(absent)

        module._parameters.update(absent)
        module.forward = call


@every_family
def test_no_layer_is_read_past(family, make, tokens):
    """What the layers' own calls do not see, nobody reads; the numbers are those of the plain model."""
    ids = tokens(4, 21)
    expected = runs(make(family), ids)
    model = make(family)
    hide_parameters(model)
    for name, logits in runs(model, ids).items():
        torch.testing.assert_close(logits, expected[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_layer_that_is_read_past_is_found(make, tokens):
    class ReadsPast(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return nn.functional.linear(x, self.layer.weight, self.layer.bias)

    model, ids = make("legacy-full"), tokens(1, 5)
    model.lm_head.decoder = ReadsPast(model.lm_head.decoder)
    assert silent_layers(model, lambda: model(ids)) == ["lm_head.decoder.layer"]
    hide_parameters(model)
    assert model(ids).logits.isnan().all()


@every_family
def test_no_module_is_passed_to_another(family, make, tokens):
    """Whatever moves the inputs of a call (offloading, pipelines) would move it along."""
    model, ids = make(family), tokens(2, 21)
    assert not modules_passed(model, lambda: runs(model, ids))


def test_a_module_that_is_passed_is_found(make, tokens):
    class Wraps(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.around = layer, Around()

        def forward(self, x):
            return self.around(x, layer=self.layer)

    class Around(nn.Module):
        def forward(self, x, layer):
            return layer(x)

    model, ids = make("legacy-full"), tokens(1, 5)
    model.lm_head.decoder = Wraps(model.lm_head.decoder)
    assert modules_passed(model, lambda: model(ids)) == ["Linear"]


@every_family
@peft_speaks_old_names
def test_adapters_reach_the_output(family, make, tokens):
    model, ids = make(family).double(), tokens(4, 21)  # in float32 post-norm makes 3e-3 of the last bits
    expected = model(ids).logits.detach()
    config = LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), config)
    labels = torch.zeros(4, dtype=torch.long) if family == "classifier" else ids
    adapted.train()(input_ids=ids, labels=labels).loss.backward()
    dead = [name for name, p in adapted.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead
    with torch.no_grad():
        unmerged = adapted.eval()(ids).logits
        assert (unmerged - expected).abs().max() > 0.05
        if family in ROUNDING:
            return
        merged = adapted.merge_and_unload().eval()(ids).logits
    torch.testing.assert_close(merged, unmerged, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", sorted(ROUNDING))
@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
@peft_speaks_old_names
def test_adapters_are_not_merged_into_layers_that_round(family, merge, make, tokens):
    """And nothing is merged before the refusal; taking the adapter off goes on working."""
    model, ids = make(family), tokens(2, 21)
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False)
    ).eval()
    with torch.no_grad():
        unmerged = adapted(ids).logits
        for options in ({}, {"safe_merge": True}):
            with pytest.raises(ValueError, match=r"cannot be merged into .*_?proj.* \(BitLinear\).*unload\(\)"):
                getattr(adapted, merge)(**options)
        assert torch.equal(adapted(ids).logits, unmerged)
        assert torch.equal(adapted.unload()(ids).logits, model(ids).logits)


@peft_speaks_old_names
def test_only_what_the_adapter_changes_is_refused(make):
    """A single layer, its table and its packed form refuse by themselves; a plain one does not."""
    model = make("bitnet")
    config = LoraConfig(target_modules=["q_proj", "router"], r=2, init_lora_weights=False)
    model = inject_adapter_in_model(config, model)
    layer = model.model.layers[1]
    with pytest.raises(ValueError, match=r"this layer \(BitLinear\)"):
        layer.mixer.q_proj.merge()
    layer.mixer.q_proj.merge(adapter_names=["another"])
    before = layer.ffn.router.base_layer.weight.clone()
    layer.ffn.router.merge()
    assert not torch.equal(layer.ffn.router.base_layer.weight, before)
    table = get_peft_model(make("legacy-1bit"), LoraConfig(target_modules=["embed_tokens"], r=2))
    with pytest.raises(ValueError, match="BitEmbedding"):
        table.merge_and_unload()


@pytest.mark.parametrize(
    ("family", "bits"),
    [*((name, 4) for name in FAMILIES if name not in ("loops", "legacy-tied")), ("decoder", 8), ("infinito", 8)],
)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning", "ignore:.*gemm_4bit_forward.*")
def test_loading_in_few_bits(family, bits, make, tokens, tmp_path):
    pytest.importorskip("bitsandbytes")
    model, ids = make(family), tokens(4, 21)
    model.save_pretrained(tmp_path)
    few = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    loaded = type(model).from_pretrained(tmp_path, quantization_config=few, device_map="cpu", dtype=torch.float32)
    kinds = [type(module).__name__ for module in loaded.modules()]
    assert family in ROUNDING or any(kind.startswith("Linear4bit" if bits == 4 else "Linear8bit") for kind in kinds)
    for kind in ("BitLinear", "FullPrecisionLinear", "Gate"):
        ours = [type(module).__name__ for module in model.modules()]
        assert kinds.count(kind) == ours.count(kind), "layers that round or decide are left alone"
    with torch.no_grad():
        expected, actual = model(ids).logits, loaded(ids).logits
        assert actual.isfinite().all() and (actual - expected).norm() < 0.9 * expected.norm()
        if is_causal_lm(model):
            assert loaded.generate(ids, max_new_tokens=2, do_sample=False).shape == (4, 23)


@every_family
def test_offloading(family, make, tokens, tmp_path):
    model, ids = make(family), tokens(2, 21)
    with torch.no_grad():
        expected = model(ids).logits
        for offload in (
            lambda m: accelerate.cpu_offload(m, execution_device=torch.device("cpu")),
            lambda m: accelerate.disk_offload(m, str(tmp_path / "offload"), execution_device=torch.device("cpu")),
        ):
            away = offload(make(family))
            assert all(parameter.device.type == "meta" for parameter in away.parameters())
            torch.testing.assert_close(away(ids).logits, expected, atol=1e-5, rtol=1e-4)
        model.save_pretrained(tmp_path / "saved")
        away = type(model).from_pretrained(
            tmp_path / "saved", device_map={"": "disk"}, offload_folder=str(tmp_path / "folder")
        )
        torch.testing.assert_close(away(ids).logits, expected, atol=1e-5, rtol=1e-4)


def test_several_small_layers_in_one_product():
    """The same numbers, whether they are computed together or called."""
    layers = [FullPrecisionLinear(16, size, bias=size == 2) for size in (1, 2, 3)]
    x = torch.randn(5, 16, dtype=torch.bfloat16)
    together = apply_full_together(x, *layers)
    for layer, part in zip(layers, together, strict=True):
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, layer(x))
    called = []
    layers[1].register_forward_hook(lambda *_: called.append(1))
    torch.testing.assert_close(apply_full_together(x, *layers), together)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: called.append(2))
    layers[1]._forward_hooks.clear()
    apply_full_together(x, *layers)
    handle.remove()
    assert called == [1, 2, 2, 2]
