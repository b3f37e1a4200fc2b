"""Starts (or finds) the WebUI under test, lends it the practice model and the files made by Train Studio.

Environment:
    WEBUI_ROOT     folder of an AUTOMATIC1111 installation; without it every test of this folder is skipped
    WEBUI_URL      address of a running server of that installation; without it one is started and stopped here
    WEBUI_PYTHON   its python, default WEBUI_ROOT/venv/bin/python
    WEBUI_ARGS     flags for the started server, default: CPU only, full precision
    WEBUI_LOG      log file of the server at WEBUI_URL, which must run with SD_WEBUI_LOG_LEVEL=DEBUG
    TRAIN_STUDIO_BASE        title or name of a checkpoint the host already has, instead of the practice model
    TRAIN_STUDIO_LORA, TRAIN_STUDIO_EMBEDDING    the files under test, default the newest in demo/
"""

import filecmp
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .client import Webui

REPOSITORY = Path(__file__).resolve().parents[2]
PRACTICE_MODEL = REPOSITORY / "extensions_lib" / "practice" / "model"
DEMO_OUTPUT = REPOSITORY / "demo"
START_SECONDS = 240.0
DEFAULT_ARGS = "--skip-torch-cuda-test --use-cpu all --no-half"
FIXED_ARGS = "--skip-python-version-check --skip-version-check --skip-install --no-download-sd-model --api"


@dataclass(frozen=True)
class Result:
    """One file under test and the files that lie beside it under the same stem."""

    file: Path

    @property
    def stem(self) -> str:
        """Name in the prompt."""
        return self.file.stem

    def family(self) -> list[Path]:
        """The file itself and its sidecars."""
        return sorted(path for path in self.file.parent.glob("*") if path.name.startswith(self.stem + "."))

    def sidecar(self, ending: str) -> Path:
        """The file beside it with the given ending, which need not exist."""
        return self.file.with_name(self.stem + ending)

    def user_metadata(self) -> dict[str, object]:
        """Contents of the .json beside the file."""
        return json.loads(self.sidecar(".json").read_text(encoding="utf-8"))


def header_of(file: Path) -> dict[str, dict[str, object]]:
    """Header of a safetensors file: tensor name to dtype, shape and offsets, and `__metadata__`."""
    with file.open("rb") as stream:
        return json.loads(stream.read(int.from_bytes(stream.read(8), "little")))


def kind_of(file: Path) -> str:
    """'lora', 'embedding' or 'other', from the tensor names."""
    names = [name for name in header_of(file) if name != "__metadata__"]
    if names and all(name.startswith("lora_") for name in names):
        return "lora"
    return "embedding" if len(names) == 1 or sorted(names) == ["clip_g", "clip_l"] else "other"


def newest(kind: str) -> Path | None:
    """The youngest file of that kind in the demo's output folder."""
    found = [path for path in DEMO_OUTPUT.glob("*.safetensors") if kind_of(path) == kind]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


@pytest.fixture(scope="session")
def demo_outputs(webui_root: Path) -> dict[str, Result]:
    """The files under test: {'lora': ..., 'embedding': ...}, made by `make demo` or named in the environment.

    `webui_root` is asked for only to be skipped first.
    """
    results = {}
    for kind in ("lora", "embedding"):
        named = os.environ.get(f"TRAIN_STUDIO_{kind.upper()}")
        file = Path(named) if named else newest(kind)
        if file is None:
            pytest.skip(f"no {kind} in {DEMO_OUTPUT}: run `make demo` or set TRAIN_STUDIO_{kind.upper()}")
        assert file.is_file(), f"TRAIN_STUDIO_{kind.upper()} names {file}, which does not exist"
        results[kind] = Result(file)
    return results


@contextmanager
def lent(files: list[Path], folder: Path) -> Iterator[None]:
    """Copies of files and folders inside `folder` while the block runs; never overwrites or removes what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / path.name for path in files]
    taken = [str(target) for target in targets if target.exists()]
    assert not taken, f"the installation already has {', '.join(taken)}: move them away first"
    try:
        for path, target in zip(files, targets, strict=True):
            shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target)
        yield
    finally:
        for target in targets:
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def webui_root() -> Path:
    """The installation under test; skips the test when none is named."""
    named = os.environ.get("WEBUI_ROOT")
    if not named:
        pytest.skip("WEBUI_ROOT names no AUTOMATIC1111 installation")
    root = Path(named).resolve()
    assert (root / "modules" / "launch_utils.py").is_file(), f"WEBUI_ROOT={root} is no WebUI"
    return root


@pytest.fixture(scope="session")
def checkpoint(webui_root: Path) -> Iterator[str]:
    """Name of the base model; the practice model is lent to the installation unless it has the same one already."""
    named = os.environ.get("TRAIN_STUDIO_BASE")
    folder = webui_root / "models" / "Stable-diffusion"
    files = sorted(PRACTICE_MODEL.glob("practice*"))
    if named or (folder / "practice.safetensors").is_file():
        ours, theirs = PRACTICE_MODEL / "practice.safetensors", folder / "practice.safetensors"
        same = named or not ours.is_file() or filecmp.cmp(ours, theirs, shallow=False)
        assert same, f"{theirs} is not {ours}: move it away, or name another model in TRAIN_STUDIO_BASE"
        yield named or "practice.safetensors"
        return
    assert files, f"no practice model in {PRACTICE_MODEL}"
    with lent(files, folder):
        yield "practice.safetensors"


def free_port() -> int:
    """A TCP port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the host says that its start is over; raise AssertionError with the end of the log otherwise.

    No request may be sent earlier: one that arrives while the host still adds its middleware ends the start with
    "Cannot add middleware after an application has started".
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        if b"Startup time:" in log.read_bytes():
            return
        time.sleep(0.2)
    tail = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    raise AssertionError(f"the WebUI did not start (exit status {server.poll()}):\n{tail}")


@contextmanager
def started(root: Path, folder: Path, checkpoint: str) -> Iterator[Webui]:
    """A server of the installation with its own settings file and log in `folder`, stopped at the end."""
    port, log, settings = free_port(), folder / "webui.log", folder / "config.json"
    settings.write_text(json.dumps({"sd_model_checkpoint": checkpoint}), encoding="utf-8")
    python = os.environ.get("WEBUI_PYTHON", str(root / "venv" / "bin" / "python"))
    flags = shlex.split(os.environ.get("WEBUI_ARGS", DEFAULT_ARGS)) + FIXED_ARGS.split()
    own = ["--ui-settings-file", str(settings), "--ui-config-file", str(folder / "ui-config.json")]
    command = [python, "-u", "launch.py", *flags, *own, "--server-name", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"SD_WEBUI_LOG_LEVEL": "DEBUG", "GRADIO_ANALYTICS_ENABLED": "False"}
    with log.open("wb") as stream:
        server = subprocess.Popen(command, cwd=root, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        wait_until_ready(server, log)
        webui = Webui(f"http://127.0.0.1:{port}", root, log)
        webui.get("/sdapi/v1/options")
        yield webui
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def select(server: Webui, checkpoint: str) -> None:
    """Make `checkpoint` the loaded model of a running server.

    The picture comes first because it waits for the load that the host begins at its start. Two loads at a time leave
    the host's `torch.nn.Linear` on the meta device until it is restarted, and then no LoRA is applied any more.
    """
    server.draw("")
    server.post("/sdapi/v1/refresh-checkpoints", {})
    server.post("/sdapi/v1/options", {"sd_model_checkpoint": checkpoint})


@pytest.fixture(scope="session")
def webui(webui_root: Path, checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webui]:
    """The server under test with the base model loaded."""
    url, log = os.environ.get("WEBUI_URL"), os.environ.get("WEBUI_LOG")
    with ExitStack() as stack:
        if url:
            server = Webui(url, webui_root, Path(log) if log else None)
            select(server, checkpoint)
        else:
            server = stack.enter_context(started(webui_root, tmp_path_factory.mktemp("webui"), checkpoint))
        stem = Path(checkpoint.partition(" [")[0]).stem
        assert f"Model: {stem}," in server.draw("").infotext, f"the host did not load {checkpoint}"
        yield server
