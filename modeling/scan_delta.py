"""The gated delta rule behind the memory of Titan attention: a matrix that learns v from k, one gradient step a token.

    M_t = alpha_t M_{t-1} + u_t k_t^T,    u_t = eta_t (v_t - M_{t-1} k_t),    o_t = M_t q_t

This is the memory of Titans (arXiv:2501.00663) when it is linear, its loss squared, its forgetting 1 - alpha, and
without momentum. The gated delta rule (arXiv:2412.06464) is the same with beta = eta / alpha and alpha v for v. With
unit keys the step matrix alpha I - eta k k^T has eigenvalues alpha and alpha - eta, both inside (-1, 1): the state
stays bounded.
Pads take the identity step: log_alpha 0 and eta 0. Three forms, equal up to rounding; no exponent is ever positive.
A document starts from an empty state: the chunked form takes the documents of packed rows (scan_borders.py).
Shapes: B batch, H heads, L length, K key width, V value width, C chunk length, N chunks.
q, k: (B, H, L, K)  v: (B, H, L, V)  log_alpha, eta: (B, H, L)  M: (B, H, V, K), all at least float32.
"""

import torch
import torch.nn.functional as F

from .scan_borders import ChunkBorders, borders_of_all, exp_where, segment_for, split_borders
from .scan_fla import delta_scan_fla


def delta_scan_step(q, k, v, log_alpha, eta, state=None):
    """One token, as in decoding: L = 1. Returns o (B, H, 1, V) and the next state (B, H, V, K)."""
    if state is None:
        state = v.new_zeros(*v.shape[:2], v.shape[3], k.shape[3])
    recalled = k @ state.transpose(-1, -2)  # (B,H,1,V)
    update = eta[..., None] * (v - recalled)
    state = (log_alpha[..., None].exp() * state).addcmul_(update.transpose(-1, -2), k)
    return q @ state.transpose(-1, -2), state


def delta_scan_naive(q, k, v, log_alpha, eta, state=None):
    """The recurrence token by token. Returns o (B, H, L, V) and the final state (B, H, V, K)."""
    outputs = []
    for t in range(q.shape[2]):
        now = slice(t, t + 1)
        output, state = delta_scan_step(
            q[:, :, now], k[:, :, now], v[:, :, now], log_alpha[..., now], eta[..., now], state
        )
        outputs.append(output)
    return torch.cat(outputs, dim=2), state


def delta_scan_chunked(q, k, v, log_alpha, eta, chunk_size: int, state=None, document_ids=None, backend="torch"):
    """The same at a cost linear in L: one triangular system per chunk, a recurrence over chunk states between them.

    Args:
        chunk_size: C; L need not be a multiple of it. A single chunk of L tokens is the parallel form.
        state: (B, H, V, K) to start from; zeros by default.
        document_ids: (B or 1, L) int64, never falling; `state` is that of document 0. None: one document a row.
        backend: "fla" takes more than one token through scan_fla.py, which knows its own chunks.

    Returns:
        o (B, H, L, V) and the final state (B, H, V, K), that of the last token's document.
    """
    length = q.shape[2]
    if length == 1:
        if document_ids is not None and state is not None:
            state = torch.where((document_ids == 0)[..., None, None], state, 0.0)
        return delta_scan_step(q, k, v, log_alpha, eta, state)
    if backend == "fla":
        return delta_scan_fla(q, k, v, log_alpha, eta, state, document_ids)
    if state is None:
        state = v.new_zeros(*v.shape[:2], v.shape[3], k.shape[3])
    if torch.compiler.is_exporting():  # one program for every length cannot loop over chunks: the parallel form
        return _scan_segment(q, k, v, log_alpha, eta, None, state, borders_of_all(document_ids))
    segment = segment_for(v.device.type, chunk_size)
    outputs = []
    parts = zip(*(t.split(segment, dim=2) for t in (q, k, v, log_alpha, eta)), strict=True)
    for part, borders in zip(parts, split_borders(document_ids, length, segment, chunk_size), strict=True):
        output, state = _scan_segment(*part, chunk_size, state, borders)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), state


def _into_chunks(x: torch.Tensor, chunk_size: int | None) -> torch.Tensor:
    """(B, H, L, ...) -> (B, H, N, C, ...), with zeros (the identity step) behind the last token; None makes one."""
    if chunk_size is None:
        return x.unsqueeze(2)
    missing = -x.shape[2] % chunk_size
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 3) + (0, missing))
    return x.unflatten(2, (-1, chunk_size))


def _decays(later: torch.Tensor, earlier: torch.Tensor, diagonal: int, apart: torch.Tensor | None) -> torch.Tensor:
    """(..., C, C) exp(later_i - earlier_j) for j <= i + diagonal and 0 beyond, and 0 for pairs that are `apart`."""
    difference = later[..., :, None] - earlier[..., None, :]
    beyond = torch.ones(difference.shape[-2:], dtype=torch.bool, device=difference.device).triu(diagonal + 1)
    if apart is not None:
        beyond = beyond | apart
    # -inf goes in before exp: masking afterwards gives inf * 0 = NaN in the backward pass.
    return difference.masked_fill_(beyond, float("-inf")).exp_()  # in place: nobody else has it, and it is large


def _scan_segment(q, k, v, log_alpha, eta, chunk_size, state, borders: ChunkBorders | None):
    length = q.shape[2]
    chunk_size = None if chunk_size is None else min(chunk_size, length)
    q, k, v, log_alpha, eta = (_into_chunks(x, chunk_size) for x in (q, k, v, log_alpha, eta))
    apart = carried = lasting = survives = None
    if borders is not None:
        apart, carried, lasting, survives = (
            pairs[:, None] for pairs in (borders.apart, borders.carried, borders.lasting, borders.survives)
        )
    # decay from the chunk's start, or the document's, up to and with token i; (B,H,N,C)
    after = log_alpha.cumsum(-1) if borders is None else borders.cumsum(log_alpha)
    before = after - log_alpha  # the same, without token i

    # (I + T) U = eta (V - e^before M_0 K): solved for both right-hand sides at once, before M_0 is known
    keys_seen = k @ k.transpose(-1, -2)
    system = eta[..., None] * _decays(before, after, -1, apart) * keys_seen  # (B,H,N,C,C), strictly lower
    sides = torch.cat([v, exp_where(before, carried)[..., None] * k], dim=-1) * eta[..., None]  # (B,H,N,C,V+K)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    written, corrections = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    # o_i = e^after_i M_0 q_i + sum_{j <= i} e^(after_i - after_j) (q_i k_j) u_j, and M at the chunk's end likewise
    scores = (q @ k.transpose(-1, -2)) * _decays(after, after, 0, apart)  # (B,H,N,C,C)
    queries = exp_where(after, carried)[..., None] * q  # (B,H,N,C,K)
    remaining = exp_where(after[..., -1:] - after, lasting)[..., None] * k  # (B,H,N,C,K)
    chunk_decay = exp_where(after[..., -1], survives)[..., None, None]  # (B,H,N,1,1)
    outputs = []
    for n in range(q.shape[2]):
        update = written[:, :, n] - corrections[:, :, n] @ state.transpose(-1, -2)  # u, (B,H,C,V)
        outputs.append(queries[:, :, n] @ state.transpose(-1, -2) + scores[:, :, n] @ update)
        state = chunk_decay[:, :, n] * state + update.transpose(-1, -2) @ remaining[:, :, n]
    return torch.cat(outputs, dim=2)[:, :, :length], state
