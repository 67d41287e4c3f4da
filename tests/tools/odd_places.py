"""Run every command on a tiny model in the surroundings of this process; report the ends as JSON on stdout.

    LC_ALL=C PYTHONUTF8=0 python tests/tools/odd_places.py SCRATCH
    unshare --mount python tests/tools/odd_places.py SCRATCH --no_shm --storage

The parent sets the environment. What only the system can give is made here, in a mount namespace of this process's own:
`--no_shm` a /dev without shm, `--storage` outputs on a read-only, a full and a filling file system. `--stranger` takes
the user away from the system's list, as in a container. What is printed goes to streams of the environment's encoding.

A fault is one of fuzz_command.py's, an exit code other than 0 (6 for storage), or a report that is empty or cut short.
"""

import argparse
import io
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from fuzz_command import base_of, command_of, lay_out, run_line  # noqa: E402

DEVICES = ("null", "zero", "full", "random", "urandom")
TEXT = "caf\u00e9 \u2603 \U0001f600"
WRITING = ("train", "evaluate", "compare", "pack", "dry-run", "run", "measure", "report", "export")
READING = ("generate", "groups")
DISK = "400k"
LEFT = {"read-only": None, "full": 0, "filling": 4096, "filling late": 60_000}  # bytes when a command begins
LAST_WORD = re.compile(r"^(?:error|stopped|storage|failed): \S.*", re.MULTILINE)
REPORTS = (".json", ".html", ".md", ".png", ".csv")


def hide_shm(scratch: Path) -> None:
    """Put a /dev with a few devices and no shm in place of the one that is there."""
    dev = scratch.parent / "dev"
    dev.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "none", dev)
    for name in DEVICES:
        (dev / name).touch()
        mount("--bind", f"/dev/{name}", dev / name)
    (dev / "fd").symlink_to("/proc/self/fd")
    mount("--rbind", dev, "/dev")


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def forget_user() -> None:
    """Let the system know no user of this number, and the environment no home: `docker run --user 12345`."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    pwd.getpwuid = unknown
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        os.environ.pop(name, None)


def line_of(verb: str, scratch: Path, out: Path) -> list[str]:
    """Return a line that works, with text beyond ASCII, whose output lies below `out`."""
    if verb in ("measure", "report", "export"):  # of the rows that `run` made
        (rows,) = (out / "lab").glob("outputs_*.json")
        return [str(rows), *([] if verb == "export" else ["--output_dir", str(out / verb)])]
    line = [word.replace(str(scratch / "out"), str(out)) for word in base_of(verb, scratch)]
    if verb == "train":
        line[line.index("--dataset") + 1] = str(scratch / "precious" / "t.jsonl")
        line += ["--save_steps", "1", "--use_cpu"]
    elif verb == "generate":
        line[line.index("--prompt") + 1] = TEXT
    return line


class Console(io.TextIOWrapper):
    """A stream of the environment's encoding, as standard output is one."""

    def __init__(self):
        super().__init__(io.BytesIO(), sys.__stdout__.encoding, sys.__stdout__.errors, write_through=True)

    def getvalue(self) -> str:
        return self.buffer.getvalue().decode(self.encoding, "replace")


def torn_reports(folder: Path) -> list[str]:
    """Return the reports below a folder that are empty, or JSON that is none."""
    torn = []
    for path in folder.rglob("*"):
        if path.suffix not in REPORTS or "checkpoint-" in str(path) or not path.is_file():
            continue
        try:
            text = path.read_bytes()
            whole = json.loads(text) if path.suffix == ".json" else text
        except ValueError:
            whole = None
        if whole in (None, b""):
            torn.append(str(path.relative_to(folder)))
    return sorted(torn)


class Places:
    """The lines run so far: their exit codes and last words, and the faults."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self.mains = {verb: command_of(verb) for verb in (*WRITING, *READING)}
        self.ends: dict[str, list] = {}
        self.faults: list[dict] = []

    def run(self, verb: str, out: Path, expected: tuple[int, ...] = (0,), place: str = "") -> None:
        line = line_of(verb, self.scratch, out)
        started = time.process_time()
        code, said, fault = run_line(self.mains[verb], line, Console)
        if fault is None and code not in expected:
            fault = f"exit code {code}"
        told = LAST_WORD.findall(said)
        if fault is None and code and len(told) != 1:
            fault = "not one line that says why"
        torn = torn_reports(out)
        if torn:
            fault = f"torn: {torn}; {fault}"
        self.ends[f"{verb} {place}".strip()] = [code, round(time.process_time() - started, 1), told]
        if fault:
            self.faults.append({"verb": verb, "place": place, "code": code, "fault": fault, "said": said[-600:]})

    def storage(self) -> None:
        """Every command that writes, on disks that take nothing or too little."""
        disk = self.scratch / "disk"
        disk.mkdir()
        for place, left in LEFT.items():
            for verb in WRITING:
                mount("-t", "tmpfs", "-o", f"size={DISK}", "none", disk)
                try:
                    if verb in ("measure", "report", "export"):
                        shutil.copytree(self.scratch / "out" / "lab", disk / "lab")
                    if left is None:
                        mount("-o", "remount,ro", disk)
                    else:
                        fill(disk, left)
                    self.run(verb, disk, (0, 6) if left else (6,), place)
                finally:
                    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, left: int) -> None:
    """Fill a disk up to `left` bytes."""
    with (disk / "filling").open("wb", buffering=0) as file:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        file.write(b"x" * max(0, free - left))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--no_shm", action="store_true")
    parser.add_argument("--storage", action="store_true")
    parser.add_argument("--stranger", action="store_true")
    args = parser.parse_args()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    scratch = args.scratch.resolve()
    (scratch / "out").mkdir(parents=True)
    os.chdir(scratch / "out")
    if args.no_shm:
        hide_shm(scratch)
    if args.stranger:
        forget_user()
    lay_out(scratch)
    (scratch / "precious" / "p.txt").write_text(f"{TEXT}\nthe dog\n", encoding="utf-8")
    with (scratch / "precious" / "t.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"text": TEXT}, ensure_ascii=False))
    places = Places(scratch)
    for verb in (*WRITING, *READING):
        places.run(verb, scratch / "out")
    if args.storage:
        places.storage()
    if (scratch / "out" / "~").exists():
        places.faults.append({"fault": "a folder named ~ was made where the commands stand"})
    json.dump({"ends": places.ends, "faults": places.faults}, sys.__stdout__)


if __name__ == "__main__":
    main()
