import threading

import pytest

from extensions_lib.control import JobControl
from extensions_lib.errors import JobStopped


def test_save_and_preview_are_taken_once() -> None:
    control = JobControl()
    assert not control.take_save()
    control.request_save()
    control.request_preview()
    assert control.take_save()
    assert control.take_preview()
    assert not control.take_save()
    assert not control.take_preview()


def test_boundary_raises_only_after_a_stop() -> None:
    control = JobControl()
    control.boundary()
    control.request_stop()
    with pytest.raises(JobStopped, match="Stopped before the first step"):
        control.boundary()
    assert not control.discard_requested


def test_stop_ends_a_pause_and_pause_after_stop_is_ignored() -> None:
    control = JobControl()
    control.pause()
    assert control.paused
    timer = threading.Timer(0.05, control.request_stop, kwargs={"discard": True})
    timer.start()
    control.wait_while_paused()
    timer.join()
    assert control.stop_requested
    assert control.discard_requested
    control.pause()
    assert not control.paused


def test_resume_from_another_thread_ends_the_wait() -> None:
    control = JobControl()
    control.pause()
    threading.Timer(0.05, control.resume).start()
    control.wait_while_paused()
    assert not control.stop_requested


def test_a_source_is_asked_while_paused() -> None:
    control = JobControl()
    asked = []

    def source(target: JobControl) -> None:
        asked.append(1)
        if len(asked) == 3:
            target.resume()

    control.pause()
    control.add_source(source)
    control.wait_while_paused(poll_seconds=0.01)
    assert len(asked) == 3


def test_a_removed_source_is_asked_no_more() -> None:
    control = JobControl()
    asked = []
    source = asked.append
    control.add_source(source)
    assert not control.paused
    control.remove_source(source)
    assert not control.stop_requested
    assert asked == [control]
