"""How many threads are used."""

import os
import threading

import pytest
import torch

from extensions_lib.training import threads
from extensions_lib.training.threads import (
    affinity,
    allowed_cores,
    busy_cores,
    choose_num_threads,
    cpu_quota,
    num_threads,
    physical_cores,
)


@pytest.mark.parametrize(
    ("requested", "num_cores", "num_busy", "expected"),
    [
        (0, 8, 0.0, 8),
        (0, 8, 0.4, 8),
        (0, 2, 0.9, 1),
        (0, 8, 3.2, 5),
        (0, 8, 30.0, 1),
        (0, 1, 0.0, 1),
        (4, 8, 8.0, 4),
        (16, 8, 0.0, 8),
    ],
)
def test_idle_cores_are_used_and_no_more(requested, num_cores, num_busy, expected):
    assert choose_num_threads(requested, num_cores=num_cores, num_busy=num_busy) == expected


@pytest.mark.parametrize(("num_cores", "expected"), [(1, 1), (2, 1), (8, 7)])
def test_where_load_is_unknown_one_core_is_left_free(monkeypatch, num_cores, expected):
    monkeypatch.setattr(threads, "busy_cores", lambda: None)
    assert choose_num_threads(num_cores=num_cores) == expected


def test_the_load_is_measured_when_it_is_not_given(monkeypatch):
    monkeypatch.setattr(threads, "busy_cores", lambda: 2.0)
    monkeypatch.setattr(threads, "allowed_cores", lambda: 6)
    assert choose_num_threads() == 4
    assert choose_num_threads(100) == 6


def test_the_number_comes_back():
    before = torch.get_num_threads()
    with num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before

    def fail_inside():
        with num_threads(before + 1):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail_inside()
    assert torch.get_num_threads() == before


def test_this_machine_allows_at_least_one_core_and_at_most_its_affinity():
    assert 1 <= allowed_cores() <= len(affinity()) <= os.cpu_count()


def test_every_limit_counts(monkeypatch):
    monkeypatch.setattr(threads, "physical_cores", lambda processors: 8)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert allowed_cores() == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert allowed_cores() == 6
    monkeypatch.setattr(threads, "cpu_quota", lambda: 2.5)
    assert allowed_cores() == 2
    monkeypatch.setattr(threads, "cpu_quota", lambda: 0.5)
    assert allowed_cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert allowed_cores() == 1


def test_processors_of_one_core_count_once(tmp_path):
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    assert physical_cores(frozenset({0, 1, 2, 3}), tmp_path) == 2
    assert physical_cores(frozenset({0, 2}), tmp_path) == 1
    assert physical_cores(frozenset({0, 1}), tmp_path) == 2


def test_without_topology_at_most_the_default_of_torch(tmp_path):
    assert physical_cores(frozenset({0}), tmp_path) == 1
    assert physical_cores(frozenset(range(10_000)), tmp_path) == torch.get_num_threads()


def groups_file(tmp_path, text):
    (tmp_path / "cgroup").write_text(text)
    return tmp_path / "cgroup"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_of_version_2_is_the_least_up_to_the_root(tmp_path):
    groups = groups_file(tmp_path, "0::/jobs/one\n")
    assert cpu_quota(groups, tmp_path) is None
    write(tmp_path / "jobs" / "one" / "cpu.max", "max 100000\n")
    assert cpu_quota(groups, tmp_path) is None
    write(tmp_path / "jobs" / "cpu.max", "150000 100000\n")
    assert cpu_quota(groups, tmp_path) == 1.5
    write(tmp_path / "jobs" / "one" / "cpu.max", "800000 100000\n")
    assert cpu_quota(groups, tmp_path) == 1.5


def test_quota_of_version_2_inside_a_container(tmp_path):
    write(tmp_path / "cpu.max", "400000 100000\n")
    assert cpu_quota(groups_file(tmp_path, "0::/\n"), tmp_path) == 4.0


def test_quota_of_version_1(tmp_path):
    groups = groups_file(tmp_path, "4:memory:/x\n3:cpuset:/y\n2:cpu,cpuacct:/box\n")
    assert cpu_quota(groups, tmp_path) is None
    write(tmp_path / "cpu" / "box" / "cpu.cfs_quota_us", "-1\n")
    write(tmp_path / "cpu" / "box" / "cpu.cfs_period_us", "100000\n")
    assert cpu_quota(groups, tmp_path) is None
    write(tmp_path / "cpu" / "box" / "cpu.cfs_quota_us", "300000\n")
    assert cpu_quota(groups, tmp_path) == 3.0


def test_no_control_groups(tmp_path):
    assert cpu_quota(tmp_path / "none", tmp_path) is None


def test_busy_cores_counts_the_work_of_others(tmp_path, monkeypatch):
    """Two allowed processors; in 0.5 s one works 50 ticks, of which this process 0.2 s; the third is not ours."""
    stat = tmp_path / "stat"
    rows = (
        "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 {user} 1 1 500 7 1 1 {steal} 0 0\n"
        "cpu1 5 5 5 900 3 1 1 0 0 0\ncpu2 {other} 0 0 0\nintr 1\n"
    )
    stat.write_text(rows.format(user=100, steal=10, other="0 0 0 0 0"))
    clock = {"now": 10.0, "own": 3.0}

    def sleep(seconds):
        stat.write_text(rows.format(user=130, steal=30, other="99 9 9 9 9"))
        clock.update(now=clock["now"] + seconds, own=clock["own"] + 0.2)

    monkeypatch.setattr(threads, "affinity", lambda: frozenset({0, 1}))
    monkeypatch.setattr(threads.time, "sleep", sleep)
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(threads.time, "process_time", lambda: clock["own"])
    assert busy_cores(0.5, stat) == pytest.approx((0.5 - 0.2) / 0.5)


def test_busy_cores_is_unknown_without_proc(tmp_path):
    assert busy_cores(0.0, tmp_path / "none") is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="needs Linux")
def test_busy_cores_on_this_machine():
    assert 0 <= busy_cores(0.05) <= len(affinity())


def number_in_a_new_thread() -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_threads_that_others_start_keep_their_number() -> None:
    before = torch.get_num_threads()
    with num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        assert number_in_a_new_thread() == before
    assert torch.get_num_threads() == before
    assert number_in_a_new_thread() == before
