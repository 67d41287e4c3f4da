"""The memory policy on faked readings, and readings on faked systems."""

import pytest
import torch

from frankenlm.degradation.weights import memory
from frankenlm.degradation.weights.memory import GpuReader, HostMemory, HostReader, MemoryPolicy, host_memory


class Faked:
    """A policy whose readings are given, and that notes what it did."""

    def __init__(self, *readings, host=None, **arguments):
        self.readings, self.slept, self.emptied = list(readings), [], 0
        hosts = iter(host or ())
        defaults = {"max_batch_size": 40, "first_limit": 40, "read_host": (lambda: next(hosts)) if host else None}
        self.policy = MemoryPolicy(
            read_usage=lambda: self.readings.pop(0),
            sleep=self.slept.append,
            empty_cache=self.empty,
            **defaults | arguments,
        )

    def empty(self):
        self.emptied += 1


# --- thresholds


@pytest.mark.parametrize(
    ("used", "action", "slept", "size"),
    [
        (0.96, "stop", [], 8),
        (0.951, "stop", [], 8),
        (0.95, "go", [1.0], 8),
        (0.91, "go", [1.0], 8),
        (0.90, "go", [], 8),
        (0.5, "go", [], 8),
        (0.40, "go", [], 8),
        (0.39, "go", [], 12),
        (0.0, "go", [], 12),
    ],
)
def test_thresholds(used, action, slept, size):
    faked = Faked(used, first_limit=8)
    assert faked.policy.after_batch(100) == action
    assert (faked.slept, faked.emptied, faked.policy.batch_size) == (slept, len(slept), size)
    assert faked.policy.usage == used


def test_growth_is_by_half_up_to_every_limit():
    faked = Faked(*[0.1] * 12, first_limit=1)
    sizes = []
    for _ in range(10):
        faked.policy.after_batch(1000)
        sizes.append(faked.policy.batch_size)
    assert sizes == [2, 3, 4, 6, 9, 13, 19, 28, 40, 40]
    for limits, expected in [({"ceiling": 10}, 10), ({"max_batch_size": 11}, 11), ({"grows": False}, 8)]:
        faked = Faked(0.1, first_limit=8, **limits)
        faked.policy.after_batch(1000)
        assert faked.policy.batch_size == expected


@pytest.mark.parametrize(("rows_left", "size"), [(0, 8), (3, 8), (9, 9), (100, 12)])
def test_few_rows_left_bound_the_growth_but_never_shrink_the_batch(rows_left, size):
    faked = Faked(0.1, first_limit=8)
    faked.policy.after_batch(rows_left)
    assert faked.policy.batch_size == size


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ({}, 40),
        ({"first_limit": 7}, 7),
        ({"max_batch_size": 5}, 5),
        ({"ceiling": 3}, 3),
        ({"ceiling": 0}, 1),
        ({"ceiling": 500}, 40),
        ({"max_batch_size": 1, "first_limit": 65}, 1),
    ],
)
def test_the_first_batch_is_the_least_of_all_limits(limits, size):
    assert Faked(**limits).policy.batch_size == size


def test_host_memory_stops_and_pauses_but_does_not_grow_a_gpu_batch():
    faked = Faked(0.5, 0.5, 0.1, 0.1, host=[0.96, 0.92, 0.92, 0.6], first_limit=8)
    assert faked.policy.after_batch(100) == "stop"
    assert (faked.policy.after_batch(100), faked.slept, faked.policy.usage) == ("go", [1.0], 0.5)
    assert (faked.policy.after_batch(100), faked.policy.batch_size) == ("go", 8)
    assert (faked.policy.after_batch(100), faked.policy.batch_size) == ("go", 12)


def test_the_warning_comes_once_until_memory_has_fallen(caplog):
    faked = Faked(0.92, 0.93, 0.5, 0.94)
    for _ in range(4):
        faked.policy.after_batch(10)
    assert [record.getMessage()[:19] for record in caplog.records] == ["memory is 92 % used", "memory is 94 % used"]


def test_out_of_memory_halves_and_what_failed_stays_out_of_reach():
    faked = Faked(*[0.1] * 23)
    sizes = [faked.policy.batch_size]
    for _ in range(2):
        faked.policy.out_of_memory(faked.policy.batch_size)
        sizes.append(faked.policy.batch_size)
    assert sizes == [40, 20, 10] and faked.emptied == 2
    for _ in range(10):
        faked.policy.after_batch(1000)
    assert faked.policy.batch_size == 19  # 20 failed
    faked.policy.out_of_memory(19)
    for _ in range(10):
        faked.policy.after_batch(1000)
    assert faked.policy.batch_size == 18


def test_the_peak_of_a_size_given_up_does_not_stop_the_run():
    """On a GPU the reading is the most that was reserved since the last one: at a lack of memory, nearly all."""
    faked = Faked(0.7, 0.99, 0.5)
    faked.policy.observe()
    faked.policy.out_of_memory(40)
    assert faked.policy.after_batch(100) == "go"
    assert faked.policy.usage == 0.5


def test_out_of_memory_with_fewer_rows_than_allowed_and_with_one():
    faked = Faked(*[0.1] * 13)
    faked.policy.out_of_memory(7)  # seven rows in flight, where forty were allowed
    assert faked.policy.batch_size == 3
    for _ in range(5):
        faked.policy.after_batch(1000)
    assert faked.policy.batch_size == 6
    for _ in range(3):
        faked.policy.out_of_memory(1)
    assert faked.policy.batch_size == 1
    faked.policy.after_batch(1000)
    assert faked.policy.batch_size == 1


@pytest.mark.parametrize("limits", [{"max_batch_size": 0}, {"first_limit": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ValueError, match="must be at least 1"):
        Faked(**limits)


# --- readings


def test_the_gpu_reader_takes_the_fullest_device_and_the_peak_of_the_batch(monkeypatch):
    free, peak, reset = {0: 60, 1: 90, 2: 1}, {0: 30, 1: 55, 2: 0}, []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], 100))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda index: peak[index])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    assert GpuReader([0, 1])() == 0.55  # the model is not on device 2
    assert reset == [0, 1]
    free[0] = 20
    assert GpuReader([0, 1])() == 0.8


MEMINFO = "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 700 kB\nSwapTotal: 500 kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system(meminfo=, cgroup=, files={}, swap=) puts a faked /proc and /sys in place."""

    def make(meminfo=MEMINFO, cgroup="", files=(), swap=0):
        for name, text in {
            "meminfo": meminfo,
            "cgroup": cgroup,
            "status": f"Name:\tpython\nVmSwap:\t{swap} kB\n",
            **dict(files),
        }.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
        monkeypatch.setattr(memory, "CGROUP_LIST", tmp_path / "cgroup")
        monkeypatch.setattr(memory, "CGROUP_ROOT", tmp_path / "sys")

    return make


KB = 1024


def group(folder, limit, used, inactive, version=2):
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    texts = (str(limit), str(used), f"anon 5\n{names[2]} {inactive}\n")
    return {f"sys/{folder}/{name}": text for name, text in zip((*names[:2], "memory.stat"), texts, strict=True)}


def test_main_memory_of_the_machine(system):
    system()
    assert host_memory() == HostMemory(1000 * KB, 700 * KB)
    assert HostReader()() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/job\n", group("job", 400 * KB, 300 * KB, 50 * KB), HostMemory(400 * KB, 150 * KB)),
        ("0::/job\n", group("job", "max", 300 * KB, 0), HostMemory(1000 * KB, 700 * KB)),
        ("0::/job\n", group("job", 4000 * KB, 300 * KB, 0), HostMemory(1000 * KB, 700 * KB)),
        ("0::/a/job\n", group("a/job", "max", 9, 0) | group("a", 200 * KB, 80 * KB, 0), HostMemory(200 * KB, 120 * KB)),
        ("0::/not/here\n", group("", 400 * KB, 390 * KB, 0), HostMemory(400 * KB, 10 * KB)),
        ("0::/job\n", group("job", 900 * KB, 100 * KB, 0), HostMemory(900 * KB, 700 * KB)),
        (
            "5:cpu,memory:/job\n1:cpu:/x\n",
            group("memory/job", 400 * KB, 300 * KB, 50 * KB, 1),
            HostMemory(400 * KB, 150 * KB),
        ),
        ("", {}, HostMemory(1000 * KB, 700 * KB)),
    ],
)
def test_main_memory_within_a_control_group(cgroup, files, expected, system):
    system(cgroup=cgroup, files=files)
    assert host_memory() == expected


def test_swapping_counts_as_full(system):
    system(swap=1000)
    read = HostReader()
    assert read() == pytest.approx(0.3)
    system(swap=1000 + (64 << 10))
    assert read() == pytest.approx(0.3)
    system(swap=1001 + (64 << 10))
    assert read() == 1.0


def test_this_machine_can_be_read():
    found = host_memory()
    assert 0 < found.available < found.total and 0 < HostReader()() <= 1


def test_what_is_observed_between_batches_counts_after_them():
    readings = iter([0.5, 0.97, 0.3, 0.3])
    policy = MemoryPolicy(40, 4, lambda: next(readings), sleep=lambda seconds: None)
    assert (policy.observe(), policy.observe()) == (0.5, 0.97)
    assert policy.after_batch(100) == "stop" and policy.usage == 0.97
    assert policy.after_batch(100) == "go" and policy.usage == 0.3
