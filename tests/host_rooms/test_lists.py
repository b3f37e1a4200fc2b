"""Checkpoints and hypernetworks: listed at once, nothing stale stays, and the user's model is never switched."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from extensions_lib.errors import HostError
from extensions_lib.events import Event, ResultPublished, Warned
from extensions_lib.host.a1111 import WebuiHost
from extensions_lib.host.results import publish
from extensions_lib.ports import Published, publish_and_tell

from .webui import Webui


@pytest.fixture(autouse=True)
def processing(webui: Webui) -> Any:
    """No conditioning is cached."""
    classes = {f"StableDiffusionProcessing{suffix}": type("Picture", (), {}) for suffix in ("", "Txt2Img")}
    return webui.module("modules.processing", **classes)


@pytest.fixture
def checkpoint(webui: Webui) -> Path:
    """A result in the folder of checkpoints; the host lists what lies in there when it is asked to."""
    folder = Path(webui.sd_models.model_path)
    folder.mkdir(parents=True)

    def list_models() -> None:
        webui.sd_models.checkpoints_list.clear()
        for path in sorted(folder.glob("*.safetensors")):
            webui.list_checkpoint(path)

    webui.sd_models.list_models = list_models
    path = folder / "cat.safetensors"
    path.touch()
    return path


class CrossAttention(torch.nn.Module):
    """An attention of the host's UNet that takes its keys from a text or picture of this width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_k = torch.nn.Linear(width, 8)


class Hypernetworks:
    """The host's hypernetworks over a folder; its loader reads widths only."""

    def __init__(self, webui: Webui, widths: tuple[int, ...] = (320, 768)) -> None:
        self.folder = Path(webui.flags.hypernetwork_dir)
        self.folder.mkdir(parents=True)
        self.shared = webui.shared
        self.widths: tuple[int, ...] | None = widths
        self.shared.hypernetworks = {}
        self.loaded = [SimpleNamespace(name=name) for name in ("cat", "dog")]
        self.shared.loaded_hypernetworks = self.loaded
        self.shared.reload_hypernetworks = self.list
        webui.module("modules.hypernetworks")
        webui.module("modules.hypernetworks.hypernetwork", load_hypernetwork=self.load)

    def list(self) -> None:
        self.shared.hypernetworks = {path.stem: str(path) for path in sorted(self.folder.rglob("*.pt"))}

    def load(self, name: str) -> Any:
        return None if self.widths is None else SimpleNamespace(layers=dict.fromkeys(self.widths))


@pytest.fixture
def hypernetworks(webui: Webui) -> Hypernetworks:
    webui.flags.hypernetwork_dir = str(webui.root / "models" / "hypernetworks")
    return Hypernetworks(webui)


@pytest.fixture
def hypernetwork(hypernetworks: Hypernetworks) -> Path:
    path = hypernetworks.folder / "cat.pt"
    path.touch()
    return path


def load_model(webui: Webui, *widths: int) -> None:
    model = webui.load(webui.root / "base.safetensors")
    unet = torch.nn.ModuleList([CrossAttention(width) for width in widths])
    model.model = SimpleNamespace(diffusion_model=unet)


@pytest.mark.parametrize("host_name", ["AUTOMATIC1111", "reForge", "Forge"])
def test_statement_25_a_checkpoint_is_listed_and_not_selected(webui: Webui, checkpoint: Path, host_name: str) -> None:
    loaded = webui.load(webui.root / "base.safetensors")
    webui.shared.opts.sd_model_checkpoint = "base.safetensors [0123456789]"
    answer = publish(checkpoint, "checkpoint", 500, host_name)
    text = "in the list of checkpoints as cat.safetensors: select it to use it"
    assert answer == Published(text, is_usable=True)
    assert "cat.safetensors [0123456789]" in webui.sd_models.checkpoints_list
    assert webui.model_data.sd_model is loaded
    assert webui.shared.opts.sd_model_checkpoint == "base.safetensors [0123456789]"


def test_statement_26_a_rewritten_checkpoint_that_is_loaded_is_said_to_be_the_old_one(
    webui: Webui, checkpoint: Path
) -> None:
    webui.load(checkpoint)
    webui.load(webui.root / "base.safetensors")
    answer = publish(checkpoint, "checkpoint", 500, "AUTOMATIC1111")
    assert not answer.is_usable
    assert answer.text.endswith("but loaded as it was before: select another one, and then it again")
    del webui.model_data.loaded_sd_models
    assert publish(checkpoint, "checkpoint", 500, "Forge").is_usable


def test_a_rewritten_checkpoint_stays_the_selected_one(webui: Webui, checkpoint: Path) -> None:
    """Its title had the hash of the old file: the host would not find it and load the first of the list instead."""
    webui.load(checkpoint)
    webui.shared.opts.sd_model_checkpoint = "cat.safetensors [ffffffffff]"
    publish(checkpoint, "checkpoint", 500, "AUTOMATIC1111")
    assert webui.shared.opts.sd_model_checkpoint == "cat.safetensors [0123456789]"


def test_a_checkpoint_the_host_does_not_list_is_an_error(webui: Webui, checkpoint: Path) -> None:
    hidden = checkpoint.with_name("cat.vae.pt")
    with pytest.raises(HostError, match="cat.vae.pt is not in the WebUI's list of checkpoints"):
        publish(hidden, "checkpoint", 500, "AUTOMATIC1111")


def test_statement_25_a_hypernetwork_is_listed_and_matched_with_the_loaded_model(
    webui: Webui, hypernetwork: Path
) -> None:
    load_model(webui, 320, 768, 320, 768)
    answer = publish(hypernetwork, "hypernetwork", 4, "AUTOMATIC1111")
    assert answer == Published("visible as <hypernet:cat:1>, 4 of 4 modules matched", is_usable=True)


def test_statement_26_what_was_read_under_the_name_is_forgotten(
    webui: Webui, hypernetwork: Path, hypernetworks: Hypernetworks
) -> None:
    publish(hypernetwork, "hypernetwork", 4, "AUTOMATIC1111")
    assert webui.shared.loaded_hypernetworks is hypernetworks.loaded
    assert [one.name for one in hypernetworks.loaded] == ["dog"]


def test_a_hypernetwork_for_another_kind_of_model(webui: Webui, hypernetwork: Path) -> None:
    load_model(webui, 640, 2048)
    answer = publish(hypernetwork, "hypernetwork", 4, "AUTOMATIC1111")
    assert not answer.is_usable
    assert "made for another kind of model than base.safetensors" in answer.text
    load_model(webui, 320, 1024)
    assert publish(hypernetwork, "hypernetwork", 4, "AUTOMATIC1111") == Published(
        "visible as <hypernet:cat:1>, 1 of 4 modules matched", is_usable=False
    )


def test_a_hypernetwork_without_a_loaded_model(webui: Webui, hypernetwork: Path) -> None:
    answer = publish(hypernetwork, "hypernetwork", 4, "AUTOMATIC1111")
    assert answer == Published("visible as <hypernet:cat:1>; no checkpoint is loaded yet", is_usable=True)


def test_a_hypernetwork_the_hosts_loader_refuses_or_does_not_list_is_an_error(
    hypernetwork: Path, hypernetworks: Hypernetworks
) -> None:
    hypernetworks.widths = None
    with pytest.raises(HostError, match="could not take in cat.pt: .*own loader refuses the file"):
        publish(hypernetwork, "hypernetwork", 4, "AUTOMATIC1111")
    hypernetwork.unlink()
    with pytest.raises(HostError, match="cat is not in the WebUI's list of hypernetworks"):
        publish(hypernetwork, "hypernetwork", 4, "AUTOMATIC1111")


def test_a_hypernetwork_hidden_by_another_file(hypernetwork: Path) -> None:
    twin = hypernetwork.parent / "sub" / "cat.pt"
    twin.parent.mkdir()
    twin.touch()
    answer = publish(hypernetwork, "hypernetwork", 4, "AUTOMATIC1111")
    assert answer == Published(f"hidden by another file of the same name: {twin}", is_usable=False)


def test_statement_36_the_forks_never_apply_hypernetworks(hypernetwork: Path) -> None:
    answer = publish(hypernetwork, "hypernetwork", 4, "Forge")
    assert answer == Published("Forge never applies hypernetworks", is_usable=False)


@pytest.mark.parametrize(("name", "is_offered"), [("AUTOMATIC1111", True), ("reForge", False), ("Forge", False)])
def test_statement_36_methods_without_effect_are_named_with_the_reason(
    webui: Webui, monkeypatch: pytest.MonkeyPatch, name: str, is_offered: bool
) -> None:
    host = WebuiHost()
    monkeypatch.setattr(host, "name", name)
    reason = f"{name} never applies hypernetworks; AUTOMATIC1111's WebUI does."
    assert host.unusable_methods() == ({} if is_offered else {"hypernetwork": reason})


def test_a_checkpoint_as_a_folder_is_for_others(webui: Webui, checkpoint: Path) -> None:
    folder = checkpoint.with_name("cat")
    folder.mkdir()
    answer = publish(folder, "checkpoint", 0, "AUTOMATIC1111")
    assert answer == Published("a folder for other programs: the WebUI lists files only", is_usable=False)


def test_the_hosts_hash_of_a_checkpoint_is_believed_while_the_file_is_as_it_was(
    webui: Webui, checkpoint: Path, tmp_path: Path
) -> None:
    kept: dict[str, Any] = {}
    webui.module("modules.hashes", cache=lambda name: kept if name == "hashes" else None)
    webui.list_checkpoint(checkpoint)
    host = WebuiHost()
    assert host.known_sha256(checkpoint) is None
    kept["checkpoint/cat.safetensors"] = {"sha256": "ab" * 32, "mtime": checkpoint.stat().st_mtime}
    assert host.known_sha256(checkpoint) == "ab" * 32
    os.utime(checkpoint, (1, 1))  # the host itself would still believe it
    assert host.known_sha256(checkpoint) is None
    assert host.known_sha256(tmp_path / "unlisted.safetensors") is None


def test_a_tool_publishes_without_holding_the_host(webui: Webui, checkpoint: Path) -> None:
    """A merge does not take the lock; for the answer it takes it as long as that takes."""
    host = WebuiHost()
    webui.sd_models.list_models = lambda: (held.append(webui.lock._lock.locked()), webui.list_checkpoint(checkpoint))
    held: list[bool] = []
    told: list[Event] = []
    publish_and_tell(host, told.append, 0, checkpoint, "checkpoint", 0)
    assert held == [True] and not webui.lock._lock.locked()
    assert isinstance(told[0], ResultPublished) and told[0].is_usable
    webui.sd_models.checkpoints_list.clear()
    webui.sd_models.list_models = lambda: None
    publish_and_tell(host, told.append, 0, checkpoint, "checkpoint", 0)
    assert isinstance(told[1], Warned) and "cat.safetensors is saved, but the WebUI was not told" in told[1].text
