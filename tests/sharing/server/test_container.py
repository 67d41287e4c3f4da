"""Dockerfile and .dockerignore, read: what a build would refuse, and what the image promises."""

import fnmatch
import re
import shlex
from pathlib import Path

from frankenlm.sharing.server.health import main as health

ROOT = Path(__file__).resolve().parents[3]
INSTRUCTIONS = "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN STOPSIGNAL USER VOLUME WORKDIR"


def instructions():
    """(instruction, arguments) of the Dockerfile, in order; continued lines are one."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def stages():
    found = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def ignored(path):
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    parts = [path, *map(str, Path(path).parents)]
    return any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for pattern in patterns for part in parts)


def test_every_line_is_an_instruction():
    assert {name for name, _ in instructions()} <= set(INSTRUCTIONS.split())
    assert [name for name, _ in instructions()][0] == "ARG"  # the base, which both stages take
    assert all(shlex.split(rest) for _, rest in instructions())


def test_what_runs_has_no_compiler_and_no_rights():
    build, runs = stages()
    assert "g++" in str(build) and "g++" not in str(runs) and "apt-get" not in str(runs)
    (user,) = [rest for name, rest in runs if name == "USER"]
    assert user not in ("root", "0")
    names = [name for name, _ in runs]
    assert names.index("USER") > max(place for place, name in enumerate(names) if name in ("RUN", "COPY"))
    assert f"useradd --create-home --uid 1000 {user}" in str(runs)


def test_the_page_is_the_default_and_health_is_asked():
    runs = dict(stages()[-1])
    assert runs["CMD"] == '["python", "app.py"]'
    assert '["python", "-m", "frankenlm.sharing.server.health"]' in runs["HEALTHCHECK"]
    assert runs["EXPOSE"].split() == ["7860", "8000"]
    assert runs["STOPSIGNAL"] == "SIGINT"


def test_what_is_copied_is_there_and_not_ignored():
    for name, rest in instructions():
        words = [word for word in rest.split() if not word.startswith("--")]
        if name == "COPY" and "--from=" not in rest:
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert source == "." or not ignored(source)
    for needed in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "modeling/presets/mini.yaml"):
        assert (ROOT / needed).exists() and not ignored(needed)
    for private in (".git/config", "runs/mine/model.safetensors", ".env", "modeling/__pycache__/x.pyc", "tests/a.py"):
        assert ignored(private), private


def test_every_version_is_the_locks():
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in rest or "--requirement requirements.txt" in rest for rest in installs)
    assert "$(grep '^torch==' constraints.txt)+cpu" in installs[0] and "${TORCH_INDEX}" in installs[0]


def test_health(address):
    assert health([f"{address}/health"]) == 0
    assert health(["http://127.0.0.1:9/health", f"{address}/health"]) == 0
    assert health([f"{address}/nothing"]) == 1
    assert health(["http://127.0.0.1:9/health"]) == 1
    assert health(["no address"]) == 1
