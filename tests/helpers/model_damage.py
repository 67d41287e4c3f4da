"""Damage to whole models and the bits it leaves, for the tests of baselines."""

import torch

from frankenlm.degradation.weights.restore import apply_damage

LEVELS = {"mult_gauss": (0.05, 0.3, 1.4), "ablation": (0.05, 0.5, 1.0), "uni_quant": (2, 16, 1024), "add_gauss": (0.2,)}
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def bits_of(model):
    """name -> (bits, address) of every parameter and buffer."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: (raw(tensor).clone(), tensor.data_ptr()) for name, tensor in tensors.items()}


def raw(tensor):
    return tensor.detach().view(BITS.get(tensor.dtype, tensor.dtype))


def check_untouched(model, before, but=()):
    now = bits_of(model)
    assert now.keys() == before.keys()
    for name, (bits, pointer) in before.items():
        assert now[name][1] == pointer, f"{name} has moved"
        assert name in but or torch.equal(now[name][0], bits), f"{name} has changed"


def damage(baseline, method="mult_gauss", level=0.3, seed=42, repeat=0, **kwargs):
    return apply_damage(baseline, method, level, seed, repeat, **kwargs)
