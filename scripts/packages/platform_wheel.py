"""Build a wheel that holds the compiled operators, so that a machine without a compiler has the fast path.

    .venv/bin/python scripts/packages/platform_wheel.py [--output dist]        (`make wheel`)

The library stands on torch's stable ABI and on no Python: one wheel an architecture serves every Python from 3.11 and
every torch from kernels.build.OLDEST_TORCH on. Its tag names the oldest glibc that has all symbols it asks for (PEP
600), read out of the library itself; libtorch_cpu, which torch brings, is not in the wheel.
"""

import argparse
import base64
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "frankenlm/kernels/built"
# The first glibc whose distributions carry a libstdc++ with these symbols (PEP 600's policies, as auditwheel has them).
GLIBC_OF_GLIBCXX = {19: 17, 22: 24, 24: 27, 25: 28, 28: 31, 29: 34, 30: 35, 33: 39}
OLDEST_GLIBC = 17


class WheelError(Exception):
    """Why no wheel was built, in one line."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="folder of the wheel (default: dist)")
    output = parser.parse_args().output
    try:
        print(build_wheel(output))
    except WheelError as error:
        sys.exit(f"wheel: {error}")


def build_wheel(output: Path) -> Path:
    """Build the wheel of this machine's kind into a folder and return it. Raises WheelError."""
    from frankenlm.kernels.build import BuildError, NoCompilerError, compile_library, library_sources
    from frankenlm.kernels.shipped import LIBRARY, NOTE, describe

    with tempfile.TemporaryDirectory() as scratch:
        plain = plain_wheel(Path(scratch))
        try:
            library = compile_library(library_sources(), Path(scratch) / LIBRARY)
        except (BuildError, NoCompilerError) as error:
            raise WheelError(str(error)) from error
        if shutil.which("strip"):
            subprocess.run(["strip", "--strip-unneeded", str(library)], check=True)
        added = {f"{PACKAGE}/{LIBRARY}": library.read_bytes()}
        added[f"{PACKAGE}/{NOTE}"] = json.dumps(describe(library), indent=2, sort_keys=True).encode() + b"\n"
        output.mkdir(parents=True, exist_ok=True)
        return with_library(plain, added, platform_tag(library), output)


def plain_wheel(folder: Path) -> Path:
    """Build the wheel of pure Python and return it. Raises WheelError."""
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # files that are no more would come out of it again
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    if done.returncode:
        raise WheelError("python -m build failed: " + " ".join((done.stderr or done.stdout).split())[-300:])
    (wheel,) = folder.glob("*.whl")
    return wheel


def platform_tag(library: Path) -> str:
    """Return the platform of a wheel with this library: manylinux_2_N_x86_64 with the oldest glibc that will do.

    Raises:
        WheelError: not Linux, or the library asks for newer symbols than the table knows.
    """
    if platform.system() != "Linux":
        raise WheelError(f"wheels with operators are built on Linux; this is {platform.system()}.")
    needed = library.read_bytes()
    glibc = [int(minor) for minor in re.findall(rb"\bGLIBC_2\.(\d+)", needed)]
    versions = [int(minor) for minor in re.findall(rb"\bGLIBCXX_3\.4\.(\d+)", needed)]
    newest = max(versions, default=0)
    carrying = [minor for version, minor in GLIBC_OF_GLIBCXX.items() if version >= newest]
    if not carrying:
        raise WheelError(f"the library asks for GLIBCXX_3.4.{newest}, of a newer compiler than this script knows.")
    return f"manylinux_2_{max([*glibc, min(carrying), OLDEST_GLIBC])}_{platform.machine()}"


def with_library(plain: Path, added: dict[str, bytes], tag: str, output: Path) -> Path:
    """Write a wheel like `plain` with more files and another platform (PEP 427) and return it."""
    name, version, *_ = plain.name.split("-")
    wheel = output / f"{name}-{version}-py3-none-{tag}.whl"
    with zipfile.ZipFile(plain) as source:
        files = {entry: source.read(entry) for entry in source.namelist() if not entry.endswith("/RECORD")}
    files |= added
    (info,) = (entry for entry in files if entry.endswith(".dist-info/WHEEL"))
    text = files[info].decode().replace("Root-Is-Purelib: true", "Root-Is-Purelib: false")
    files[info] = re.sub(r"(?m)^Tag: .*$", f"Tag: py3-none-{tag}", text).encode()
    record = f"{Path(info).parent.as_posix()}/RECORD"
    lines = [f"{entry},sha256={_digest(content)},{len(content)}" for entry, content in files.items()]
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        for entry, content in files.items():
            target.writestr(entry, content)
        target.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")
    return wheel


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    main()
