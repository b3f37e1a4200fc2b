"""Results are usable at once, nothing stale stays, and the host is asked whether it sees them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from extensions_lib.errors import HostError
from extensions_lib.host.a1111 import WebuiHost
from extensions_lib.host.results import publish
from extensions_lib.ports import Published

from .webui import Webui


class Layer(torch.nn.Linear):
    """A layer of the host's model with a LoRA of the last picture in its weights."""

    def __init__(self) -> None:
        super().__init__(2, 2, bias=False)
        torch.nn.init.zeros_(self.weight)
        self.network_weights_backup = torch.ones(2, 2)
        self.network_current_names: tuple[Any, ...] = (("cat", 1.0, 1.0, None),)


def restore(layer: Layer) -> None:
    """As the host does: in place, which needs `no_grad`."""
    layer.weight.copy_(layer.network_weights_backup)


class Networks:
    """The built-in Lora extension over a folder."""

    def __init__(self, webui: Webui, num_matched: int = 192) -> None:
        self.folder = Path(webui.flags.lora_dir)
        self.folder.mkdir(parents=True)
        self.held: list[bool] = []
        self.webui = webui
        self.num_matched = num_matched
        self.module = webui.module(
            "networks", available_networks={}, networks_in_memory={"cat": "old", "dog": "old"},
            list_available_networks=self.list, load_network=self.load, network_restore_weights_from_backup=restore,
            load_lora_state_dict=SimpleNamespace(cache_clear=lambda: webui.calls.append("cache cleared")),
        )  # fmt: skip

    def list(self) -> None:
        self.held.append(self.webui.lock._lock.locked())
        found = {path.stem: SimpleNamespace(filename=str(path)) for path in sorted(self.folder.rglob("*.safetensors"))}
        self.module.available_networks.clear()
        self.module.available_networks.update(found)

    def load(self, name: str, listed: Any) -> SimpleNamespace:
        return SimpleNamespace(modules={str(number): listed for number in range(self.num_matched)})


class Database:
    """The embeddings of a model that is 768 wide."""

    expected_shape = 768

    def __init__(self) -> None:
        self.word_embeddings: dict[str, Any] = {}
        self.skipped_embeddings: dict[str, Any] = {}
        self.width = 768

    def load_from_file(self, path: str, filename: str) -> None:
        name = Path(filename).stem
        target = self.word_embeddings if self.width == self.expected_shape else self.skipped_embeddings
        target[name] = SimpleNamespace(vectors=4, shape=self.width, filename=path)


@pytest.fixture
def processing(webui: Webui) -> Any:
    """Conditioning of the last prompt, kept in the classes."""

    class Picture:
        cached_c, cached_uc = [1, 2], [3, 4]

    class Txt2Img(Picture):
        cached_hr_c, cached_hr_uc = [5, 6], [7, 8]

    return webui.module(
        "modules.processing", StableDiffusionProcessing=Picture, StableDiffusionProcessingTxt2Img=Txt2Img
    )


@pytest.fixture
def lora(webui: Webui, processing: Any) -> Path:
    return Path(webui.flags.lora_dir) / "cat.safetensors"


@pytest.fixture
def database(webui: Webui) -> Database:
    database = Database()
    hijack = SimpleNamespace(embedding_db=database)
    webui.module("modules.sd_hijack", model_hijack=hijack)
    return database


@pytest.fixture
def embedding(webui: Webui, processing: Any) -> Path:
    path = Path(webui.flags.embeddings_dir) / "sks.safetensors"
    path.parent.mkdir()
    path.touch()
    return path


def load_model(webui: Webui, *layers: Layer) -> Any:
    model = webui.load(webui.root / "base.safetensors")
    model.network_layer_mapping = {str(number): layer for number, layer in enumerate(layers)}
    return model


def test_statement_25_a_lora_is_listed_and_matched_with_the_loaded_model(webui: Webui, lora: Path) -> None:
    Networks(webui)
    lora.touch()
    load_model(webui)
    answer = publish(lora, "lora", 192, "AUTOMATIC1111")
    assert answer == Published("visible as <lora:cat:1>, 192 of 192 modules matched", is_usable=True)


def test_a_lora_that_matches_in_part_or_not_at_all_is_not_called_usable(webui: Webui, lora: Path) -> None:
    networks = Networks(webui, num_matched=100)
    lora.touch()
    load_model(webui)
    answer = publish(lora, "lora", 192, "AUTOMATIC1111")
    assert answer == Published("visible as <lora:cat:1>, 100 of 192 modules matched", is_usable=False)
    answer = publish(lora, "lora", 0, "AUTOMATIC1111")
    assert answer == Published("visible as <lora:cat:1>, 100 modules matched", is_usable=True)
    networks.num_matched = 0
    model = "base.safetensors [0123456789]"
    text = f"visible as <lora:cat:1>, but made for another kind of model than {model}, which is loaded"
    assert publish(lora, "lora", 192, "AUTOMATIC1111") == Published(text, is_usable=False)


def test_statement_26_weights_of_the_old_file_are_taken_out_of_the_model(webui: Webui, lora: Path) -> None:
    networks = Networks(webui)
    lora.touch()
    layer, clean = Layer(), Layer()
    clean.network_current_names = ()
    load_model(webui, layer, clean)
    publish(lora, "lora", 192, "AUTOMATIC1111")
    assert torch.equal(layer.weight, torch.ones(2, 2)) and layer.network_current_names == ()
    assert torch.equal(clean.weight, torch.zeros(2, 2))
    assert networks.module.networks_in_memory == {"dog": "old"}


def test_statement_26_encoded_prompts_are_forgotten(webui: Webui, lora: Path, processing: Any) -> None:
    Networks(webui)
    lora.touch()
    publish(lora, "lora", 192, "AUTOMATIC1111")
    base, txt2img = processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img
    assert (base.cached_c, base.cached_uc) == ([None, None], [None, None])
    assert (txt2img.cached_hr_c, txt2img.cached_hr_uc) == ([None, None], [None, None])
    assert "cached_c" not in vars(txt2img), "the subclass shares its base's cache"


@pytest.mark.parametrize("name", ["reForge", "Forge"])
def test_statement_26_the_forks_forget_the_old_file_by_their_own_marks(webui: Webui, lora: Path, name: str) -> None:
    Networks(webui)
    lora.touch()
    model = load_model(webui)
    model.current_lora_hash = "cat 1.0"
    assert publish(lora, "lora", 192, name) == Published("visible as <lora:cat:1>", is_usable=True)
    assert model.current_lora_hash == ""
    assert webui.calls == ["cache cleared"]


def test_without_a_loaded_model_nothing_is_loaded(webui: Webui, lora: Path) -> None:
    Networks(webui)
    lora.touch()
    answer = publish(lora, "lora", 192, "AUTOMATIC1111")
    assert answer == Published("visible as <lora:cat:1>; no checkpoint is loaded yet", is_usable=True)


def test_another_file_of_the_same_name_hides_it(webui: Webui, lora: Path) -> None:
    Networks(webui)
    lora.touch()
    twin = lora.parent / "sub" / "cat.safetensors"
    twin.parent.mkdir()
    twin.touch()
    answer = publish(lora, "lora", 192, "AUTOMATIC1111")
    assert answer == Published(f"hidden by another file of the same name: {twin}", is_usable=False)


def test_a_file_outside_of_the_folder_is_said_to_be_there(webui: Webui, lora: Path, tmp_path: Path) -> None:
    answer = publish(tmp_path / "cat.safetensors", "lora", 192, "AUTOMATIC1111")
    assert answer is not None and not answer.is_usable
    assert answer.text == f"saved outside of the WebUI's folder: copy it to {lora.parent} to use it"


def test_without_the_lora_extension_this_is_said(webui: Webui, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "networks", None)
    answer = publish(lora, "lora", 192, "AUTOMATIC1111")
    assert answer == Published("the WebUI's built-in Lora extension is switched off", is_usable=False)


def test_errors_of_the_host_name_the_file_and_what_to_do(webui: Webui, lora: Path) -> None:
    networks = Networks(webui)

    def fail() -> None:
        raise OSError("disk gone")

    networks.module.list_available_networks = fail
    with pytest.raises(HostError, match="could not take in cat.safetensors: OSError: disk gone") as caught:
        publish(lora, "lora", 192, "AUTOMATIC1111")
    assert "refresh button" in caught.value.hint


def test_a_lora_the_host_does_not_list_is_an_error(webui: Webui, lora: Path) -> None:
    Networks(webui)
    with pytest.raises(HostError, match="cat is not in the WebUI's list of LoRAs"):
        publish(lora, "lora", 192, "AUTOMATIC1111")


def test_statement_25_an_embedding_is_taken_in(webui: Webui, embedding: Path, database: Database) -> None:
    load_model(webui)
    database.skipped_embeddings["sks"] = SimpleNamespace(filename=str(embedding))
    answer = publish(embedding, "embedding", 0, "AUTOMATIC1111")
    assert answer == Published("visible as sks, 4 vectors", is_usable=True)
    assert database.skipped_embeddings == {}


def test_an_embedding_for_another_model_is_said_to_be_skipped(
    webui: Webui, embedding: Path, database: Database
) -> None:
    load_model(webui)
    database.width = 1024
    answer = publish(embedding, "embedding", 0, "reForge")
    assert answer == Published("skipped: its vectors are 1024 wide, the loaded checkpoint needs 768", is_usable=False)


def test_an_embedding_hidden_by_another_file(webui: Webui, embedding: Path, database: Database) -> None:
    load_model(webui)
    twin = embedding.parent / "sks.pt"
    twin.touch()
    database.word_embeddings["sks"] = SimpleNamespace(filename=str(twin))
    answer = publish(embedding, "embedding", 0, "AUTOMATIC1111")
    assert answer == Published(f"hidden by another file of the same name: {twin}", is_usable=False)


def test_an_embedding_without_a_loaded_model(webui: Webui, embedding: Path, database: Database) -> None:
    answer = publish(embedding, "embedding", 0, "AUTOMATIC1111")
    assert answer == Published("usable as sks when a checkpoint is loaded", is_usable=True)


def test_forge_reads_its_embeddings_for_the_page_and_for_the_loaded_model(webui: Webui, embedding: Path) -> None:
    calls: list[Any] = []
    page = SimpleNamespace(load_textual_inversion_embeddings=lambda **how: calls.append(how))
    webui.module("modules.ui_extra_networks_textual_inversion", embedding_db=page)
    webui.model_data.sd_model = object()
    assert publish(embedding, "embedding", 0, "Forge").text == "usable as sks when a checkpoint is loaded"
    model = load_model(webui)
    database = Database()
    database.load_textual_inversion_embeddings = lambda: database.load_from_file(str(embedding), embedding.name)
    model.text_processing_engine_l = SimpleNamespace(embeddings=database)
    assert publish(embedding, "embedding", 0, "Forge") == Published("visible as sks, 4 vectors", is_usable=True)
    assert calls == [{"force_reload": True, "sync_with_sd_model": False}] * 2


def test_the_host_is_asked_with_the_lock_held(webui: Webui, lora: Path) -> None:
    networks = Networks(webui)
    lora.touch()
    host = WebuiHost()
    host.publish(lora, "lora", 192)
    with host.exclusive():
        host.publish(lora, "lora", 192)
    assert networks.held == [True, True]
    assert not webui.lock._lock.locked()
