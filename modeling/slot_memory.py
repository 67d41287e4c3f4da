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

from .document_rows import DocumentGroup, bring_back, group_documents
from .full_linear import FullPrecisionLinear, apply_full_together
from .norms import at_least_float32, full_precision
from .segment_grid import SegmentGrid
from .slot_memory_state import SlotMemoryState

IMPORTANCE_FLOOR = 1e-6
ACCESS_WEIGHT = 0.1
AGE_WEIGHT = 0.05
EMPTY_BONUS = 1e3  # above every other score: an occupied slot scores -1.1 to 0.05


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
        document_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, SlotMemoryState, torch.Tensor | None]:
        """Read for every token, and write the segments that become full.

        Args:
            x: (B, L, D), the layer's input; reads and writes both see it as it comes.
            mask: (B, L) bool, True at real tokens; pads neither read nor write.
            state: what earlier calls returned; None at the start of a text.
            shuffle: let row b read the memory of row b + 1 (the last row that of the first), segment for segment; in
                pieces it is the same only for rows with equally many real tokens, since a row ahead cannot wait.
            keep_reads: also return (B, L, S + 1), each token's read mass per slot, mean over heads, the null slot last.
            document_ids: (B or 1, L) int64, never falling, or None. Each document has a memory and segments of its own;
                `state` is that of document 0, and the one returned that of each row's last document.

        Raises:
            ValueError: shuffle with document_ids.
        """
        if self.is_step(x, mask, state) and not (shuffle or keep_reads or document_ids is not None):
            return *self.step(x, state), None
        *projected, gates = self.project(x)
        if document_ids is None:
            read, state, reads = self.recall(
                *projected, mask, state, self.num_slots, shuffle=shuffle, keep_reads=keep_reads
            )
        elif shuffle:
            raise ValueError("shuffle_memory=True reads another row's memory, but these rows hold several documents.")
        else:
            read, state, reads = self.recall_apart(*projected, mask, state, document_ids, keep_reads)
        delta = self.o_proj(read.to(x.dtype))  # (B, L, W) -> (B, L, D)
        return (x + gates * delta).to(x.dtype), state, reads

    @torch.compiler.disable  # documents are of any number and length
    def recall_apart(self, queries, contents, scores, mask, state, document_ids, keep_reads: bool):
        """As `recall`, with each document as a row of its own."""
        shape = queries.shape[:2]
        ids = document_ids.expand(shape)
        groups, reads, masses, states, rows = group_documents(ids), [], [], [], []
        for group in groups:
            inputs = [group.take(x) for x in (queries, contents, scores)]
            before = None if state is None else self.before_documents(state, group, contents)
            read, after, mass = self.recall(
                *inputs, group.mask(mask), before, self.slots_for(group), shuffle=False, keep_reads=keep_reads
            )
            reads.append(read)
            missing = self.num_slots - after.num_slots
            if keep_reads:
                masses.append(torch.cat([F.pad(mass[..., :-1], (0, missing)), mass[..., -1:]], dim=-1))
            last = (group.numbers == ids[group.rows, -1]).nonzero().flatten()  # each row has one, in one of the groups
            states.append(after.select(last).with_empty_slots(missing))
            rows.append(group.rows[last])
        state = SlotMemoryState.join(states).select(torch.cat(rows).argsort())
        return bring_back(groups, reads, shape), state, bring_back(groups, masses, shape) if keep_reads else None

    def before_documents(self, state: SlotMemoryState, group: DocumentGroup, like: torch.Tensor) -> SlotMemoryState:
        """Return the state each document of a group starts from: that of its row where it goes on, an empty one."""
        empty = SlotMemoryState.empty(len(group.rows), self.num_slots, self.width, like)
        return state.select(group.rows).where(group.numbers == 0, empty)

    def slots_for(self, group: DocumentGroup) -> int:
        """Return how many slots a document of a group can fill from nothing: many short ones need little memory."""
        return min(-(-group.inside.shape[1] // self.segment), self.num_slots)

    def recall(self, queries, contents, scores, mask, state, num_slots: int, *, shuffle: bool, keep_reads: bool):
        """Read and write for rows of one document: what `project` returns -> what was read (B, L, W), the next state,
        and the read mass (B, L, S + 1) if asked for. Without a state, S is `num_slots`."""
        is_fresh, length = state is None, queries.shape[1]
        if is_fresh:
            state = SlotMemoryState.empty(queries.shape[0], num_slots, self.width, contents)
        grid = SegmentGrid.lay_out(state.count, length, mask, self.segment, is_fresh=is_fresh)
        with full_precision(queries.device.type):
            # (B, L, W) -> (B, C, T, W) -> (B, C, T, H, K) -> (B, H, C, T, K)
            queries = grid.spread(queries).unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)
            summaries, state = self.pool(grid, grid.spread(scores, float("-inf")), grid.spread(contents), state)
            # The loop is short when one segment is all there is. Training prefers the other form even then: a write
            # that nobody reads yet gets a gradient of zero there, not none, as DDP needs. So does an exported program,
            # which serves every length.
            serves_more = self.training or torch.compiler.is_exporting()
            if (serves_more or grid.num_segments > 1) and self.has_room(grid, state, is_fresh):
                read, mass, state = self.run_parallel(grid, queries, summaries, state, shuffle)
            else:
                read, mass, state = self.run_segments(grid, queries, summaries, state, shuffle)
            state = self.count_reads(grid, mass, state)
        reads = grid.collect(mass, length) if keep_reads else None
        return grid.collect(read, length), state, reads  # (B, C, T, W) -> (B, L, W)

    def is_step(self, x: torch.Tensor, mask: torch.Tensor | None, state: SlotMemoryState | None) -> bool:
        """Whether one real token per row goes on from a state, as in decoding."""
        return x.shape[1] == 1 and mask is None and state is not None and not self.training

    def step(self, x: torch.Tensor, state: SlotMemoryState) -> tuple[torch.Tensor, SlotMemoryState]:
        """One real token per row, x (B, 1, D): the general form without its grid, at a third of its time."""
        queries, contents, scores, gates = self.project(x)
        with full_precision(x.device.type):
            log_importance = _log_importance(state.importance, state.occupied)[:, None, None]  # (B, 1, 1, S)
            # queries (B, H, 1, K), keys and values (B, H, S, K)
            queries, keys, values = (
                heads.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for heads in (queries, state.keys, state.values)
            )
            logits = queries @ keys.transpose(-1, -2) * self.scale + log_importance
            weights = F.pad(logits, (0, 1)).softmax(-1)  # (B, H, 1, S + 1); the null slot: logit 0, value 0
            read = (weights[..., :-1] @ values).transpose(1, 2).flatten(2)  # (B, 1, W)
            mass = weights.detach().mean((1, 2))  # (B, S + 1)
            # One step of the running softmax that pools the segment: old sums move to the new maximum's units.
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
        if not torch.compiler.is_compiling() and not bool(is_full.any()):
            return state
        # (B, F) -> key (B, W), value (B, W), importance before its sigmoid (B, 1); an untouched segment divides by 1
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
        later = grid.num_segments - 1  # segments behind the open one, of which the state holds nothing
        # softmax over T by sums in units of exp(maximum), (B, C), so that no exponential overflows and the open
        # segment's earlier tokens can join in. A segment without tokens has maximum -inf and is measured from 0.
        maximum = scores.detach().amax((2, 3))
        maximum = torch.maximum(maximum, F.pad(state.maximum.detach(), (0, later), value=float("-inf")))
        reference = torch.where(maximum.isfinite(), maximum, 0.0)
        weights = (scores - reference[:, :, None, None]).exp()  # (B, C, T, 1), 0 where no token is
        carried = (state.maximum.detach() - reference[:, :1]).exp()
        denominator = weights.sum((2, 3)) + F.pad(state.denominator * carried, (0, later))
        numerator = (weights * contents).sum(2) + F.pad((state.numerator * carried)[:, None], (0, 0, 0, later))

        pooled = numerator / torch.where(denominator > 0, denominator, 1.0)[:, :, None]  # (B, C, F)
        keys, values, importance = pooled.split([self.width, self.width, 1], dim=-1)
        # (B, C), one True a row: behind `closed` full segments lies the open one, whose sums the state takes along
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
        """Whether every write of this call finds an empty slot in its row; False where nobody looks."""
        if is_fresh:
            return grid.num_segments <= state.num_slots
        if torch.compiler.is_compiling():
            return False
        return bool((grid.closed <= state.num_slots - state.occupied.sum(1)).all())

    def run_parallel(self, grid, queries, summaries, state, shuffle):
        """Read and write all segments at once, where writes go to empty slots only: to the lowest one, in turn.

        A slot is then described by the segment from which it is visible and by its importance at that time.
        """
        # All of (B, S): the empty slots take the closing segments in turn, so each knows its writer in advance.
        turn = (~state.occupied).long().cumsum(1) - 1  # which write of this call an empty slot is waiting for
        is_new = ~state.occupied & (turn < grid.closed[:, None])
        source = turn.clamp(0, grid.num_segments - 1)  # the segment that writes it; where none does, any will do
        rows = source[:, :, None].expand_as(state.keys)
        keys = torch.where(is_new[:, :, None], summaries.keys.gather(1, rows), state.keys)
        values = torch.where(is_new[:, :, None], summaries.values.gather(1, rows), state.values)
        importance = torch.where(is_new, summaries.importance.gather(1, source), state.importance)
        occupied = state.occupied | is_new
        visible_from = torch.where(is_new, turn + 1, 0)  # a segment does not see its own write, only the next one does

        # Segment c has seen min(c, closed) writes; what a slot's importance lost is decay to the writes since its own.
        writes = torch.arange(grid.num_segments, device=turn.device).minimum(grid.closed[:, None])
        elapsed = writes[:, :, None] - visible_from[:, None]  # (B, C, S)
        visible = occupied[:, None] & (elapsed >= 0)
        faded = importance[:, None] * self.decay ** elapsed.clamp_min(0).to(importance.dtype)
        read, mass = self.read(queries, keys, values, _log_importance(faded, visible), grid.filled, shuffle)

        # The state after the call: reads of full segments are booked as access, those of the open one apart.
        elapsed = (grid.closed[:, None] - visible_from).to(importance.dtype)  # (B, S)
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
            # read first, write then: a segment's tokens see what was there when it began
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
        # One product for all cells: (B, H, C T, K) @ (B, H, K, S + 1)
        cells = queries.shape[2:4]
        logits = (queries.flatten(2, 3) @ keys.transpose(-1, -2)).unflatten(2, cells) * self.scale
        weights = (logits + F.pad(log_importance, (0, 1))[:, None, :, None]).softmax(-1)  # (B, H, C, T, S + 1)
        # (B, H, C T, S + 1) @ (B, H, S + 1, K) -> (B, C T, H, K) -> (B, C, T, W)
        read = (weights.flatten(2, 3) @ values).transpose(1, 2).flatten(2).unflatten(1, cells)
        return read, weights.detach().mean(1) * filled[..., None]

    def slot_mass(self, mass: torch.Tensor, shuffle: bool) -> torch.Tensor:
        """Return (B, C, S): the read mass each segment gave to the slots of row b, by whichever row read them."""
        per_segment = mass[..., :-1].sum(2)
        return per_segment.roll(1, dims=0) if shuffle else per_segment

    def write(self, state, keys, values, importance, fills) -> SlotMemoryState:
        """Put one summary (B, W), (B, W), (B,) into a slot of each row where `fills` (B,) is True."""
        slots = torch.arange(state.num_slots, device=keys.device)
        # (B, S), at most one True a row. The slots that survive a write fade, age, and get the segment's reads booked.
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
