"""The set-up: the lock covers what setup.cfg asks for, and what goes wrong on the way is one line."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts" / "packages"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # install.py imports its sibling by name
    spec.loader.exec_module(module)
    return module


requirements = load("requirements")
install = load("install")


def versions(lines, python):
    """Return what the lines say for a Python, by name."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (only,) = requirement.specifier
            assert only.operator == "==", line
            found[canonicalize_name(requirement.name)] = only.version.removesuffix("+cpu")
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_every_requirement(python):
    locked = versions(requirements.locked(), python)
    for line in requirements.requirements():
        requirement = Requirement(line)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), line


@pytest.mark.parametrize("python", PYTHONS)
def test_a_space_installs_the_locks_versions_and_no_cuda(python):
    locked = versions(requirements.locked(), python)
    lines = [line for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    space = versions(lines, python)
    assert space.items() <= locked.items()
    assert {canonicalize_name(Requirement(line).name) for line in requirements.requirements("app")} <= set(space)
    assert f"torch=={locked['torch']}+cpu" in lines


WITHOUT = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None
import app
from frankenlm.sharing.space.page import build_page
from frankenlm.sharing.space.shelf import Shelf
build_page(Shelf())
"""


def test_the_page_needs_nothing_that_a_space_does_not_install():
    lines = [line for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    space = versions(lines, f"{sys.version_info.major}.{sys.version_info.minor}")
    absent = {
        name
        for name, owners in packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & {*space, "frankenlm", "pip"} and name.isidentifier()
    }
    assert {"bitsandbytes", "peft"} <= absent
    done = subprocess.run([sys.executable, "-c", WITHOUT, *sorted(absent)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", ["constraints.txt", "requirements.txt"])
def test_no_line_names_an_index_a_hash_or_cuda(name):
    for line in (ROOT / name).read_text("utf-8").splitlines():
        assert line.startswith("#") or not any(word in line for word in ("--", "://", "nvidia", "cuda", "triton")), line


def test_every_requirement_has_a_floor_that_its_range_contains():
    floors = {
        canonicalize_name(name): version for name, version in (line.split("==") for line in requirements.floors())
    }
    for line in requirements.requirements():
        requirement = Requirement(line)
        assert requirement.specifier.contains(floors[canonicalize_name(requirement.name)]), line


def test_a_requirement_without_a_floor_is_refused(monkeypatch):
    monkeypatch.setattr(requirements, "requirements", lambda *extras: ["tqdm"])
    with pytest.raises(ValueError, match="'tqdm' without a floor: write tqdm>=VERSION"):
        requirements.floors()


def test_an_old_python_is_told_in_one_line():
    with pytest.raises(install.InstallError, match=r"^python3 is Python 3\.10, .* make install PYTHON=python3\.11$"):
        install.check_python((3, 10, 4), "python3")
    install.check_python((3, 11), "python3")


def test_the_scripts_can_be_read_by_pythons_that_are_too_old():
    """They must get as far as saying so."""
    import ast

    for name in ("install", "requirements"):
        ast.parse((SCRIPTS / f"{name}.py").read_text("utf-8"), feature_version=(3, 8))


NO_NETWORK = """\
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(<...>: Failed to establish)': /simple/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
"""
CONFLICT = """\
ERROR: Cannot install frankenlm because these package versions have conflicting dependencies.
The conflict is caused by:
    frankenlm[train] 0.1.0 depends on tqdm>=4.67
    The user requested (constraint) tqdm==4.1.0
"""


def test_the_log_is_there_while_pip_works_and_a_failure_is_its_own(tmp_path):
    """What an earlier call of pip has left in the log does not explain this one's end."""
    log, seen, python = tmp_path / "install.log", tmp_path / "seen", tmp_path / "python"
    log.write_text("ERROR: No matching distribution found for before==1\n")
    python.write_text(f'#!/bin/sh\necho "$@"\ncp {log} {seen}\necho "ERROR: größer" >&2\nexit 1\n', encoding="utf-8")
    python.chmod(0o755)
    with pytest.raises(install.InstallError, match=r"^ERROR: größer \(all it said: "):
        install.pip(python, log, None, "torch==2.13.0")
    assert seen.read_text().endswith("--retries 2 torch==2.13.0\n")
    assert log.read_text("utf-8") == seen.read_text() + "ERROR: größer\n"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (NO_NETWORK, "pip cannot reach the package index: is there a network?"),
        ("ERROR: No matching distribution found for torch==2.99.0+cpu", "no torch==2.99.0+cpu, the build without CUDA"),
        ("ERROR: No matching distribution found for tqdm==99.0 ", "tqdm==99.0 of constraints.txt cannot be had"),
        (CONFLICT, "tqdm==4.1.0 of constraints.txt cannot be had"),
        ("ERROR: No space left on device", "ERROR: No space left on device (all it said: x.log)"),
        ("", "pip failed (all it said: x.log)"),
    ],
)
def test_what_pip_says_becomes_one_line(output, line):
    told = install.explain(output, Path("x.log"))
    assert line in told and "\n" not in told
    assert ("make update" in told) == ("constraints.txt cannot be had" in line)


def test_a_torch_that_was_asked_for_is_remembered(tmp_path):
    choice = tmp_path / "torch.txt"
    assert install.remembered(choice, None) is None
    assert install.remembered(choice, "torch==2.13.0") == "torch==2.13.0"
    assert install.remembered(choice, None) == "torch==2.13.0"
    assert install.remembered(choice, "cpu") is None and install.remembered(choice, None) is None


def test_the_locks_torch_gives_way_to_the_one_that_is_asked_for(tmp_path):
    def names(torch):
        lines = install.constraints_of(tmp_path, "lock", torch).read_text("utf-8").splitlines()
        return {line.partition("==")[0] for line in lines}

    assert names(None) - names("torch==2.99.0") == {"torch"}


def test_a_clone_is_the_package_from_the_folder_it_lies_in(tmp_path):
    """Python finds the clone itself there, not the package inside, and would make it an empty namespace."""
    (tmp_path / "frankenlm").symlink_to(ROOT)
    code = (
        "import frankenlm; from importlib.util import find_spec; print(frankenlm.__version__); "
        "print(*(find_spec(f'frankenlm.{name}').origin for name in ('modeling', 'kernels.ops')), sep='\\n')"
    )
    command = [sys.executable, "-S", "-c", code]  # -S: nothing is installed
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    version, *found = done.stdout.splitlines()
    assert version[0].isdigit()
    assert [Path(path).resolve() for path in found] == [ROOT / "modeling/__init__.py", ROOT / "kernels/ops.py"]


def test_the_wheel_is_the_product_and_its_command_runs_anywhere(tmp_path):
    """Built from the files of the project; no benchmark, no experiment, no drawing is in it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here to say which files belong to the project")
    for name in listed.stdout.splitlines():
        if not name.startswith(("tests/", "results/", "model_cards/")) and (ROOT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / "source" / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tmp_path / "source"]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
        archive.extractall(tmp_path / "installed")
    assert "frankenlm = frankenlm.command:main" in entry
    assert "frankenlm/scripts/train.py" in names and "frankenlm/trainer_ext/commands/train_help.txt" in names
    assert not [name for name in names if re.search(r"bench|evidence|pictures|packages/|tests/", name)]
    (tmp_path / "empty").mkdir()
    for words in ([], ["train", "--help"], ["degrade", "run", "--help"], ["evaluate", "--help"]):
        run = [sys.executable, "-m", "frankenlm", *words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
        done = subprocess.run(run, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") and "usage: " in done.stdout, done.stderr
