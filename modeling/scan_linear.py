"""The linear recurrence with a scalar decay per head, behind both retention and Mamba-2.

    S_t = a_t S_{t-1} + k_t^T v_t        o_t = q_t S_t        a_t = exp(log_decay_t), 0 <= a_t <= 1

RetNet (arXiv:2307.08621, eq. 5-7) has a constant a per head; Mamba-2 (arXiv:2405.21060, the SSD form) has q = C, k = B
shared by a group of heads, v = dt x and log a = -dt exp(A_log). Pads take the identity step: log_decay 0 and k 0.
A document starts from an empty state: the chunked form takes the documents of packed rows (scan_borders.py).
Four forms, equal up to rounding; only differences of cumulative log decays, never positive, are exponentiated.
Shapes: B batch, L length, H heads, G groups of R = H/G heads that share q and k, K key width, V value width,
        C chunk length, N chunks.  q, k: (B, L, G, K)  v: (B, L, H, V)  log_decay: (B or 1, L, H)  S: (B, H, K, V).
"""

import torch
import torch.nn.functional as F

from .scan_borders import ChunkBorders, borders_of_all, exp_where, segment_for, split_borders
from .scan_fla import linear_scan_fla


def linear_scan_naive(q, k, v, log_decay, state=None):
    """The recurrence token by token. Returns o (B, L, H, V) and the final state (B, H, K, V)."""
    repeats = v.shape[2] // q.shape[2]
    q, k = q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2)
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    outputs = []
    for t in range(v.shape[1]):
        state = log_decay[:, t, :, None, None].exp() * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, dim=1), state


def decay_matrix(cumulative: torch.Tensor, apart: torch.Tensor | None = None) -> torch.Tensor:
    """Return (..., L, L) exp(c_i - c_j) for j <= i and 0 above, from cumulative log decays (..., L).

    `apart`, bool that broadcasts to that shape, is True for pairs that get 0 too.
    """
    difference = cumulative[..., :, None] - cumulative[..., None, :]
    above = torch.ones(difference.shape[-2:], dtype=torch.bool, device=difference.device).triu(1)
    if apart is not None:
        above = above | apart
    # -inf goes in before exp: masking afterwards gives inf * 0 = NaN in the backward pass.
    return difference.masked_fill_(above, float("-inf")).exp_()  # in place: nobody else has it, and it is large


def linear_scan_parallel(q, k, v, log_decay):
    """The quadratic form, o = (Q K^T * D) V. Returns o (B, L, H, V)."""
    repeats = v.shape[2] // q.shape[2]
    q, k = q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2)
    decay = decay_matrix(log_decay.cumsum(1).transpose(1, 2))
    scores = torch.einsum("bihk,bjhk->bhij", q, k) * decay
    return torch.einsum("bhij,bjhv->bihv", scores, v)


def linear_scan_step(q, k, v, log_decay, state=None, reuse_state: bool = False):
    """One token, as in decoding: L = 1. Returns o (B, 1, H, V) and the next state (B, H, K, V)."""
    repeats = v.shape[2] // q.shape[2]
    if q.shape[2] > 1 and repeats > 1:  # a single group is broadcast
        q, k = q.repeat_interleave(repeats, 2), k.repeat_interleave(repeats, 2)
    k, v = k.transpose(1, 2).transpose(2, 3), v.transpose(1, 2)  # (B,H,K,1), (B,H,1,V)
    if state is None:
        state = k * v
    else:
        decay = log_decay.transpose(1, 2).exp()[..., None]
        state = (state.mul_(decay) if reuse_state else decay * state).addcmul_(k, v)
    return (q.transpose(1, 2) @ state).transpose(1, 2), state


def may_reuse(state: torch.Tensor | None) -> bool:
    """Whether a step may write the next state over the last one: no graph needs it, and its storage may be written."""
    if state is None or torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    return torch.is_inference_mode_enabled() or not state.is_inference()


def linear_scan_chunked(
    q, k, v, log_decay, chunk_size: int, state=None, reuse_state: bool = False, document_ids=None, backend="torch"
):
    """The same at a cost linear in L: quadratic inside chunks, a recurrence over chunk states between them.

    Args:
        q, k: (B, L, G, K); v: (B, L, H, V); log_decay: (B or 1, L, H), all at least float32.
        chunk_size: C; L need not be a multiple of it.
        state: (B, H, K, V) to start from; zeros by default.
        reuse_state: a single token may write the next state over `state`, which the caller then gives up.
        document_ids: (B or 1, L) int64, never falling; `state` is that of document 0. None: one document a row.
        backend: "fla" takes more than one token through scan_fla.py, which knows its own chunks.

    Returns:
        o (B, L, H, V) and the final state (B, H, K, V), that of the last token's document.
    """
    batch, length, heads, width = v.shape
    groups, key_width = q.shape[2:]
    if length == 1:
        if document_ids is not None and state is not None:
            state = torch.where((document_ids == 0)[..., None, None], state, 0.0)
        return linear_scan_step(q, k, v, log_decay, state, reuse_state)
    if backend == "fla":
        return linear_scan_fla(q, k, v, log_decay, state, document_ids)
    # (B, G, K, R*V): the heads of a group lie side by side, so that one product with k serves them all.
    if state is None:
        state = v.new_zeros(batch, groups, key_width, heads // groups * width)
    else:
        state = state.unflatten(1, (groups, -1)).transpose(2, 3).flatten(3)
    outputs = []
    if torch.compiler.is_exporting():  # one program for every length cannot loop over chunks: the quadratic form
        output, state = _scan_segment(q, k, v, log_decay, None, state, borders_of_all(document_ids))
        outputs.append(output)
    else:
        segment = segment_for(v.device.type, chunk_size)
        parts = zip(*(t.split(segment, dim=1) for t in (q, k, v, log_decay)), strict=True)
        for part, borders in zip(parts, split_borders(document_ids, length, segment, chunk_size), strict=True):
            output, state = _scan_segment(*part, chunk_size, state, borders)
            outputs.append(output)
    state = state.unflatten(3, (-1, width)).transpose(2, 3).flatten(1, 2)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state


def _into_chunks(x: torch.Tensor, chunk_size: int | None, missing: int) -> torch.Tensor:
    """(B, L, X, ...) -> (B, X, N, C, ...), with zeros (the identity step) behind the last token; None makes one."""
    if chunk_size is None:
        return x.transpose(1, 2).unsqueeze(2)
    if missing:  # padding by nothing would still copy
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    return x.unflatten(1, (-1, chunk_size)).movedim(3, 1)


def _scan_segment(q, k, v, log_decay, chunk_size, state, borders: ChunkBorders | None):
    length, groups = v.shape[1], q.shape[2]
    chunk_size = None if chunk_size is None else min(chunk_size, length)
    missing = 0 if chunk_size is None else -length % chunk_size
    q, k = _into_chunks(q, chunk_size, missing), _into_chunks(k, chunk_size, missing)  # (B,G,N,C,K)
    v = _into_chunks(v, chunk_size, missing).unflatten(1, (groups, -1))  # (B,G,R,N,C,V)
    log_decay = _into_chunks(log_decay, chunk_size, missing)
    cumulative = log_decay.cumsum(-1) if borders is None else borders.cumsum(log_decay)
    cumulative = cumulative.unflatten(1, (groups, -1))  # (B,G,R,N,C)
    apart = carried = lasting = None
    if borders is not None:
        apart, carried, lasting = (pairs[:, None, None] for pairs in (borders.apart, borders.carried, borders.lasting))

    # what the tokens of a chunk give each other: the quadratic form, chunk by chunk
    scores = (q @ k.transpose(-1, -2)).unsqueeze(2) * decay_matrix(cumulative, apart)  # (B,G,R,N,C,C)
    within = scores @ v  # (B,G,R,N,C,V)

    # what a chunk adds to the state, decayed to its end, and the states before each chunk, one after the other
    to_end = exp_where(cumulative[..., -1:] - cumulative, lasting)
    weighted = (v * to_end.unsqueeze(-1)).permute(0, 1, 3, 4, 2, 5).flatten(4)  # (B,G,N,C,R*V)
    added = k.transpose(-1, -2) @ weighted  # (B,G,N,K,R*V)
    survives = None if borders is None else borders.survives[:, None, None]
    chunk_decay = exp_where(cumulative[..., -1], survives).transpose(2, 3)  # (B,G,N,R)
    chunk_decay = chunk_decay.repeat_interleave(v.shape[-1], dim=-1).unsqueeze(3)  # (B,G,N,1,R*V)
    before = []
    for chunk in range(added.shape[2]):
        before.append(state)
        state = chunk_decay[:, :, chunk] * state + added[:, :, chunk]
    # what all earlier chunks give a token, through the state its chunk began with
    across = (q @ torch.stack(before, dim=2)).unflatten(4, (-1, v.shape[-1]))  # (B,G,N,C,R,V)
    output = within + across.permute(0, 1, 4, 2, 3, 5) * exp_where(cumulative, carried).unsqueeze(-1)
    return output.permute(0, 3, 4, 1, 2, 5).flatten(1, 2)[:, :length].flatten(2, 3), state
