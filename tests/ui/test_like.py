"""Train like a file, on the page: the form is filled in, and what does not map is shown."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from extensions_lib.config.foreign.recipe import Recipe, Remark
from extensions_lib.formats.embedding import pt_embedding_bytes
from extensions_lib.host.standalone import PRACTICE_TITLE
from extensions_lib.ports import AccessPolicy
from extensions_lib.ui.messages import recipe_html

from .pages import Page

PRESET = {
    "training_method": "LORA", "lora_rank": 6, "lora_alpha": 3.0, "epochs": 4, "batch_size": 1, "learning_rate": 1e-3,
    "base_model_name": "somewhere/practice.safetensors", "learning_rate_scheduler": "REX", "resolution": "64",
}  # fmt: skip


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "preset.json"
    path.write_text(json.dumps(PRESET), encoding="utf-8")
    return path


def like(page: Page, file: Any = None, path: str = "", pictures: Any = None) -> tuple[str, dict[str, Any]]:
    """The message, and what changed in the form."""
    folder = str(page.shown["dataset.folder"])
    message, *updates = page.handlers.like("lora", file, path, pictures, folder)
    return message, page.take(updates[3 + len(page.form.groups) :])


def test_an_uploaded_file_fills_the_form_and_the_own_pictures_are_counted(page: Page, preset: Path) -> None:
    message, changed = like(page, SimpleNamespace(name=str(preset)))
    assert (page.shown["lora.rank"], page.shown["lora.alpha"], page.shown["optimizer.learning_rate"]) == (6, 3, "0.001")
    assert page.shown["training.num_samples"] == 20  # 5 pictures, 4 epochs
    assert "job.name" not in changed
    assert "dataset.folder" not in changed
    assert page.shown["job.base_model"] == PRACTICE_TITLE
    assert "The form is filled in from a OneTrainer config." in message
    assert "Its base checkpoint practice.safetensors is chosen." in message
    assert "<code>learning_rate_scheduler</code> = <code>REX</code>: is none of" in message
    assert page.handlers.job("lora", "Person or character", None, page.values()).method.rank == 6


def test_a_path_may_be_given_where_paths_may(page: Page, preset: Path) -> None:
    like(page, path=f" {preset} ")
    assert page.shown["lora.rank"] == 6
    page.shown["lora.rank"] = 16
    page.host.policy = AccessPolicy(roots=(), hide_paths=True)
    message, changed = like(page, path=str(preset))
    assert "ts-error" in message
    assert changed == {}
    message, _ = like(page, SimpleNamespace(name=str(preset)))
    assert page.shown["lora.rank"] == 6


def test_dropped_pictures_count_before_the_folder(page: Page, preset: Path) -> None:
    dropped = [SimpleNamespace(name=name) for name in ("a.png", "b.jpg", "a.txt")]
    like(page, SimpleNamespace(name=str(preset)), pictures=dropped)
    assert page.shown["training.num_samples"] == 8


def test_an_embedding_changes_the_method(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "zkw.pt"
    path.write_bytes(pt_embedding_bytes("zkw", torch.ones(5, 768), 30, None, "other"))
    message, method, kind, start, *updates = page.handlers.like("lora", SimpleNamespace(name=str(path)), "", None, "")
    assert (method["value"], kind) == ("textual_inversion", "textual_inversion")
    assert start["value"] == "Person, character, object"
    page.take(updates[len(page.form.groups) :])
    assert (page.shown["textual_inversion.vectors_per_token"], page.shown["training.num_samples"]) == (5, 30)
    assert "Its base checkpoint other is not in the list; choose one like it." in message


@pytest.mark.parametrize("name", ["", "none.safetensors", "none.txt"])
def test_what_cannot_be_read_is_said_and_nothing_changes(page: Page, tmp_path: Path, name: str) -> None:
    message, changed = like(page, path=str(tmp_path / name) if name else "")
    assert "ts-error" in message
    assert changed == {}


def test_a_method_of_no_use_here_is_not_chosen(page: Page, preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.host, "unusable_methods", lambda: {"lora": "LoRA files do nothing here."})
    message, changed = like(page, path=str(preset))
    assert "LoRA files do nothing here." in message
    assert changed == {}


def test_what_a_file_says_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    recipe = Recipe("a test", {}, (Remark(evil, {"a": evil}, evil),), (Remark(evil, evil, evil),))
    html = recipe_html(recipe, evil)
    assert "<img" not in html
    assert html.count("&lt;img") == 7
