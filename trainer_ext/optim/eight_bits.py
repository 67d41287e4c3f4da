"""Adam's moments in eight bits: a byte an element, and a float32 for every block of 256 (Dettmers et al. 2022,
arXiv:2110.02861); the codes and the rounding are those of bitsandbytes.
"""

import functools

import torch

BLOCK = 256
# moment -> whether its elements have a sign
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}


def keep(state: dict, moments: dict) -> None:
    """Put both moments into a parameter's state, each as its bytes and the largest magnitude of every block."""
    from bitsandbytes.functional import quantize_blockwise

    for name, signed in MOMENTS.items():
        codes, made = quantize_blockwise(
            moments[name].float(), code=_map(signed, moments[name].device), blocksize=BLOCK
        )
        state[name], state[f"{name}_absmax"] = codes, made.absmax


def recalled(state: dict, gradient: torch.Tensor) -> dict:
    """Return the step and, where there are any, the moments in the dtype of `gradient`."""
    from bitsandbytes.functional import dequantize_blockwise

    moments = {"step": state["step"]}
    for name, signed in MOMENTS.items():
        if name in state:
            code = _map(signed, state[name].device)
            # load_state_dict makes every tensor one of the parameter's dtype
            codes, largest = state[name].to(torch.uint8), state[f"{name}_absmax"].float()
            value = dequantize_blockwise(codes, absmax=largest, code=code, blocksize=BLOCK)
            moments[name] = value.to(gradient.dtype)
    return moments


@functools.cache
def _map(signed: bool, device: torch.device) -> torch.Tensor:
    """The 256 values between -1 (or 0) and 1 that a byte stands for."""
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map(signed=signed).to(device)
