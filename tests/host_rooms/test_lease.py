"""The queue lock: held, lent at boundaries, and free after every end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from extensions_lib.errors import HostError
from extensions_lib.host import lease as lease_module
from extensions_lib.host.lease import Lease
from extensions_lib.host.waiters import Waiting, who_waits

from .webui import FifoLock, queued


class Memory:
    """Writes down what is moved."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.num_loading_looks = 0

    def is_loading(self) -> bool:
        self.num_loading_looks -= 1
        return self.num_loading_looks >= 0

    def free(self) -> None:
        self.log.append("model away")

    def restore(self) -> None:
        self.log.append("model back")


class Room:
    """A lock, a lease on it, and everything that happened, in order."""

    def __init__(self, lock: FifoLock | None = None) -> None:
        self.log: list[str] = []
        self.lock = FifoLock() if lock is None else lock
        self.memory = Memory(self.log)
        self.lease = Lease(self.lock, self.memory, on_lend=lambda: self.log.append("display cleared"))
        self._threads: list[threading.Thread] = []

    @contextmanager
    def parked(self) -> Iterator[None]:
        self.log.append("parked")
        yield
        self.log.append("unparked")

    def wait_in_line(self, work: Callable[[], object]) -> threading.Thread:
        """Start a thread that runs `work` with the lock, and return when it stands in line."""
        num_before = len(self.lock._pending_threads)
        thread = threading.Thread(target=queued(self.lock, work))
        thread.start()
        self._threads.append(thread)
        until(lambda: len(self.lock._pending_threads) > num_before)
        return thread

    def join(self) -> None:
        for thread in self._threads:
            thread.join(timeout=10)
            assert not thread.is_alive()

    def is_free(self) -> bool:
        if not self.lock.acquire(blocking=False):
            return False
        self.lock.release()
        return True


def until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def generation(log: list[str]) -> Callable[[], None]:
    def txt2img() -> None:
        log.append("picture")

    return txt2img


def counting(log: list[str]) -> Callable[[], None]:
    def update_token_counter() -> None:
        log.append("count")

    return update_token_counter


def test_exclusive_holds_the_lock_and_the_device() -> None:
    room = Room()
    with room.lease.exclusive():
        assert room.lease.is_held and not room.lease.is_lent
        assert not room.is_free()
        assert room.log == ["model away"]
    assert room.log == ["model away", "display cleared", "model back"]
    assert room.is_free() and not room.lease.is_held


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_statement_20_the_lock_is_free_and_the_model_back_after_any_end(error: type[BaseException]) -> None:
    room = Room()
    with pytest.raises(error), room.lease.exclusive():
        raise error
    assert room.is_free()
    assert room.log[-1] == "model back"


def test_statement_20_the_lock_is_free_when_the_model_cannot_be_moved() -> None:
    room = Room()

    def fail() -> None:
        raise HostError("no")

    room.memory.free = fail
    with pytest.raises(HostError), room.lease.exclusive():
        pytest.fail("the job must not begin")
    assert room.log == ["display cleared", "model back"]
    room.memory.restore = fail
    with pytest.raises(HostError), room.lease.exclusive():
        pass
    assert room.is_free() and not room.lease.is_lent


def test_statement_23_a_job_waits_for_the_hosts_first_load_and_blocks_nobody_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = Room()
    room.memory.num_loading_looks = 3
    free_during_load = []
    monkeypatch.setattr(lease_module.time, "sleep", lambda seconds: free_during_load.append(room.is_free()))
    with room.lease.exclusive():
        assert free_during_load == [True, True, True]


def test_nobody_waits_nothing_is_lent() -> None:
    room = Room()
    with room.lease.exclusive():
        room.lease.lend(room.parked)
        assert room.log == ["model away"]


def test_statement_19_a_waiting_generation_gets_the_device() -> None:
    room = Room()
    with room.lease.exclusive():
        room.wait_in_line(generation(room.log))
        assert who_waits(room.lock) is Waiting.FOR_DEVICE
        room.lease.lend(room.parked)
        assert room.lease.is_held
    room.join()
    assert room.log == [
        "model away", "display cleared", "parked", "model back", "picture", "model away", "unparked",
        "display cleared", "model back",
    ]  # fmt: skip


def test_statement_15_token_counters_are_served_without_moving_anything() -> None:
    room = Room()
    with room.lease.exclusive():
        room.wait_in_line(counting(room.log))
        room.wait_in_line(counting(room.log))
        assert who_waits(room.lock) is Waiting.FOR_COUNTS
        room.lease.lend(room.parked)
        assert room.log == ["model away", "display cleared", "count", "count"]
    room.join()


def test_one_generation_among_counters_gets_the_device() -> None:
    room = Room()
    with room.lease.exclusive():
        room.wait_in_line(counting(room.log))
        room.wait_in_line(generation(room.log))
        room.lease.lend(room.parked)
        assert room.log[2:6] == ["parked", "model back", "count", "picture"]
    room.join()


def test_five_waiters_are_served_in_one_turn_and_in_order() -> None:
    room = Room()
    with room.lease.exclusive():
        for number in range(5):
            room.wait_in_line(lambda number=number: room.log.append(str(number)))
        room.lease.lend(room.parked)
        assert [entry for entry in room.log if entry.isdigit()] == list("01234")
    room.join()


def test_a_waiter_that_was_too_slow_for_its_turn_is_seen_again() -> None:
    """It has left the line and waits for the inner lock only."""
    room = Room()
    with room.lease.exclusive():
        room.wait_in_line(generation(room.log))
        room.lock._pending_threads.popleft().set()
        assert who_waits(room.lock) is Waiting.FOR_DEVICE
        room.lease.lend(room.parked)
        assert "picture" in room.log
    room.join()


def test_statement_19_a_generation_that_slips_in_between_counters_gets_its_model_back() -> None:
    """It came while the lock was lent for a count only; it says so before it computes."""
    room = Room()

    def txt2img() -> None:
        room.lease.make_room()
        room.log.append("picture")

    def update_token_counter() -> None:
        assert room.lease.is_lent
        room.wait_in_line(txt2img)

    with room.lease.exclusive():
        room.wait_in_line(update_token_counter)
        room.lease.lend(room.parked)
        room.lease.lend(room.parked)
        room.lease.make_room()
        assert room.log.count("picture") == 1
        before = room.log[: room.log.index("picture")]
        assert before[-1] == "model back"
        assert room.log[-1] in ("model away", "unparked")
    room.join()


def test_an_error_while_parking_leaves_the_lock_free_in_the_end() -> None:
    room = Room()

    @contextmanager
    def cannot_park() -> Iterator[None]:
        raise RuntimeError("out of memory")
        yield

    def job() -> None:
        with room.lease.exclusive():
            room.wait_in_line(generation(room.log))
            room.lease.lend(cannot_park)

    with pytest.raises(RuntimeError, match="out of memory"):
        job()
    room.join()
    assert room.log[-2:] == ["model back", "picture"]
    assert room.is_free()


def test_a_lock_of_unknown_type_is_released_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(threading.Lock())
    clock = [0.0]
    monkeypatch.setattr(lease_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(lease_module.time, "sleep", lambda seconds: advance(seconds))
    released: list[bool] = []

    def advance(seconds: float) -> None:
        clock[0] += seconds
        released.append(not room.lock.locked())

    with room.lease.exclusive():
        room.lease.lend(room.parked)
        assert released == []
        clock[0] += lease_module.UNASKED_RELEASE_SECONDS
        room.lease.lend(room.parked)
        assert released and all(released)
        assert room.lock.locked()


def test_borrowed_takes_the_lock_only_when_the_job_does_not_have_it() -> None:
    room = Room()
    with room.lease.borrowed():
        assert not room.is_free()
    assert room.is_free()
    with room.lease.exclusive(), room.lease.borrowed():
        assert room.lease.is_held
    assert room.is_free()
