"""Documents packed into rows, in each form that transformers speaks, and the same documents one by one."""

import torch

FORMS = ("position_ids", "seq_idx", "cu_seq_lens")
# Documents of one token, longer and shorter than a chunk, a window and a segment; borders differ from row to row.
LENGTHS = ([9, 1, 7, 1, 1, 13], [1, 20, 3, 8])
PADS = ((2, 0), (1, 1))  # of each row, left and right


class PackedRows:
    """Random documents of the given lengths, row by row, with pads (left, right) around those of each row.

    ids: (B, L); mask: (B, L), or None without pads; documents: for each, its row and columns.
    """

    def __init__(self, lengths=LENGTHS, pads=None, vocabulary=61, seed=0):
        self.lengths = lengths
        self.pads = pads or [(0, 0)] * len(lengths)
        widths = {sum(row) + sum(around) for row, around in zip(self.lengths, self.pads, strict=True)}
        assert len(widths) == 1, "rows of one batch are equally long"
        shape = len(lengths), widths.pop()
        self.ids = torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(seed))
        self.mask = None if pads is None else torch.zeros(shape, dtype=torch.long)
        self.documents = []
        for row, (sizes, (left, right)) in enumerate(zip(self.lengths, self.pads, strict=True)):
            if self.mask is not None:
                self.mask[row, left : shape[1] - right] = 1
            for size in sizes:
                self.documents.append((row, slice(left, left + size)))
                left += size

    def borders(self, form):
        """What a model is called with beside the ids and the mask; pads hold what would mislead if it were read."""
        rows = []
        for sizes, (left, right) in zip(self.lengths, self.pads, strict=True):
            if form == "seq_idx":
                numbers = [torch.full((size,), 3 * index + 2) for index, size in enumerate(sizes)]
                rows.append(torch.cat([torch.full((left,), 7), *numbers, torch.full((right,), -1)]).int())
            else:
                counts = [torch.arange(size) for size in sizes]
                rows.append(torch.cat([torch.ones(left, dtype=torch.long), *counts, torch.zeros(right).long()]))
        if form != "cu_seq_lens":
            return {form: torch.stack(rows)}
        (sizes,) = self.lengths
        ends = torch.tensor([0, *sizes]).cumsum(0).int()
        return dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends) | dict.fromkeys(
            ("max_length_q", "max_length_k"), max(sizes)
        )

    def inputs(self, form):
        return {"input_ids": self.ids, **self.borders(form)} | (
            {} if self.mask is None else {"attention_mask": self.mask}
        )

    def one_by_one(self, call):
        """Return (B, L, ...) with what call(document (1, l)) gives, zero at pads."""
        parts = [call(self.ids[row : row + 1, place])[0] for row, place in self.documents]
        together = parts[0].new_zeros(*self.ids.shape, *parts[0].shape[1:])
        for (row, place), part in zip(self.documents, parts, strict=True):
            together[row, place] = part
        return together

    def real(self, x):
        """Return x (B, L, ...) with zeros at the pads, whose outputs nobody promises anything about."""
        return x if self.mask is None else torch.where(self.mask.bool()[..., None], x, 0.0)


def rows_of(lengths, pads, form, **options):
    """Return the batches that a form can tell: cu_seq_lens speak of one row without padding."""
    if form == "cu_seq_lens":
        return [PackedRows([row], **options) for row in lengths]
    return [PackedRows(lengths, pads, **options)]


def gradients(model, logits, weights):
    model.zero_grad()
    (logits * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(actual, expected):
    """The largest difference, relative to the largest value."""
    return ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def assert_apart(model, form, tolerance, *, lengths=LENGTHS, pads=PADS, with_gradients=True, **options):
    """Packed rows give every document what it gets by itself: logits, and the gradients of the parameters.

    A difference is relative to the largest value of the logits or of a parameter's gradient, and to no less than a
    thousandth of the largest gradient of all: that of a key's bias, for one, is nothing but rounding.
    """
    for packed in rows_of(lengths, pads, form, **options):
        with torch.set_grad_enabled(with_gradients):
            expected = packed.one_by_one(lambda ids: model(ids, use_cache=False).logits)
            actual = packed.real(model(use_cache=False, **packed.inputs(form)).logits)
        assert distance(actual, expected) <= tolerance, f"logits, {form}: {distance(actual, expected):.1e}"
        if not with_gradients:
            continue
        weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5)).to(expected.dtype)
        wanted, found = gradients(model, expected, weights), gradients(model, actual, weights)
        assert wanted.keys() <= found.keys()
        least = 1e-3 * max(gradient.abs().max() for gradient in wanted.values())
        for name, gradient in wanted.items():
            error = ((found[name] - gradient).abs().max() / gradient.abs().max().clamp_min(least)).item()
            assert error <= tolerance, f"gradient of {name}, {form}: {error:.1e}"
