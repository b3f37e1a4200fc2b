from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from extensions_lib.config.tools import TOOLS
from extensions_lib.host.standalone import StandaloneHost, practice_job
from extensions_lib.jobs.manager import JobManager
from extensions_lib.ports import AccessPolicy
from extensions_lib.ui import fields
from extensions_lib.ui.tab import build_tab, root_html

ROOT = Path(__file__).resolve().parents[2]
# Made by gradio around forms; they have no label and no value.
UNNAMED = ("form", "blocks", "html")
KINDS = ("dropdown", "textbox", "number", "checkbox", "radio", "slider", "file")


class HidingHost(StandaloneHost):
    def access(self) -> AccessPolicy:
        return AccessPolicy(roots=(), hide_paths=True)


class WithoutLora(StandaloneHost):
    def unusable_methods(self) -> Mapping[str, str]:
        return {"lora": "LoRA files do nothing here."}


@pytest.fixture
def host(tmp_path: Path) -> StandaloneHost:
    return StandaloneHost(tmp_path)


def built(host: StandaloneHost, **more: Any) -> gr.Blocks:
    return build_tab(JobManager(host), host, "secret", **more)


def by_id(tab: gr.Blocks) -> dict[str, Any]:
    return {block.elem_id: block for block in tab.blocks.values() if getattr(block, "elem_id", None)}


def components(tab: gr.Blocks) -> list[Any]:
    return [block for block in tab.blocks.values() if block.get_block_name() not in UNNAMED]


def controls_in(block: Any, skip: Sequence[int] = ()) -> Iterator[Any]:
    """The controls with a value; `skip` are blocks, by their `id`, that are not looked into."""
    for child in getattr(block, "children", []):
        if id(child) in skip:
            continue
        if child.get_block_name() in KINDS:
            yield child
        yield from controls_in(child, skip)


def open_controls_in(block: Any) -> list[Any]:
    """The controls that are seen at first, outside closed accordions."""
    closed = [id(each) for each in all_in(block) if each.get_block_name() == "accordion" or not each.visible]
    return [control for control in controls_in(block, skip=closed) if control.visible]


def all_in(block: Any) -> Iterator[Any]:
    for child in getattr(block, "children", []):
        yield child
        yield from all_in(child)


@pytest.mark.parametrize("table", [None, practice_job()])
def test_statement_9_every_id_is_ours_and_there_once(host: StandaloneHost, table: Any) -> None:
    tab = built(host, start=table, note="hello")
    ids = [block.elem_id for block in components(tab)]
    assert [block.get_block_name() for block in components(tab) if not block.elem_id] == []
    assert sorted(ids) == sorted(set(ids))
    assert [name for name in ids if not name.startswith("train_studio_")] == []
    assert [name for name in ids if name.endswith(fields.RESERVED_ENDINGS)] == []


def test_statement_10_nothing_of_ours_is_saved_by_the_host(host: StandaloneHost) -> None:
    tab = built(host)
    assert [block for block in tab.blocks.values() if getattr(block, "do_not_save_to_config", False) is not True] == []


def test_statement_10_no_two_controls_that_are_seen_together_have_one_label(host: StandaloneHost) -> None:
    """What is saved by label is nothing (see above); a screen reader has only the labels."""
    parts = by_id(built(host))
    labels = [block.label for block in controls_in(parts["train_studio_tab_training"])]
    assert len(labels) > 80
    assert sorted(labels) == sorted(set(labels))
    groups = {f"train_studio_{word}_{kind}" for word in ("tool", "more") for kind in TOOLS}
    for kind in TOOLS:
        hidden = [id(parts[name]) for name in groups if name in parts and not name.endswith(f"_{kind}")]
        labels = [block.label for block in controls_in(parts["train_studio_tab_workshop"], skip=hidden)]
        assert len(labels) > 5
        assert sorted(labels) == sorted(set(labels))


def test_the_common_case_has_few_controls(host: StandaloneHost) -> None:
    """Outside the accordions, at most eight values are to be given."""
    training = by_id(built(host))["train_studio_tab_training"]
    assert [block.elem_id for block in open_controls_in(training)] == [
        "train_studio_method_kind",
        "train_studio_start",
        "train_studio_job_base_model",
        "train_studio_dataset_folder",
        "train_studio_files",
        "train_studio_job_name",
        "train_studio_dataset_trigger_word",
    ]


def test_the_form_begins_with_lora_and_its_first_preset(host: StandaloneHost) -> None:
    parts = by_id(built(host))
    assert [value for _, value in parts["train_studio_method_kind"].choices][:2] == ["lora", "textual_inversion"]
    assert parts["train_studio_method_kind"].value == "lora"
    assert parts["train_studio_start"].value == "Person or character"
    assert parts["train_studio_training_num_samples"].value == 2400
    assert parts["train_studio_training_max_train_steps"].value == 0
    assert parts["train_studio_lora_rank"].value == 16
    assert parts["train_studio_optimizer_learning_rate"].value == "0.0002"
    assert parts["train_studio_group_lora"].visible
    assert not parts["train_studio_group_textual_inversion"].visible


def test_start_values_of_the_host_fill_the_form(host: StandaloneHost) -> None:
    parts = by_id(built(host, start=practice_job()))
    assert parts["train_studio_job_name"].value == "badge"
    assert parts["train_studio_dataset_resolution_px"].value == 64
    assert parts["train_studio_start"].value == "Quick look"
    assert parts["train_studio_preview_prompts"].value.splitlines()[0] == "a [name] on a red background"


def test_a_method_without_effect_is_left_out_with_the_reason(tmp_path: Path) -> None:
    radio = by_id(built(WithoutLora(tmp_path)))["train_studio_method_kind"]
    kinds = [value for _, value in radio.choices]
    assert "lora" not in kinds and "textual_inversion" in kinds
    assert radio.info.endswith("LoRA files do nothing here.")


def test_statement_33_paths_are_hidden(tmp_path: Path) -> None:
    parts = by_id(built(HidingHost(tmp_path)))
    shown = [field.key for field in fields.all_fields() if field.is_path and parts[field.elem_id].visible]
    assert shown == ["job.base_model"]
    assert not parts["train_studio_job_base_model"].allow_custom_value


def test_the_root_tells_the_script_what_it_needs() -> None:
    html = root_html('a"b', True)
    assert html.startswith('<div id="train_studio_root" data-api="./train-studio/v1" ')
    assert 'data-secret="a&quot;b" data-has-prompt="1">' in html
    assert '<div data-ts-fragment="live"></div>' in html


def test_the_host_connects_its_paste_button(host: StandaloneHost) -> None:
    class Extras:
        def connect_paste(self, textbox: Any, button: Any) -> None:
            self.connected = (textbox.elem_id, button.elem_id)

    extras = Extras()
    built(host, extras=extras)
    assert extras.connected == ("train_studio_infotext", "train_studio_paste")


def test_the_tab_can_be_put_into_another_page(host: StandaloneHost) -> None:
    """As the WebUI does it: made first, rendered later, its events with it."""
    tab = built(host)
    number = len(tab.fns)
    with gr.Blocks(analytics_enabled=False) as page, gr.Tabs(), gr.TabItem("Train Studio", id="train_studio"):
        tab.render()
    assert len(page.fns) == number > 8
    assert "train_studio_train" in by_id(page)


BUILD = """
import json, sys, time, pathlib
import gradio
from extensions_lib.host.standalone import StandaloneHost
from extensions_lib.jobs.manager import JobManager
started = time.perf_counter()
from extensions_lib.ui.tab import build_tab
host = StandaloneHost(pathlib.Path(sys.argv[1]))
build_tab(JobManager(host), host, "secret")
seconds = time.perf_counter() - started
heavy = [name for name in ("torch", "diffusers", "transformers", "bitsandbytes", "prodigyopt") if name in sys.modules]
print(json.dumps({"seconds": seconds, "heavy": heavy}))
"""


def test_statement_5_the_tab_is_made_quickly_and_without_torch(tmp_path: Path) -> None:
    """The fastest of three, so that a busy machine does not count."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, "-W", "ignore", "-c", BUILD, str(tmp_path)]
    answers = []
    for _ in range(3):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
        answers.append(json.loads(done.stdout))
        if answers[-1]["seconds"] < 0.3:
            break
    assert [answer["heavy"] for answer in answers] == [[]] * len(answers)
    assert min(answer["seconds"] for answer in answers) < 0.3
    assert list(tmp_path.iterdir()) == []
