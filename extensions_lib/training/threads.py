"""How many CPU threads to compute with.

One thread too many is far worse than one too few: every parallel region waits for the thread that another program has
displaced. Two threads on two cores of which one was busy took six times as long as one thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

TICKS_PER_SECOND = 100
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal of /proc/stat


def choose_num_threads(requested: int = 0, *, num_cores: int | None = None, num_busy: float | None = None) -> int:
    """The threads to use: `requested`, or when that is 0 the cores that are idle; 1 to the cores allowed.

    `num_cores` and `num_busy` replace what is measured: the physical cores this process may use, and how many of them
    other processes keep busy. Where that cannot be measured, one core is left free.
    """
    cores = allowed_cores() if num_cores is None else num_cores
    if requested > 0:
        return min(requested, cores)
    busy = busy_cores() if num_busy is None else num_busy
    return max(1, cores - (1 if busy is None else round(busy)))


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Inside, torch computes with `count` threads in this thread; the number from before comes back.

    Torch keeps a number for each thread, and one for threads that have not computed yet. Setting the first sets the
    second too, so another thread puts that back: a host's new threads must not take over the number of a job.
    """
    before = torch.get_num_threads()
    _set_here_only(count, before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _set_here_only(count: int, elsewhere: int) -> None:
    torch.set_num_threads(count)
    other = threading.Thread(target=torch.set_num_threads, args=(elsewhere,))
    other.start()
    other.join()


def allowed_cores() -> int:
    """Physical cores this process may use: its affinity, its container's quota and OMP_NUM_THREADS all count."""
    limits = [float(physical_cores(affinity()))]
    quota = cpu_quota()
    if quota is not None:
        limits.append(quota)
    if os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        limits.append(float(os.environ["OMP_NUM_THREADS"]))
    return max(1, int(min(limits)))


def affinity() -> frozenset[int]:
    """Numbers of the logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(processors: frozenset[int], root: Path = Path("/sys/devices/system/cpu")) -> int:
    """How many physical cores `processors` belong to; where the system does not tell, at most torch's own default."""
    siblings = {_read(root / f"cpu{number}" / "topology" / "thread_siblings_list") for number in processors}
    if None in siblings:
        return min(len(processors), torch.get_num_threads())
    return len(siblings)


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPUs that the process's control groups (version 1 or 2) grant it; None without a limit."""
    quotas = []
    for line in (_read(groups) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        folder = mount / path.strip("/")
        for each in (folder, *folder.parents):
            quotas.append(_quota_v1(each) if controllers else _quota_v2(each))
            if each == mount:
                break
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_v2(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "max").partition(" ")
    return None if quota == "max" else int(quota) / int(period or 100_000)


def _quota_v1(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return None if quota is None or period is None or int(quota) <= 0 else int(quota) / int(period)


def busy_cores(seconds: float = 0.3, stat: Path = Path("/proc/stat")) -> float | None:
    """How many of the allowed processors other processes used during the next `seconds`; None where unknown."""
    processors = affinity()
    before, own_before, start = _busy_ticks(stat, processors), time.process_time(), time.monotonic()
    if before is None:
        return None
    time.sleep(seconds)
    after, own, elapsed = _busy_ticks(stat, processors), time.process_time() - own_before, time.monotonic() - start
    if after is None:
        return None
    by_others = ((after - before) / TICKS_PER_SECOND - own) / elapsed
    # The counters move in coarse steps, so a short look may see more than is possible.
    return min(max(0.0, by_others), float(len(processors)))


def _busy_ticks(stat: Path, processors: frozenset[int]) -> int | None:
    """Hundredths of seconds that `processors` have worked since the system started."""
    names = {f"cpu{number}" for number in processors}
    rows = [line.split() for line in (_read(stat) or "").splitlines()]
    ticks = [sum(int(row[1 + field]) for field in BUSY_FIELDS) for row in rows if row and row[0] in names]
    return sum(ticks) if ticks else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
