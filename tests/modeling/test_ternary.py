"""Weight quantisers against the table of schemes."""

import pytest
import torch

from frankenlm.modeling.ternary import SCHEMES, quantize_weight

# scheme: (levels, relative squared error on a unit Gaussian)
TABLE = {
    "binary": (2, 0.364),
    "ternary_absmean": (3, 0.264),
    "ternary_absmedian": (3, 0.318),
    "ternary_twn": (3, 0.192),
    "int2": (4, 0.119),
    "int2_pow": (4, 0.161),
}
every_scheme = pytest.mark.parametrize("scheme", sorted(TABLE))


def definition(w, scheme):
    """Quantise all of w with one scale, element by element as the specification words it; float64."""
    w = w.double()
    mean = w.abs().mean()
    if scheme == "binary":
        centred = w - w.mean()
        return centred.abs().mean() * ((centred >= 0).double() * 2 - 1)
    if scheme in ("ternary_absmean", "ternary_absmedian"):
        scale = mean if scheme == "ternary_absmean" else w.abs().median()
        return scale * torch.clamp(torch.round(w / scale), -1, 1)
    if scheme == "ternary_twn":
        kept = w.abs() > 0.7 * mean
        return torch.where(kept, w.sign() * w.abs()[kept].mean(), 0.0)
    levels, scale = ((-1.5, -0.5, 0.5, 1.5), mean / 0.8) if scheme == "int2" else ((-2, -1, 1, 2), 0.88 * mean)
    levels = torch.tensor(levels, dtype=torch.float64) * scale
    return levels[(w[..., None] - levels).abs().argmin(-1)]


def test_the_table_is_complete():
    assert set(SCHEMES) == set(TABLE)


@every_scheme
def test_error_on_a_unit_gaussian(scheme):
    w = torch.randn(1000, 1000)
    codes, scale = quantize_weight(w, scheme)
    error = (codes * scale - w).square().mean() / w.square().mean()
    assert error.item() == pytest.approx(TABLE[scheme][1], abs=0.002)
    assert len((codes * scale).unique()) == len(codes.unique()) == TABLE[scheme][0]


@every_scheme
@pytest.mark.parametrize("shape", [(1, 2), (3, 7), (17, 5), (64, 33)])
def test_every_scheme_equals_its_definition(scheme, shape):
    w = 0.05 * torch.randn(shape, dtype=torch.float64) + 0.01
    codes, scale = quantize_weight(w, scheme)
    assert scale.shape == (1, 1) and codes.shape == w.shape
    torch.testing.assert_close(codes * scale, definition(w, scheme), atol=1e-10, rtol=0)


@every_scheme
def test_a_scale_per_row_treats_rows_alone(scheme):
    w = torch.randn(6, 31, dtype=torch.float64) * torch.logspace(-2, 2, 6, dtype=torch.float64)[:, None]
    codes, scale = quantize_weight(w, scheme, scale_axis="row")
    assert scale.shape == (6, 1)
    expected = torch.stack([definition(row, scheme) for row in w])
    torch.testing.assert_close(codes * scale, expected, atol=1e-10, rtol=1e-12)


@every_scheme
def test_zero_weights(scheme):
    w = torch.randn(4, 9)
    w[2] = 0
    for weight, axis in ((w, "row"), (torch.zeros(4, 9), "tensor")):
        codes, scale = quantize_weight(weight, scheme, scale_axis=axis)
        assert codes.isfinite().all() and scale.isfinite().all() and (scale >= 0).all()
        if scheme.startswith("ternary"):
            assert not (codes * scale)[2].any()
        else:
            assert (codes * scale)[2].abs().max() <= 1e-4, "no zero level: as small as the floor of the scale"


def test_binary_sign_of_zero_is_plus():
    codes, _ = quantize_weight(torch.tensor([[-1.0, 0.0, 1.0]]), "binary")
    assert codes.tolist() == [[-1, 1, 1]]


@pytest.mark.parametrize("wrong", [{"scheme": "ternary_absmeen"}, {"scale_axis": "column"}])
def test_unknown_scheme_or_axis(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        quantize_weight(torch.randn(2, 2), **wrong)
