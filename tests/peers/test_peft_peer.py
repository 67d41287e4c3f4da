"""PEFT: an adapter beside every family is B A x, comes back from its folder, and is merged only where that is exact."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModel, AutoModelForSequenceClassification, BitsAndBytesConfig

from peer_cells import WORKS, cells_of
from peer_models import logits_of, open_peer, some_ids

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning",  # PEFT asks by a name that transformers has given another
    "ignore:.*gradient_checkpointing_enable.*:FutureWarning",
    "ignore:.*gemm_4bit_forward.*",
)
RANK, ALPHA = 2, 6
FOUR_BITS = BitsAndBytesConfig(load_in_4bit=True)


def adapt(model):
    """An adapter beside all linear layers, as PEFT makes it."""
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", lora_dropout=0.0))


def learn(model, inputs, steps=3) -> list[float]:
    """Train on the model's own loss; return it before each step."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        loss = model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def by_hand(model, adapted):
    """The model without PEFT, where each adapted layer adds B A x to its output."""
    for name, layer in adapted.base_model.model.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()

        def add(module, args, output, down=down, up=up):
            return output + (ALPHA / RANK) * (args[0].to(down.dtype) @ down.T @ up.T).to(output.dtype)

        model.get_submodule(name).register_forward_hook(add)
    return model


@cells_of("lora")
def test_an_adapter_learns_and_comes_back(family, cell, saved, tmp_path):
    model = open_peer(family, saved(family))
    if cell.verdict != WORKS:
        with pytest.raises(ValueError, match=cell.message):
            adapt(model)
        return
    inputs, before = some_ids(model), open_peer(family, saved(family)).state_dict()
    adapted = adapt(model)
    losses = learn(adapted.train(), inputs)
    assert losses[-1] < losses[0]
    adapted.eval().save_pretrained(tmp_path)
    learned = logits_of(adapted, **inputs)
    again = PeftModel.from_pretrained(open_peer(family, saved(family)), tmp_path).eval()
    assert (logits_of(again, **inputs) - learned).norm() < 1e-5 * learned.norm()
    hooked = by_hand(open_peer(family, saved(family)), adapted)
    torch.testing.assert_close(logits_of(hooked, **inputs), learned, rtol=1e-4, atol=1e-4)
    taken_off = adapted.unload()
    after = taken_off.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForSequenceClassification])
def test_routers_are_left_out_whatever_the_head(auto, saved, tmp_path):
    """Also a classifier, which PEFT saves whole beside the adapter, and a stack without a head."""
    model = auto.from_pretrained(saved("encoder"))
    is_classifier = auto is AutoModelForSequenceClassification
    config = LoraConfig(r=RANK, target_modules="all-linear", task_type="SEQ_CLS" if is_classifier else None)
    adapted = get_peft_model(model, config).eval()
    ends = {name.rpartition(".")[2] for name in adapted.targeted_module_names}
    assert "q_proj" in ends and not ends & {"router", "classifier"}
    inputs = some_ids(model)
    adapted.save_pretrained(tmp_path)
    torch.manual_seed(1)  # another new classifier, which the saved one replaces
    again = PeftModel.from_pretrained(auto.from_pretrained(saved("encoder")), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs)[0], adapted(**inputs)[0], rtol=1e-4, atol=1e-4)


@cells_of("merge")
def test_a_merge_is_exact_or_refused(family, cell, saved):
    if cell.verdict != WORKS:
        with pytest.raises(ValueError, match=cell.message):
            adapt(open_peer(family, saved(family))).merge_and_unload()
        return
    model = open_peer(family, saved(family))
    inputs = some_ids(model)
    adapted = adapt(model)
    learn(adapted.train(), inputs, steps=1)
    unmerged = logits_of(adapted.eval(), **inputs)
    merged = adapted.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    found = logits_of(merged, **inputs)
    assert (found - unmerged).norm() < 1e-5 * unmerged.norm()


@cells_of("qlora")
def test_an_adapter_beside_four_bits(family, cell, saved, tmp_path, caplog):
    if cell.verdict != WORKS:
        with pytest.raises(ValueError, match=cell.message):
            open_peer(family, saved(family), quantization_config=FOUR_BITS)
        return
    model = open_peer(family, saved(family), quantization_config=FOUR_BITS)
    assert bool(cell.message) == ("0 layers were quantised" in caplog.text)
    inputs = some_ids(model)
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted = adapt(model)
    losses = learn(adapted.train(), inputs)
    assert losses[-1] < losses[0]
    assert all(each.dtype == torch.float32 for each in adapted.parameters() if each.requires_grad)
    adapted.eval().save_pretrained(tmp_path)
    whole = PeftModel.from_pretrained(open_peer(family, saved(family)), tmp_path)  # the adapter fits the whole model
    assert logits_of(whole, **inputs).isfinite().all()
