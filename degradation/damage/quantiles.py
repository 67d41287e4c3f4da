"""Normal quantiles as a table, so that a Gaussian is one look-up and the same number on every device.

A logarithm and a cosine (Box and Muller 1958) would differ in the last place between devices and libraries. Here a
32-bit word r is turned into the quantile of its middle, rounded to float32:

    bins   [65536]  bins[h] is the quantile at (h + 1/2) / 2^16; for h = r >> 16 except the first and the last bin
    tail   [65536]  tail[l] is the quantile at (l + 1/2) / 2^32; for r >> 16 = 0 with l = r & 65535; the last bin is its
                    mirror image, -tail[65535 - l]

So |value| reaches 6.34, and value(2^32 - 1 - r) = -value(r). `python -m frankenlm.degradation.damage.quantiles` writes
the file again; its bytes are checked when it is read.
"""

import functools
import hashlib
from pathlib import Path
from statistics import NormalDist

import numpy as np

TABLES_FILE = Path(__file__).resolve().parents[1] / "assets" / "normal_quantiles.safetensors"
TABLES_SHA256 = "57320f2700e2d57f80259397f1fb27e0a1f5b0d4c2549b2a6709e589fcb36714"
BINS = 1 << 16


@functools.cache
def load_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return (bins, tail), each float32 [65536] and read-only.

    Raises:
        RuntimeError: the file is not the one this version was made with.
    """
    from safetensors.numpy import load

    data = TABLES_FILE.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != TABLES_SHA256:
        raise RuntimeError(
            f"{TABLES_FILE.name} is damaged: its SHA-256 is {found}, not {TABLES_SHA256}. Install the package again."
        )
    tables = load(data)
    for table in tables.values():
        table.flags.writeable = False
    return tables["bins"], tables["tail"]


def build_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return (bins, tail) computed afresh from the inverse of the normal distribution in double precision."""
    return _lower_half_mirrored(), _quantiles(BINS, 2.0**-32)


def _lower_half_mirrored() -> np.ndarray:
    lower = _quantiles(BINS // 2, 2.0**-16)
    return np.concatenate([lower, -lower[::-1]])


def _quantiles(count: int, width: float) -> np.ndarray:
    """Return the quantiles at the middles of the first `count` bins of that width, float32 [count]."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse((index + 0.5) * width) for index in range(count)], dtype=np.float32)


def write_tables(path: Path = TABLES_FILE) -> str:
    """Write the tables as one safetensors file and return its SHA-256 (hex)."""
    from safetensors.numpy import save

    bins, tail = build_tables()
    data = save({"bins": bins, "tail": tail})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    print(write_tables())
