"""Make a virtual environment that holds frankenlm and what it needs: from the lock, from today's index, or the floors.

    python3 scripts/packages/install.py .venv --set lock      the versions of constraints.txt (`make install`)
    python3 scripts/packages/install.py DIR --set newest      what the package index gives today (`make test-newest`)
    python3 scripts/packages/install.py DIR --set oldest      the floor of every range in setup.cfg (`make test-oldest`)

torch comes first and as the CPU build: left to a resolver, a plain `torch` may pull gigabytes of CUDA libraries.
`--torch torch==2.13.0` asks for the index's own build, which DIR remembers until `--torch cpu`. All that pip says goes
into DIR/install.log as it says it; here a step is one line, and so is a failure. Needs nothing but the standard
library, and runs on older Pythons far enough to say that they are too old.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "packages"))
from requirements import CONSTRAINTS, PYTHON_FLOOR, floors, locked, torch_build  # noqa: E402

EXTRAS = "train,lab,app,serve,export,peft,trl,eval,embed,track,dev"
NO_NETWORK = (
    "connection broken by",
    "NewConnectionError",
    "Temporary failure in name resolution",
    "ConnectTimeoutError",
)
MISSING = re.compile(r"No matching distribution found for ([^\s;(]+)")
CONFLICT = re.compile(r"The user requested \(constraint\) (\S+)|([\w.-]+==\S+) \(from -c")


class InstallError(Exception):
    """Why the environment was not made, in one line."""


def main() -> None:
    arguments = parse_arguments()
    try:
        install(arguments.folder, arguments.set, arguments.torch)
    except InstallError as error:
        sys.exit(f"install: {error}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment is made, or brought up to date")
    parser.add_argument("--set", choices=("lock", "newest", "oldest"), default="lock", help="which versions")
    parser.add_argument("--torch", help="another torch than the CPU build, as pip names it: torch==2.13.0")
    return parser.parse_args()


def install(folder: Path, versions: str, torch: "str | None") -> None:
    """Make the environment. Raises InstallError."""
    check_python(sys.version_info, sys.executable)
    python = folder / "bin" / "python"
    if not python.exists():
        make_environment(folder)
    check_python(version_of(python), str(python))
    log = folder / "install.log"
    log.write_text("")
    torch = remembered(folder / "torch.txt", torch)
    constraints = constraints_of(folder, versions, torch)
    wanted = torch or torch_build(versions, python)
    tell(f"{wanted} comes first; what pip says goes to {log}")
    pip(python, log, constraints, wanted, "setuptools")
    tell(f"frankenlm and what it needs: {EXTRAS}")
    # setuptools comes from the lock too, so that a build of another day is the same build
    pip(python, log, constraints, "--no-build-isolation", "--editable", f"{ROOT}[{EXTRAS}]")
    tell("the operators are built")
    done = subprocess.run([python, "-m", "frankenlm.kernels.build"], cwd=ROOT)
    if done.returncode:
        raise InstallError("the operators could not be built; the lines above say why.")


def tell(step: str) -> None:
    """Say on the console what is going on: each step takes a minute or more."""
    print(f"install: {step}", flush=True)


def check_python(version: "tuple[int, ...]", name: str) -> None:
    if tuple(version[:2]) < PYTHON_FLOOR:
        found, needed = ".".join(map(str, version[:2])), ".".join(map(str, PYTHON_FLOOR))
        raise InstallError(
            f"{name} is Python {found}, and frankenlm needs {needed} or newer: make install PYTHON=python{needed}"
        )


def remembered(choice: Path, torch: "str | None") -> "str | None":
    """Return the torch that somebody asked for, now or when this environment was made; None for the CPU build."""
    if torch == "cpu":
        choice.unlink(missing_ok=True)
        return None
    if torch:
        choice.write_text(torch)
    return choice.read_text() if choice.exists() else None


def version_of(python: Path) -> "tuple[int, ...]":
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InstallError(f"{python} does not run: remove {python.parents[1]} and try again.")
    return tuple(map(int, done.stdout.split()))


def make_environment(folder: Path) -> None:
    tell(f"a virtual environment is made in {folder}")
    done = subprocess.run(
        [sys.executable, "-m", "venv", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        reason = " ".join((done.stdout or "").split())[:300]
        raise InstallError(f"no virtual environment could be made in {folder}: {reason}")


def constraints_of(folder: Path, versions: str, torch: "str | None") -> "Path | None":
    """Return the file that holds pip to a set of versions; the torch of the lock gives way to one that is asked for."""
    if versions == "newest":
        return None
    lines = locked() if versions == "lock" else floors()
    path = folder / "constraints.txt"
    path.write_text("".join(f"{line}\n" for line in lines if not (torch and line.startswith("torch=="))))
    return path


def pip(python: Path, log: Path, constraints: "Path | None", *wanted: str) -> None:
    """Run `pip install`, which writes into the log as it goes. Raises InstallError with the one line that matters."""
    command = [str(python), "-m", "pip", "install", "--progress-bar", "off", "--retries", "2"]
    if constraints is not None:
        command += ["--constraint", str(constraints)]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as file:
        before = file.tell()
        done = subprocess.run([*command, *wanted], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise InstallError(explain(log.read_bytes()[before:].decode("utf-8", "replace"), log))


def explain(output: str, log: Path) -> str:
    """Return one line that says what ended pip."""
    if any(sign in output for sign in NO_NETWORK):
        return f"pip cannot reach the package index: is there a network? (all it said: {log})"
    missing = MISSING.search(output)
    if missing and missing[1].endswith("+cpu"):
        plain = missing[1].partition("+")[0]
        return (
            f"the package index has no {missing[1]}, the build without CUDA: name an index of CPU builds in "
            f"PIP_EXTRA_INDEX_URL (PyTorch's install page has it), or take the index's own, which may bring "
            f"gigabytes of CUDA libraries: make install TORCH={plain}"
        )
    conflict = CONFLICT.search(output)
    if missing or conflict:
        name = missing[1] if missing else conflict[1] or conflict[2]
        return (
            f"{name} of {CONSTRAINTS.name} cannot be had: the package index no longer has it, or not for this "
            f"Python. `make update` makes {CONSTRAINTS.name} anew (all pip said: {log})"
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    return f"{errors[-1] if errors else 'pip failed'} (all it said: {log})"


if __name__ == "__main__":
    main()
