"""Softmax attention over a window and over slots, which keep keys and values of tokens that have left the window.

A token that leaves the window of W tokens takes, in each head, the lowest empty of S slots or else the one of lowest
standing. A query sees the window and all slots in one softmax. Standings are ranked anew every T tokens, from
sigmoid(importance) decay^age + 0.1 use / max use - 0.05 age / max age, where importance is learned, age counts
rankings and use sums the reads; slots written since the last ranking are not replaced before the next, so T <= S.
Between rankings it is known in advance which slot each token will take: T queries are computed at once, exactly.

Such a choice has no gradient. What teaches the importance is a bias on the logits of slots, pressure *
log sigmoid(importance), with pressure = min(1, slots replaced so far / S): a token that is about to be forgotten is
read less before it goes, and one that reads are better without is valued less. While nothing was replaced the bias is
0, so attention with enough slots is attention over everything, exactly.

After TRIM-KV (arXiv:2512.03324: a learned importance per token and head that fades and decides what is evicted; there
the bias grows with age and nothing is evicted in training), H2O (2306.14048: use decides), TOVA (2401.06104: one token
out for each that comes in), Compressive Transformers (1911.05507) and Memorizing Transformers (2203.08913: keys and
values of a past out of reach of the window and of the gradient; here the gradient goes through the slots).

Shapes: B batch, H heads, L new tokens, K head width, S slots, W window, R = W - 1 tokens of its past, T tokens between
two rankings (a segment). Places count a row's real tokens from the start of its segment.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .attention_slots_state import PROTECTED, AttentionSlotsState
from .norms import at_least_float32

USE_WEIGHT = 0.1
AGE_WEIGHT = 0.05


@dataclass(frozen=True)
class SlotOptions:
    """What the recurrence is run with.

    Attributes:
        window: W.
        segment: T.
        decay: factor on an importance for each ranking since its slot was written, where slots are ranked.
        scale: of the logits.
        dropout: on the attention weights.
        shuffle: row b reads the slots of row b + 1, the last row those of the first, segment for segment.
        keep_reads: also return where the reads went.
    """

    window: int
    segment: int
    decay: float
    scale: float
    dropout: float = 0.0
    shuffle: bool = False
    keep_reads: bool = False


@dataclass(frozen=True)
class TokenGrid:
    """Where the tokens of a call lie among the places of their rows.

    Attributes:
        sources: (B, R + C T) int64 for C segments: which of R recent and L new tokens is at each of the places -R..C T,
            R + L where none is.
        cells: (B, L) int64, the place of each new token; C T for pads.
        ends: (B,) int64, the place behind a row's last token.
    """

    sources: torch.Tensor
    cells: torch.Tensor
    ends: torch.Tensor

    @classmethod
    def lay_out(
        cls, state: AttentionSlotsState, length: int, mask: torch.Tensor | None, segment: int, *, is_fresh: bool
    ):
        """Lay `length` new columns, of which mask (B, L) marks the real tokens, behind what the state holds.

        `is_fresh` says that this is nothing, which is then not looked up.
        """
        device, batch_size = state.count.device, state.count.shape[0]
        recent = state.recent_keys.shape[2]
        # the most that any row can touch: a row may stand one token before its segment's end
        size = -(-(length if is_fresh or length == 1 else segment - 1 + length) // segment) * segment
        mask = torch.ones(batch_size, length, dtype=torch.bool, device=device) if mask is None else mask
        places = state.count[:, None] + mask.cumsum(1) - 1
        cells = torch.where(mask, places, size)
        order = torch.arange(recent + length, device=device)
        is_there = torch.cat([order[:recent] >= recent - state.recent_count[:, None], mask], dim=1)
        targets = torch.cat([state.count[:, None] + order[:recent], recent + places], dim=1)
        targets = torch.where(is_there, targets, recent + size)  # one column more than there are places
        sources = torch.full((batch_size, recent + size + 1), recent + length, device=device)
        sources = sources.scatter(1, targets, order.expand(batch_size, -1))[:, :-1]
        return cls(sources, cells, state.count + mask.sum(1))

    def lay(self, recent: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Return (B, H, R + C T, K) of recent (B, H, R, K) and new (B, H, L, K), zero where no token is."""
        tokens = F.pad(torch.cat([recent, new], dim=2), (0, 0, 0, 1))
        return tokens.gather(2, self.sources[:, None, :, None].expand(-1, tokens.shape[1], -1, tokens.shape[3]))

    def collect(self, grid: torch.Tensor) -> torch.Tensor:
        """Bring places (B, H, C T, F) back to the tokens' order: (B, H, L, F), zero at pads."""
        grid = F.pad(grid, (0, 0, 0, 1))
        return grid.gather(2, self.cells[:, None, :, None].expand(-1, grid.shape[1], -1, grid.shape[3]))


def slot_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    importance: torch.Tensor,
    mask: torch.Tensor | None,
    state: AttentionSlotsState,
    options: SlotOptions,
    *,
    is_fresh: bool = False,
) -> tuple[torch.Tensor, AttentionSlotsState, torch.Tensor | None]:
    """Attend from every new token to its window and to the slots as they are when it comes.

    Args:
        q, k, v: (B, H, L, K).
        importance: (B, H, L) logits, in at least float32.
        mask: (B, L) bool, True at real tokens; pads are not seen and leave no trace.
        state: of the tokens before.
        is_fresh: that there are none.

    Returns:
        The heads' outputs (B, H, L, K), zero at pads, the next state, and with `keep_reads` (B, L, S + 1): the read
        mass of each token on each slot, averaged over heads, that on the window last; zero at pads.
    """
    state = fit_window(state, options)
    recent, segment = options.window - 1, options.segment
    grid = TokenGrid.lay_out(state, k.shape[2], mask, segment, is_fresh=is_fresh)
    keys, values = grid.lay(state.recent_keys, k), grid.lay(state.recent_values, v)
    importance = grid.lay(state.recent_importance[..., None], importance[..., None])[..., 0]
    missing = recent + k.shape[2]
    valid = grid.sources < missing  # (B, R + C T)
    new = valid & (grid.sources >= recent)
    queries = grid.lay(torch.zeros_like(state.recent_keys), q)[:, :, recent:]
    outputs, reads = [], []
    for start in range(0, queries.shape[2], segment):
        local = slice(start, start + recent + segment)
        state, output, mass = _run_segment(
            queries[:, :, start : start + segment],
            keys[:, :, local],
            values[:, :, local],
            importance[:, :, local],
            valid[:, local],
            new[:, recent:][:, start : start + segment],
            (grid.ends - start).clamp(0, segment),
            state,
            options,
        )
        outputs.append(output)
        reads.append(mass)
    # (B, H, R, K) each: the last R places
    last = (grid.ends[:, None] + torch.arange(recent, device=q.device))[:, None, :]
    rows = last[..., None].expand(-1, k.shape[1], -1, k.shape[3])
    state = replace(
        state,
        recent_keys=keys.gather(2, rows),
        recent_values=values.gather(2, rows),
        recent_importance=importance.gather(2, last.expand(-1, k.shape[1], -1)),
        recent_count=(state.recent_count + new.sum(1)).clamp(max=recent),
        count=grid.ends % segment,
        tokens_read=state.tokens_read + new.sum(1),
    )
    heads = grid.collect(torch.cat(outputs, dim=2))
    return heads, state, grid.collect(torch.cat(reads, dim=1)[:, None])[:, 0] if options.keep_reads else None


def slot_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    importance: torch.Tensor,
    state: AttentionSlotsState,
    options: SlotOptions,
) -> tuple[torch.Tensor, AttentionSlotsState]:
    """`slot_attention` for one real token in every row, as in decoding: q, k, v (B, H, 1, K), importance (B, H, 1)."""
    state = fit_window(state, options)
    recent, slots = options.window - 1, state.num_slots
    keys, values = torch.cat([state.recent_keys, k], dim=2), torch.cat([state.recent_values, v], dim=2)
    importance = torch.cat([state.recent_importance, importance], dim=2)  # (B, H, R + 1)
    in_window = torch.arange(recent + 1, device=q.device) >= recent - state.recent_count[:, None]
    pressure = (state.overwrites.to(importance.dtype) / slots).clamp(max=1)[:, None, None]
    bias = torch.cat([pressure * F.logsigmoid(state.importance), torch.zeros_like(importance)], dim=2)
    sees = torch.cat([state.occupied, in_window[:, None].expand_as(importance)], dim=2)[:, :, None]
    logits = at_least_float32(q @ torch.cat([state.keys, keys], dim=2).transpose(-1, -2)) * options.scale
    weights = (logits + bias[:, :, None]).masked_fill(~sees, float("-inf")).softmax(3)  # (B, H, 1, S + R + 1)
    output = F.dropout(weights, options.dropout).to(values.dtype) @ torch.cat([state.values, values], dim=2)

    use = weights.detach()[:, :, 0, :slots]
    arrivals = (keys, values, importance, torch.zeros_like(importance[:, :, :1]))
    state = _write(state, _places(state.standing), (state.recent_count == recent)[:, None], arrivals, use)
    state = replace(
        state,
        recent_keys=keys[:, :, 1:],
        recent_values=values[:, :, 1:],
        recent_importance=importance[:, :, 1:],
        recent_count=(state.recent_count + 1).clamp(max=recent),
        count=(state.count + 1) % options.segment,
        slot_mass=state.slot_mass + use.sum((1, 2)) / q.shape[1],
        tokens_read=state.tokens_read + 1,
    )
    return output, _rank_where(state, state.count == 0, options.decay)


def _run_segment(q, keys, values, importance, valid, is_new, end, state, options):
    """Attend from the queries q (B, H, T, K) of one segment, and write what leaves the window behind them.

    Args:
        keys, values: (B, H, R + T, K), importance: (B, H, R + T), valid: (B, R + T): the tokens in reach. Query t sees
            t..t + R as its window. Token l < T has left the window when query l + 1 comes: it arrives in a slot then.
        is_new: (B, T) bool, the queries that there are.
        end: (B,), the queries of this segment that there have been after this call.
    """
    segment, slots = options.segment, state.num_slots
    steps = torch.arange(segment, device=q.device)
    reach = torch.arange(valid.shape[1], device=q.device)
    arrives = valid[:, :segment]  # (B, T)
    before = arrives.long().cumsum(1) - arrives.long()  # (B, T), slots taken in this segment before query t
    place = _places(state.standing)  # (B, H, S), how many slots are taken before this one
    # (B, H, T, S), (B, 1, T, T) and (B, 1, T, R + T)
    sees_slots = state.occupied[:, :, None] & (place[:, :, None] >= before[:, None, :, None])
    sees_arrivals = (arrives[:, None] & (steps < steps[:, None]))[:, None]
    distance = reach - steps[:, None]
    in_window = (valid[:, None] & (distance >= 0) & (distance < options.window))[:, None]
    sees_window = in_window | (distance == options.window - 1)  # itself, so that no softmax runs over nothing
    replaced = (state.occupied[:, 0].sum(1, keepdim=True) + before - slots).clamp_min(0)
    pressure = ((state.overwrites[:, None] + replaced).to(importance.dtype) / slots).clamp(max=1)  # (B, T)

    told = torch.cat([state.importance, importance[:, :, :segment]], dim=2)  # (B, H, S + T), as the two below
    slot_keys = torch.cat([state.keys, keys[:, :, :segment]], dim=2)
    slot_values = torch.cat([state.values, values[:, :, :segment]], dim=2)
    sees = torch.cat([sees_slots, sees_arrivals.expand(-1, q.shape[1], -1, -1)], dim=3)
    bias = pressure[:, None, :, None] * F.logsigmoid(told)[:, :, None]
    if options.shuffle:
        slot_keys, slot_values, sees, bias = (x.roll(-1, dims=0) for x in (slot_keys, slot_values, sees, bias))
    logits = at_least_float32(q @ torch.cat([slot_keys, keys], dim=2).transpose(-1, -2)) * options.scale
    on_slots, on_window = logits.split([slots + segment, valid.shape[1]], dim=3)
    weights = torch.cat(
        [
            (on_slots + bias).masked_fill(~sees, float("-inf")),
            on_window.masked_fill(~sees_window, float("-inf")),
        ],
        dim=3,
    ).softmax(3)
    output = F.dropout(weights, options.dropout).to(values.dtype) @ torch.cat([slot_values, values], dim=2)

    mass = weights.detach()[..., : slots + segment] * is_new[:, None, :, None]  # (B, H, T, S + T)
    use = mass.sum(2).roll(1, dims=0) if options.shuffle else mass.sum(2)
    state = replace(state, slot_mass=state.slot_mass + mass.sum((1, 2, 3)) / q.shape[1])
    reads = _mass_per_slot(mass, place, arrives, is_new, options.shuffle) if options.keep_reads else None
    arrivals = (keys, values, importance, use[:, :, slots:])
    state = _write(state, place, arrives & (steps < end[:, None]), arrivals, use[:, :, :slots])
    return _rank_where(state, (end == segment) & is_new.any(1), options.decay), output, reads


def _places(standing: torch.Tensor) -> torch.Tensor:
    """Return (B, H, S) int64: how many slots are taken before each; lower standing first, of equal ones the lower."""
    return standing.argsort(dim=2, stable=True).argsort(dim=2)


def _write(state, place, writes, arrivals, use) -> AttentionSlotsState:
    """Put the arrivals that `writes` (B, T) marks, which follow each other, into slots in the order of their places.

    Takes keys and values (B, H, T or more, K), importance (B, H, T or more) and use (B, H, T) of the arrivals, and the
    use (B, H, S) of the slots.
    """
    keys, values, importance, new_use = arrivals
    count, first = writes.sum(1)[:, None, None], writes.long().argmax(1)[:, None, None]
    taken = place < count  # (B, H, S)
    source = (first + place).clamp(max=writes.shape[1] - 1)
    rows = source[..., None].expand(-1, -1, -1, keys.shape[3])
    return replace(
        state,
        keys=torch.where(taken[..., None], keys.gather(2, rows), state.keys),
        values=torch.where(taken[..., None], values.gather(2, rows), state.values),
        importance=torch.where(taken, importance.gather(2, source), state.importance),
        standing=torch.where(taken, PROTECTED, state.standing),
        age=torch.where(taken, 0.0, state.age),
        use=torch.where(taken, new_use.gather(2, source), state.use + use),
        overwrites=state.overwrites + (taken & state.occupied)[:, 0].sum(1),
    )


@torch.no_grad()
def _rank_where(state: AttentionSlotsState, rows: torch.Tensor, decay: float) -> AttentionSlotsState:
    """Rank the slots of the rows (B,) bool anew; those of the others keep their standing."""
    ranked = rows[:, None, None] & state.occupied
    age = state.age + ranked
    score = state.importance.sigmoid() * decay**age + USE_WEIGHT * _relative(state.use) - AGE_WEIGHT * _relative(age)
    return replace(state, age=age, standing=torch.where(ranked, score, state.standing))


def _relative(x: torch.Tensor) -> torch.Tensor:
    """Return x (B, H, S) over its largest entry per head; zeros where that is 0."""
    largest = x.amax(2, keepdim=True)
    return x / torch.where(largest > 0, largest, 1.0)


def _mass_per_slot(mass, place, arrives, is_new, shuffle: bool) -> torch.Tensor:
    """Return (B, T, S + 1): mass (B, H, T, S + T), arrivals counted to the slots they take, the window's part last."""
    slots = place.shape[2]
    order = place.argsort(dim=2)  # (B, H, S), which slot is taken n-th
    nth = (arrives.long().cumsum(1) - 1).clamp(0, slots - 1)  # (B, T)
    target = order.gather(2, nth[:, None].expand(-1, place.shape[1], -1))  # (B, H, T)
    if shuffle:
        target = target.roll(-1, dims=0)
    target = target[:, :, None].expand(-1, -1, mass.shape[2], -1)
    per_slot = mass[..., :slots].scatter_add(3, target, mass[..., slots:]).mean(1)
    return torch.cat([per_slot, is_new[..., None].to(per_slot.dtype) - per_slot.sum(2, keepdim=True)], dim=2)


def fit_window(state: AttentionSlotsState, options: SlotOptions) -> AttentionSlotsState:
    """Return the state for a window of `options.window`: what no longer lies in it goes into slots, oldest first."""
    recent = options.window - 1
    surplus = state.recent_keys.shape[2] - recent
    if surplus == 0:
        return state
    names = ("recent_keys", "recent_values", "recent_importance")
    if surplus < 0:
        keys, values, importance = (getattr(state, name) for name in names)
        pads = (0, 0, -surplus, 0)
        fitted = F.pad(keys, pads), F.pad(values, pads), F.pad(importance, (-surplus, 0))
        return replace(state, **dict(zip(names, fitted, strict=True)))
    always = torch.ones_like(state.count, dtype=torch.bool)
    for start in range(0, surplus, options.segment):
        piece = slice(start, min(start + options.segment, surplus))
        keys, values, importance = (getattr(state, name)[:, :, piece] for name in names)
        columns = torch.arange(state.recent_keys.shape[2], device=keys.device)[piece]
        writes = columns >= state.recent_keys.shape[2] - state.recent_count[:, None]
        # at most a segment may be written between two rankings, and earlier tokens of this one may have been
        state = _rank_where(state, always, options.decay)
        arrivals = (keys, values, importance, torch.zeros_like(importance))
        state = _write(state, _places(state.standing), writes, arrivals, torch.zeros_like(state.use))
    state = _rank_where(state, always, options.decay)
    kept = {name: getattr(state, name)[:, :, surplus:] for name in names}
    return replace(state, **kept, recent_count=state.recent_count.clamp(max=recent))
