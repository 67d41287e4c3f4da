"""Rotary and hyperbolic position encodings.

Rotary: Su et al. 2021, arXiv:2104.09864, in the half-split layout of Llama.
HoPE: "Hyperbolic Rotary Positional Encoding", arXiv:2509.05218, in light-cone coordinates, in which the hyperbolic
rotation is two decays, so that neither cosh nor sinh (which overflow) is ever computed.
Differs from the HoPE paper: the angles are phi_i = rho * theta' * base^(-i/(P-1)) with rho < 1. With rotary's angles
the logits would grow with distance unless the damping theta' left a range of a few tokens only.
Shapes: B batch, H heads, L length, Lq queries, Lk keys, D head width (even), P = D/2 pairs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .context import SequenceContext
from .native_ops import rotate_step, rotates_natively
from .norms import at_least_float32

# Exponents stay below this: products of two factors reach e^60 = 1e26 at most, finite in float32.
MAX_EXPONENT = 30.0
# With the other factor at most e^30, one below this is worth less than e^-40 = 4e-18 of its query and key.
MIN_EXPONENT = -70.0


def rotary_tables(
    position_ids: torch.Tensor, width: int, theta: float, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin, each (B, 1, L, D) in at least float32, for position_ids (B, L) and tensors of `dtype`.

    The first half of sin is negated: what it meets in `apply_rotary` has moved there with the other sign.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = position_ids[:, None, :, None].to(dtype) * frequencies.to(position_ids.device, dtype)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def shared_rotary_tables(
    context: SequenceContext, width: int, theta: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rotary_tables` at the context's positions, computed once for all layers."""
    key = ("rotary", width, theta, torch.promote_types(dtype, torch.float32))
    return context.shared(key, lambda: rotary_tables(context.position_ids, width, theta, dtype))


def apply_rotary(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Turn x (B, H, L, D) by the angles of `rotary_tables`; computed in at least float32, returned in x's dtype."""
    cos, sin = tables
    if rotates_natively(x):
        return rotate_step(x, cos, sin)
    full = at_least_float32(x)
    return torch.addcmul(full * cos, full.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


def to_light_cone(x: torch.Tensor) -> torch.Tensor:
    """Return (..., D) with the coordinates u = (x1 + x2)/sqrt 2 of all adjacent pairs, then w = (x1 - x2)/sqrt 2."""
    first, second = at_least_float32(x).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat([first + second, first - second], dim=-1) * 0.5**0.5


class HopeRates(NamedTuple):
    """How fast the features of a layer decay.

    past, future: rates per token of distance, for keys behind and ahead of a query, each (D,) float64.
    span: how many positions one centre can serve before a factor of `hope_features` reaches e^30; a number, which
        torch.compile could not take from a tensor.
    """

    past: torch.Tensor
    future: torch.Tensor
    span: int


def hope_rates(width: int, damping: float, rho: float, base: float) -> HopeRates:
    """Return the decay rates of a layer; `damping` is its theta'.

    In light-cone coordinates a pair decays with theta' - phi along u and theta' + phi along w; for keys that lie
    ahead the two change places.
    """
    pairs = width // 2
    steps = torch.arange(pairs, dtype=torch.float64) / max(pairs - 1, 1)
    phi = rho * damping * base ** (-steps)
    slower, faster = damping - phi, damping + phi
    fastest = damping + rho * damping
    return HopeRates(torch.cat([slower, faster]), torch.cat([faster, slower]), max(int(2 * MAX_EXPONENT / fastest), 1))


def hope_features(
    q: torch.Tensor,
    k: torch.Tensor,
    query_ids: torch.Tensor,
    key_ids: torch.Tensor,
    rates: torch.Tensor,
    centre: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q', k' with q'_m . k'_n = sum_f q_mf k_nf exp(-rate_f (m - n)) where that exponent is not positive.

    Args:
        q, k: (B, H, Lq, D) and (B, H, Lk, D) in light-cone coordinates, at least float32.
        query_ids, key_ids: (B or 1, Lq) and (B or 1, Lk); either of them spans at most `HopeRates.span` positions
            around the centre, and the other may lie as far away as it likes, on the side that the exponent decays to.
        rates: (D,) decay per position of m - n; negative rates serve keys that lie ahead.
        centre: (B or 1,) position to count from, the `middle` of those that are near.
    """
    centre = centre[:, None, None, None]

    def factor(ids, signed_rates):
        exponent = signed_rates.to(q) * (ids[:, None, :, None] - centre).to(q.dtype)
        # Only a pair on the wrong side of the diagonal can reach the upper bound; the caller discards it. Below the
        # lower one a factor is 0: what it would give is beneath rounding, and subnormal numbers are slow.
        return torch.exp(F.threshold(exponent.clamp_max(MAX_EXPONENT), MIN_EXPONENT, float("-inf")))

    return q * factor(query_ids, -rates), k * factor(key_ids, rates)


def middle(ids: torch.Tensor) -> torch.Tensor:
    """Return (B or 1,), the position halfway between the least and the greatest of ids (B or 1, L)."""
    return 0.5 * (ids.amin(1) + ids.amax(1))


def hope_cuts(
    query_ids: torch.Tensor, key_ids: torch.Tensor, span: int, is_contiguous: bool
) -> list[tuple[int, int]] | None:
    """Cut queries (B or 1, Lq) into as few runs, (start, stop), as can have a centre each for all keys before them.

    A run spans at most `span` positions. Keys may lie any distance behind it: their factor fades to 0, as
    does their score, so that the result is exact. None when key_ids (B or 1, Lk) fall: what comes earlier in the
    sequence is then not always the past.
    """
    length = query_ids.shape[1]
    if torch.compiler.is_exporting() and is_contiguous:
        check_one_run(length, span)
        return [(0, length)]
    if is_contiguous:  # neighbours differ by 0 or 1, which spares looking at the ids
        starts = list(range(0, length, span))
    elif bool((key_ids.diff(dim=1) < 0).any()):
        return None
    else:
        starts, ids = [0], query_ids.cpu()
        while starts[-1] < length:
            # the first token, in any row, that is too far from the start of the run
            starts.append(int((ids - ids[:, starts[-1], None] < span).sum(1).min()))
        starts.pop()
    return list(zip(starts, [*starts[1:], length], strict=True))


def check_one_run(length: int, span: int) -> None:
    """Make an exported program, which serves every length and so cannot cut, refuse more than one centre can serve."""
    torch._check(length <= span, lambda: f"hyperbolic positions of an exported program serve {span} tokens at most")


def _directed_scores(q, k, query_ids, key_ids, rates, span):
    if torch.compiler.is_exporting():
        check_one_run(k.shape[2], span)
        queries, keys = hope_features(q, k, query_ids, key_ids, rates, middle(key_ids))
        return queries @ keys.transpose(-1, -2)
    scores = []
    for start in range(0, k.shape[2], span):
        keys, ids = k[:, :, start : start + span], key_ids[:, start : start + span]
        queries, keys = hope_features(q, keys, query_ids, ids, rates, middle(ids))
        scores.append(queries @ keys.transpose(-1, -2))
    return torch.cat(scores, dim=-1)


def _spread_scores(q, k, query_ids, key_ids, rates):
    """The definition, pair by pair, feature by feature: for positions with holes too wide for any centre."""
    distance = (query_ids[:, :, None] - key_ids[:, None, :]).to(q.dtype)[:, None]  # (B,1,Lq,Lk)
    past_rates, future_rates = (rate.to(q)[:, None, None] for rate in (rates.past, rates.future))
    total = q.new_zeros(())
    for feature in range(q.shape[-1]):
        rate = torch.where(distance >= 0, past_rates[feature], future_rates[feature])
        total = total + q[..., feature, None] * k[..., None, :, feature] * torch.exp(-rate * distance.abs())
    return total


def hope_fits(position_ids: torch.Tensor, span: int, is_contiguous: bool) -> bool:
    """Return whether one centre serves every block of `span` keys.

    `is_contiguous` says that neighbours differ by 0 or 1, which spares looking at the ids. Ids that fall do not fit:
    what comes earlier in the sequence would then not always be the past.
    """
    if is_contiguous:
        return True
    if bool((position_ids.diff(dim=1) < 0).any()):
        return False
    return all(int((ids.amax(1) - ids.amin(1)).max()) < span for ids in position_ids.split(span, dim=1))


def hope_scores(
    q: torch.Tensor,
    k: torch.Tensor,
    query_ids: torch.Tensor,
    key_ids: torch.Tensor,
    rates: HopeRates,
    is_causal: bool,
    is_contiguous: bool = False,
) -> torch.Tensor:
    """Return the unscaled logits (B, H, Lq, Lk) of hyperbolic attention.

    Args:
        q, k: (B, H, Lq, D) and (B, H, Lk, D) in light-cone coordinates, at least float32.
        query_ids, key_ids: (B or 1, Lq) and (B or 1, Lk) int64.
        rates: from `hope_rates`.
        is_causal: True leaves the entries above the diagonal unspecified (but finite): the caller masks them.
        is_contiguous: positions are known to rise by 0 or 1 from key to key; otherwise they are looked at.
    """
    if not hope_fits(key_ids, rates.span, is_contiguous):
        return _spread_scores(q, k, query_ids, key_ids, rates)
    past = _directed_scores(q, k, query_ids, key_ids, rates.past, rates.span)
    if is_causal:
        return past
    future = _directed_scores(q, k, query_ids, key_ids, -rates.future, rates.span)
    is_past = query_ids[:, :, None] >= key_ids[:, None, :]
    return torch.where(is_past[:, None], past, future)
