"""A WebUI with our repository among its extensions, on a data folder of its own that is thrown away."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .client import Webui
from .conftest import PRACTICE_MODEL, REPOSITORY, free_port, wait_until_ready

PROBES = Path(__file__).parent / "probe"
PICTURES = REPOSITORY / "extensions_lib" / "practice" / "subjects" / "badge" / "train"
# A path with everything that paths may have.
FOLDER = "data d\u00e9j\u00e0 vu \u732b"
# The probes come before and after it: the host loads extensions in the order of their names.
EXTENSION = "mein Tr\u00e4iner (copy)"
# Those of the tests' own Python; without compiled files every start would take longer.
NOT_INHERITED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
FLAGS = (
    "--skip-torch-cuda-test", "--use-cpu", "all", "--no-half", "--skip-python-version-check", "--skip-version-check",
    "--no-download-sd-model",
)  # fmt: skip


@dataclass
class Place:
    """A data folder (`--data-dir`): practice model, pictures, and the extensions."""

    folder: Path
    extension: str = EXTENSION

    @classmethod
    def make(cls, parent: Path) -> Place:
        """Lay one out below `parent`; our repository is a link under another name."""
        place = cls(parent / FOLDER)
        shutil.copytree(PRACTICE_MODEL, place.checkpoints)
        yaml = place.checkpoints / "practice.yaml"
        text = yaml.read_text(encoding="utf-8")
        relative = "models/Stable-diffusion/practice-clip"
        yaml.write_text(text.replace(relative, str(place.checkpoints / "practice-clip")), encoding="utf-8")
        shutil.copytree(PICTURES, place.pictures)
        extensions = place.folder / "extensions"
        extensions.mkdir()
        for probe in PROBES.iterdir():
            shutil.copytree(probe, extensions / probe.name)
        (extensions / place.extension).symlink_to(REPOSITORY, target_is_directory=True)
        return place

    @property
    def checkpoints(self) -> Path:
        return self.folder / "models" / "Stable-diffusion"

    @property
    def loras(self) -> Path:
        return self.folder / "models" / "Lora"

    @property
    def embeddings(self) -> Path:
        return self.folder / "embeddings"

    @property
    def pictures(self) -> Path:
        return self.folder / "pictures"

    @property
    def runs(self) -> Path:
        return self.folder / "train-studio" / "runs"

    def params(self) -> str:
        """The host's file of the last picture's parameters."""
        path = self.folder / "params.txt"
        return path.read_text(encoding="utf-8") if path.exists() else ""


@dataclass
class HostServer:
    """One server at a time on a place; it keeps its port when it is started again."""

    root: Path
    place: Place
    python: str = ""
    starts: int = 0
    port: int = field(default_factory=free_port)
    flags: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.python = self.python or os.environ.get("WEBUI_PYTHON", str(self.root / "venv" / "bin" / "python"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.place.folder / f"start-{self.starts}.log"

    @property
    def webui(self) -> Webui:
        return Webui(self.url, self.root, self.log)

    def start(self, *flags: str, options: dict[str, Any] | None = None, **environment: str) -> None:
        """Start it with `flags` more, ending the one that runs, and return when it is ready for requests."""
        self.stop()
        self.starts += 1
        self.flags = flags
        settings = {"sd_model_checkpoint": "practice.safetensors"} | (options or {})
        (self.place.folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        command = [self.python, "-u", "launch.py", *FLAGS, "--data-dir", str(self.place.folder)]
        own = {"GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        own |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"}
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), *flags],
                cwd=self.root, env=inherited | own | environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_until_ready(self._process, self.log)
        self._wait_for_port()

    def make_family_models(self) -> None:
        """Small models of the other families, random weights, written by the WebUI's own classes."""
        script, folder = Path(__file__).with_name("make_family_models.py"), self.place.checkpoints
        subprocess.run(
            [self.python, str(script), str(self.root), str(folder), str(folder / "practice-clip")],
            check=True, env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, capture_output=True,
        )  # fmt: skip

    def _wait_for_port(self, seconds: float = 30.0) -> None:
        """Without a page the host says that it has started before it listens. This connects and asks nothing."""
        end = time.monotonic() + seconds
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < end, self.text()[-3000:]
                time.sleep(0.1)

    def stop(self) -> None:
        """End it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it the hard way."""
        self._end(signal.SIGKILL)

    def _end(self, sign: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(sign)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def text(self) -> str:
        """The log of this start."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def probe(self) -> dict[str, Any]:
        """What the probe extension says."""
        return self.webui.get("/probe")

    def expect_free(self, seconds: float = 3.0) -> None:
        """Wait until the lock is free and the state is idle, as they are shortly after a job said that it has ended."""
        end = time.monotonic() + seconds
        idle = {"job": "", "job_count": 0, "textinfo": None}
        while True:
            probe = self.probe()
            if probe["is_lock_free"] and probe["current_task"] is None and probe["state"] == idle:
                return
            assert time.monotonic() < end, probe
            time.sleep(0.1)

    def status_of(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any, float]:
        """Status, decoded answer and seconds of a request; no login is sent unless it is in `headers`."""
        data = None if body is None else json.dumps(body).encode("utf-8")
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"} | (headers or {}))
        began = time.monotonic()
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        seconds = time.monotonic() - began
        try:
            return status, json.loads(content), seconds
        except ValueError:
            return status, content.decode("utf-8", "replace"), seconds


def complaints(log: Path) -> str:
    """A log without what the host says of an extension that is a git repository without a remote."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return re.sub(r"\*\*\* Failed reading extension data from Git repository.*?\n---\n", "", text, flags=re.DOTALL)


@contextmanager
def running(server: HostServer, *flags: str, **more: Any) -> Iterator[HostServer]:
    """`server` started, and stopped at the end; its log has no traceback then."""
    server.start(*flags, **more)
    log = server.log
    try:
        yield server
    finally:
        server.stop()
    assert "Traceback" not in complaints(log), log


def job_table(place: Place, **changes: Any) -> dict[str, Any]:
    """A job for the API: a LoRA of the badge on the loaded checkpoint, small and quick."""
    table: dict[str, Any] = {
        "name": "small", "preset": "lora_quick_look",
        "dataset": {"folder": str(place.pictures), "resolution_px": 64, "trigger_word": "zbadge"},
        "method": {"kind": "lora", "rank": 4}, "optimizer": {"learning_rate": 4e-3},
        "training": {"max_train_steps": 6, "train_batch_size": 1, "mixed_precision": "fp32", "num_threads": 1},
        "preview": {"prompts": [{"prompt": "a [name]", "num_steps": 3}], "every_steps": 100},
    }  # fmt: skip
    for key, value in changes.items():
        table[key] = table[key] | value if isinstance(value, dict) and isinstance(table.get(key), dict) else value
    return table


def wait_for_state(server: HostServer, job_id: str, *states: str, seconds: float = 180.0) -> dict[str, Any]:
    """The job's status when it is in one of `states`."""
    end = time.monotonic() + seconds
    while True:
        _, status, _ = server.status_of(f"/train-studio/v1/jobs/{job_id}")
        if status.get("state") in states:
            return status
        assert time.monotonic() < end, status
        time.sleep(0.2)
