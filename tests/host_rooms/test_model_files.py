"""The model files that can be chosen, from folders on disk."""

from __future__ import annotations

from pathlib import Path

from extensions_lib.host import folders
from extensions_lib.host.model_files import files_below
from extensions_lib.host.standalone import StandaloneHost

from .webui import Webui


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_files_are_called_as_they_lie_below_their_folder(tmp_path: Path) -> None:
    names = ("b.safetensors", "people/A.safetensors", "notes.txt", ".hidden.safetensors", ".git/c.safetensors", "c.pt")
    write(*(tmp_path / "one" / name for name in names), tmp_path / "two" / "d.SAFETENSORS", tmp_path / "far" / "e.pt")
    (tmp_path / "two" / "link").symlink_to(tmp_path / "far")
    found = files_below([tmp_path / "one", tmp_path / "two", tmp_path / "missing", tmp_path / "one"], "lora")
    titles = ["b.safetensors", "c.pt", "d.SAFETENSORS", "link/e.pt", "people/A.safetensors"]
    assert [file.title for file in found] == titles
    assert found[-1].path == tmp_path / "one" / "people" / "A.safetensors"
    assert [file.title for file in files_below([tmp_path / "one"], "hypernetwork")] == ["c.pt"]


def test_the_standalone_page_has_a_folder_for_each_kind(tmp_path: Path) -> None:
    host = StandaloneHost(tmp_path)
    write(tmp_path / "loras" / "a.safetensors", tmp_path / "vaes" / "v.pt")
    assert [file.title for file in host.model_files("lora")] == ["a.safetensors"]
    assert [file.path for file in host.model_files("vae")] == [tmp_path / "vaes" / "v.pt"]
    assert host.model_files("embedding") == ()


def test_the_webui_looks_in_its_folders_and_those_of_its_flags(webui: Webui, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert folders.model_folders("lora") == (models / "Lora", models / "LyCORIS")
    assert folders.model_folders("vae") == (models / "VAE",)
    webui.flags.vae_dir, webui.flags.lyco_dir_backcompat = str(tmp_path / "vaes"), str(tmp_path / "lyco")
    assert folders.model_folders("vae") == (models / "VAE", tmp_path / "vaes")
    assert folders.model_folders("lora")[-1] == tmp_path / "lyco"
    assert folders.model_folders("embedding") == (tmp_path / "embeddings",)
