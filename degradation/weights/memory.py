"""How much memory is used, and how many answers may be written at once.

| after a batch | action |
|---|---|
| used > 95 %, or this process was swapped out | stop |
| used > 90 % | warning, cached blocks are freed, a pause of one second, no growth |
| used < 40 % | the batch grows by half, up to every known limit |
| out of memory | the batch is halved; the size that failed is out of reach from then on |

On a GPU, `used` is the fullest one's, and host memory can stop or pause but not grow a batch; on a CPU it is the share
of physical memory, or of the control group's limit where that is tighter.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger(__name__)

STOP_ABOVE, PAUSE_ABOVE, GROW_BELOW = 0.95, 0.90, 0.40
PAUSE_SECONDS = 1.0
# less swapping than this may be other processes' doing
SWAP_TOLERANCE = 64 << 20

MEMINFO, STATUS = Path("/proc/meminfo"), Path("/proc/self/status")
CGROUP_LIST, CGROUP_ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class MemoryPolicy:
    """Decides about the size of batches from what the last one used.

    Args:
        max_batch_size: never more than this.
        first_limit: prompts at hand, or the estimator's limit: the first batch is the smaller of both.
        read_usage: -> share of the device's memory in use, 0 to 1, its highest since the last call.
        read_host: -> the same of main memory, where the device is another one.
        ceiling: never more than this either (the estimator's limit).
        grows: whether batches may grow (not where tensor shapes are fixed).
        empty_cache, sleep: for tests.

    Attributes:
        batch_size: rows that may be in flight now. usage: last reading of `read_usage`.
    """

    def __init__(
        self,
        max_batch_size: int,
        first_limit: int,
        read_usage: Callable[[], float],
        *,
        read_host: Callable[[], float] | None = None,
        ceiling: int | None = None,
        grows: bool = True,
        empty_cache: Callable[[], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        for name, value in (("max_batch_size", max_batch_size), ("first_limit", first_limit)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.ceiling = max_batch_size if ceiling is None else max(1, min(max_batch_size, ceiling))
        self.batch_size = min(self.ceiling, first_limit)
        self.usage = self._observed = 0.0
        self.grows = grows
        self._read_usage, self._read_host = read_usage, read_host
        self._empty_cache = empty_cache or free_cached_blocks
        self._sleep = sleep
        self._warned = False

    def observe(self) -> float:
        """Return the share in use, at its highest since the last reading; it counts for the next `after_batch` too."""
        reading = self._read_usage()
        self._observed = max(self._observed, reading)
        return reading

    def after_batch(self, rows_left: int) -> str:
        """Read the memory after a batch and act on it.

        Args:
            rows_left: rows that this cell still waits for.

        Returns:
            "go", or "stop": no more may be written.
        """
        self.usage, self._observed = max(self._observed, self._read_usage()), 0.0
        pressure = self.usage if self._read_host is None else max(self.usage, self._read_host())
        if pressure > STOP_ABOVE:
            return "stop"
        if pressure > PAUSE_ABOVE:
            if not self._warned:
                logger.warning("memory is %.0f %% used; batches of %d do not grow", 100 * pressure, self.batch_size)
            self._warned = True
            self._empty_cache()
            self._sleep(PAUSE_SECONDS)
            return "go"
        self._warned = False
        if self.usage < GROW_BELOW and self.grows:
            self._grow(rows_left)
        return "go"

    def _grow(self, rows_left: int) -> None:
        wanted = max(self.batch_size + 1, math.floor(1.5 * self.batch_size))
        size = min(wanted, rows_left, self.ceiling)
        if size > self.batch_size:
            logger.info("batch %d -> %d: %.0f %% of the memory is used", self.batch_size, size, 100 * self.usage)
            self.batch_size = size

    def out_of_memory(self, size: int) -> None:
        """Halve the batch after one of `size` rows found no memory; batches stay below `size` from then on."""
        self.ceiling = max(1, min(self.ceiling, size - 1))
        self.batch_size = min(self.batch_size, max(1, size // 2))
        self._empty_cache()
        self._read_usage()  # its peak was that of the size that is given up now
        self._observed = 0.0
        logger.warning("%d rows at once found no memory: going on with %d", size, self.batch_size)


def free_cached_blocks() -> None:
    """Give the GPU's cached blocks back, where there is one in use."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class GpuReader:
    """The fullest of some GPUs: its memory in use, or the most that was reserved since the last call."""

    def __init__(self, indices: Iterable[int]):
        self.indices = tuple(indices)

    def __call__(self) -> float:
        return max(self._used(index) for index in self.indices)

    def _used(self, index: int) -> float:
        free, total = torch.cuda.mem_get_info(index)
        peak = torch.cuda.max_memory_reserved(index)
        torch.cuda.reset_peak_memory_stats(index)
        return max((total - free) / total, peak / total)


class HostReader:
    """Main memory in use; swapping of this process counts as all of it."""

    def __init__(self) -> None:
        self._swapped_at_first = swapped_out()

    def __call__(self) -> float:
        if swapped_out() - self._swapped_at_first > SWAP_TOLERANCE:
            return 1.0
        return host_memory().used_share


@dataclass(frozen=True)
class HostMemory:
    """Bytes of main memory: `total` that this process may use, `available` now without swapping."""

    total: int
    available: int

    @property
    def used_share(self) -> float:
        return 1 - self.available / self.total


def host_memory() -> HostMemory:
    """Return the main memory: the machine's, or the control group's where that leaves less."""
    machine = _machine_memory()
    groups = [group for group in _control_groups() if group.total < machine.total]
    if not groups:
        return machine
    return HostMemory(
        min(group.total for group in groups),
        min(machine.available, *(group.available for group in groups)),
    )


def _machine_memory() -> HostMemory:
    if not MEMINFO.is_file():
        import psutil  # comes with accelerate; needed where there is no /proc

        memory = psutil.virtual_memory()
        return HostMemory(memory.total, memory.available)
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    return HostMemory(_kilobytes(lines["MemTotal"]), _kilobytes(lines["MemAvailable"]))


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) << 10


def swapped_out() -> int:
    """Return how many bytes of this process lie in swap; 0 where the system does not say."""
    if not STATUS.is_file():
        return 0
    found = [line for line in STATUS.read_text().splitlines() if line.startswith("VmSwap:")]
    return _kilobytes(found[0].split(":")[1]) if found else 0


def _control_groups() -> list[HostMemory]:
    """Return every control group above this process that limits memory; its reclaimable file pages are available."""
    if not CGROUP_LIST.is_file():
        return []
    found = []
    for line in CGROUP_LIST.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        names = ("memory.max", "memory.current", "inactive_file")
        root = CGROUP_ROOT
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = CGROUP_ROOT / "memory"
        inside = root / path.lstrip("/")
        # in a container the path may be the host's, and the root is the group itself
        folders = [inside, *inside.parents] if inside.is_dir() else [root]
        found += [group for folder in folders if folder.is_relative_to(root) for group in _limit_of(folder, *names)]
    return found


def _limit_of(folder: Path, limit_name: str, used_name: str, cache_name: str) -> list[HostMemory]:
    limit_file, used_file, stat_file = folder / limit_name, folder / used_name, folder / "memory.stat"
    if not (limit_file.is_file() and used_file.is_file() and stat_file.is_file()):
        return []
    limit = limit_file.read_text().strip()
    if limit == "max":
        return []
    stat = dict(line.split(" ", 1) for line in stat_file.read_text().splitlines())
    used = int(used_file.read_text()) - int(stat.get(cache_name, "0"))
    return [HostMemory(int(limit), max(0, int(limit) - used))]
