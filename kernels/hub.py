"""Lay the operators out as Hugging Face's library `kernels` expects a kernel, to load from a folder or to publish.

    python -m frankenlm.kernels.hub FOLDER
    >>> kernels.get_local_kernel(Path("FOLDER")).ternary_linear(x, packed, scale, out_features)

A build variant holds this package's own files and one library on torch's stable ABI. Its operators live in a namespace
of their own, so that it and an installed frankenlm can be loaded in one process.
Layout: https://huggingface.co/docs/kernels, "kernel requirements".
"""

import argparse
import hashlib
import json
import platform
import shutil
from pathlib import Path

from frankenlm import __version__

from .build import OLDEST_TORCH, SOURCES, compile_library, library_sources

NAME = "frankenlm-ternary"
MODELING = SOURCES.parents[1] / "modeling"
# What the reference needs; all of it imports plainly from its own folder.
REFERENCE_FILES = ("packed_reference.py", "group_scales.py", "ternary.py", "column_groups.py", "checks.py")


# What is no part of a packed layer stays at home.
OTHER_SOURCES = (
    "fake_quantize.cpp",
    "decode.cpp",
    "decoder_binding.cpp",
    "decoder_floats.cpp",
    "decoder_layers.cpp",
)


def variant_name() -> str:
    """Return the name of the build variant for this machine, e.g. torch-stable-abi210-cpu-x86_64-linux."""
    major, minor = int(OLDEST_TORCH[2:4], 16), int(OLDEST_TORCH[4:6], 16)
    machine = "aarch64" if platform.machine() == "arm64" else platform.machine()  # as the library `kernels` has it
    return f"torch-stable-abi{major}{minor}-cpu-{machine}-{platform.system().lower()}"


def export(folder: Path) -> Path:
    """Write the kernel for this machine below `folder`/build and return the variant's folder.

    Raises:
        FileExistsError: the variant is there already.
        NoCompilerError, BuildError: as `compile_library`.
    """
    variant = folder / "build" / variant_name()
    if variant.exists():
        raise FileExistsError(f"{variant} is there already; choose another folder or remove it")
    namespace = f"frankenlm_{_digest()}"
    library = f"_{namespace}.abi3.so"
    sources = [path for path in library_sources() if path.name not in OTHER_SOURCES]
    compile_library(sources, variant / library, [f"-DFRANKENLM_NAMESPACE={namespace}"])
    for name in REFERENCE_FILES:
        shutil.copy(MODELING / name, variant / name)
    shutil.copy(SOURCES.parent / "fakes.py", variant / "fakes.py")
    shutil.copy(SOURCES.parent / "hub_init.py", variant / "__init__.py")
    (variant / "_ops.py").write_text(
        '"""Where this build\'s operators are."""\n\n'
        "from pathlib import Path\n\nimport torch\n\n"
        f'NAMESPACE = "{namespace}"\n'
        f'torch.ops.load_library(Path(__file__).with_name("{library}"))\n'
        f"ops = getattr(torch.ops, NAMESPACE)\n",
        encoding="utf-8",
    )
    metadata = {
        "name": NAME,
        "id": namespace,
        "version": int(__version__.split(".")[0]) + 1,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return variant


def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the kernel is written")
    print(export(parser.parse_args().folder))
