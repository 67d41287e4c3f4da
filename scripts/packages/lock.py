"""Make constraints.txt and requirements.txt anew from setup.cfg: the newest versions that pip resolves today.

    .venv/bin/python scripts/packages/lock.py        (`make update` runs it, installs, and runs the tests)

pip resolves once for each Python of PYTHONS, beginning with the one that runs and keeping to its versions where they
exist for the others; a package whose version differs gets a line for each Python, with a marker. torch is the newest
that exists as a CPU build. With --keep every package that constraints.txt names stays as it is, and what setup.cfg
asks for besides is added. requirements.txt is what a Space installs: it sees that file and no other, so it holds the
lock's lines of everything that app.py needs.
"""

import argparse
import atexit
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pip._vendor.packaging.markers import default_environment  # noqa: E402
from pip._vendor.packaging.requirements import Requirement  # noqa: E402
from pip._vendor.packaging.utils import canonicalize_name  # noqa: E402
from requirements import CONSTRAINTS, PYTHON_FLOOR, ROOT, locked, newest_torch, requirements  # noqa: E402

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# exist as source alone, of pure Python, while another Python's set is resolved from wheels: they are built here first
SOURCE_ONLY = ("rouge-score", "sqlitedict", "word2number")  # lm-eval needs them
OF_CUDA = ("nvidia-", "cuda-", "triton")  # brought by the index's own torch, where it is asked for
LOCK_HEAD = """\
# What `make install` brings: the versions that frankenlm was tested with. Made by `make update`; not edited by hand.
"""
SPACE_HEAD = """\
# What a Space installs before it copies the code: the lock's versions of what app.py needs. Made by `make update`.
# torch is the build without CUDA; where pip knows no index of CPU builds, PyTorch's install page names one.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="keep the versions of constraints.txt, and add what is new")
    kept = pins() if parser.parse_args().keep else {}
    # an index need not have the CPU build for every Python; what the other one brings besides is left out
    torch = f"torch=={kept['torch']}" if kept else newest_torch(Path(sys.executable)).partition("+")[0]
    chosen = resolve_all([*requirements(), torch, "setuptools"], kept)
    write(CONSTRAINTS, LOCK_HEAD, lines_of(chosen))
    needed = {python: closure(requirements("app"), packages, python) for python, packages in chosen.items()}
    write(ROOT / "requirements.txt", SPACE_HEAD, map(with_build, lines_of(needed)))


def pins() -> dict[str, str]:
    """Return the versions of constraints.txt that hold on this Python, by name."""
    lines = [Requirement(line) for line in locked()]
    here = [line for line in lines if line.marker is None or line.marker.evaluate()]
    return {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in here}


def write(path: Path, head: str, lines: Iterable[str]) -> None:
    path.write_text(head + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"{path.name}: written")


def lines_of(chosen: dict[str, dict[str, dict]]) -> list[str]:
    """Return `name==version` lines, with markers where Pythons differ, of the packages chosen for each Python."""
    lines = []
    for name in sorted(set().union(*chosen.values())):
        versions = {python: packages[name]["version"] for python, packages in chosen.items() if name in packages}
        versions = {python: version.partition("+")[0] for python, version in versions.items()}
        if len(versions) == len(chosen) and len(set(versions.values())) == 1:
            lines.append(f"{name}=={versions[PYTHONS[0]]}")
        else:
            lines += [f'{name}=={version} ; python_version == "{python}"' for python, version in versions.items()]
    return lines


def resolve_all(wanted: list[str], pinned: dict[str, str]) -> dict[str, dict[str, dict]]:
    """Return what is chosen for each of PYTHONS: the metadata of packages by name; `pinned` versions are kept to."""
    here = "{}.{}".format(*sys.version_info)
    first = resolve(wanted, here, pinned)
    if first is None:
        sys.exit("update: setup.cfg asks for what the versions of constraints.txt do not allow: leave out --keep.")
    kept = {name: item["version"].partition("+")[0] for name, item in first.items()}
    others = {python: resolve(wanted, python, kept) or resolve(wanted, python) for python in PYTHONS if python != here}
    return {python: others.get(python, first) for python in PYTHONS}


def resolve(wanted: list[str], python: str, kept: dict[str, str] | None = None) -> dict[str, dict] | None:
    """Return the packages that pip chooses on a Python, by name; None where it finds none that keep to `kept`.

    pip judges markers by the Python it runs on; what another Python needs besides is looked up afterwards.
    """
    items = dry_run(wanted, python, kept or {})
    if items is None and kept:
        return None
    chosen: dict[str, dict] = {}
    while True:
        if items is None:
            sys.exit(f"update: pip finds no set of packages for Python {python}; what it said stands above.")
        chosen |= {canonicalize_name(item["metadata"]["name"]): item["metadata"] for item in items}
        more = sorted(missing(chosen, python))
        if not more:
            return {name: item for name, item in chosen.items() if not name.startswith(OF_CUDA)}
        items = dry_run(more, python, {}, "--no-deps", "--ignore-requires-python")


def dry_run(wanted: list[str], python: str, kept: dict[str, str], *options: str) -> list[dict] | None:
    """Return what pip would install, or None after a failure, whose reason is printed unless `kept` may be it."""
    with tempfile.TemporaryDirectory() as folder:
        report, constraints = Path(folder) / "report.json", Path(folder) / "kept.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--python-version", python, "--only-binary", ":all:", "--target", folder]
        command += ["--constraint", str(constraints), "--find-links", source_wheels(), *options, *wanted]
        done = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return json.loads(report.read_text(encoding="utf-8"))["install"]
        if not kept:
            print("".join(line for line in done.stderr.splitlines(True) if line.startswith(("ERROR", " "))))
        return None


@functools.cache
def source_wheels() -> str:
    """Return a folder with wheels of SOURCE_ONLY, which is removed when Python ends."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder.name, *SOURCE_ONLY]
    subprocess.run(command, check=True)
    return folder.name


def missing(chosen: dict[str, dict], python: str) -> set[str]:
    """Return the requirements of the chosen packages that hold on `python` and that no chosen package meets."""
    return {
        f"{requirement.name}{requirement.specifier}"
        for item in chosen.values()
        for requirement in needs(item, python)
        if canonicalize_name(requirement.name) not in chosen
    }


def closure(wanted: list[str], chosen: dict[str, dict], python: str) -> dict[str, dict]:
    """Return those of the chosen packages that `wanted` needs, directly or not, extras included."""
    found: dict[tuple[str, frozenset[str]], dict] = {}
    waiting = [Requirement(line) for line in wanted]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name in chosen and (name, extras) not in found:
            found[name, extras] = chosen[name]
            waiting += needs(chosen[name], python, extras)
    return {name: item for (name, _), item in found.items()}


def needs(item: dict, python: str, extras: Iterable[str] = ()) -> list[Requirement]:
    """Return the requirements of a package that hold on a Python, with some of its extras."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    return [
        each
        for each in map(Requirement, item.get("requires_dist", ()))
        if each.marker is None or any(each.marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))
    ]


def with_build(line: str) -> str:
    """Name the CPU build where a Space runs."""
    return f"{line}+cpu" if line.startswith("torch==") else line


if __name__ == "__main__":
    if sys.version_info[:2] < PYTHON_FLOOR:
        sys.exit("update: needs Python {}.{} or newer".format(*PYTHON_FLOOR))
    main()
