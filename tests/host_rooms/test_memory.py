"""The host's model off the device and back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from extensions_lib.errors import HostError
from extensions_lib.host.a1111_memory import A1111Memory
from extensions_lib.host.forge import ForgeMemory, on_main_thread

from .webui import Webui


def test_statement_20_every_loaded_checkpoint_goes_and_the_current_one_comes_back(webui: Webui) -> None:
    other, current = (webui.load(webui.root / name) for name in ("a.safetensors", "b.safetensors"))
    memory = A1111Memory()
    memory.free()
    assert (other.device, current.device) == ("cpu", "cpu")
    memory.restore()
    assert (other.device, current.device) == ("cpu", "cuda")
    assert webui.calls == ["gc", "gc"]


def test_the_checkpoint_that_was_chosen_meanwhile_is_the_one_that_comes_back(webui: Webui) -> None:
    webui.load(webui.root / "a.safetensors")
    memory = A1111Memory()
    memory.free()
    chosen = webui.load(webui.root / "b.safetensors")
    chosen.device = "cpu"
    memory.restore()
    assert chosen.device == "cuda"


def test_an_optional_unet_is_put_away_first(webui: Webui) -> None:
    webui.sd_unet.current_unet = object()
    A1111Memory().free()
    assert webui.calls == ["None", "gc"]


def test_on_the_cpu_and_without_a_model_nothing_moves(webui: Webui) -> None:
    memory = A1111Memory()
    memory.restore()
    webui.devices.device = SimpleNamespace(type="cpu")
    model = webui.load(webui.root / "a.safetensors")
    memory.free()
    memory.restore()
    assert model.device == "cuda"
    assert webui.calls == []


def test_statement_23_a_load_in_progress_is_seen(webui: Webui) -> None:
    memory = A1111Memory()
    assert not memory.is_loading()
    with webui.model_data.lock:
        assert memory.is_loading()


def test_errors_of_the_host_say_what_could_not_be_done(webui: Webui, monkeypatch: pytest.MonkeyPatch) -> None:
    webui.load(webui.root / "a.safetensors")

    def fail(model: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(webui.sd_models, "send_model_to_cpu", fail)
    monkeypatch.setattr(webui.sd_models, "send_model_to_device", fail)
    with pytest.raises(HostError, match="could not be moved off .*: CUDA out of memory"):
        A1111Memory().free()
    with pytest.raises(HostError, match="could not be moved back to .*: CUDA out of memory") as caught:
        A1111Memory().restore()
    assert "Choose the checkpoint again" in caught.value.hint


def transport(work: Any) -> None:
    """The forks' main thread: an exception is printed and becomes None."""
    try:
        work()
    except ValueError:
        return


@pytest.mark.parametrize("name", ["reForge", "Forge"])
def test_the_forks_unload_on_their_main_thread_and_load_again_themselves(webui: Webui, name: str) -> None:
    calls: list[str] = []
    manager = {
        "unload_all_models": lambda: calls.append("unload"),
        "soft_empty_cache": lambda: calls.append("empty"),
    }
    webui.module("modules_forge")
    webui.module("modules_forge.main_thread", run_and_wait_result=lambda work: (calls.append("main thread"), work()))
    webui.module("backend")
    webui.module("backend.memory_management", **(manager if name == "Forge" else {}))
    webui.module("ldm_patched")
    webui.module("ldm_patched.modules")
    webui.module("ldm_patched.modules.model_management", **(manager if name == "reForge" else {}))
    memory = ForgeMemory(name)
    memory.free()
    assert calls == ["main thread", "unload", "empty"]
    memory.restore()
    assert calls[3:] == ["empty"]


def test_an_error_on_the_main_thread_is_not_lost(webui: Webui) -> None:
    webui.module("modules_forge")
    webui.module("modules_forge.main_thread", run_and_wait_result=transport)

    def fail() -> None:
        raise ValueError("no")

    assert on_main_thread(lambda: 3) == 3
    with pytest.raises(ValueError, match="no"):
        on_main_thread(fail)


def test_forge_has_no_load_at_the_start_to_wait_for(webui: Webui) -> None:
    memory = ForgeMemory("Forge")
    with webui.model_data.lock:
        assert memory.is_loading()
    del webui.model_data.lock
    assert not memory.is_loading()
