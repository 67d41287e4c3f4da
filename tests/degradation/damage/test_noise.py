"""The field of noise: published answers, a scalar oracle, indices, and the statistics of the Gaussians."""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist

import numpy as np
import pytest
import torch

from damaged_tensors import gaussians
from frankenlm.degradation.damage import noise, quantiles
from frankenlm.degradation.damage.noise import (
    MASK,
    derive_key,
    field_key,
    gaussian_tables,
    look_up_torch,
    philox4x32,
    words,
    words_torch,
)

KEY = field_key(42, 0, "mult_gauss", "text/layers.3.self_attn.v_proj.weight")
# starts and counts: within a counter, over counters, over pieces, over the border of the counter's low word
RANGES = [(0, 1), (0, 10), (3, 100_000), (5, 3), (4 * noise.COUNTERS - 2, 5), (2**34 - 10, 50), (3 * 2**34 + 1, 70_000)]


def philox_oracle(counter, key):
    """Philox4x32-10 in plain integers, after the paper."""
    x, k = list(counter), list(key)
    for _ in range(10):
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [(b >> 32) ^ x[1] ^ k[0], b & MASK, (a >> 32) ^ x[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return x


def word_oracle(key, index):
    counter = index // 4
    return philox_oracle((counter & MASK, counter >> 32, 0, 0), key)[index % 4]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((MASK,) * 4, (MASK,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    found = philox4x32(counter, key)
    assert all(word.dtype == np.uint32 for word in found)
    assert " ".join(f"{int(word):08x}" for word in found) == expected


def test_philox_broadcasts_counters_and_keys():
    rng = np.random.default_rng(0)
    counter = rng.integers(0, 2**32, (3, 1), dtype=np.uint32)
    keys = rng.integers(0, 2**32, 5, dtype=np.uint32)
    found = np.stack(philox4x32((counter, 7, 0, keys), (keys, 9)))
    assert found.shape == (4, 3, 5)
    for row in range(3):
        for column in range(5):
            key = int(keys[column])
            assert found[:, row, column].tolist() == philox_oracle((int(counter[row, 0]), 7, 0, key), (key, 9))


def test_keys():
    # the published digest of "abc" begins with ba7816bf 8f01cfea
    assert derive_key("abc") == (0xBA7816BF, 0x8F01CFEA)
    assert derive_key("ñ") == tuple(np.frombuffer(hashlib.sha256("ñ".encode()).digest()[:8], ">u4").tolist())
    assert field_key(42, 3, "ablation", "text/a.weight") == derive_key("deg1|42|3|ablation|text/a.weight")
    assert field_key(42, 3, "ablation", "text/a.weight", "0.3") == derive_key("deg1|42|3|ablation|text/a.weight|0.3")


@pytest.mark.parametrize(("start", "count"), RANGES)
def test_words_by_index(start, count):
    found = words(KEY, start, count)
    assert found.dtype == np.uint32 and found.shape == (count,)
    for place in {0, 1, count // 3, count // 2, count - 1} - {count}:
        assert int(found[place]) == word_oracle(KEY, start + place)
    index = np.arange(start // 4, (start + count + 3) // 4, dtype=np.uint64)
    plain = np.stack(philox4x32((index & np.uint64(MASK), index >> np.uint64(32), 0, 0), KEY), axis=1).reshape(-1)
    assert np.array_equal(found, plain[start % 4 : start % 4 + count])


def gaussians_torch(start, count, device):
    """The same numbers as `gaussians`, by the tensor forms."""
    tables = [torch.from_numpy(np.array(table)).to(device) for table in gaussian_tables()]
    return look_up_torch(words_torch(KEY, start, count, device), *tables)


@pytest.mark.parametrize(("start", "count"), RANGES)
def test_torch_gives_the_same_bits(start, count):
    assert np.array_equal(words_torch(KEY, start, count, "cpu").numpy(), words(KEY, start, count))
    assert np.array_equal(gaussians_torch(start, count, "cpu").numpy(), gaussians(KEY, start, count))


def test_torch_draws_several_runs_at_once():
    starts = [0, 5, 2**34 - 3, 102]
    expected = np.concatenate([words(KEY, start, 7) for start in starts])
    assert np.array_equal(words_torch(KEY, starts, 7, "cpu").numpy(), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("start", "count"), RANGES)
def test_cuda_gives_the_same_bits(start, count):
    assert np.array_equal(words_torch(KEY, start, count, "cuda").cpu().numpy(), words(KEY, start, count))
    assert np.array_equal(gaussians_torch(start, count, "cuda").cpu().numpy(), gaussians(KEY, start, count))


def test_words_do_not_depend_on_what_was_drawn_before():
    whole = words(KEY, 0, 300_000)
    rng = np.random.default_rng(1)
    for start, count in zip(rng.integers(0, 200_000, 20), rng.integers(0, 100_000, 20), strict=True):
        assert np.array_equal(words(KEY, int(start), int(count)), whole[start : start + count])


def test_threads_do_not_share_scratch():
    keys = [derive_key(str(index)) for index in range(16)]
    alone = [words(key, 11, 150_000) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda key: words(key, 11, 150_000), keys))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, -2)])
def test_negative_ranges_are_refused(start, count):
    with pytest.raises(ValueError, match="must not be negative"):
        words(KEY, start, count)


# --- Gaussians


def test_tables_are_the_normal_quantiles():
    bins, tail = quantiles.load_tables()
    for stored, fresh in zip((bins, tail), quantiles.build_tables(), strict=True):
        assert stored.dtype == np.float32 and np.array_equal(stored, fresh)
    # by the distribution function, which the table was not made with
    upper = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in bins.astype(float)])
    assert np.allclose(upper, (np.arange(65536) + 0.5) / 65536, rtol=2e-6, atol=0)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in tail.astype(float)])
    assert np.allclose(below, (np.arange(65536) + 0.5) / 2**32, rtol=2e-5, atol=0)
    assert (np.diff(bins) > 0).all() and (np.diff(tail) >= 0).all()
    assert tail[-1] < bins[1] and tail[0] == np.float32(NormalDist().inv_cdf(2.0**-33))
    assert np.array_equal(bins, -bins[::-1])


def test_look_up_of_extreme_words():
    drawn = np.array([0, 1, 65535, 65536, 2**31, 2**32 - 65537, 2**32 - 65536, 2**32 - 1], dtype=np.uint32)
    out = np.empty(len(drawn), dtype=np.float32)
    noise.look_up(drawn, *noise.gaussian_tables(), out)
    bins, tail = quantiles.load_tables()
    expected = [tail[0], tail[1], tail[-1], bins[1], bins[32768], bins[65534], -tail[-1], -tail[0]]
    assert out.tolist() == [float(x) for x in expected]
    assert 6.33 < out.max() < 6.35
    mirrored = np.empty_like(out)
    noise.look_up(~drawn, *noise.gaussian_tables(), mirrored)
    assert np.array_equal(mirrored, -out)


def test_damaged_tables_are_refused(tmp_path, monkeypatch):
    data = bytearray(quantiles.TABLES_FILE.read_bytes())
    data[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    monkeypatch.setattr(quantiles, "TABLES_FILE", tmp_path / "damaged.safetensors")
    with pytest.raises(RuntimeError, match="damaged.safetensors is damaged"):
        quantiles.load_tables.__wrapped__()


def test_tables_can_be_written_again(tmp_path, monkeypatch):
    path = tmp_path / "again.safetensors"
    digest = quantiles.write_tables(path)
    shipped = quantiles.load_tables()
    monkeypatch.setattr(quantiles, "TABLES_FILE", path)
    monkeypatch.setattr(quantiles, "TABLES_SHA256", digest)
    for again, table in zip(quantiles.load_tables.__wrapped__(), shipped, strict=True):
        assert np.array_equal(again, table)


def check_normality(sample: np.ndarray) -> None:
    """Mean, variance, skewness, kurtosis within 4 standard errors; Kolmogorov-Smirnov at 0.1 %."""
    n = len(sample)
    x = np.sort(sample.astype(np.float64))
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    values, last = np.unique(x, return_index=True)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values])
    reached = np.append(last[1:], n) / n
    distance = max(np.abs(reached - below).max(), np.abs(last / n - below).max())
    assert math.sqrt(n) * distance < 1.95 + math.sqrt(n) * 2**-16


@pytest.mark.parametrize("count", [10**6, pytest.param(10**7, marks=pytest.mark.slow)])
def test_gaussians_are_normal(count):
    check_normality(gaussians(KEY, 0, count))


def test_check_of_normality_can_fail():
    wide = 1.01 * gaussians(KEY, 0, 10**6)
    with pytest.raises(AssertionError):
        check_normality(wide)


def test_fields_of_different_names_are_unrelated():
    names = ["text/layers.0.a.weight", "text/layers.1.a.weight", "text/layers.0.b.weight"]
    fields = [gaussians(field_key(42, 0, "mult_gauss", name), 0, 10**5) for name in names]
    fields += [gaussians(field_key(42, 1, "mult_gauss", names[0]), 0, 10**5), np.roll(fields[0], 1)]
    correlations = np.corrcoef(fields) - np.eye(len(fields))
    assert np.abs(correlations).max() < 4.5 / math.sqrt(10**5)
