"""Tensors without memory: shapes where all are so, an error where one is among others, and never a read."""

import itertools

import pytest
import torch

from frankenlm.modeling.native_ops import native_code_runs
from frankenlm.modeling.ternary import pack_ternary

PACKED = pack_ternary(torch.ones(16, 32, dtype=torch.int8))
ROWS, CODES = torch.ones(16), torch.ones(2, 32, dtype=torch.int8)
CALLS = {
    "quantize_activations": (torch.ones(2, 32),),
    "ternary_linear": (torch.ones(2, 32), PACKED, ROWS, 16, ROWS),
    "ternary_linear_quantized": (CODES, torch.ones(2), torch.ones(2, dtype=torch.int32), PACKED, ROWS, 16, ROWS),
    "int8_linear": (torch.ones(2, 32), torch.ones(16, 32, dtype=torch.int8), ROWS, ROWS),
    "attend_step": (torch.ones(1, 2, 1, 8), *(torch.ones(1, 2, 4, 8) for _ in range(2)), None, 1.0),
    "rotate_step": (torch.ones(1, 2, 1, 8), torch.ones(1, 1, 1, 8), torch.ones(1, 1, 1, 8)),
    "rms_norm": (torch.ones(2, 32), torch.ones(32), 1e-6),
    "fake_quantize_activations": (torch.ones(2, 32), 8, 1e-6, torch.float32),
    "fake_quantize_activations_backward": (torch.ones(2, 32), torch.ones(2, 32), torch.ones(2, 1)),
}
NATIVE_ONLY = set(CALLS) - {"quantize_activations", "ternary_linear", "ternary_linear_quantized", "int8_linear"}


@pytest.mark.parametrize("name", CALLS)
def test_tensors_without_memory(name):
    if not native_code_runs() and name in NATIVE_ONLY:
        pytest.skip("the reference does not have this operator")
    operator, arguments = getattr(torch.ops.frankenlm, name), CALLS[name]
    places = [place for place, given in enumerate(arguments) if isinstance(given, torch.Tensor)]
    for away in itertools.product([False, True], repeat=len(places)):
        given = list(arguments)
        for place, goes in zip(places, away, strict=True):
            given[place] = given[place].to("meta") if goes else given[place]
        if any(away) and not all(away):
            with pytest.raises(RuntimeError, match=f"frankenlm::{name}: tensors lie on cpu and meta; move them"):
                operator(*given)
            continue
        results = operator(*given)
        for result in results if isinstance(results, tuple) else (results,):
            assert result.device.type == ("meta" if any(away) else "cpu")
