"""What a run was made with: kept once in the manifest, so that rows need not carry it."""

import dataclasses
import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from frankenlm.trainer_ext.common.timing import processor_name

from ..cells import cell_levels
from .plan import Experiment

LIBRARIES = ("accelerate", "bitsandbytes", "frankenlm", "numpy", "tokenizers", "torch", "transformers")


def run_facts(experiment: Experiment, world_size: int) -> dict[str, Any]:
    """Return versions, hardware, the source's revision, the prompts' hash, levels and the full configuration."""
    texts = "\n".join(prompt.text for prompt in experiment.prompts)
    return {
        "config": dataclasses.asdict(experiment.config),
        "levels": list(cell_levels(experiment.config)),
        "model_name": experiment.model_name,
        "prompts": len(experiment.prompts),
        "prompts_sha256": hashlib.sha256(texts.encode("utf-8")).hexdigest(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "processor": processor_name(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "revision": source_revision(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None  # not installed, which is a fact too


def source_revision() -> str | None:
    """Return the git commit of this package's checkout; None where it is no checkout or there is no git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
