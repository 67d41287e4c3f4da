"""What a lesion was meant for keeps its values while the rest is trained: zeros of before, too."""

import numpy as np
import pytest
import torch

from frankenlm.degradation.damage.methods import MethodOptions
from frankenlm.degradation.recovery.held import addressed, held
from frankenlm.degradation.recovery.settings import Blocks, RecoverySettings
from frankenlm.degradation.recovery.training import put_back, train_on
from frankenlm.degradation.targeting.choosing import chosen_of
from frankenlm.degradation.weights.restore import Baseline, apply_damage
from frankenlm.degradation.weights.units import find_units

TEXT = "the kettle sang and the dog slept by the door. " * 40
SETTINGS = RecoverySettings(steps=2, every=2, batch=2, length=16, learning_rate=3e-3)
# method, level, options -> share of the elements that are meant
CELLS = [
    ("mult_gauss", 0.3, {}, 1.0),
    ("add_gauss", 0.3, {}, 1.0),
    ("uni_quant", 8, {}, 1.0),
    ("ablation", 0.4, {}, 0.4),
    ("ablation", 0.4, {"unit": "row"}, 0.4),
    ("ablation", 0.4, {"exact_count": True}, 0.4),
    ("ablation", 0.4, {"legacy_rng": True}, 0.4),
    ("ablation", 0.4, {"noise_coupling": "independent"}, 0.4),
    ("ablation", 1.0, {}, 1.0),
    ("targeted", 5, {}, 5 / 192),
    ("ablation", 0.0, {}, 0.0),
]


@pytest.mark.parametrize(("method", "level", "changes", "share"), CELLS)
def test_what_is_meant_is_what_changes_wherever_it_can(method, level, changes, share, tiny_model):
    """Of weights that have no zero the elements that change are those; of others, more are meant than change."""
    model, options = tiny_model("phi3"), MethodOptions(**changes)
    weight = model.model.layers[1].mlp.gate_up_proj.weight  # gate and up are halves of one matrix
    with torch.no_grad():
        weight[:10, ::2] = 0
    with Baseline(model, "mlp_gate") as baseline:
        chosen = None
        if method == "targeted":
            table = find_units(baseline.group, "neuron")
            marks = np.zeros(table.count, dtype=bool)
            marks[[0, 3, 48, 49, 191]] = True
            chosen = chosen_of(table, marks)
        apply_damage(baseline, method, level, 1, 0, options=options, chosen=chosen)
        masks = addressed(baseline, method, level, 1, 0, options, chosen)
        meant = sum(int(mask.sum()) for mask in masks) / baseline.numel
        assert meant == pytest.approx(share, abs=0.05)
        for saved, mask in zip(baseline.saved, masks, strict=True):
            changed, zero = saved.rows != saved.live, saved.rows == 0
            assert not (changed & ~mask).any()
            if method == "ablation" or chosen:
                assert torch.equal(changed | zero, mask | zero)
        if 0 < share < 1:
            assert (masks[1] & (baseline.saved[1].rows == 0)).any(), "zeros of before are meant too"


def test_a_gain_that_is_removed_is_meant_as_the_number_that_scales(tiny_model):
    """Gemma's norms scale by 1 + w: what is removed is w = -1, and w = 0 is no removed one."""
    model = tiny_model("gemma3")
    with torch.no_grad():
        model.model.norm.weight.zero_()
    with Baseline(model, "norm") as baseline:
        apply_damage(baseline, "ablation", 0.5, 1, 0)
        masks = addressed(baseline, "ablation", 0.5, 1, 0, MethodOptions())
        for saved, mask in zip(baseline.saved, masks, strict=True):
            assert torch.equal(saved.live == -1, mask)


@pytest.mark.parametrize("frozen", [True, False])
def test_held_elements_keep_their_values_and_the_rest_learns(frozen, tiny_model, tiny_tokenizer, tmp_path):
    model = tiny_model("phi3")
    rows = Blocks(TEXT, tiny_tokenizer(), 16)
    fused = model.model.layers[0].mlp.gate_up_proj.weight
    with torch.no_grad():
        fused[:24] = 0  # half of the gate was pruned before
    with Baseline(model, "mlp_gate") as baseline, put_back(model) as restore:
        apply_damage(baseline, "ablation", 0.5, seed=1, repeat_index=0)
        masks = addressed(baseline, "ablation", 0.5, 1, 0, MethodOptions())
        nothing = [torch.zeros_like(mask) for mask in masks]
        gone = masks[0].view(48, 32)
        before, whole = fused.detach().clone(), model.model.layers[0].self_attn.o_proj.weight.detach().clone()
        with held(baseline, masks if frozen else nothing):
            train_on(model, rows, SETTINGS, 1, tmp_path / "training", lambda step: None)
        moved = fused != before
        assert bool(moved[:48][gone].any()) is not frozen
        assert moved[:48][~gone].float().mean() > 0.9 and moved[:24][~gone[:24]].any(), (
            "zeros that were not meant learn"
        )
        assert moved[48:].float().mean() > 0.9
        assert not torch.equal(whole, model.model.layers[0].self_attn.o_proj.weight)
        restore()
        assert not fused._backward_hooks
