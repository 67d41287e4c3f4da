"""An experiment's files on a disk that is full or cannot be written."""

import errno
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import record_rows
from record_rows import make_row
from store_files import exported, open_store, paths


def test_preflight_names_the_bytes(tmp_path):
    with open_store(tmp_path) as opened:
        opened.preflight(1000)
        with pytest.raises(OSError, match="6,000,000,000,000,000 bytes, only [0-9,]+ are free") as caught:
            opened.preflight(10**12)
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_keeps_the_rows_and_says_what_is_needed(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes(), (folder / "rank-00000.jsonl").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_store(filled) as opened:
        opened.preflight(7)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[1]) + 100, hard))
        try:
            with pytest.raises(OSError, match="the 7 rows left need about 42,000 bytes") as caught:
                opened.append([make_row(4), make_row(5)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[0]) - 1, hard))
            with pytest.raises(OSError, match="42,000 bytes"):
                opened.export()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert (json_path.read_bytes(), (folder / "rank-00000.jsonl").read_bytes()) == before
        assert set(filled.iterdir()) == set(paths(filled))  # no temporary file is left
        assert len(opened.finished) == 18
        opened.append([make_row(4)])  # there is room again
        opened.export()
        assert len(exported(opened)) == 19


IN_A_MOUNT = """
import errno, json, os, subprocess, sys
from frankenlm.degradation.records.store import Store
sys.path.insert(0, sys.argv[1])
from record_rows import CONFIG, NAMES, make_row
folder, mode = sys.argv[2:]
def open_store():
    return Store.open(folder, *NAMES, config_fields=CONFIG, manifest={})
written = 0
if mode == "full":
    try:
        with open_store() as store:
            while True:
                store.append([make_row(written + 1)])
                written += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    os.unlink(os.path.join(folder, "ballast"))
    with open_store() as store:
        assert len(store.finished) == written > 5, (len(store.finished), written)
        assert not list(store.files.journal_dir.glob("*.torn"))
        store.append([make_row(written + 1)])
        store.export()
        print(len(json.loads(store.files.json_path.read_bytes())) - written)
else:
    open_store().close()
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        open_store()
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.mark.parametrize(("mode", "said"), [("full", "1"), ("read-only", "EROFS")])
def test_on_a_tiny_file_system_of_its_own(tmp_path, mode, said):
    """A real full disk and a real read-only one: permission bits would not stop a test run by root."""
    mount = f'mount -t tmpfs -o size=128k tmpfs "{tmp_path}" && head -c 80000 /dev/zero > "{tmp_path}/ballast"'
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs in a namespace of its own (unshare -m)")
    script = tmp_path.parent / f"{tmp_path.name}.py"
    script.write_text(IN_A_MOUNT)
    command = f'{mount} && exec "$0" "$@"'
    helpers = str(Path(record_rows.__file__).parent)
    call = ["unshare", "-m", "sh", "-c", command, sys.executable, script, helpers, tmp_path, mode]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        open_store(tmp_path / "file" / "results")
