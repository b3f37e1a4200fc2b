"""Sidecars: what the Extra Networks tab reads, and what is the user's stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from extensions_lib.config.artefacts import ARTEFACTS
from extensions_lib.formats.sidecar import has_preview, write_sidecars

FIELDS = {
    "activation_text": "mycat",
    "description": "A caf\u00e9 cat",
    "sd_version": "SD1",
    "preferred_weight": 0.8,
    "negative_text": "blurry",
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(path: Path) -> dict[str, object]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_lora(tmp_path: Path) -> None:
    written = write_sidecars(tmp_path / "cat.v1.safetensors", "lora", **FIELDS, preview_png=b"png")
    assert written == [tmp_path / "cat.v1.json", tmp_path / "cat.v1.png"]
    assert content(tmp_path / "cat.v1.json") == {
        "description": "A caf\u00e9 cat",
        "sd version": "SD1",
        "activation text": "mycat",
        "preferred weight": 0.8,
        "negative text": "blurry",
    }
    assert (tmp_path / "cat.v1.png").read_bytes() == b"png"


def test_an_embedding_has_no_prompt_fields_and_another_picture_name(tmp_path: Path) -> None:
    """A plain cat.png in the embeddings folder would be opened as a card with vectors in it."""
    written = write_sidecars(tmp_path / "cat.safetensors", "embedding", **FIELDS, notes="n", preview_png=b"png")
    assert written == [tmp_path / "cat.json", tmp_path / "cat.preview.png"]
    assert content(tmp_path / "cat.json") == {"description": "A caf\u00e9 cat", "notes": "n"}


@pytest.mark.parametrize(("kind", "picture"), [("checkpoint", "cat.png"), ("hypernetwork", "cat.preview.png")])
def test_other_kinds_have_a_description_and_the_picture_where_the_webui_puts_it(
    tmp_path: Path, kind: str, picture: str
) -> None:
    written = write_sidecars(tmp_path / "cat.pt", kind, **FIELDS, preview_png=b"png")
    assert written == [tmp_path / "cat.json", tmp_path / picture]
    assert content(tmp_path / "cat.json") == {"description": "A caf\u00e9 cat"}


def test_only_missing_fields_are_added(tmp_path: Path) -> None:
    users = {"description": "", "preferred weight": 0.3, "my own": [1, 2]}
    (tmp_path / "cat.json").write_text(json.dumps(users), encoding="utf-8")
    write_sidecars(tmp_path / "cat.safetensors", "lora", **FIELDS)
    assert content(tmp_path / "cat.json") == {
        **users,
        "sd version": "SD1",
        "activation text": "mycat",
        "negative text": "blurry",
    }


def test_a_complete_file_is_not_touched(tmp_path: Path) -> None:
    write_sidecars(tmp_path / "cat.safetensors", "lora", **FIELDS)
    before = (tmp_path / "cat.json").stat().st_mtime_ns
    assert write_sidecars(tmp_path / "cat.safetensors", "lora", **{**FIELDS, "activation_text": "other"}) == []
    assert (tmp_path / "cat.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["[1, 2]", "{broken", "\udcff"])
def test_a_file_we_do_not_understand_is_the_users(tmp_path: Path, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")
    (tmp_path / "cat.json").write_bytes(data)
    assert write_sidecars(tmp_path / "cat.safetensors", "lora", **FIELDS) == []
    assert (tmp_path / "cat.json").read_bytes() == data


@pytest.mark.parametrize("picture", ["cat.png", "cat.preview.png", "cat.jpg", "cat.preview.webp", "cat.gif"])
@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_users_picture_stays_the_only_one(tmp_path: Path, kind: str, picture: str) -> None:
    (tmp_path / picture).write_bytes(b"users")
    assert has_preview(tmp_path / "cat.safetensors")
    assert write_sidecars(tmp_path / "cat.safetensors", kind, preview_png=b"ours") == []
    assert names(tmp_path) == [picture]
    assert (tmp_path / picture).read_bytes() == b"users"


def test_nothing_to_say_writes_nothing(tmp_path: Path) -> None:
    assert write_sidecars(tmp_path / "cat.safetensors", "lora") == []
    assert names(tmp_path) == []


def test_another_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind is 'vae'; accepted: lora, embedding, checkpoint, hypernetwork"):
        write_sidecars(tmp_path / "cat.safetensors", "vae")
