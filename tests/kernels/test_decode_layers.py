"""The operator that computes a decoder's layers: what it refuses, and what torch holds it to. Its numbers are held to
transformers' layers in tests/modeling/test_native_decoder.py."""

from unittest.mock import patch

import pytest
import torch
from transformers import DynamicCache

from frankenlm.kernels import ops
from frankenlm.modeling import native_ops
from packed_decoders import packed_decoder

if not native_ops.native_code_runs():
    pytest.skip("no compiler here: the operator is native only", allow_module_level=True)

NAMES = ("x", "cos", "sin", "visible", "tensors", "keys", "values", "sizes", "settings")
operator = torch.ops.frankenlm.decode_layers.default


@pytest.fixture(scope="module")
def arguments():
    """What a tiny model hands over for 2 rows of 3 tokens behind 4 others."""
    model, given = packed_decoder("qwen3", num_hidden_layers=2, group_size=32), []
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.ones(2, 4, dtype=torch.long), cache=cache, use_cache=True)
        with patch.object(torch.ops.frankenlm, "decode_layers") as recorder:
            recorder.default.side_effect = lambda *rest: given.append(rest) or rest[0]
            mask = torch.ones(2, 7, dtype=torch.long)
            model(torch.ones(2, 3, dtype=torch.long), attention_mask=mask, cache=cache, use_cache=True)
    found = dict(zip(NAMES, given[0], strict=True))
    return found | {"tensors": [tensor.detach() for tensor in found["tensors"]]}


def changed(values, place, value):
    return [value if number == place else old for number, old in enumerate(values)]


MISTAKES = {
    "two axes": (lambda a: {"x": a["x"][0]}, r"x must be \(B, L, D\)"),
    "double": (lambda a: {"x": a["x"].double()}, "float32 or bfloat16"),
    "another width": (lambda a: {"x": a["x"][..., :32]}, "tensor 0, the norm before attention, has another shape"),
    "tables of other tokens": (lambda a: {"cos": a["cos"][:, :2]}, "cos and sin must be"),
    "tables of another width": (lambda a: {"sin": a["sin"][..., :9]}, "cos and sin must be"),
    "tables of other rows": (lambda a: {"sin": a["sin"].expand(3, -1, -1)}, "cos and sin must be"),
    "a float mask": (lambda a: {"visible": a["visible"].float()}, "visible must be bool"),
    "a short mask": (lambda a: {"visible": a["visible"][..., :6]}, "visible must be bool"),
    "a mask of other rows": (lambda a: {"visible": a["visible"].repeat(2, 1, 1)}, "visible must be bool"),
    "too few tensors": (lambda a: {"tensors": a["tensors"][:-1]}, "tensors end before the last norm"),
    "too many tensors": (lambda a: {"tensors": [*a["tensors"], a["x"]]}, "more tensors than the layers have"),
    "tiles cut short": (lambda a: {"tensors": changed(a["tensors"], 1, a["tensors"][1][:1])}, "tensor 1, query"),
    "a gap in the tiles": (
        lambda a: {"tensors": changed(a["tensors"], 1, torch.cat([a["tensors"][1]] * 2, -1)[..., :64])},
        "is not contiguous",
    ),
    "scales of other rows": (lambda a: {"tensors": changed(a["tensors"], 2, a["tensors"][2][:1])}, "tensor 2, query"),
    "scales of odd groups": (
        lambda a: {"tensors": changed(a["tensors"], 2, torch.cat([a["tensors"][2]] * 2, 1))},
        "not of 32, 64 or 128 inputs",
    ),
    "float scales of groups": (
        lambda a: {"tensors": changed(a["tensors"], 2, a["tensors"][2].float())},
        "must be bfloat16 or float16",
    ),
    "groups of two sizes": (
        lambda a: {"tensors": changed(a["tensors"], 4, a["tensors"][4][:, :1].contiguous())},
        "must have groups of one size",
    ),
    "a full cache": (lambda a: {"sizes": changed(a["sizes"], 4, 5000)}, "visible must be bool"),
    "a full cache, no mask": (
        lambda a: {"sizes": changed(a["sizes"], 4, 5000), "visible": None},
        "room for 256 tokens; 5003 are needed",
    ),
    "keys of other rows": (lambda a: {"keys": [key[:1] for key in a["keys"]]}, "keys and values must be contiguous"),
    "values of another dtype": (lambda a: {"values": [v.bfloat16() for v in a["values"]]}, "of the stream's dtype"),
    "values missing": (lambda a: {"values": a["values"][:1]}, "another number of keys"),
    "a layer too many": (lambda a: {"keys": a["keys"] * 2, "values": a["values"] * 2}, "tensors end before query"),
    "a negative past": (lambda a: {"sizes": changed(a["sizes"], 4, -1)}, "past must not be negative"),
    "no heads": (lambda a: {"sizes": changed(a["sizes"], 0, 0)}, "sizes must be between"),
    "a huge width": (lambda a: {"sizes": changed(a["sizes"], 3, 2**40)}, "sizes must be between"),
    "odd heads": (lambda a: {"sizes": changed(a["sizes"], 0, 3)}, "multiple of the heads"),
    "an odd head": (lambda a: {"sizes": changed(a["sizes"], 2, 17)}, "must be even"),
    "an activation": (lambda a: {"sizes": changed(a["sizes"], 5, 7)}, "no such activation"),
    "a number less": (lambda a: {"sizes": a["sizes"][1:]}, "another number of sizes"),
    "a setting less": (lambda a: {"settings": a["settings"][1:]}, "another number of sizes or settings"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake, arguments):
    change, message = MISTAKES[mistake]
    with pytest.raises(RuntimeError, match=message):
        operator(*(arguments | change(arguments)).values())


def test_no_tokens(arguments):
    none = {"x": arguments["x"][:, :0], "cos": arguments["cos"][:, :0], "sin": arguments["sin"][:, :0], "visible": None}
    assert operator(*(arguments | none).values()).shape == (2, 0, 64)


def test_opcheck(arguments):
    torch.library.opcheck(operator, tuple(arguments.values()))


def test_tensors_without_memory(arguments):
    def away(given):
        if isinstance(given, torch.Tensor):
            return given.to("meta")
        return [away(part) for part in given] if isinstance(given, list) else given

    assert operator(*(away(given) for given in arguments.values())).device.type == "meta"
    for name in ("x", "cos", "visible", "tensors", "keys"):
        mixed = arguments | {name: away(arguments[name])}
        with pytest.raises(RuntimeError, match="decode_layers: tensors lie on cpu and meta"):
            operator(*mixed.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_row(arguments, value):
    """A row that meets NaN or infinity gives NaN; the other row of the batch is left alone."""

    def run(x):
        given = arguments | {"x": x} | {part: [t.clone() for t in arguments[part]] for part in ("keys", "values")}
        return operator(*given.values())

    spoiled = arguments["x"].clone()
    spoiled[1, 0, 3] = value
    clean, found = run(arguments["x"]), run(spoiled)
    assert torch.equal(found[0], clean[0]) and not found[1].isfinite().any()


def test_scales_that_are_not_finite(arguments):
    scale = arguments["tensors"][2].clone()
    scale[0, 0, 0] = float("nan")
    found = operator(*(arguments | {"tensors": changed(arguments["tensors"], 2, scale)}).values())
    assert found.isnan().all()


@pytest.mark.parametrize("path", ["scalar", "avx2", "avx512_vnni"])
def test_what_is_masked_is_not_read(path, arguments):
    before = ops.which_path()
    try:
        ops.use_path(path)
        rooms = {part: [t.clone() for t in arguments[part]] for part in ("keys", "values")}
        hidden = arguments["visible"].clone()
        hidden[1, :, 1:3] = False
        clean = operator(*(arguments | rooms | {"visible": hidden}).values())
        for part in rooms.values():
            for tensor in part:
                tensor[1, :, 1:3], tensor[:, :, 7:] = float("nan"), float("inf")
        assert torch.equal(operator(*(arguments | rooms | {"visible": hidden}).values()), clean)
        nothing = torch.zeros_like(hidden)
        assert operator(*(arguments | rooms | {"visible": nothing}).values()).isfinite().all()
    except ValueError as missing:
        pytest.skip(str(missing))
    finally:
        ops.use_path(before)
