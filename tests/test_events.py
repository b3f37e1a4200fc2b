import json
import logging

import pytest

from extensions_lib.events import (
    EVENT_TYPES,
    CheckpointSaved,
    EventStream,
    JobFailed,
    JobFinished,
    StepCompleted,
    Warned,
    event_from_json,
)


def step(number: int) -> StepCompleted:
    return StepCompleted(
        step=number, loss=0.5, learning_rate=1e-4, num_examples_seen=2, seconds=0.1, peak_memory_gib=1.0
    )


def test_stream_stamps_and_delivers_in_order() -> None:
    seen = []
    stream = EventStream("job", (seen.append,), last_sequence=4)
    stream.emit(step(1))
    stream.emit(JobFinished(reason="completed", step=1, path="a"))
    assert [(event.job_id, event.sequence, type(event).__name__) for event in seen] == [
        ("job", 5, "StepCompleted"),
        ("job", 6, "JobFinished"),
    ]
    assert seen[0].time > 0


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ({"event": "TrainingFinished", "reason": "completed", "step": 9, "path": "a"}, JobFinished),
        ({"event": "TrainingFailed", "error": "X", "message": "it broke", "hint": ""}, JobFailed),
        ({"event": "CheckpointSaved", "step": 9, "path": "a", "num_modules": 3}, CheckpointSaved),
    ],
)
def test_what_earlier_versions_wrote_is_understood(former: dict[str, object], now: type) -> None:
    stamps = {"job_id": "cat", "sequence": 3, "time": 1.0}
    event = event_from_json({**former, **stamps})
    assert type(event) is now
    assert event == event_from_json(event.to_json())


def test_a_listener_that_fails_is_logged_once_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    calls, seen = [], []

    def broken(event: object) -> None:
        calls.append(event)
        raise ValueError("no disk")

    stream = EventStream("job", (broken, seen.append))
    with caplog.at_level(logging.ERROR):
        stream.emit(Warned(text="a"))
        stream.emit(Warned(text="b"))
    assert (len(calls), len(seen)) == (1, 2)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "A listener of job job failed and is dropped"
    ]


def test_every_event_survives_json() -> None:
    values = {"str": "x", "int": 3, "float": 0.25, "bool": True, "tuple[str, ...]": ("x", "y")}
    for cls in EVENT_TYPES.values():
        fields = {name: values[kind] for name, kind in cls.__annotations__.items()}
        event = cls(**fields, job_id="j", sequence=1, time=2.0)
        assert event_from_json(json.loads(json.dumps(event.to_json()))) == event


def test_subscribe_receives_later_events_only() -> None:
    seen = []
    stream = EventStream("job")
    stream.emit(Warned(text="before"))
    stream.subscribe(seen.append)
    stream.emit(Warned(text="after"))
    assert [event.text for event in seen] == ["after"]
