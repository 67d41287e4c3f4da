"""The packed tiles against a slow packer written from their description, and what is refused."""

import pytest
import torch

from frankenlm.modeling import ternary
from frankenlm.modeling.packed_embedding import PackedBitEmbedding
from frankenlm.modeling.ternary import check_packed, pack_ternary, packed_shape, unpack_rows, unpack_ternary

SHAPES = [(1, 1), (1, 16), (16, 1), (16, 16), (15, 17), (17, 15), (31, 33), (33, 31), (48, 64), (5, 100), (100, 5)]


def draw(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8, generator=generator)


def pack_slowly(codes):
    """Byte (row i, j) of a tile, at 4 i + j, carries column 4 g + j in bits 2 g and 2 g + 1, as w + 1."""
    rows, columns = codes.shape
    packed = torch.zeros(-(-rows // 16), -(-columns // 16), 64, dtype=torch.int64)
    for row in range(packed.shape[0] * 16):
        for column in range(packed.shape[1] * 16):
            weight = int(codes[row, column]) if row < rows and column < columns else 0
            group, within = divmod(column % 16, 4)
            packed[row // 16, column // 16, 4 * (row % 16) + within] += (weight + 1) * 4**group
    return packed.to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_slow_packer_and_back(shape):
    codes = draw(*shape)
    packed = pack_ternary(codes)
    assert torch.equal(packed, pack_slowly(codes))
    assert torch.equal(unpack_ternary(packed, *shape), codes)


@pytest.mark.parametrize("at_once", [1, 300, 5000])
def test_pieces_do_not_matter(at_once, monkeypatch):
    codes = draw(100, 77)
    expected = pack_slowly(codes)
    monkeypatch.setattr(ternary, "WEIGHTS_AT_ONCE", at_once)
    assert torch.equal(pack_ternary(codes), expected)
    assert torch.equal(unpack_ternary(expected, 100, 77), codes)


def test_layout_of_the_input_does_not_matter():
    codes = draw(40, 66)
    assert torch.equal(pack_ternary(codes.t().contiguous().t()), pack_ternary(codes))
    assert torch.equal(pack_ternary(draw(80, 66)[::2]), pack_slowly(draw(80, 66)[::2]))
    packed = pack_ternary(codes)
    unaligned = torch.cat([torch.zeros(3, dtype=torch.uint8), packed.flatten()])[3:].view(packed.shape)
    assert torch.equal(unpack_ternary(unaligned, 40, 66), codes)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing_packs_to_nothing(shape):
    packed = pack_ternary(torch.zeros(shape, dtype=torch.int8))
    assert packed.shape == packed_shape(*shape) and packed.numel() == 0
    assert unpack_ternary(packed, *shape).shape == shape


@pytest.mark.parametrize("shape", [(1, 1), (33, 40), (50, 7), (16, 16)])
@pytest.mark.parametrize("ids", [(), (3,), (2, 5)])
def test_rows_one_by_one(shape, ids):
    codes = draw(*shape)
    rows = torch.randint(shape[0], ids, generator=torch.Generator().manual_seed(1))
    assert torch.equal(unpack_rows(pack_ternary(codes), rows, shape[1]), codes[rows])
    scale = 1.5 + torch.arange(shape[0])
    table = PackedBitEmbedding.from_codes(codes, scale)
    assert torch.equal(table(rows), (codes * scale.unsqueeze(1))[rows].float())


@pytest.mark.parametrize("wrong", [-128, -2, 2, 3, 127])
def test_refuses_other_codes(wrong):
    codes = draw(20, 20)
    codes[19, 3] = wrong
    with pytest.raises(ValueError, match=f"must be -1, 0 or 1; found {wrong}"):
        pack_ternary(codes)


@pytest.mark.parametrize(
    "codes", [torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.int32), torch.zeros(4, dtype=torch.int8)]
)
def test_refuses_other_tensors(codes):
    with pytest.raises(ValueError, match="int8 with 2 axes"):
        pack_ternary(codes)


def with_code(packed, tile, row, column, code):
    """Set one code of a tile."""
    group, within = divmod(column, 4)
    byte = int(packed[tile][4 * row + within])
    packed[tile][4 * row + within] = byte & ~(3 << 2 * group) | code << 2 * group
    return packed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: with_code(p, (0, 0), 2, 3, 3), "code 3"),
        (lambda p: with_code(p, (1, 1), 3, 15, 3), "code 3"),
        (lambda p: with_code(p, (0, 1), 0, 4, 0), "padding"),  # column 20
        (lambda p: with_code(p, (1, 0), 4, 0, 2), "padding"),  # row 20
        (lambda p: p[:1], "are torch.uint8"),
        (lambda p: p.view(torch.int8), "are torch.uint8"),
        (lambda p: p.flatten(), "are torch.uint8"),
    ],
)
def test_refuses_damaged_tiles(damage, message):
    packed = pack_ternary(draw(20, 20))
    check_packed(packed, 20, 20)
    packed = damage(packed)
    with pytest.raises(ValueError, match=f"layer.weight.*{message}"):
        check_packed(packed, 20, 20, "layer.weight")
    with pytest.raises(ValueError, match=message):
        unpack_ternary(packed, 20, 20)


@pytest.mark.parametrize("shape", [(19, 20), (20, 19), (33, 20), (20, 40)])
def test_refuses_tiles_of_another_weight(shape):
    codes = torch.ones(20, 20, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"not of a weight|are torch\.uint8"):
        unpack_ternary(pack_ternary(codes), *shape)
