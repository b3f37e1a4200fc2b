"""An extension for tests: what the one under test cost and left behind, and how the host is now; GET /probe.

TRAIN_STUDIO_SLOW_LOAD: the host's first load of a checkpoint takes that many seconds longer, inside the part of it
during which torch makes modules without weights.
"""

import gc
import os
import sys
import time

from modules import call_queue, progress, script_callbacks, sd_models, shared

SECONDS, CPU_SECONDS = time.perf_counter(), time.thread_time()

before = shared.probe_before
added = {name.partition(".")[0] for name in set(sys.modules) - before["modules"]}
costs = {"script": [SECONDS - before["seconds"], CPU_SECONDS - before["cpu_seconds"], 0.0]}
path_is_same = [path for path in sys.path if "probe" not in path] == [p for p in before["path"] if "probe" not in p]


collected = {"since": 0.0, "cpu_seconds": 0.0}


def note_collection(phase, info):
    """Python's garbage collection of the whole process falls to whoever happens to allocate next."""
    if phase == "start":
        collected["since"] = time.thread_time()
    else:
        collected["cpu_seconds"] += time.thread_time() - collected["since"]


gc.callbacks.append(note_collection)


def timed(callback, kind):
    """`callback`, whose cost is noted: on the clock, in work of this thread, and how much of that was collection."""

    def call(*args):
        start = time.perf_counter(), time.thread_time(), collected["cpu_seconds"]
        try:
            return callback(*args)
        finally:
            end = time.perf_counter(), time.thread_time(), collected["cpu_seconds"]
            costs[kind] = [last - first for first, last in zip(start, end, strict=True)]

    return call


for kind, entries in script_callbacks.callback_map.items():
    for entry in entries:
        if entry.callback.__module__.startswith("extensions_lib"):
            entry.callback = timed(entry.callback, kind)

slow = float(os.environ.get("TRAIN_STUDIO_SLOW_LOAD", "0"))
if slow and sd_models.instantiate_from_config.__name__ != "slowly":
    fast = sd_models.instantiate_from_config

    def slowly(*args, **more):
        """The first call sleeps."""
        global slow
        slow, seconds = 0.0, slow
        time.sleep(seconds)
        return fast(*args, **more)

    sd_models.instantiate_from_config = slowly


def answer():
    """Everything that a test asks about."""
    lock = call_queue.queue_lock._lock
    state = shared.state
    return {
        "added": sorted(added),
        "path_is_same": path_is_same,
        "costs": costs,
        "is_lock_free": not lock.locked(),
        "current_task": progress.current_task,
        "state": {"job": state.job, "job_count": state.job_count, "textinfo": state.textinfo},
        "is_loading": sd_models.model_data.lock.locked(),
        "is_loaded": sd_models.model_data.sd_model is not None,
    }


script_callbacks.on_app_started(lambda demo, app: app.add_api_route("/probe", answer, methods=["GET"]))
