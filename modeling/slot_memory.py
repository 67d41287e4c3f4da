"""Slot memory: a row of text writes a summary of every segment into slots and reads them by content.

A causal, differentiable redesign of the external memory of INFINITO V5.2 (webtilians/principiodelTodo, 2025).
Read: token h asks q = W_q h; a slot's logit is q.k / sqrt(K) + log(importance + 1e-6), a null slot has logit 0 and
value 0; h + sigmoid(w_g h + b_g) W_o r. A token sees what was written when its segment began.
Write: when a row's segment is full, its tokens are pooled by softmax(w_a h) into one key, one value and one importance
sigmoid(w_i h + b_i), all differentiable; they go to the lowest empty slot, or replace the slot that scores highest in
-importance - 0.1 access / max access + 0.05 age / max age, a choice without gradient.
The memory belongs to a row, never to the module: forward() takes a SlotMemoryState and returns the next.
Shapes: B batch, L length, D hidden, S slots, W slot width, H heads, K = W / H, C segments that a call touches (the open
one first), T tokens of a segment that a call can bring, F = 2 W + 1 contents of a token (key, value, importance).
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .full_linear import FullPrecisionLinear, apply_full_together
from .norms import at_least_float32, full_precision

IMPORTANCE_FLOOR = 1e-6
ACCESS_WEIGHT = 0.1
AGE_WEIGHT = 0.05
EMPTY_BONUS = 1e3


@dataclass(frozen=True)
class SlotMemoryState:
    """What one memory layer remembers of each row; every tensor has the batch first and is never changed in place.

    Attributes:
        keys, values: (B, S, W).
        importance: (B, S) in (0, 1), faded by every write since its own; 0 in an empty slot.
        occupied: (B, S) bool.
        age: (B, S) writes of the row since the slot was written.
        access: (B, S) read mass the slot has received since then, from full segments, averaged over heads.
        open_access: (B, S) the same from the open segment.
        numerator: (B, F), denominator: (B, 1), maximum: (B, 1): pooling of the open segment as a running softmax; the
            pooled contents are numerator / denominator, both in units of exp(maximum).
        count: (B,) int64, real tokens in the open segment, less than a full one.
        overwrites: (B,) int64, occupied slots replaced so far.
        null_mass: (B,) sum over the real tokens so far of their read mass on the null slot.
        tokens_read: (B,) int64, real tokens so far.
    """

    keys: torch.Tensor
    values: torch.Tensor
    importance: torch.Tensor
    occupied: torch.Tensor
    age: torch.Tensor
    access: torch.Tensor
    open_access: torch.Tensor
    numerator: torch.Tensor
    denominator: torch.Tensor
    maximum: torch.Tensor
    count: torch.Tensor
    overwrites: torch.Tensor
    null_mass: torch.Tensor
    tokens_read: torch.Tensor

    @classmethod
    def empty(cls, batch_size: int, num_slots: int, width: int, like: torch.Tensor) -> "SlotMemoryState":
        """Return the state of rows that have read nothing, on the device and in the dtype of `like`."""
        slots, row = like.new_zeros(batch_size, num_slots), like.new_zeros(batch_size)
        whole = torch.zeros_like(row, dtype=torch.int64)
        return cls(
            keys=like.new_zeros(batch_size, num_slots, width),
            values=like.new_zeros(batch_size, num_slots, width),
            importance=slots,
            occupied=torch.zeros_like(slots, dtype=torch.bool),
            age=slots,
            access=slots,
            open_access=slots,
            numerator=like.new_zeros(batch_size, 2 * width + 1),
            denominator=row[:, None],
            maximum=torch.full_like(row[:, None], float("-inf")),
            count=whole,
            overwrites=whole,
            null_mass=row,
            tokens_read=whole,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors by name."""
        return dict(self.__dict__)

    def detach(self) -> "SlotMemoryState":
        """Return the state cut off from the graph that made it."""
        return SlotMemoryState(**{name: tensor.detach() for name, tensor in self.tensors().items()})

    def select(self, rows: torch.Tensor) -> "SlotMemoryState":
        """Return the state of the rows `rows` (N,) int64, in that order; a row may come more than once."""
        return SlotMemoryState(**{name: tensor.index_select(0, rows) for name, tensor in self.tensors().items()})

    def statistics(self) -> dict[str, torch.Tensor]:
        """Return (B,) floats that describe the row so far: plain statistics of the memory's use.

        slots_used: occupied slots. mean_importance: over the occupied slots, 0 without any. rotation: occupied slots
        replaced, over all slots. null_mass: mean read mass on the null slot, over tokens and heads; a token that meets
        an empty memory counts with 1, and a row without tokens is given 0.
        """
        used = self.occupied.sum(1)
        return {
            "slots_used": used.to(self.importance.dtype),
            "mean_importance": self.importance.detach().sum(1) / used.clamp_min(1),
            "rotation": self.overwrites / self.occupied.shape[1],
            "null_mass": self.null_mass / self.tokens_read.clamp_min(1),
        }

    def check(self, name: str, batch_size: int, num_slots: int, width: int, segment: int, device: torch.device) -> None:
        """Raise ValueError unless the state fits a batch, a memory of this size, and the device."""
        expected = (batch_size, num_slots, width)
        if self.keys.device != device:
            raise ValueError(f"{name} lies on {self.keys.device}, the model on {device}: move it there.")
        count = int(self.count.max())
        if count >= segment:
            raise ValueError(
                f"{name} has {count} tokens in its open segment, but memory_segment={segment}: it comes from a model "
                "of another memory_segment."
            )
        if self.keys.shape != expected:
            raise ValueError(
                f"{name} holds keys of shape {tuple(self.keys.shape)}, expected (batch, memory_slots, memory_dim) = "
                f"{expected}: carry a state on with as many rows, and into a model of the same memory."
            )


@dataclass(frozen=True)
class SegmentGrid:
    """Where each new token lies among the segments of its row: a grid of C segments by T tokens.

    Attributes:
        num_segments, tokens_per_segment: C and T. T is the memory's segment, or 1 when one token comes at a time.
        cells: (B, L) int64, the cell of each token in the flattened grid, C * T for pads; None when token i is in
            cell i in every row.
        filled: (B or 1, C, T) bool, the cells that hold a real token.
        closed: (B,) int64, how many segments become full; the one after them stays open.
        count: (B,) int64, tokens then in the open segment.
    """

    num_segments: int
    tokens_per_segment: int
    cells: torch.Tensor | None
    filled: torch.Tensor
    closed: torch.Tensor
    count: torch.Tensor

    @classmethod
    def lay_out(cls, count: torch.Tensor, length: int, mask: torch.Tensor | None, segment: int, *, is_fresh: bool):
        """Lay out `length` new columns, of which mask (B, L) marks the real tokens, behind `count` (B,) earlier ones.

        `is_fresh` says that count is zero everywhere, which is then not looked up.
        """
        device = count.device
        total = count + (length if mask is None else mask.sum(1))
        closed = total // segment
        num_segments, width = -(-(length if is_fresh else segment - 1 + length) // segment), segment
        if length == 1:
            num_segments, width = 1, 1
            position = torch.zeros_like(count)[:, None]
        elif mask is None:
            position = count[:, None] + torch.arange(length, device=device)
        else:
            position = count[:, None] + mask.cumsum(1) - 1
        size = num_segments * width
        if mask is None and (is_fresh or length == 1):
            cells, filled = None, (torch.arange(size, device=device) < length)[None]
        else:
            cells = position if mask is None else torch.where(mask, position, size)
            filled = torch.zeros(len(count), size + 1, dtype=torch.bool, device=device)
            filled = filled.scatter(1, cells, True)[:, :-1]
        filled = filled.unflatten(1, (num_segments, width))
        return cls(num_segments, width, cells, filled, closed, total - closed * segment)

    @property
    def closes(self) -> torch.Tensor:
        """Return (B, C) bool: which segments become full."""
        return torch.arange(self.num_segments, device=self.closed.device) < self.closed[:, None]

    def spread(self, x: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
        """Lay x (B, L, F) out on the grid: (B, C, T, F), with `fill` where no token is."""
        size = self.num_segments * self.tokens_per_segment
        if self.cells is None:
            grid = F.pad(x, (0, 0, 0, size - x.shape[1]), value=fill)
        else:
            grid = x.new_full((x.shape[0], size + 1, x.shape[2]), fill)
            grid = grid.scatter(1, self.cells[:, :, None].expand_as(x), x)[:, :-1]
        return grid.unflatten(1, (self.num_segments, self.tokens_per_segment))

    def collect(self, grid: torch.Tensor, length: int) -> torch.Tensor:
        """Bring a grid (B, C, T, F) back to the tokens' order: (B, L, F), zero at pads."""
        flat = grid.flatten(1, 2)
        if self.cells is None:
            return flat[:, :length]
        flat = F.pad(flat, (0, 0, 0, 1))
        return flat.gather(1, self.cells[:, :, None].expand(-1, -1, flat.shape[2]))


@dataclass(frozen=True)
class SegmentSummaries:
    """What the segments of a call amount to: keys and values (B, C, W), importance (B, C); meaningful where full."""

    keys: torch.Tensor
    values: torch.Tensor
    importance: torch.Tensor


class ZeroLinear(nn.Linear):
    """A linear map without bias that starts at zero, so that the branch it ends starts as nothing."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        init.zeros_(self.weight)


class SlotMemory(nn.Module):
    """The memory of one layer: forward(x, mask, state) -> (x with what was read, the next state, read mass or None).

    Args:
        num_slots, width: S and W.
        num_heads: heads of the read; each sees its own W / H columns of keys and values.
        segment: real tokens per write.
        decay: factor on the importance of every slot that survives a write.
    """

    def __init__(self, hidden_size: int, *, num_slots: int, width: int, num_heads: int, segment: int, decay: float):
        super().__init__()
        self.num_slots = num_slots
        self.width = width
        self.num_heads = num_heads
        self.segment = segment
        self.decay = decay
        self.scale = (width // num_heads) ** -0.5
        self.q_proj = nn.Linear(hidden_size, width, bias=False)
        self.k_proj = nn.Linear(hidden_size, width, bias=False)
        self.v_proj = nn.Linear(hidden_size, width, bias=False)
        self.o_proj = ZeroLinear(width, hidden_size)  # the gate is half open, so the gradient reaches it at once
        self.gate = FullPrecisionLinear(hidden_size, 1)
        self.pooling = FullPrecisionLinear(hidden_size, 1, bias=False)
        self.importance = FullPrecisionLinear(hidden_size, 1)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        state: SlotMemoryState | None = None,
        *,
        shuffle: bool = False,
        keep_reads: bool = False,
    ) -> tuple[torch.Tensor, SlotMemoryState, torch.Tensor | None]:
        """Read for every token, and write the segments that become full.

        Args:
            x: (B, L, D), the layer's input; reads and writes both see it as it comes.
            mask: (B, L) bool, True at real tokens; pads neither read nor write.
            state: what earlier calls returned; None at the start of a text.
            shuffle: let row b read the memory of row b + 1 (the last row that of the first), segment for segment; in
                pieces it is the same only for rows with equally many real tokens, since a row ahead cannot wait.
            keep_reads: also return (B, L, S + 1), each token's read mass per slot, mean over heads, the null slot last.
        """
        if self.is_step(x, mask, state) and not (shuffle or keep_reads):
            return *self.step(x, state), None
        queries, contents, scores, gates = self.project(x)
        is_fresh = state is None
        if is_fresh:
            state = SlotMemoryState.empty(x.shape[0], self.num_slots, self.width, contents)
        grid = SegmentGrid.lay_out(state.count, x.shape[1], mask, self.segment, is_fresh=is_fresh)
        with full_precision(x.device.type):
            queries = grid.spread(queries).unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)
            summaries, state = self.pool(grid, grid.spread(scores, float("-inf")), grid.spread(contents), state)
            # The loop is short when one segment is all there is. Training prefers the other form even then: a write
            # that nobody reads yet gets a gradient of zero there, not none, as DDP needs.
            if (grid.num_segments > 1 or self.training) and self.has_room(grid, state, is_fresh):
                read, mass, state = self.run_parallel(grid, queries, summaries, state, shuffle)
            else:
                read, mass, state = self.run_segments(grid, queries, summaries, state, shuffle)
            state = self.count_reads(grid, mass, state)
        delta = self.o_proj(grid.collect(read, x.shape[1]).to(x.dtype))
        reads = grid.collect(mass, x.shape[1]) if keep_reads else None
        return (x + gates * delta).to(x.dtype), state, reads

    def is_step(self, x: torch.Tensor, mask: torch.Tensor | None, state: SlotMemoryState | None) -> bool:
        """Whether one real token per row goes on from a state, as in decoding."""
        return x.shape[1] == 1 and mask is None and state is not None and not self.training

    def step(self, x: torch.Tensor, state: SlotMemoryState) -> tuple[torch.Tensor, SlotMemoryState]:
        """One real token per row, x (B, 1, D): the general form without its grid, at a third of its time."""
        queries, contents, scores, gates = self.project(x)
        with full_precision(x.device.type):
            log_importance = _log_importance(state.importance, state.occupied)[:, None, None]
            queries, keys, values = (
                heads.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for heads in (queries, state.keys, state.values)
            )
            logits = queries @ keys.transpose(-1, -2) * self.scale + log_importance
            weights = F.pad(logits, (0, 1)).softmax(-1)  # the null slot: logit 0, value 0
            read = (weights[..., :-1] @ values).transpose(1, 2).flatten(2)
            mass = weights.detach().mean((1, 2))
            maximum = torch.maximum(state.maximum, scores[:, 0].detach())
            kept, weight = (state.maximum - maximum).exp(), (scores[:, 0] - maximum).exp()
            state = replace(
                state,
                numerator=kept * state.numerator + weight * contents[:, 0],
                denominator=kept * state.denominator + weight,
                maximum=maximum,
                count=state.count + 1,
                open_access=state.open_access + mass[:, :-1],
                null_mass=state.null_mass + mass[:, -1],
                tokens_read=state.tokens_read + 1,
            )
            state = self.close(state)
        return (x + gates * self.o_proj(read.to(x.dtype))).to(x.dtype), state

    def close(self, state: SlotMemoryState) -> SlotMemoryState:
        """Write the open segment of each row in which it is full, and open an empty one there."""
        is_full = state.count == self.segment
        if not bool(is_full.any()):
            return state
        pooled = state.numerator / torch.where(state.denominator > 0, state.denominator, 1.0)
        keys, values, importance = pooled.split([self.width, self.width, 1], dim=-1)
        state = self.write(state, keys, values, importance[:, 0].sigmoid(), is_full)
        row = is_full[:, None]
        return replace(
            state,
            numerator=torch.where(row, 0.0, state.numerator),
            denominator=torch.where(row, 0.0, state.denominator),
            maximum=torch.where(row, float("-inf"), state.maximum),
            count=torch.where(is_full, 0, state.count),
        )

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return queries (B, L, W), contents (B, L, F), pooling scores (B, L, 1) and gates (B, L, 1), each in at least
        float32; the three that gate or weigh are computed in it too."""
        queries, keys, values = (at_least_float32(layer(x)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        scores, importance, gates = apply_full_together(x, self.pooling, self.importance, self.gate)
        return queries, torch.cat([keys, values, importance], dim=-1), scores, gates.sigmoid()

    def pool(
        self, grid: SegmentGrid, scores: torch.Tensor, contents: torch.Tensor, state: SlotMemoryState
    ) -> tuple[SegmentSummaries, SlotMemoryState]:
        """Pool every segment, the first one together with what the state holds of it already.

        Takes scores (B, C, T, 1), -inf where no token is, and contents (B, C, T, F). The state returned holds the
        pooling of the segment that stays open.
        """
        later = grid.num_segments - 1
        maximum = scores.detach().amax((2, 3))
        maximum = torch.maximum(maximum, F.pad(state.maximum.detach(), (0, later), value=float("-inf")))
        reference = torch.where(maximum.isfinite(), maximum, 0.0)
        weights = (scores - reference[:, :, None, None]).exp()
        carried = (state.maximum.detach() - reference[:, :1]).exp()
        denominator = weights.sum((2, 3)) + F.pad(state.denominator * carried, (0, later))
        numerator = (weights * contents).sum(2) + F.pad((state.numerator * carried)[:, None], (0, 0, 0, later))

        pooled = numerator / torch.where(denominator > 0, denominator, 1.0)[:, :, None]
        keys, values, importance = pooled.split([self.width, self.width, 1], dim=-1)
        stays_open = torch.arange(grid.num_segments, device=scores.device) == grid.closed[:, None]
        opened = replace(
            state,
            numerator=(numerator * stays_open[:, :, None]).sum(1),
            denominator=(denominator * stays_open).sum(1, keepdim=True),
            maximum=torch.where(stays_open, maximum, float("-inf")).amax(1, keepdim=True),
            count=grid.count,
        )
        return SegmentSummaries(keys, values, importance[..., 0].sigmoid()), opened

    def has_room(self, grid: SegmentGrid, state: SlotMemoryState, is_fresh: bool) -> bool:
        """Whether every write of this call finds an empty slot in its row."""
        if is_fresh:
            return grid.num_segments <= self.num_slots
        return bool((grid.closed <= self.num_slots - state.occupied.sum(1)).all())

    def run_parallel(self, grid, queries, summaries, state, shuffle):
        """Read and write all segments at once, where writes go to empty slots only: to the lowest one, in turn.

        A slot is then described by the segment from which it is visible and by its importance at that time.
        """
        turn = (~state.occupied).long().cumsum(1) - 1  # which write of this call an empty slot is waiting for
        is_new = ~state.occupied & (turn < grid.closed[:, None])
        source = turn.clamp(0, grid.num_segments - 1)
        rows = source[:, :, None].expand_as(state.keys)
        keys = torch.where(is_new[:, :, None], summaries.keys.gather(1, rows), state.keys)
        values = torch.where(is_new[:, :, None], summaries.values.gather(1, rows), state.values)
        importance = torch.where(is_new, summaries.importance.gather(1, source), state.importance)
        occupied = state.occupied | is_new
        visible_from = torch.where(is_new, turn + 1, 0)

        writes = torch.arange(grid.num_segments, device=turn.device).minimum(grid.closed[:, None])
        elapsed = writes[:, :, None] - visible_from[:, None]
        visible = occupied[:, None] & (elapsed >= 0)
        faded = importance[:, None] * self.decay ** elapsed.clamp_min(0).to(importance.dtype)
        read, mass = self.read(queries, keys, values, _log_importance(faded, visible), grid.filled, shuffle)

        elapsed = (grid.closed[:, None] - visible_from).to(importance.dtype)
        per_segment, closes = self.slot_mass(mass, shuffle), grid.closes[:, :, None]
        open_access = torch.where((grid.closed > 0)[:, None], 0.0, state.open_access)
        return (
            read,
            mass,
            replace(
                state,
                keys=keys,
                values=values,
                importance=importance * torch.where(occupied, self.decay**elapsed, 0.0),
                occupied=occupied,
                age=torch.where(occupied, state.age + elapsed, 0.0),
                access=state.access + (state.open_access - open_access) + (per_segment * closes).sum(1),
                open_access=open_access + (per_segment * ~closes).sum(1),
            ),
        )

    def run_segments(self, grid, queries, summaries, state, shuffle):
        """Read and write segment after segment: exact whatever the slots hold, and the form of decoding."""
        reads, masses = [], []
        for index in range(grid.num_segments):
            piece = slice(index, index + 1)
            log_importance = _log_importance(state.importance, state.occupied)[:, None]
            read, mass = self.read(
                queries[:, :, piece], state.keys, state.values, log_importance, grid.filled[:, piece], shuffle
            )
            reads.append(read)
            masses.append(mass)
            state = replace(state, open_access=state.open_access + self.slot_mass(mass, shuffle)[:, 0])
            written = summaries.keys[:, index], summaries.values[:, index], summaries.importance[:, index]
            state = self.write(state, *written, index < grid.closed)
        return torch.cat(reads, dim=1), torch.cat(masses, dim=1), state

    def read(self, queries, keys, values, log_importance, filled, shuffle: bool):
        """Attend from queries (B, H, C, T, K) to keys and values (B, S, W) with log_importance (B, C, S), -inf where
        a segment cannot see a slot. Returns what was read (B, C, T, W) and the read mass (B, C, T, S + 1), zero where
        `filled` is False and without gradient."""
        if shuffle:
            keys, values, log_importance = (x.roll(-1, dims=0) for x in (keys, values, log_importance))
        # The null slot is one more slot: key 0 and log-importance 0 make its logit 0, and its value is 0.
        keys, values = (
            F.pad(x, (0, 0, 0, 1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (keys, values)
        )
        cells = queries.shape[2:4]
        logits = (queries.flatten(2, 3) @ keys.transpose(-1, -2)).unflatten(2, cells) * self.scale
        weights = (logits + F.pad(log_importance, (0, 1))[:, None, :, None]).softmax(-1)
        read = (weights.flatten(2, 3) @ values).transpose(1, 2).flatten(2).unflatten(1, cells)
        return read, weights.detach().mean(1) * filled[..., None]

    def slot_mass(self, mass: torch.Tensor, shuffle: bool) -> torch.Tensor:
        """Return (B, C, S): the read mass each segment gave to the slots of row b, by whichever row read them."""
        per_segment = mass[..., :-1].sum(2)
        return per_segment.roll(1, dims=0) if shuffle else per_segment

    def write(self, state, keys, values, importance, fills) -> SlotMemoryState:
        """Put one summary (B, W), (B, W), (B,) into a slot of each row where `fills` (B,) is True."""
        slots = torch.arange(self.num_slots, device=keys.device)
        chosen = (slots == self.choose(state)[:, None]) & fills[:, None]
        survives = state.occupied & fills[:, None] & ~chosen
        faded = torch.where(survives, self.decay * state.importance, state.importance)
        access = torch.where(survives, state.access + state.open_access, state.access)
        return replace(
            state,
            keys=torch.where(chosen[:, :, None], keys[:, None], state.keys),
            values=torch.where(chosen[:, :, None], values[:, None], state.values),
            importance=torch.where(chosen, importance[:, None], faded),
            occupied=state.occupied | chosen,
            age=torch.where(chosen, 0.0, state.age + survives),
            access=torch.where(chosen, 0.0, access),
            open_access=torch.where(fills[:, None], 0.0, state.open_access),
            overwrites=state.overwrites + (chosen & state.occupied).sum(1),
        )

    @torch.no_grad()
    def choose(self, state: SlotMemoryState) -> torch.Tensor:
        """Return (B,) int64: the lowest empty slot, or the one that scores highest, the lowest index at ties.

        Access and age are taken relative to their largest value among the row's slots, so that only their order of
        magnitude within the row counts; while that value is 0 nothing was read, or nothing has aged, and the term is
        0. The choice looks at what the segment's own tokens could see: its reads and this write's decay come after it.
        """
        score = -state.importance - ACCESS_WEIGHT * _relative(state.access) + AGE_WEIGHT * _relative(state.age)
        return (score + EMPTY_BONUS * ~state.occupied).argmax(1)

    def count_reads(self, grid: SegmentGrid, mass: torch.Tensor, state: SlotMemoryState) -> SlotMemoryState:
        return replace(
            state,
            null_mass=state.null_mass + mass[..., -1].sum((1, 2)),
            tokens_read=state.tokens_read + grid.filled.sum((1, 2)),
        )


def _log_importance(importance: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    return torch.where(visible, (importance + IMPORTANCE_FLOOR).log(), float("-inf"))


def _relative(x: torch.Tensor) -> torch.Tensor:
    """Return x (B, S) over its largest entry per row; zeros where that is 0."""
    largest = x.amax(1, keepdim=True)
    return x / torch.where(largest > 0, largest, 1.0)
