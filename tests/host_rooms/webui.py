"""A stand-in for the WebUI: its `modules` as far as host/ touches them, with the same habits."""

from __future__ import annotations

import sys
import threading
from collections import deque
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class FifoLock:
    """First come, first served; not re-entrant; no time limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guard = threading.Lock()
        self._pending_threads: deque[threading.Event] = deque()

    def acquire(self, blocking: bool = True) -> bool:
        with self._guard:
            if self._lock.acquire(blocking=False):
                return True
            if not blocking:
                return False
            turn = threading.Event()
            self._pending_threads.append(turn)
        turn.wait()
        return self._lock.acquire()

    def release(self) -> None:
        with self._guard:
            if self._pending_threads:
                self._pending_threads.popleft().set()
            self._lock.release()

    __enter__ = acquire

    def __exit__(self, *error: object) -> None:
        self.release()


def queued(lock: FifoLock, func: Any) -> Any:
    """What the host wraps its handlers in."""

    def wrapped(*args: Any) -> Any:
        with lock:
            return func(*args)

    return wrapped


class Options:
    """`shared.opts`: attributes are entries of `data`, with the declared default behind them."""

    def __init__(self, **data: Any) -> None:
        self.__dict__["data"] = data
        self.__dict__["data_labels"] = {}

    def __getattr__(self, key: str) -> Any:
        if key in self.data:
            return self.data[key]
        if key in self.data_labels:
            return self.data_labels[key].default
        raise AttributeError(key)

    def __setattr__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def add_option(self, key: str, info: Any) -> None:
        self.data_labels[key] = info
        self.data.setdefault(key, info.default)

    def set(self, key: str, value: Any) -> None:
        self.data[key] = value
        self.data_labels[key].onchange()


class OptionInfo:
    """A declared setting."""

    def __init__(self, default: Any = None, label: str = "", **fields: Any) -> None:
        self.default, self.label, self.fields = default, label, fields
        self.onchange = fields.get("onchange")
        self.component_args = fields.get("component_args")

    def needs_reload_ui(self) -> OptionInfo:
        self.label += " (requires Reload UI)"
        return self


class State:
    """`shared.state`, idle."""

    job, job_no, job_count = "", 0, 0
    sampling_step, sampling_steps = 7, 20
    current_latent: Any = "latents of the last picture"
    current_image: Any = None
    textinfo: Any = None
    time_start: float | None = None
    interrupted = False
    id_live_preview = 0

    def assign_current_image(self, picture: Any) -> None:
        self.current_image = picture
        self.id_live_preview += 1


class Model:
    """A loaded checkpoint, on a device."""

    def __init__(self, filename: Path) -> None:
        self.sd_checkpoint_info = checkpoint(filename)
        self.device = "cuda"


def checkpoint(filename: Path) -> SimpleNamespace:
    """A CheckpointInfo."""
    return SimpleNamespace(title=f"{filename.name} [0123456789]", name=filename.name, filename=str(filename))


class Webui:
    """The stand-in's modules by name, installed in `sys.modules` for one test."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self._patch = patch
        self.root = root
        self.calls: list[str] = []
        self.module("modules")
        self.paths = self.module("modules.paths_internal", data_path=str(root), models_path=str(root / "models"))
        flags = SimpleNamespace(
            lora_dir=str(root / "models" / "Lora"), embeddings_dir=str(root / "embeddings"), ckpt_dir=None,
            vae_dir=None, hide_ui_dir_config=False, disable_extension_access=False, api_auth=None,
        )  # fmt: skip
        self.flags = flags
        self.shared = self.module(
            "modules.shared", cmd_opts=flags, opts=Options(hidden_tabs=[]), state=State(), OptionInfo=OptionInfo
        )
        self.call_queue = self.module("modules.call_queue", queue_lock=FifoLock())
        self.devices = self.module(
            "modules.devices", device=SimpleNamespace(type="cuda"), torch_gc=lambda: self.calls.append("gc")
        )
        self.sd_unet = self.module("modules.sd_unet", current_unet=None, apply_unet=self.calls.append)
        self.model_data = SimpleNamespace(sd_model=None, loaded_sd_models=[], lock=threading.Lock())
        self.sd_models = self.module(
            "modules.sd_models", model_data=self.model_data, checkpoints_list={}, checkpoint_aliases={},
            model_path=str(root / "models" / "Stable-diffusion"),
            send_model_to_cpu=self._mover("cpu"), send_model_to_device=self._mover("cuda"),
        )  # fmt: skip

    @property
    def lock(self) -> FifoLock:
        return self.call_queue.queue_lock

    def module(self, name: str, **contents: Any) -> ModuleType:
        """A module of the host, reachable by import."""
        made = ModuleType(name)
        vars(made).update(contents)
        self._patch.setitem(sys.modules, name, made)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, made)
        return made

    def load(self, filename: Path) -> Model:
        """A checkpoint on the device."""
        model = Model(filename)
        self.model_data.sd_model = model
        self.model_data.loaded_sd_models.insert(0, model)
        return model

    def list_checkpoint(self, filename: Path) -> SimpleNamespace:
        """A checkpoint in the host's list, under its title and its name."""
        info = checkpoint(filename)
        self.sd_models.checkpoints_list[info.title] = info
        for alias in (info.title, info.name):
            self.sd_models.checkpoint_aliases[alias] = info
        return info

    def _mover(self, device: str) -> Any:
        def move(model: Model) -> None:
            model.device = device

        return move
