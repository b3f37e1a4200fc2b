"""An extension for tests: notes how the process looks before the extension under test is loaded."""

import sys
import time

from modules import shared

shared.probe_before = {
    "modules": set(sys.modules),
    "path": list(sys.path),
    "seconds": time.perf_counter(),
    "cpu_seconds": time.thread_time(),
}
