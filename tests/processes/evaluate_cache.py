"""A cache of its own for Hugging Face's evaluate, whichever this process had before."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import evaluate
import pytest


def forget_modules():
    """evaluate imports its modules from a package in its cache, which is bound to the first cache there was."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@contextmanager
def evaluate_cache(folder: Path) -> Iterator[None]:
    """Copy modules into `folder` and import them from there, and from no cache that stands before it on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [entry for entry in sys.path if not Path(entry, "evaluate_modules").is_dir()])
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        forget_modules()
        yield
        forget_modules()
