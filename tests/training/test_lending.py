"""The host is let in at every boundary, and its troubles are not the training's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from extensions_lib.control import JobControl
from extensions_lib.errors import HostError, OutOfMemoryError
from extensions_lib.events import Event, EventStream, Warned
from extensions_lib.training.lending import Lender


def make(lend: Any) -> tuple[Lender, list[Event]]:
    events: list[Event] = []
    surroundings: Any = SimpleNamespace(lend=lend)
    return Lender(surroundings, EventStream("job", (events.append,)), torch.device("cpu")), events


def test_a_host_error_is_a_warning_said_once() -> None:
    def fail(parked: Any) -> None:
        raise HostError("The WebUI is busy.", "Wait.")

    lender, events = make(fail)
    control = JobControl()
    control.add_source(lender)
    control.boundary()
    control.boundary()
    assert [event.text for event in events if isinstance(event, Warned)] == ["The WebUI is busy. Wait."]


def test_another_error_is_raised_again_at_every_boundary() -> None:
    """A preview forgives errors; the tensors would be on the wrong device all the same."""
    calls = []

    def fail(parked: Any) -> None:
        calls.append(1)
        raise OutOfMemoryError("No room to come back to.")

    lender, _ = make(fail)
    control = JobControl()
    control.add_source(lender)
    for _ in range(2):
        with pytest.raises(OutOfMemoryError, match="No room"):
            control.boundary()
    assert len(calls) == 1
    control.remove_source(lender)
    control.boundary()


def test_what_is_on_the_device_is_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    from extensions_lib.training import lending

    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(lending, "parked", lambda *parts: seen.append(parts))
    lender, _ = make(lambda parked: parked())
    control = JobControl()
    lender(control)
    bundle: Any = object()
    lender.note_bundle(bundle)
    lender(control)
    lender.forget()
    lender(control)
    assert [parts[0] for parts in seen] == [None, bundle, None]
