"""Weight quantisers and packed ternary weights: the one definition of every low-bit scheme and of the tiles.

A scheme maps a weight to `(codes, scale)` with `weight ~ codes * scale`; codes keep the weight's shape and dtype.
Sources: ternary_absmean arXiv:2402.17764 (BitNet b1.58); ternary_absmedian arXiv:2407.09527;
ternary_twn arXiv:1605.04711 (Ternary Weight Networks); binary arXiv:2310.11453 (BitNet).
Shapes: W (O, I); scale (1, 1) for a scale per tensor, (O, 1) for one per output row, (O, G) for one per row and group
of inputs (`column_groups.py`).

Packed tiles: a tile holds 16 rows x 16 columns in 64 bytes. Byte 4 i + j of it belongs to row i and carries the columns
4 g + j, g = 0..3, in its bits 2 g and 2 g + 1, each as w + 1 in {0, 1, 2}. The tiles of 16 rows lie one after the other
along the columns. Rows and columns are padded to multiples of 16 with zero weights, code 1.
"""

import torch

from .checks import check_choice
from .column_groups import check_group, map_groups

SCALE_FLOOR = 1e-5
# Mean |w| of the unit Gaussian is sqrt(2/pi) = 0.798; these two factors place the int2 levels near their optimum on it.
INT2_MEAN_OVER_SCALE = 0.8
INT2_POW_SCALE_OVER_MEAN = 0.88
TWN_THRESHOLD_OVER_MEAN = 0.7
TILE = 16  # rows and columns of a tile
TILE_BYTES = TILE * TILE // 4
LOW_BITS = 0x01010101  # times a code: that code in each of the four bytes of a tile's row
WEIGHTS_AT_ONCE = 1 << 20  # packing and unpacking keep a few temporaries of as many bytes


def _mean(w: torch.Tensor, per_row: bool) -> torch.Tensor:
    return w.mean(1, keepdim=True) if per_row else w.mean().reshape(1, 1)


def _median(w: torch.Tensor, per_row: bool) -> torch.Tensor:
    return w.median(1, keepdim=True).values if per_row else w.median().reshape(1, 1)


def _round_to_trits(w, magnitude):
    # The reciprocal is taken first, as transformers' BitLinear does: the two then agree to the last bit.
    inverse = 1.0 / magnitude.clamp_min(SCALE_FLOOR)
    return (w * inverse).round().clamp(-1, 1), 1.0 / inverse


def _binary(w, per_row):
    centred = w - _mean(w, per_row)
    return torch.where(centred >= 0, 1.0, -1.0).to(w.dtype), _mean(centred.abs(), per_row).clamp_min(SCALE_FLOOR)


def _ternary_absmean(w, per_row):
    return _round_to_trits(w, _mean(w.abs(), per_row))


def _ternary_absmedian(w, per_row):
    return _round_to_trits(w, _median(w.abs(), per_row))


def _ternary_twn(w, per_row):
    magnitude = w.abs()
    kept = (magnitude > TWN_THRESHOLD_OVER_MEAN * _mean(magnitude, per_row)).to(w.dtype)
    share = _mean(kept, per_row).clamp_min(torch.finfo(w.dtype).tiny)
    return kept * w.sign(), (_mean(magnitude * kept, per_row) / share).clamp_min(SCALE_FLOOR)


def _int2(w, per_row):
    scale = (_mean(w.abs(), per_row) / INT2_MEAN_OVER_SCALE).clamp_min(SCALE_FLOOR)
    return ((w / scale).floor() + 0.5).clamp(-1.5, 1.5), scale


def _int2_pow(w, per_row):
    scale = (INT2_POW_SCALE_OVER_MEAN * _mean(w.abs(), per_row)).clamp_min(SCALE_FLOOR)
    magnitude = torch.where(w.abs() > 1.5 * scale, 2.0, 1.0).to(w.dtype)
    return torch.where(w >= 0, magnitude, -magnitude), scale


SCHEMES = {
    "binary": _binary,
    "ternary_absmean": _ternary_absmean,
    "ternary_absmedian": _ternary_absmedian,
    "ternary_twn": _ternary_twn,
    "int2": _int2,
    "int2_pow": _int2_pow,
}
SCALE_AXES = ("tensor", "row", "group")
GROUP_SCALE_DTYPE = torch.bfloat16  # of the scales of groups that this project trains: any magnitude at 8 bits


def quantize_weight(
    weight: torch.Tensor, scheme: str = "ternary_absmean", scale_axis: str = "tensor", group_size: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a weight matrix.

    Args:
        weight: (O, I); statistics run in at least float32.
        scheme: a name of `SCHEMES`.
        scale_axis: "tensor" for one scale, "row" for one per output row, "group" for one per row and `group_size`
            neighbouring inputs: 32, 64 or 128. Groups' scales are rounded to bfloat16, the form they are packed in.

    Returns:
        codes (O, I) and scale (1, 1), (O, 1) or (O, G), both in at least float32. An all-zero ternary row gives zero
        codes. `column_groups.spread` makes a scale of groups multiply codes.

    Raises:
        ValueError: unknown scheme or scale axis, or a group size that does not go with it.
    """
    check_choice("w_scheme", scheme, SCHEMES)
    check_choice("scale_axis", scale_axis, SCALE_AXES)
    full = weight.to(torch.promote_types(weight.dtype, torch.float32))
    check_group(scale_axis, group_size)
    if scale_axis != "group":
        return SCHEMES[scheme](full, scale_axis == "row")
    codes, scale = map_groups(lambda groups: SCHEMES[scheme](groups, True), group_size, full)
    return codes, scale.to(GROUP_SCALE_DTYPE).to(scale.dtype)


def packed_shape(out_features: int, in_features: int) -> tuple[int, int, int]:
    """Return the shape of the packed tiles of a weight (out_features, in_features)."""
    return -(-out_features // TILE), -(-in_features // TILE), TILE_BYTES


def _row_groups(packed_shape: tuple[int, int, int]):
    """Yield (first, last) row groups that hold about WEIGHTS_AT_ONCE weights together."""
    groups, tiles, _ = packed_shape
    step = max(1, WEIGHTS_AT_ONCE // (TILE * TILE * max(tiles, 1)))
    for first in range(0, groups, step):
        yield first, min(first + step, groups)


def pack_ternary(codes: torch.Tensor) -> torch.Tensor:
    """Pack ternary codes into tiles of two bits a weight.

    Args:
        codes: int8 (N, K), each -1, 0 or 1.

    Returns:
        uint8 (ceil(N/16), ceil(K/16), 64) on the same device; the layout stands at the head of this file.

    Raises:
        ValueError: another dtype or number of axes, or a code that is not -1, 0 or 1.
    """
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise ValueError(
            f"codes must be int8 with 2 axes, not {codes.dtype} with {codes.dim()}: "
            "pass quantize_weight(weight, scheme)[0].to(torch.int8)."
        )
    rows, columns = codes.shape
    shape = packed_shape(rows, columns)
    packed = torch.empty(shape, dtype=torch.uint8, device=codes.device)
    if packed.numel() == 0:
        return packed
    for first, last in _row_groups(shape):
        chunk = codes[first * TILE : last * TILE]
        padded = torch.ones((last - first) * TILE, shape[1] * TILE, dtype=torch.uint8, device=codes.device)
        padded[: chunk.shape[0], :columns] = (chunk + 1).view(torch.uint8)
        if (padded > 2).any():
            wrong = chunk[(chunk + 1).view(torch.uint8) > 2][0].item()
            raise ValueError(f"codes must be -1, 0 or 1; found {wrong}.")
        # Four columns make a word; a code shifted by 6 bits stays in its byte.
        word = padded.view(torch.int32).view(last - first, TILE, shape[1], 4)
        rows_of_tiles = word[..., 0] | word[..., 1] << 2 | word[..., 2] << 4 | word[..., 3] << 6
        packed[first:last] = rows_of_tiles.transpose(1, 2).contiguous().view(torch.uint8)
    return packed


def _words(packed: torch.Tensor) -> torch.Tensor:
    """Return tiles (R, T, 64) as int32 (R, T, 16), a word for each row of a tile; a copy where they lie unaligned."""
    packed = packed.contiguous()
    return (packed.clone() if packed.storage_offset() % 4 else packed).view(torch.int32)


def _decode(packed: torch.Tensor) -> torch.Tensor:
    """Return the codes w + 1 of tiles (R, T, 64) as uint8 (16 R, 16 T)."""
    groups, tiles, _ = packed.shape
    words = _words(packed).transpose(1, 2)
    codes = torch.empty(groups, TILE, tiles, 4, dtype=torch.int32, device=packed.device)
    for plane in range(4):
        codes[..., plane] = words >> 2 * plane & 3 * LOW_BITS
    return codes.view(torch.uint8).view(groups * TILE, tiles * TILE)


def check_packed(packed: torch.Tensor, out_features: int, in_features: int, name: str = "packed") -> None:
    """Check that `packed` holds the tiles of a ternary weight (out_features, in_features); `name` is for the errors.

    Raises:
        ValueError: not uint8, not the shape of such a weight, a code 3, or padding that is not the code 1.
    """
    shape = packed_shape(out_features, in_features)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != shape:
        raise ValueError(
            f"{name} is {packed.dtype} {tuple(packed.shape)}; the tiles of a ternary weight "
            f"({out_features}, {in_features}) are torch.uint8 {shape}."
        )
    if packed.numel() == 0:
        return
    for first, last in _row_groups(shape):
        words = _words(packed[first:last])
        if (words & words >> 1 & 0x55 * LOW_BITS).any():
            raise ValueError(
                f"{name} is damaged: rows {first * TILE}..{last * TILE - 1} hold a code 3, which stands for no weight."
            )
    padding_columns = _decode(packed[:, -1:])[:, in_features - (shape[1] - 1) * TILE :]
    padding_rows = _decode(packed[-1:])[out_features - (shape[0] - 1) * TILE :]
    if (padding_columns != 1).any() or (padding_rows != 1).any():
        raise ValueError(
            f"{name} is damaged, or not of a weight ({out_features}, {in_features}): "
            "its padding holds weights other than 0."
        )


def unpack_ternary(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """Return the codes int8 (out_features, in_features) that `pack_ternary` packed.

    Args:
        packed: uint8 (ceil(N/16), ceil(K/16), 64).

    Raises:
        ValueError: as `check_packed`.
    """
    check_packed(packed, out_features, in_features)
    codes = torch.empty(out_features, in_features, dtype=torch.int8, device=packed.device)
    if codes.numel() == 0:
        return codes
    for first, last in _row_groups(tuple(packed.shape)):
        part = codes[first * TILE : last * TILE]
        part.copy_(_decode(packed[first:last])[: part.shape[0], :in_features].view(torch.int8))
    return codes.sub_(1)


def unpack_rows(packed: torch.Tensor, rows: torch.Tensor, in_features: int) -> torch.Tensor:
    """Return single rows of packed tiles; the content is not checked.

    Args:
        packed: uint8 (ceil(N/16), ceil(K/16), 64).
        rows: integers (...) in 0..N-1.

    Returns:
        int8 (..., K).
    """
    by_row = packed.view(packed.shape[0], packed.shape[1], TILE, 4)
    found = by_row[rows // TILE, :, rows % TILE].unsqueeze(-2)  # (..., tiles, 1, 4 bytes)
    planes = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device).unsqueeze(1)
    codes = (found >> planes & 3).view(torch.int8).flatten(-3)
    return codes[..., :in_features] - 1
