"""The workshop's handlers, with a real job manager and the practice model; nothing is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from extensions_lib.config.tools import TOOLS, load_any_tool
from extensions_lib.host.standalone import PRACTICE_TITLE, practice_job
from extensions_lib.jobs.manager import JobManager
from extensions_lib.jobs.submission import prepare_job
from extensions_lib.ports import AccessPolicy
from extensions_lib.practice import practice_checkpoint
from extensions_lib.ui.tool_fields import NONE, shown_tool
from extensions_lib.ui.workshop import Workshop, build_workshop

from .pages import BusyHost


class Shop:
    """A workshop and what its controls show."""

    def __init__(self, host: BusyHost) -> None:
        self.host = host
        self.manager = JobManager(host)
        with gr.Blocks(analytics_enabled=False):
            self.workshop: Workshop = build_workshop(self.manager, host)
        self.handlers = self.workshop.handlers
        self.shown: dict[str, Any] = {}
        for kind in TOOLS:
            self.shown |= shown_tool(kind, {})

    def values(self) -> list[Any]:
        return [self.shown[key] for key in self.workshop.form.keys]

    def start(self, kind: str) -> str:
        return self.handlers.start(kind, *self.values())[0]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    host = BusyHost(tmp_path / "studio")
    for folder in host.folders().results.values():
        folder.mkdir(parents=True)
    shutil.copyfile(practice_checkpoint(), host.folders().checkpoints / "one.safetensors")
    shop = Shop(host)
    shop.shown |= {
        "tool.name": "mixed",
        "merge.models_a_path": PRACTICE_TITLE,
        "merge.models_b_path": "one.safetensors",
        "merge.alpha": "0.25",
    }
    yield shop
    for status in shop.manager.statuses():
        if status.state not in ("completed", "failed", "stopped", "discarded"):
            shop.manager.ask(status.job_id, "discard")
    host.free.set()
    assert shop.manager.wait_idle(60)


def changed(updates: list[Any], name: str) -> list[Any]:
    return [update[name] for update in updates if name in update]


def test_start_submits_the_job_with_paths_in_place_of_titles(shop: Shop) -> None:
    assert "Merge checkpoints: &quot;mixed&quot; started." in shop.start("merge")
    own = shop.host.folders().checkpoints
    assert shop.manager.folder("mixed").config() == load_any_tool(
        {
            "tool": "merge", "name": "mixed", "alpha": "0.25", "folder": str(own),
            "models": [str(practice_checkpoint()), str(own / "one.safetensors")],
        }
    )  # fmt: skip


def test_mistakes_are_named_by_label(shop: Shop) -> None:
    shop.shown |= {"merge.models_b_path": NONE, "tool.name": "a/b"}
    message = shop.start("merge")
    assert "2 settings are wrong:" in message
    assert "<b>Models</b>: are 1; weighted_sum takes 2 or more" in message
    assert "<b>Name</b>: is &#x27;a/b&#x27;" in message
    assert shop.manager.statuses() == ()


def test_a_missing_file_is_named_by_its_letter(shop: Shop) -> None:
    shop.shown["merge.models_c_path"] = shop.shown["merge.models_b_path"]
    shop.shown["merge.models_b_path"] = NONE
    shop.shown["merge.models_c_path"] = str(shop.host.folders().work / "gone.safetensors")
    assert "<b>Checkpoint C</b>: is " in shop.handlers.check("merge", *shop.values())


def test_check_says_what_will_be_made_and_makes_nothing(shop: Shop) -> None:
    message = shop.handlers.check("merge", *shop.values())
    assert "Nothing is in the way. It makes mixed.safetensors, 15.8 MB in " in message
    assert shop.manager.statuses() == ()
    other = shop.host.folders().checkpoints / "people" / "mixed.safetensors"
    other.parent.mkdir()
    shutil.copyfile(practice_checkpoint(), other)
    assert "is also the name of another checkpoint" in shop.handlers.check("merge", *shop.values())
    shop.shown["tool.name"] = "one"
    assert "ts-error" in shop.handlers.check("merge", *shop.values())


def test_statement_33_where_paths_are_hidden_only_what_is_listed_can_be_chosen(shop: Shop, tmp_path: Path) -> None:
    shutil.copyfile(practice_checkpoint(), tmp_path / "mine.safetensors")
    shop.host.policy = AccessPolicy(roots=(), hide_paths=True)
    shop.shown["merge.models_b_path"] = str(tmp_path / "mine.safetensors")
    assert "Checkpoint B: paths are not accepted by this WebUI." in shop.start("merge")
    assert "ts-error" in shop.handlers.describe(str(tmp_path / "mine.safetensors"), False)
    assert str(tmp_path) not in shop.handlers.describe("Checkpoint: one.safetensors", False)
    shop.shown["merge.models_b_path"] = "one.safetensors"
    assert str(tmp_path) not in shop.handlers.check("merge", *shop.values())
    assert "started" in shop.start("merge")
    hiding = Shop(shop.host)
    parts = {block.elem_id: block for block in hiding.workshop.form.components}
    assert not parts["train_studio_merge_models_a_path"].allow_custom_value
    assert not parts["train_studio_rebuild_models"].visible


def test_folders_that_are_not_given_are_the_hosts(shop: Shop) -> None:
    shop.shown["rebuild.file"] = "Checkpoint: one.safetensors"
    results = shop.host.folders().results
    config = shop.handlers.job("rebuild", dict(zip(shop.workshop.form.keys, shop.values(), strict=True)))
    assert [each.path for each in config.models] == [str(results["checkpoint"]), str(results["lora"])]
    assert config.file == str(results["checkpoint"] / "one.safetensors")


def test_choosing_a_tool_shows_it_and_lists_its_files_again(shop: Shop) -> None:
    (shop.host.folders().results["lora"] / "new.safetensors").write_bytes(b"")
    form = shop.workshop.form
    updates = shop.handlers.choose("bake")
    assert len(updates) == len(form.columns) + len(form.accordions) + 1 + len(form.keys)
    assert sum(changed(updates, "visible")) == 2  # its column and its accordion
    assert changed(updates, "value") == ["Bake"]
    assert [choices for choices in changed(updates, "choices") if "new.safetensors" in choices] == [
        [NONE, "new.safetensors"]
    ] * 8


def test_what_a_change_shows_fits_what_is_there(shop: Shop) -> None:
    form = shop.workshop.form
    for kind in TOOLS:
        updates = shop.handlers.arranger(kind)(*(shop.shown[key] for key in form.keys_of(kind)))
        assert len(updates) == (kind in form.notes) + len(form.keys_of(kind)) + len(form.rows_of(kind))


def test_the_settings_of_a_tools_job_come_back_whole_with_its_tab(shop: Shop) -> None:
    shop.shown |= {"merge.formula": "TIES", "merge.density": 0.25, "merge.models_b_weight": "0.5"}
    shop.start("merge")
    form = shop.workshop.form
    message, tabs, tool, *rest = shop.handlers.load_source("run:mixed")
    assert "The settings of &#x27;mixed&#x27; are in the form." in message
    assert (tabs["selected"], tool["value"]) == ("workshop", "merge")
    other = Shop(shop.host)
    values = dict(zip(form.keys, rest[-len(form.keys) :], strict=True))
    other.shown |= {key: update["value"] for key, update in values.items() if "value" in update}
    assert values["merge.density"]["visible"] and not values["merge.beta"]["visible"]
    named = dict(zip(form.keys, other.values(), strict=True))
    assert other.handlers.job("merge", named) == shop.manager.folder("mixed").config()


def test_a_trainings_settings_are_for_the_other_tab(shop: Shop) -> None:
    training = prepare_job({**practice_job(), "output": {}}, shop.host)
    shop.manager.submit(training)
    whole = shop.handlers.load_source(f"run:{training.name}")
    assert whole[1]["selected"] == "training"
    assert [update for update in whole[2:] if {"value", "visible"} & {*update}] == []
    for source in ("run:nothing", "run:../../etc"):
        failed = shop.handlers.load_source(source)
        assert "ts-error" in failed[0] and len(failed) == len(whole)


def test_a_file_is_described_in_words(shop: Shop) -> None:
    html = shop.handlers.describe("Checkpoint: one.safetensors", True)
    for text in ("Stable Diffusion 1", "16 MB, 990 tensors, fp16", "d75978bb3c", "UNet"):
        assert text in html
    assert "Choose a file." in shop.handlers.describe(None, False)
    assert "ts-error" in shop.handlers.describe("/nowhere/x.safetensors", False)
    (shop.host.folders().results["lora"] / "bad.safetensors").write_text(json.dumps({"a": "<b>"}), encoding="utf-8")
    assert "ts-error" in shop.handlers.describe("LoRA: bad.safetensors", False)
