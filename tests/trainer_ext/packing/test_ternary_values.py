"""What is found by looking at the values of a weight: the fewest scales that hold it, or values that are too many."""

import pytest
import torch

from frankenlm.modeling.ternary import unpack_ternary
from frankenlm.trainer_ext.packing import ternary_values
from frankenlm.trainer_ext.packing.ternary_values import NotTernaryError, TernaryLook, rows_at_once

GENERATOR = torch.Generator().manual_seed(0)


def draw(rows, columns, groups=1):
    """Codes, none of whose groups of 32 is all zeros, and a scale for each row and group."""
    codes = torch.randint(-1, 2, (rows, columns), generator=GENERATOR).float()
    codes[:, ::32] = 1
    return codes, torch.arange(1.0, 1 + rows * groups).reshape(rows, groups) / 64


def look(weight, step=16):
    found = TernaryLook(*weight.shape)
    for first in range(0, len(weight), step):
        found.add(weight[first : first + step])
    return found.found()


def restored(found, shape):
    codes = unpack_ternary(found.tiles, *shape)
    if found.group_size is None:
        return codes * found.scale.unsqueeze(1)
    return codes * found.scale.repeat_interleave(found.group_size, 1)[:, : shape[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 33), (33, 200), (48, 256), (1, 1)])
@pytest.mark.parametrize("axis", ["tensor", "row", 128, 64, 32])
def test_the_fewest_scales_are_found(axis, shape, dtype):
    rows, columns = shape
    size = axis if isinstance(axis, int) else columns
    codes, scale = draw(rows, columns, -(-columns // size))
    scale = scale[:1, :1] if axis == "tensor" else scale
    weight = (codes * scale.repeat_interleave(size, 1)[:, :columns]).to(dtype)
    found = look(weight)
    assert torch.equal(restored(found, shape), weight.float())
    assert found.zeros == (weight == 0).sum()
    if rows == 1 and isinstance(axis, int) is False:
        assert found.kind == "tensor"
    elif columns <= size:
        assert found.kind == ("tensor" if axis == "tensor" or rows == 1 else "row")
    else:
        assert found.kind == (f"group-{axis}" if isinstance(axis, int) else axis)


def test_groups_of_zeros_take_any_scale():
    """Which a group has whose weights are all 0 cannot be seen, and must not make its neighbours' ones smaller."""
    codes, scale = draw(20, 256, 2)
    codes[3, :128] = 0
    codes[4, 128:160] = 0
    codes[5] = 0
    assert look(codes * 0.5).kind == "tensor"
    assert look(codes * scale[:, :1]).kind == "row"
    assert look(codes * scale.repeat_interleave(128, 1)).kind == "group-128"
    assert look(torch.zeros(20, 256)).kind == "tensor"


def test_weights_of_one_sign_and_negative_zero():
    weight = torch.full((20, 64), 0.25)
    weight[1] = -0.25
    weight[2, 3] = -0.0
    found = look(weight)
    assert found.kind == "tensor" and found.zeros == 1 and torch.equal(restored(found, (20, 64)), weight)


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (3, 40, 0.7, r"row 3, columns 32 to 63, holds -0.5, 0, 0.5, 0.7, not -s, 0 and \+s"),
        (18, 99, 0.50001, r"row 18, columns 96 to 99, holds -0.5, 0, 0.5, 0.50001"),
        (0, 0, float("nan"), "holds NaN or infinity"),
        (19, 5, float("inf"), "holds NaN or infinity"),
    ],
)
def test_what_is_not_ternary_is_shown(row, column, value, message):
    weight = torch.tensor([-0.5, 0, 0.5, 0.5]).repeat(20, 25)
    weight[row, column] = value
    with pytest.raises(ValueError, match=message) as caught:
        look(weight)
    assert isinstance(caught.value, NotTernaryError) is ("not -s" in str(caught.value))


def test_random_weights_show_a_few_values():
    with pytest.raises(NotTernaryError, match=r"holds (-?[\d.]+, ){4}-?[\d.]+ and 27 others, not"):
        look(torch.randn(4, 64))


def test_rows_are_read_in_whole_tiles(monkeypatch):
    monkeypatch.setattr(ternary_values, "VALUES_AT_ONCE", 1000)
    assert [rows_at_once(columns) for columns in (1, 20, 100_000, 0)] == [992, 48, 16, 992]


def test_values_that_only_float32_makes_alike_are_not_ternary():
    weight = torch.tensor([[0.1, -0.1 - 1e-12, 0.0]], dtype=torch.float64)
    with pytest.raises(NotTernaryError, match="is not ternary"):
        look(weight)
    assert look(torch.tensor([[0.5, -0.5, 0.0]], dtype=torch.float64)).kind == "tensor"
