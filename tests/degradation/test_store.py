"""An experiment's files through everything that may happen to them: section by section of the table of events."""

import errno
import json
import logging
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from frankenlm.degradation import locks, store
from frankenlm.degradation.errors import ConfigConflict, DamagedRecords, ExperimentLocked
from frankenlm.degradation.export import export_command, journal_of
from frankenlm.degradation.journal import encode_line, read_rows
from frankenlm.degradation.locks import ExperimentLock
from frankenlm.degradation.records import ROW_FIELDS
from frankenlm.degradation.store import Store

helper = runpy.run_path(str(Path(__file__).with_name("record_rows.py")))
make_row, lesion, CONFIG, NAMES, LEVELS = (helper[name] for name in ("make_row", "lesion", "CONFIG", "NAMES", "LEVELS"))
MANIFEST = {"versions": {"torch": "2"}}
# what a row of another run, rank or attempt may differ in
LOOSE = {"attempt", "rank", "timestamp", "duration", "batch_duration"}


def open_store(folder, config=CONFIG, **options):
    return Store.open(folder, *NAMES, config_fields=config, manifest=MANIFEST, **options)


def exported(opened):
    return json.loads(opened.json_path.read_text(encoding="utf-8"))


def shape(rows):
    """Rows without what may differ."""
    return [{name: value for name, value in row.items() if name not in LOOSE} for row in rows]


ROWS = [make_row(prompt, repeat, level) for level in range(3) for repeat in range(2) for prompt in (1, 2, 3)]


@pytest.fixture
def filled(tmp_path):
    """A folder with an exported experiment of 18 rows."""
    with open_store(tmp_path) as opened:
        for start in range(0, len(ROWS), 3):
            opened.append(ROWS[start : start + 3])
        opened.append_lesion(lesion())
        opened.export()
    return tmp_path


def paths(folder):
    stem = folder / "outputs_mult_gauss_tiny_test"
    return stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".journal")


# --- the plain way


def test_what_is_appended_is_finished_and_exported(tmp_path):
    with open_store(tmp_path) as opened:
        assert opened.finished == {}
        opened.append(ROWS[:3])
        assert opened.finished == {row["row_key"]: 1 for row in ROWS[:3]}
    with open_store(tmp_path) as opened:
        opened.append(list(reversed(ROWS[3:])))
        assert opened.export() == paths(tmp_path)[0]
        rows = exported(opened)
    assert shape(rows) == shape(ROWS) and list(rows[0]) == list(ROW_FIELDS)
    assert set(tmp_path.iterdir()) == set(paths(tmp_path))


def test_the_export_is_one_strict_array_with_a_row_a_line(tmp_path):
    with open_store(tmp_path) as opened:
        opened.export()
        assert exported(opened) == []
        opened.append([make_row(perplexity=float("inf"), output="line\u2028 and\nline")])
        lines = opened.export().read_text(encoding="utf-8").split("\n")
    assert lines[0] == "[" and lines[2:] == ["]", ""]
    assert json.loads(lines[1])["perplexity"] is None


def test_names_become_file_names(tmp_path):
    names = ("mult_gauss", "org/mo|del", 'a:b\\c"?')
    with Store.open(tmp_path, *names, config_fields=CONFIG, manifest={}) as opened:
        opened.export()
        assert opened.json_path.name == "outputs_mult_gauss_org-mo-del_a-b-c--.json"
    with pytest.raises(ConfigConflict, match=r'name_suffix: .* -> "a-b-c--"'):
        Store.open(tmp_path, "mult_gauss", "org/mo|del", "a-b-c--", config_fields=CONFIG, manifest={})


def test_rows_that_break_the_contract_are_refused_whole(tmp_path):
    with open_store(tmp_path) as opened:
        with pytest.raises(ValueError, match="completion"):
            opened.append([ROWS[0], ROWS[1] | {"completion": None}])
        with pytest.raises(ValueError, match="same row_key"):
            opened.append([ROWS[0], ROWS[0]])
        with pytest.raises(ValueError, match="lesions lacks level_index"):
            opened.append_lesion({name: value for name, value in lesion().items() if name != "level_index"})
        assert opened.finished == {}


def test_failed_rows_are_tried_again_and_the_highest_attempt_is_shown(tmp_path):
    with open_store(tmp_path) as opened:
        opened.append([make_row(1, status="oom", completion=""), make_row(2, status="nan_logits")])
        opened.append([make_row(3, status="error", completion="")])
        assert list(opened.finished) == [make_row(2)["row_key"]]
    with open_store(tmp_path) as opened:
        opened.append([make_row(1), make_row(3, status="oom")])
        opened.append([make_row(3), make_row(2, completion="forced")])  # as force_run does
        assert opened.finished == {make_row(n)["row_key"]: attempt for n, attempt in ((1, 2), (2, 2), (3, 3))}
        opened.export()
        rows = exported(opened)
    assert [(row["attempt"], row["status"]) for row in rows] == [(2, "ok"), (2, "ok"), (3, "ok")]
    assert rows[1]["completion"] == "forced"
    assert len(read_rows(paths(tmp_path)[1] / "rank-00000.jsonl")) == 7  # the journal keeps all


def test_the_manifest_keeps_every_kind_of_run_once(tmp_path):
    for versions in ("2", "2", "3"):
        Store.open(tmp_path, *NAMES, config_fields=CONFIG, manifest={"torch": versions}).close()
    manifest = json.loads((paths(tmp_path)[1] / "manifest.json").read_text())
    assert [run["manifest"] for run in manifest["runs"]] == [{"torch": "2"}, {"torch": "3"}]
    assert manifest["config_fields"] == CONFIG


# --- kills


def test_cuts_at_random_places_cost_the_last_row_at_most(filled):
    json_path, folder = paths(filled)
    journal, draw = folder / "rank-00000.jsonl", random.Random(0)
    whole, before = journal.read_bytes(), json_path.read_bytes()
    for cut in [draw.randrange(len(whole) // 2, len(whole)) for _ in range(25)]:
        journal.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        with open_store(filled) as opened:
            assert set(opened.finished) == {row["row_key"] for row in ROWS[:kept]}
            opened.append(ROWS[kept:])
            opened.export()
        assert json_path.read_bytes() == before


def test_a_kill_during_export_leaves_the_old_file(filled, monkeypatch):
    json_path, _ = paths(filled)
    before = json_path.read_bytes()

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with open_store(filled) as opened:
        opened.append([make_row(4)])
        monkeypatch.setattr(os, "replace", kill)
        monkeypatch.setattr(Path, "unlink", kill)  # a killed process does not clean up
        with pytest.raises(Killed):
            opened.export()
        monkeypatch.undo()
    (left,) = set(filled.iterdir()) - set(paths(filled))
    assert left.name.endswith(".tmp") and json_path.read_bytes() == before
    with open_store(filled) as opened:
        assert not left.exists()
        opened.export()
        assert len(exported(opened)) == 19


def test_a_bad_line_costs_its_row_alone(filled, caplog):
    _, folder = paths(filled)
    journal = folder / "rank-00000.jsonl"
    damaged = journal.read_bytes().replace(ROWS[4]["completion"].encode()[:9], b"scribbled", 1)
    journal.write_bytes(damaged)
    with open_store(filled) as opened:
        assert set(opened.finished) == {row["row_key"] for row in ROWS} - {ROWS[4]["row_key"]}
        assert "is damaged" in caplog.text
        opened.append([ROWS[4]])
        opened.export()
        assert shape(exported(opened)) == shape(ROWS)


def test_torn_side_files_are_repaired(filled):
    _, folder = paths(filled)
    with open(folder / "lesions-00000.jsonl", "ab") as file:
        file.write(b'{"v":1,"crc"')
    with open_store(filled) as opened:
        opened.append_lesion(lesion(2, 1))
        assert [record["level_index"] for record in opened.lesions()] == [1, 2]
    assert (folder / "lesions-00000.jsonl.torn").exists()


# --- damage and loss


def test_a_lost_journal_stops_or_is_rebuilt(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    shutil.rmtree(folder)
    with pytest.raises(DamagedRecords, match=r"holds 18 rows: --rebuild"):
        open_store(filled)
    assert not folder.exists() and json_path.read_bytes() == before
    with open_store(filled, rebuild=True) as opened:
        assert len(opened.finished) == 18
        opened.export()
    assert json_path.read_bytes() == before
    open_store(filled).close()


@pytest.mark.parametrize("how", ["emptied", "all files gone", "one rank gone"])
def test_lost_rank_files_stop_or_are_rebuilt(filled, how):
    json_path, folder = paths(filled)
    with open_store(filled) as first, open_store(filled, rank=1, world_size=2) as second:
        second.append([make_row(4)])
        first.export()
    before = json_path.read_bytes()
    if how == "emptied":
        for rank in (0, 1):
            (folder / f"rank-0000{rank}.jsonl").write_bytes(b"")
    else:
        for path in folder.glob("rank-00001.jsonl" if how == "one rank gone" else "*"):
            path.unlink()
    with pytest.raises(DamagedRecords, match=f"holds {1 if how == 'one rank gone' else 19} rows"):
        open_store(filled)
    with open_store(filled, rebuild=True) as opened:
        opened.export()
        assert shape(exported(opened)) == shape(json.loads(before))
        assert "rebuilding" not in os.listdir(folder)


def test_a_rebuild_that_was_killed_goes_on(filled, monkeypatch):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    shutil.rmtree(folder)
    real = store.adopt_rows

    def half(journal_dir, rows):
        real(journal_dir, rows[:7])
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "adopt_rows", half)
    with pytest.raises(KeyboardInterrupt):
        open_store(filled, rebuild=True)
    monkeypatch.undo()
    with open_store(filled) as opened:  # it was agreed to
        assert len(opened.finished) == 18
        opened.export()
    assert json_path.read_bytes() == before


def test_a_rebuild_takes_rows_of_this_configuration_only(filled):
    _, folder = paths(filled)
    shutil.rmtree(folder)
    with pytest.raises(ConfigConflict, match="not of this configuration"):
        open_store(filled, CONFIG | {"top_k": 1}, rebuild=True)
    assert len(open_and_count(filled, rebuild=True)) == 18


def open_and_count(folder, **options):
    with open_store(folder, **options) as opened:
        return opened.finished


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"row_key": "a"', "is no JSON.*move it away"),
        (b'{"rows": []}', "not a list of rows"),
        (b'[{"std_dev": 0.1, "output": "x"}]', "import-legacy"),
    ],
)
def test_a_json_file_that_cannot_be_adopted_is_left_alone(tmp_path, content, message):
    json_path, _ = paths(tmp_path)
    json_path.write_bytes(content)
    with pytest.raises(DamagedRecords, match=message):
        open_store(tmp_path, rebuild=True)
    with pytest.raises(DamagedRecords):
        open_store(tmp_path)
    assert json_path.read_bytes() == content


def test_a_damaged_or_empty_json_file_is_made_anew_from_the_journal(filled):
    json_path, _ = paths(filled)
    before = json_path.read_bytes()
    for content in (b"", before[:700], b"\0" * 100):
        json_path.write_bytes(content)
        with open_store(filled) as opened:
            opened.export()
        assert json_path.read_bytes() == before


def test_an_empty_json_file_without_a_journal_is_a_new_start(tmp_path):
    paths(tmp_path)[0].write_bytes(b"")
    open_store(tmp_path).close()


def test_a_damaged_manifest_is_made_anew_if_the_rows_fit(filled, caplog):
    _, folder = paths(filled)
    manifest = folder / "manifest.json"
    whole, draw = manifest.read_bytes(), random.Random(1)
    contents = [b"", b"\0" * 50, b"[]", whole[:100]]
    for _ in range(20):  # a flipped bit that JSON survives, too
        flipped = bytearray(whole)
        flipped[draw.randrange(len(whole) - 2)] ^= 1 << draw.randrange(7)
        contents.append(bytes(flipped))
    for content in contents:
        manifest.write_bytes(content)
        caplog.clear()
        with pytest.raises(ConfigConflict, match="not of this configuration"):
            open_store(filled, CONFIG | {"top_k": 1})
        assert "is damaged" in caplog.text and (folder / "manifest.json.damaged").read_bytes() == content
        manifest.write_bytes(content)
        assert len(open_and_count(filled)) == 18
        assert json.loads(manifest.read_bytes())["config_fields"] == CONFIG
    manifest.unlink()
    assert len(open_and_count(filled)) == 18


def test_white_space_in_the_manifest_is_no_damage(filled):
    manifest = paths(filled)[1] / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"\n", b"\r\n"))
    assert len(open_and_count(filled)) == 18
    assert not manifest.with_name("manifest.json.damaged").exists()


@pytest.mark.parametrize("what", ["manifest", "row"])
def test_files_of_a_newer_schema_are_refused_and_kept(filled, monkeypatch, what):
    _, folder = paths(filled)
    module = {"manifest": "manifest", "row": "journal"}[what]
    monkeypatch.setattr(f"frankenlm.degradation.{module}.SCHEMA_VERSION", 2)
    if what == "row":
        line = encode_line(ROWS[0])
        with open(folder / "rank-00000.jsonl", "ab") as file:
            file.write(line)
    else:
        from frankenlm.degradation.manifest import read_manifest, write_manifest

        known = read_manifest(folder / "manifest.json")
        write_manifest(folder / "manifest.json", known | {"schema_version": 2})
    monkeypatch.undo()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(DamagedRecords, match="schema version 2.*newer frankenlm"):
        open_store(filled)
    assert {path: path.read_bytes() for path in before} == before


def test_crlf_in_every_file(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    for path in [json_path, *folder.glob("*.json*")]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with open_store(filled) as opened:
        assert len(opened.finished) == 18
        opened.export()
    assert json_path.read_bytes() == before


# --- storage


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
import errno, json, os, runpy, subprocess, sys
from frankenlm.degradation.store import Store
helper = runpy.run_path(sys.argv[1])
folder, mode = sys.argv[2:]
def open_store():
    return Store.open(folder, *helper["NAMES"], config_fields=helper["CONFIG"], manifest={})
written = 0
if mode == "full":
    try:
        with open_store() as store:
            while True:
                store.append([helper["make_row"](written + 1)])
                written += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    os.unlink(os.path.join(folder, "ballast"))
    with open_store() as store:
        assert len(store.finished) == written > 5, (len(store.finished), written)
        assert not list(store.journal_dir.glob("*.torn"))
        store.append([helper["make_row"](written + 1)])
        store.export()
        print(len(json.loads(store.json_path.read_bytes())) - written)
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
    helper_path = str(Path(__file__).with_name("record_rows.py"))
    call = ["unshare", "-m", "sh", "-c", command, sys.executable, script, helper_path, tmp_path, mode]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        open_store(tmp_path / "file" / "results")


# --- locks


def test_one_process_at_a_time(tmp_path):
    opened = open_store(tmp_path)
    with pytest.raises(ExperimentLocked, match=rf"process {os.getpid()} on .+ since 20.+--wait-lock"):
        open_store(tmp_path)
    started = time.monotonic()
    threading.Timer(0.3, opened.close).start()
    open_store(tmp_path, wait_lock=True).close()
    assert time.monotonic() - started >= 0.25
    open_store(tmp_path).close()


HOLDER = """
import runpy, sys, time
from frankenlm.degradation.store import Store
helper = runpy.run_path(sys.argv[1])
store = Store.open(sys.argv[2], *helper["NAMES"], config_fields=helper["CONFIG"], manifest={})
store.append([helper["make_row"]()])
print("open", flush=True)
time.sleep(60)
"""


def test_sigkill_of_the_holder_frees_the_lock(tmp_path):
    helper_path = str(Path(__file__).with_name("record_rows.py"))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, helper_path, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(ExperimentLocked, match=f"process {holder.pid} on"):
        open_store(tmp_path)
    with pytest.raises(ExperimentLocked):
        export_command(paths(tmp_path)[1])
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with open_store(tmp_path) as opened:
        assert list(opened.finished) == [make_row()["row_key"]]


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without flock, and a heart that beats fast."""

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.05)
    monkeypatch.setattr(locks, "STALE_AFTER", 1.5)


def test_without_flock_a_heartbeat_keeps_the_lock(tmp_path, no_flock):
    opened = open_store(tmp_path)
    held = paths(tmp_path)[1] / "lock.held"
    time.sleep(1.7)  # beyond STALE_AFTER
    with pytest.raises(ExperimentLocked, match=f"process {os.getpid()}"):
        open_store(tmp_path)
    opened.append([make_row()])
    opened.close()
    assert not held.exists()
    open_store(tmp_path).close()


@pytest.mark.parametrize("why", ["old", "gone", "fresh elsewhere"])
def test_without_flock_a_lock_left_behind_is_taken_over(tmp_path, no_flock, why):
    open_store(tmp_path).close()
    held = paths(tmp_path)[1] / "lock.held"
    done = subprocess.Popen(["true"])
    done.wait()
    host = locks.socket.gethostname() if why == "gone" else "elsewhere"
    held.write_text(json.dumps({"pid": done.pid, "host": host, "start": "then"}))
    if why == "fresh elsewhere":
        with pytest.raises(ExperimentLocked, match="on elsewhere since then"):
            open_store(tmp_path)
        return
    if why == "old":
        os.utime(held, (1, 1))
    open_store(tmp_path).close()
    assert sorted(path.name for path in held.parent.glob("lock*")) == ["lock"]


def test_without_flock_a_lock_that_was_lost_stops_the_writing(tmp_path, no_flock):
    opened = open_store(tmp_path)
    held = paths(tmp_path)[1] / "lock.held"
    other = json.dumps({"pid": 1, "host": "elsewhere", "start": "now"})
    held.write_text(other)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            opened.append([make_row()])
        except ExperimentLocked as error:
            assert "on elsewhere since now" in str(error)
            break
        time.sleep(0.02)
    else:
        pytest.fail("the lost lock was not noticed")
    opened.close()
    assert held.read_text() == other


@pytest.mark.parametrize("failures", [2, 10_000])
def test_without_flock_a_heart_that_fails_for_long_gives_the_lock_up(tmp_path, no_flock, monkeypatch, failures):
    opened, calls = open_store(tmp_path), []
    utime = os.utime

    def fail(*arguments):
        calls.append(1)
        if len(calls) <= failures:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return utime(*arguments)

    monkeypatch.setattr(locks.os, "utime", fail)
    deadline = time.monotonic() + 20
    while len(calls) < min(failures + 5, 20) and time.monotonic() < deadline:
        time.sleep(0.02)
    if failures == 2:
        opened.append([make_row()])
    else:
        while not opened._lock._beats.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(ExperimentLocked):
            opened.append([make_row()])
    opened.close()


def test_a_lock_whose_file_was_moved_away_is_taken_anew(tmp_path, monkeypatch):
    """An archive moves the file between another process's opening and locking it."""
    path, moved, real = tmp_path / "lock", tmp_path / "moved", locks.lock_descriptor

    def move_first(descriptor):
        if not moved.exists():
            os.rename(path, moved)
        return real(descriptor)

    monkeypatch.setattr(locks, "lock_descriptor", move_first)
    lock = ExperimentLock(path)
    lock.acquire(wait=True)
    assert locks.read_holder(path)["pid"] == os.getpid() and moved.read_bytes() == b""
    lock.release()


# --- another configuration


def test_a_changed_configuration_stops_with_the_differences(filled):
    changed = CONFIG | {"temperature": 0.7, "top_p": 0.9}
    with pytest.raises(ConfigConflict) as caught:
        open_store(filled, changed)
    assert 'temperature: 1.0 -> 0.7, top_p: "(not there)" -> 0.9' in str(caught.value)
    assert "top_k" not in str(caught.value) and "\n" not in str(caught.value)
    assert len(open_and_count(filled)) == 18  # and it is free again


@pytest.mark.parametrize("field", sorted(CONFIG))
def test_every_field_counts(filled, field):
    with pytest.raises(ConfigConflict, match=field):
        open_store(filled, CONFIG | {field: 99})


def test_new_suffix_finds_its_place_again(filled):
    changed, third = CONFIG | {"temperature": 0.7}, CONFIG | {"temperature": 0.5}
    with open_store(filled, changed, on_conflict="new-suffix") as opened:
        assert opened.suffix == "test-2" and opened.finished == {}
        opened.append([make_row(config=changed)])
        with open_store(filled, changed, on_conflict="new-suffix", rank=1, world_size=2) as other:
            assert other.suffix == "test-2"
    with open_store(filled, third, on_conflict="new-suffix") as opened:
        assert opened.suffix == "test-3"
    with open_store(filled, changed, on_conflict="new-suffix") as opened:
        assert opened.suffix == "test-2" and len(opened.finished) == 1
    assert len(open_and_count(filled)) == 18


def test_archive_moves_everything_out_of_the_way(filled, caplog):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    with open_store(filled, CONFIG | {"temperature": 0.7}, on_conflict="archive") as opened:
        assert opened.finished == {} and opened.suffix == "test"
        with pytest.raises(ExperimentLocked):
            open_store(filled, CONFIG | {"temperature": 0.7})
        opened.export()
    (old,) = set(filled.glob("*.journal")) - {folder}
    assert old.name in caplog.text and old.name.startswith("outputs_mult_gauss_tiny_test.archived-")
    assert old.with_suffix(".json").read_bytes() == before
    assert export_command(old) == old.with_suffix(".json")
    assert old.with_suffix(".json").read_bytes() == before


def test_an_archive_that_was_killed_half_way_goes_on(filled, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", kill)
    with pytest.raises(KeyboardInterrupt):
        open_store(filled, CONFIG | {"top_k": 1}, on_conflict="archive")
    monkeypatch.undo()
    open_store(filled, CONFIG | {"top_k": 1}, on_conflict="archive").close()
    assert len(list(filled.glob("*archived*.json"))) == len(list(filled.glob("*archived*.journal"))) == 1


def test_an_unknown_on_conflict(tmp_path):
    with pytest.raises(ValueError, match="on_conflict='ask' is not known"):
        open_store(tmp_path, on_conflict="ask")


# --- extensions


def test_more_repeats_add_exactly_their_rows(filled):
    plan = [make_row(prompt, repeat, level) for level in range(3) for repeat in range(4) for prompt in (1, 2, 3)]
    with open_store(filled) as opened:
        missing = [row for row in plan if row["row_key"] not in opened.finished]
        assert len(missing) == 18 and {row["repeat_index"] for row in missing} == {2, 3}
        opened.append(missing)
        opened.export()
        assert shape(exported(opened)) == shape(plan)


def test_an_inserted_prompt_and_an_inserted_level_shift_the_others(filled):
    """Rows that exist keep their keys and get the numbers that they would have had from the start."""
    levels = (0.0, 0.05, 0.1, 0.2)
    texts = {1: "A new one.", 2: ROWS[0]["prompt_text"], 3: ROWS[1]["prompt_text"], 4: ROWS[2]["prompt_text"]}
    plan = [
        make_row(prompt, repeat, level, text=text, levels=levels)
        for level in range(4)
        for repeat in range(2)
        for prompt, text in texts.items()
    ]
    numbers = {row["row_key"]: (row["level_index"], row["prompt_id"]) for row in plan}
    with open_store(filled) as opened:
        missing = [row for row in plan if row["row_key"] not in opened.finished]
        assert len(missing) == 32 - 18
        assert opened.renumber(numbers) == 18
        assert opened.renumber(numbers) == 0
        opened.append(missing)
        opened.export()
        assert shape(exported(opened)) == shape(plan)


def test_equal_prompts_and_near_levels_are_kept_apart(tmp_path):
    rows = [
        make_row(n, text="Same.", occurrence=n - 1, levels=(0.025, 0.03), level_index=k) for k in (0, 1) for n in (1, 2)
    ]
    with open_store(tmp_path) as opened:
        opened.append(rows)
        opened.export()
        assert [(row["level_value"], row["prompt_id"]) for row in exported(opened)] == [
            (0.025, 1), (0.025, 2), (0.03, 1), (0.03, 2),
        ]  # fmt: skip


def test_an_original_schema_reader_finds_what_it_knows(filled):
    """The thesis' loader: a key of five fields, levels to two decimals, prompts stripped."""
    keys = set()
    for row in json.loads(paths(filled)[0].read_text(encoding="utf-8")):
        cell = (row["param_group_name"], round(float(row["std_dev"]), 2), row["repeat_index"])
        keys.add((*cell, row["degradation_method"], row["prompt_text"].strip()))
    assert len(keys) == len(ROWS)


# --- several processes


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_export_is_the_same_whatever_the_world_size(tmp_path, world_size):
    groups = ("mlp_only", "attn_only")
    rows = [make_row(p, r, k, group=g) for g in groups for k in range(3) for r in range(2) for p in (1, 2, 3)]
    cells = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    stores = [open_store(tmp_path, rank=rank, world_size=world_size) for rank in range(world_size)]
    for index in reversed(range(len(cells))):
        opened, first = stores[index % world_size], cells[index][0]
        opened.append(cells[index])
        opened.append_lesion(lesion(first["level_index"], first["repeat_index"], first["param_group_name"]))
    # two ranks may both have done a cell
    stores[-1].append(cells[0])
    stores[0].export()
    expected = sorted(
        rows, key=lambda r: (r["param_group_name"], r["level_index"], r["repeat_index"], r["prompt_id"])
    )  # fmt: skip
    assert shape(exported(stores[0])) == shape(expected)
    lesions = read_rows(stores[0].journal_dir / "lesions.jsonl")
    assert [(r["group"], r["level_index"], r["repeat_index"]) for r in lesions] == [
        (g, k, r) for g in sorted(groups) for k in range(3) for r in range(2)
    ]
    with pytest.raises(RuntimeError, match="rank 0 does"):
        stores[-1].export() if world_size > 1 else open_store(tmp_path, rank=1).export()
    for opened in stores:
        opened.close()


def test_three_ranks_then_one(tmp_path):
    stores = [open_store(tmp_path, rank=rank, world_size=3) for rank in range(3)]
    for index, row in enumerate(ROWS[:9]):
        stores[index % 3].append([row])
    for opened in stores:
        opened.close()
    # rank 2 was killed inside a write; rank 0 of the next run repairs its file
    torn = paths(tmp_path)[1] / "rank-00002.jsonl"
    torn.write_bytes(torn.read_bytes()[:-10])
    with open_store(tmp_path) as opened:
        assert set(opened.finished) == {row["row_key"] for row in ROWS[:8]}
        opened.append(ROWS[8:])
        opened.export()
        assert shape(exported(opened)) == shape(ROWS)
    assert torn.with_name("rank-00002.jsonl.torn").exists()


def test_a_forced_attempt_of_one_rank_beats_the_first_of_another(tmp_path):
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        second.append([make_row(1), make_row(2)])
        first.refresh()
        first.append([make_row(1, completion="forced")])
    with open_store(tmp_path) as opened:  # rank 0's file is read first, the older rows after it
        assert opened.finished == {make_row(1)["row_key"]: 2, make_row(2)["row_key"]: 1}
        assert [(row["completion"] == "forced", row["rank"]) for row in opened.rows()] == [(True, 0), (False, 1)]


def test_a_rank_sees_what_the_others_have_done(tmp_path):
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        second.append(ROWS[:2])
        assert first.finished == {}
        first.refresh()
        assert first.finished == second.finished != {}


def test_ranks_beyond_the_first_need_it(tmp_path):
    with pytest.raises(RuntimeError, match="before rank 0 was done"):
        open_store(tmp_path, rank=1, world_size=2)


def test_a_rank_of_an_earlier_run_that_still_writes_is_noticed(tmp_path):
    first, second = open_store(tmp_path), open_store(tmp_path, rank=1, world_size=2)
    second.append(ROWS[:1])
    first.close()
    with pytest.raises(ExperimentLocked, match="rank-00001.jsonl is being written"):
        open_store(tmp_path)
    second.close()
    open_store(tmp_path).close()


def test_a_cell_is_claimed_once_a_run(tmp_path):
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        assert first.claim("attn_only|0.1|0") and not second.claim("attn_only|0.1|0")
        assert second.claim("attn_only|0.1|1") and not second.claim("attn_only|0.1|1")
    with open_store(tmp_path) as again:
        assert again.claim("attn_only|0.1|0")


def test_cells_are_the_last_of_each(tmp_path):
    cell = {
        "param_group_name": "g",
        "degradation_method": "m",
        "level_value": None,
        "level_index": 0,
        "repeat_index": 0,
    }
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        first.append_cell(cell | {"perplexity": 1.0})
        second.append_cell(cell | {"level_value": 4, "level_index": 1, "perplexity": 2.0})
        first.append_cell(cell | {"perplexity": float("inf")})
        assert [record["perplexity"] for record in first.cells()] == [None, 2.0]


def test_the_record_of_the_last_run_counts_whichever_rank_wrote_it(tmp_path):
    cell = {
        "param_group_name": "g", "degradation_method": "m", "level_value": 0.1, "level_index": 0, "repeat_index": 0,
    }  # fmt: skip
    with open_store(tmp_path) as first, open_store(tmp_path, rank=1, world_size=2) as second:
        second.append_cell(cell | {"rows": 0})
        second.append_cell(cell | {"rows": 3})
        first.refresh()
        first.append_cell(cell | {"level_index": 4, "rows": 3})  # renumbered
    with open_store(tmp_path) as opened:
        assert [(record["level_index"], record["rows"]) for record in opened.cells()] == [(4, 3)]
        opened.append_cell(cell | {"level_index": 5, "rows": 7})
        assert [(record["level_index"], record["rows"]) for record in opened.cells()] == [(5, 7)]


# --- export


def test_the_export_command_takes_any_of_the_paths(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    for path in (json_path, folder, folder / "rank-00000.jsonl", str(folder)):
        json_path.unlink()
        assert export_command(path) == json_path and json_path.read_bytes() == before
    with pytest.raises(ValueError, match="no journal"):
        journal_of(filled / "else.json")


def test_exports_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    clock = iter([100.0, 100.0, 102.0, 103.0, 141.9, 142.0, 142.0, 142.0])
    with open_store(tmp_path) as opened:
        monkeypatch.setattr(store.time, "monotonic", lambda: next(clock))
        assert opened.export_if_due()  # took 2 s
        assert opened.export_if_due() is None  # 1 s later
        assert opened.export_if_due() is None  # 39.9 s later
        assert opened.export_if_due()  # 40 s later


def test_a_line_that_went_bad_after_reading_is_never_exported(filled):
    json_path, folder = paths(filled)
    before = json_path.read_bytes()
    with open_store(filled) as opened:
        journal = folder / "rank-00000.jsonl"
        journal.write_bytes(journal.read_bytes().replace(b"Prompt 1", b"Prompt 9", 1))
        with pytest.raises(OSError, match="was good before") as caught:
            opened.export()
    assert caught.value.errno == errno.EIO and json_path.read_bytes() == before


@pytest.mark.slow
def test_ninety_thousand_rows_take_seconds(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    rows = [make_row(p, r, k, output="x" * 2000) for k in range(3) for r in range(300) for p in range(1, 101)]
    with open_store(tmp_path) as opened:
        for start in range(0, len(rows), 40):
            opened.append(rows[start : start + 40])
        started = time.monotonic()
        opened.export()
        assert time.monotonic() - started < 15
        assert len(exported(opened)) == 90_000
