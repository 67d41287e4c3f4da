"""Segments of the scans: how long they are on which device, and that their length does not matter to the result."""

import pytest
import torch

from frankenlm.modeling import scan_delta, scan_linear
from frankenlm.modeling.scan_borders import segment_for

LENGTH, CHUNK = 1300, 32


def linear_inputs(device="cpu"):
    q, k, v = torch.randn(3, 1, LENGTH, 2, 4, dtype=torch.float64, device=device).unbind(0)
    return scan_linear, scan_linear.linear_scan_chunked, (q, k, v, -torch.rand_like(v[..., 0]), CHUNK)


def delta_inputs(device="cpu"):
    q, k, v = torch.randn(3, 1, 2, LENGTH, 4, dtype=torch.float64, device=device).unbind(0)
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    gates = torch.rand(2, 1, 2, LENGTH, dtype=torch.float64, device=device).unbind(0)
    return scan_delta, scan_delta.delta_scan_chunked, (q, k, v, -gates[0], gates[1], CHUNK)


every_scan = pytest.mark.parametrize("inputs_of", [linear_inputs, delta_inputs], ids=["linear", "delta"])


@pytest.mark.parametrize(
    ("device_type", "chunk_size", "expected"),
    [("cpu", 64, 512), ("cpu", 48, 480), ("cpu", 700, 700), ("cuda", 64, 8192), ("cuda", 48, 8160), ("mps", 32, 8192)],
)
def test_segments_are_whole_chunks(device_type, chunk_size, expected):
    assert segment_for(device_type, chunk_size) == expected


@every_scan
@pytest.mark.parametrize(("device", "segments"), [("cpu", 3), ("meta", 1)])
def test_a_scan_asks_where_its_tensors_are(inputs_of, device, segments, monkeypatch):
    module, scan, inputs = inputs_of(device)
    one_segment, lengths = module._scan_segment, []

    def spy(q, *others):
        lengths.append(q.shape[1 if module is scan_linear else 2])
        return one_segment(q, *others)

    monkeypatch.setattr(module, "_scan_segment", spy)
    scan(*inputs)
    assert len(lengths) == segments and sum(lengths) == LENGTH


@every_scan
@pytest.mark.parametrize("ids", [None, torch.arange(LENGTH)[None] // 300], ids=["one document", "documents"])
def test_segments_do_not_matter(inputs_of, ids, monkeypatch):
    module, scan, inputs = inputs_of()
    expected = scan(*inputs, document_ids=ids)
    monkeypatch.setattr(module, "segment_for", lambda device_type, chunk_size: segment_for("cuda", chunk_size))
    for one, other in zip(scan(*inputs, document_ids=ids), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
