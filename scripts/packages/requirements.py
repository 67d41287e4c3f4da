"""What setup.cfg asks for and what constraints.txt locks, as pip's own lines. Standard library only."""

import configparser
import platform
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
PYTHON_FLOOR = (3, 11)
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*>=\s*(?P<floor>[^,;\s]+)")


def requirements(*extras: str) -> list:
    """Return the lines of setup.cfg: what is always needed and what the extras add; all extras by default."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    added = setup["options.extras_require"]
    lines = setup["options"]["install_requires"].splitlines()
    for extra in extras or tuple(added):
        lines += added[extra].splitlines()
    return sorted({line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")})


def floors() -> list:
    """Return `name==version` for the floor of every range in setup.cfg.

    Raises:
        ValueError: a line of setup.cfg has no floor, so nobody can test it.
    """
    found = {}
    for line in requirements():
        match = REQUIREMENT.match(line)
        if match is None:
            raise ValueError(f"setup.cfg asks for {line!r} without a floor: write {line}>=VERSION")
        found[match["name"]] = match["floor"]
    return [f"{name}=={floor}" for name, floor in sorted(found.items())]


def locked() -> list:
    """Return the lines of constraints.txt that bind, without comments."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def torch_build(versions: str, python: Path) -> str:
    """Return the torch to install for a set of versions: the CPU build, which on Linux is a version of its own."""
    if versions == "newest":
        return newest_torch(python)
    lines = locked() if versions == "lock" else floors()
    (line,) = (line for line in lines if line.startswith("torch=="))
    return line + ("+cpu" if platform.system() == "Linux" else "")


def newest_torch(python: Path) -> str:
    """Return the newest torch that the index has as a CPU build; elsewhere than on Linux every build is one."""
    if platform.system() != "Linux":
        return "torch"
    command = [str(python), "-m", "pip", "index", "versions", "torch"]
    done = subprocess.run(command, capture_output=True, text=True)
    builds = re.findall(r"\d+\.\d+\.\d+\+cpu\b", done.stdout)
    if not builds:
        (floor,) = (line for line in floors() if line.startswith("torch=="))
        return f"{floor}+cpu"  # pip then says why it cannot be had
    return "torch==" + max(builds, key=lambda build: tuple(map(int, build.partition("+")[0].split("."))))
