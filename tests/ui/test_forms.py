"""The handlers behind the form, with a real job manager and the practice model; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from extensions_lib.config.presets import PRESETS
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.host.standalone import PRACTICE_TITLE, practice_job
from extensions_lib.jobs.submission import prepare_job
from extensions_lib.jobs.user_presets import UserPresets
from extensions_lib.ports import AccessPolicy
from extensions_lib.ui.fields import all_fields
from extensions_lib.ui.handlers import THE_LOADED_ONE
from extensions_lib.ui.wording import PURPOSES

from .pages import Page

CHARACTER = "Person or character"


def dropped(folder: Path) -> list[SimpleNamespace]:
    """What gradio 3.41 hands to a handler for dropped files."""
    return [SimpleNamespace(name=str(path)) for path in sorted(folder.iterdir())]


def test_every_field_is_in_the_form(page: Page) -> None:
    assert sorted(page.form.keys) == sorted(field.key for field in all_fields())


def test_train_starts_a_job_and_queues_the_next(page: Page) -> None:
    message, report = page.handlers.train("lora", CHARACTER, None, *page.values())
    assert message == '<div class="ts-message" role="status">Training of &quot;cat&quot; started.</div>'
    assert report["value"] == ""
    config = page.manager.folder("cat").config()
    assert config.base_model == str(page.host.selected_base_model())
    assert (config.dataset.resolution_px, config.method.rank, config.preset) == (64, 16, "lora_character")
    assert config.output.folder == str(page.host.folders().results["lora"])
    page.shown["job.name"] = "dog"
    message, _ = page.handlers.train("lora", CHARACTER, None, *page.values())
    assert "&quot;dog&quot; is queued behind &quot;cat&quot;." in message
    page.shown["job.name"] = "cow"
    assert "is queued behind 2 jobs." in page.handlers.train("lora", CHARACTER, None, *page.values())[0]


def test_every_problem_is_named_by_its_label_and_escaped(page: Page) -> None:
    page.shown |= {"job.name": "<b>", "lora.rank": 0, "training.seed": None}
    message, report = page.handlers.train("lora", CHARACTER, None, *page.values())
    assert "2 settings are wrong:" in message
    for expected in ("<b>Rank</b>: is 0, accepted are 1 to 1024", "<b>Seed</b>: must be a whole number"):
        assert expected in message
    assert "value" not in report
    assert page.manager.statuses() == ()
    page.shown |= {"lora.rank": 16, "training.seed": 0}
    message, _ = page.handlers.train("lora", CHARACTER, None, *page.values())
    assert "<b>Name</b>: is &#x27;&lt;b&gt;&#x27;" in message


def test_no_pictures_is_a_problem_of_that_control(page: Page) -> None:
    page.shown["dataset.folder"] = " "
    for button in (page.handlers.train, page.handlers.check):
        assert "<b>Pictures: a folder</b>: is empty" in button("lora", CHARACTER, None, *page.values())[0]
    assert page.manager.statuses() == ()


def test_check_shows_a_report_and_starts_nothing(page: Page) -> None:
    message, report = page.handlers.check("lora", CHARACTER, None, *page.values())
    assert message == ""
    assert "number 3" in report
    assert page.manager.statuses() == ()
    page.shown["dataset.folder"] = str(page.host.folders().work / "nothing")
    message, report = page.handlers.check("lora", CHARACTER, None, *page.values())
    assert "does not exist" in message + report


def test_dropped_files_become_a_folder_of_ours(page: Page, pictures: Path) -> None:
    files = dropped(pictures)
    message, _ = page.handlers.train("lora", CHARACTER, files, *page.values())
    assert "Give either a folder or dropped files" in message
    page.shown["dataset.folder"] = ""
    assert "started" in page.handlers.train("lora", CHARACTER, files, *page.values())[0]
    folder = Path(page.manager.folder("cat").config().dataset.folder)
    assert folder.parent == page.host.folders().work / "uploads"
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in pictures.iterdir())


def test_the_loaded_checkpoint_is_the_hosts_own(page: Page) -> None:
    page.host.has_prompt = True
    assert page.handlers.base_titles() == [THE_LOADED_ONE, PRACTICE_TITLE]
    page.shown["job.base_model"] = THE_LOADED_ONE
    assert page.handlers.job("lora", CHARACTER, None, page.values()).base_model == str(page.host.selected_base_model())


def test_statement_33_hidden_paths_are_refused(page: Page, pictures: Path) -> None:
    page.host.policy = AccessPolicy(roots=(), hide_paths=True)
    message, _ = page.handlers.train("lora", CHARACTER, None, *page.values())
    assert "Pictures: a folder: paths are not accepted" in message
    page.shown["dataset.folder"] = ""
    page.shown["lora.start_from"] = "/etc/passwd"
    message, _ = page.handlers.train("lora", CHARACTER, dropped(pictures), *page.values())
    assert "LoRA to go on from: paths are not accepted" in message
    page.shown["lora.start_from"] = ""
    page.shown["job.base_model"] = "/etc/passwd"
    message, _ = page.handlers.train("lora", CHARACTER, dropped(pictures), *page.values())
    assert "ts-error" in message
    assert page.manager.statuses() == ()
    page.shown["job.base_model"] = PRACTICE_TITLE
    message, _ = page.handlers.train("lora", CHARACTER, dropped(pictures), *page.values())
    assert "started" in message


def test_statement_32_paths_outside_the_roots_are_refused(page: Page) -> None:
    page.host.policy = AccessPolicy(roots=(page.host.folders().work,), allow_pickles=False)
    assert "ts-error" in page.handlers.train("lora", CHARACTER, None, *page.values())[0]
    assert page.manager.statuses() == ()


def test_choosing_a_method_fills_its_start_values_and_keeps_what_was_typed(page: Page) -> None:
    shown_kind, start, *rest = page.handlers.choose_method("textual_inversion", "lora")
    count = len(page.form.groups)
    groups, updates = rest[:count], rest[count:]
    assert shown_kind == "textual_inversion"
    assert start["value"] == start["choices"][0] == "Person, character, object"
    assert "As the WebUI's own Train tab does it" in start["choices"]
    assert [group["visible"] for group in groups] == ["textual_inversion" in kinds for kinds in page.form.groups]
    changed = page.take(updates)
    assert changed["optimizer.learning_rate"] == "0.002"
    assert changed["textual_inversion.vectors_per_token"] == 4
    assert not {"job.name", "job.base_model", "dataset.folder", "dataset.trigger_word", "lora.rank"} & {*changed}
    trigger = updates[page.form.keys.index("dataset.trigger_word")]
    assert trigger["visible"] is False


def test_choosing_the_method_shown_changes_nothing(page: Page) -> None:
    """gradio 4 says so when the server has chosen it."""
    updates = page.handlers.choose_method("lora", "lora")
    assert len(updates) == 2 + len(page.form.groups) + len(page.form.keys)
    assert [update for update in updates if {"value", "choices", "visible"} & {*update}] == []


def test_choosing_start_values_fills_the_form(page: Page) -> None:
    message, *updates = page.handlers.choose_start("lora", "Style")
    assert message == ""
    changed = page.take(updates)
    assert (changed["lora.rank"], changed["training.train_batch_size"]) == (32, 4)
    assert "job.name" not in changed


def test_own_start_values_are_saved_chosen_and_deleted(page: Page, tmp_path: Path) -> None:
    page.shown |= {"lora.rank": 99, "dataset.trigger_word": "zed", "dataset.shuffle_tags": True}
    message, start = page.handlers.save_mine("lora", CHARACTER, " big cats ", *page.values())
    assert "Saved as &#x27;Mine: big cats&#x27;" in message
    assert (start["value"], start["choices"][-1]) == ("Mine: big cats", "Mine: big cats")
    saved = UserPresets(page.host.folders().presets).load("big cats")
    assert saved == {
        "preset": "lora_character",
        "method": {"kind": "lora", "rank": 99},
        "dataset": {"resolution_px": 64, "shuffle_tags": True},
        "training": {"max_train_steps": 1},
        "preview": {"enabled": False},
    }
    other = Page(page.host)
    changed = other.take(other.handlers.choose_start("lora", "Mine: big cats")[1:])
    assert (changed["lora.rank"], changed["dataset.shuffle_tags"], changed["lora.alpha"]) == (99, True, 8.0)
    assert other.handlers.job("lora", "Mine: big cats", None, page.values()).preset == "lora_character"
    message, start = page.handlers.delete_mine("lora", "Mine: big cats")
    assert "is deleted" in message
    assert start["value"] == CHARACTER
    assert "is not there any more" in other.handlers.choose_start("lora", "Mine: big cats")[0]
    assert "Choose one of your own" in page.handlers.delete_mine("lora", "Style")[0]


def test_a_bad_name_for_own_start_values_is_said(page: Page) -> None:
    message, start = page.handlers.save_mine("lora", CHARACTER, "../x", *page.values())
    assert "ts-error" in message
    assert "value" not in start


def test_damaged_start_values_do_not_break_the_page(page: Page) -> None:
    folder = page.host.folders().presets
    folder.mkdir(parents=True)
    (folder / "broken.json").write_text("{", encoding="utf-8")
    start, base = page.handlers.refresh("lora", "Style", PRACTICE_TITLE)
    assert start["choices"] == [PURPOSES[name] for name in PRESETS if name.startswith("lora_")]
    assert (start["value"], base["value"]) == ("Style", PRACTICE_TITLE)


def test_refresh_finds_new_checkpoints(page: Page) -> None:
    checkpoints = page.host.folders().checkpoints
    checkpoints.mkdir(parents=True)
    (checkpoints / "mine.safetensors").write_bytes(b"")
    _, base = page.handlers.refresh("lora", "Style", "/typed/path.safetensors")
    assert base["choices"] == [PRACTICE_TITLE, "mine.safetensors"]
    assert base["value"] == "/typed/path.safetensors"


def test_the_settings_of_an_earlier_run_come_back_whole(page: Page) -> None:
    page.manager.submit(page.handlers.job("lora", CHARACTER, None, page.values()))
    table = {**practice_job(), "name": "badge2", "training": {**practice_job()["training"], "seed": 42}}
    config = prepare_job({**table, "output": {}}, page.host)
    job_id = page.manager.submit(config)
    other = Page(page.host)
    message, method, shown_kind, start, *rest = other.handlers.load_source("textual_inversion", f"run:{job_id}")
    assert "The settings of &#x27;badge2&#x27; are in the form." in message
    assert (method["value"], shown_kind, start["value"]) == ("lora", "lora", "Quick look")
    other.take(rest[len(page.form.groups) :])
    assert other.shown["job.base_model"] == PRACTICE_TITLE
    again = other.handlers.job("lora", "Quick look", None, other.values())
    assert again == page.manager.folder(job_id).config()


@pytest.fixture
def sdxl(page: Page) -> Path:
    """A second checkpoint in the host's list."""
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3),
               "conditioner.embedders.1.model.token_embedding.weight": torch.zeros(4, 4)}  # fmt: skip
    page.host.folders().checkpoints.mkdir(parents=True, exist_ok=True)
    return write_atomic(page.host.folders().checkpoints / "xl.safetensors", tensors, {})


def title_of(page: Page, path: Path) -> str:
    return next(model.title for model in page.host.base_models() if model.path == path)


def test_another_family_has_other_start_values_and_what_was_changed_stays(page: Page, sdxl: Path) -> None:
    page.shown |= {"lora.rank": 5, "dataset.resolution_px": 512, "training.max_train_steps": 0}
    message, *updates = page.handlers.choose_base("lora", CHARACTER, *page.values())
    assert "value" not in message
    assert page.take(updates)["job.family"] == "sd1"
    page.shown["job.base_model"] = title_of(page, sdxl)
    message, *updates = page.handlers.choose_base("lora", CHARACTER, *page.values())
    assert "The start values are now those for Stable Diffusion XL." in message
    changed = page.take(updates)
    assert not {"job.name", "job.base_model", "dataset.folder"} & set(changed)
    assert (page.shown["job.family"], page.shown["dataset.resolution_px"]) == ("sdxl", 1024)
    assert (page.shown["lora.rank"], page.shown["lora.alpha"]) == (5, 16)
    assert page.shown["optimizer.learning_rate"] == "0.0001"
    assert page.handlers.job("lora", CHARACTER, None, page.values()).family == "sdxl"
    again = page.handlers.choose_base("lora", CHARACTER, *page.values())
    assert [update for update in again if "value" in update] == []


def test_the_reasons_are_those_of_the_purpose_and_the_family(page: Page) -> None:
    html = page.handlers.reasons("lora", "Style", "sdxl")
    assert "<b>Rank</b> 32: for a model three times as large as SD 1" in html
    assert "<b>Length of the run [samples]</b> 5000: a large model takes a style in more slowly" in html
    assert page.handlers.reasons("lora", "Mine: gone", "sdxl") == ""


def test_opening_the_page_sets_the_family_without_a_word(page: Page) -> None:
    assert page.take(page.handlers.settle_base("lora", CHARACTER, *page.values()))["job.family"] == "sd1"
    assert page.take(page.handlers.settle_base("lora", CHARACTER, *page.values())) == {}


def test_a_purpose_and_a_method_are_chosen_for_the_family_that_is_shown(page: Page) -> None:
    assert page.take(page.handlers.choose_start("lora", "Style", "sdxl")[1:])["training.num_samples"] == 5000
    chosen = page.handlers.choose_method("textual_inversion", "lora", "sdxl")
    shown = page.take(chosen[2 + len(page.form.groups) :])
    assert shown["textual_inversion.relative_learning_rate"] == 0.05
    assert "job.family" not in shown


def test_a_base_model_that_may_not_be_looked_at_changes_nothing(page: Page, sdxl: Path) -> None:
    page.host.policy = AccessPolicy(roots=(), hide_paths=True)
    page.shown["job.base_model"] = str(sdxl.parent.parent.parent / "elsewhere.safetensors")
    updates = page.handlers.choose_base("lora", CHARACTER, *page.values())
    assert [update for update in updates if "value" in update] == []


def test_own_start_values_can_be_loaded_by_name(page: Page) -> None:
    page.shown["lora.rank"] = 5
    page.handlers.save_mine("lora", "Style", "small", *page.values())
    _, method, _, start, *rest = page.handlers.load_source("textual_inversion", "preset:small")
    assert (method["value"], start["value"]) == ("lora", "Mine: small")
    changed = page.take(rest[len(page.form.groups) :])
    assert changed["lora.rank"] == 5
    assert "job.name" not in changed


@pytest.mark.parametrize("source", ["run:../../etc", "run:nothing", "preset:nothing", "file:x", ""])
def test_what_cannot_be_loaded_is_said_and_nothing_changes(page: Page, source: str) -> None:
    message, *updates = page.handlers.load_source("lora", source)
    assert "ts-error" in message
    assert [update for update in updates if {"value", "choices", "visible"} & {*update}] == []
