from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from extensions_lib.config.codec import dump, load
from extensions_lib.config.field import settings_of
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.methods import METHOD_CONFIGS
from extensions_lib.config.presets import PRESETS, merge
from extensions_lib.ui import fields
from extensions_lib.ui.fields import all_fields, label_of, read_values, shown_values
from extensions_lib.ui.wording import LABELS, PURPOSES

BY_KEY = {field.key: field for field in all_fields()}
GIVEN = {"name": "cat", "base_model": "m.safetensors", "dataset": {"folder": "pictures"}}


def round_trip(table: dict[str, Any]) -> dict[str, Any]:
    kind = table["method"]["kind"]
    return read_values(shown_values(table), kind, table["preset"])


def test_every_declared_setting_has_a_control_or_is_decided_elsewhere() -> None:
    declared = set()
    for setting in settings_of(TrainJobConfig):
        if setting.name == "method":
            continue
        if dataclasses.is_dataclass(setting.type):
            declared |= {f"{setting.name}.{inner.name}" for inner in settings_of(setting.type)}
        else:
            declared.add(f"job.{setting.name}")
    for kind, cls in METHOD_CONFIGS.items():
        declared |= {f"{kind}.{inner.name}" for inner in settings_of(cls)}
    shown = {key for key in BY_KEY if not key.startswith("prompt.")}
    shown |= {f"{kind}.{field.setting.name}" for field in all_fields() for kind in field.methods}
    assert declared - shown == fields.NOT_SHOWN
    assert shown - declared == set()


def test_statement_10_labels_and_ids_are_unique() -> None:
    labels = [field.label for field in all_fields()]
    ids = [field.elem_id for field in all_fields()]
    assert sorted(labels) == sorted(set(labels))
    assert sorted(ids) == sorted(set(ids))
    assert not [name for name in ids if name.endswith(fields.RESERVED_ENDINGS)]
    assert BY_KEY["training.clip_skip"].elem_id == "train_studio_training_clip_skip_setting"


def test_labels_carry_the_unit_and_texts_the_range() -> None:
    assert BY_KEY["training.max_train_steps"].label == "Length of the run [steps]"
    assert BY_KEY["dataset.resolution_px"].label == "Resolution [px]"
    assert BY_KEY["lora.rank"].info == "Size; more can hold more. 1 to 1024."
    assert BY_KEY["training.seed"].info == "Decides noise, timesteps and order."
    assert BY_KEY["output.overwrite"].info == ""


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora.rank", "number"),
        ("optimizer.learning_rate", "rate"),
        ("lora.text_encoder_learning_rate", "rate"),
        ("optimizer.epsilon", "rate"),
        ("optimizer.weight_decay", "number"),
        ("dataset.flip", "switch"),
        ("optimizer.optimizer", "choice"),
        ("preview.prompts", "lines"),
        ("job.name", "text"),
    ],
)
def test_the_control_follows_from_the_declaration(key: str, kind: str) -> None:
    assert BY_KEY[key].kind == kind


@pytest.mark.parametrize("preset", PRESETS)
def test_an_untouched_form_is_the_preset(preset: str) -> None:
    kind = PRESETS[preset]["method"]["kind"]
    table = round_trip({"preset": preset, "method": {"kind": kind}, **GIVEN})
    assert table == {"preset": preset, "method": {"kind": kind}, **GIVEN}
    assert load(table) == load({"preset": preset, **GIVEN})


def test_only_what_differs_is_in_the_table() -> None:
    shown = shown_values({"preset": "lora_character", "method": {"kind": "lora"}, **GIVEN})
    shown |= {"lora.rank": 64.0, "optimizer.learning_rate": "3e-4", "training.seed": 7}
    shown |= {"textual_inversion.start_from": "of another method"}
    table = read_values(shown, "lora", "lora_character")
    assert table == {
        **GIVEN,
        "preset": "lora_character",
        "method": {"kind": "lora", "rank": 64},
        "optimizer": {"learning_rate": 3e-4},
        "training": {"seed": 7},
    }
    assert type(table["method"]["rank"]) is int


def test_a_whole_config_comes_back_exactly() -> None:
    config = load(
        {
            **GIVEN,
            "preset": "embedding_webui",
            "method": {"kind": "textual_inversion", "max_norm_ratio": 0.3},
            "optimizer": {"epsilon": 1.23456789e-7},
            "training": {"clip_skip": 2, "huber_c": 0.07, "seed": 2**32 - 1},
            "preview": {
                "prompts": [
                    {"prompt": "a [name]", "seed": 5, "negative_prompt": "blur"},
                    {"prompt": "a [name], night", "seed": 6},
                    {"prompt": '{"not": json', "seed": 5, "negative_prompt": "blur"},
                    {"prompt": "two\nlines", "seed": 5, "negative_prompt": "blur"},
                ]
            },
        }
    )
    assert load(round_trip(dump(config))) == config


def test_rates_are_shown_as_people_write_them() -> None:
    shown = shown_values({"preset": "lora_style", "method": {"kind": "lora"}})
    assert shown["lora.text_encoder_learning_rate"] == "2e-5"
    assert shown["optimizer.learning_rate"] == "0.0001"
    assert shown_values({"preset": "embedding_webui", "method": {"kind": "textual_inversion"}})[
        "optimizer.learning_rate"
    ] == "5e-3:200, 1e-3:1000, 5e-4"  # fmt: skip


def test_prompts_are_one_a_line_and_what_they_share_stands_below() -> None:
    shown = shown_values({"preset": "", "method": {"kind": "lora"}, **GIVEN})
    shown |= {"preview.prompts": ' a [name]\n\n{"prompt": "b", "seed": 1}\n{curly} hair', "prompt.seed": 9}
    prompts = read_values(shown, "lora", "lora_style")["preview"]["prompts"]
    assert prompts == [
        {"seed": 9, "prompt": "a [name]"},
        {"seed": 1, "prompt": "b"},
        {"seed": 9, "prompt": "{curly} hair"},
    ]
    shown |= {"preview.prompts": ""}
    assert read_values(shown, "lora", "lora_style")["preview"]["prompts"] == [{"seed": 9, "prompt": "[name]"}]


def test_what_cannot_be_read_stays_for_the_codec_to_name() -> None:
    shown = shown_values({"preset": "", "method": {"kind": "lora"}, **GIVEN})
    shown |= {"lora.rank": 1.5, "training.seed": None, "optimizer.learning_rate": "fast", "job.name": " cat "}
    table = read_values(shown, "lora", "lora_character")
    assert (table["method"]["rank"], table["training"]["seed"]) == (1.5, "")
    assert (table["optimizer"]["learning_rate"], table["name"]) == ("fast", "cat")


def test_a_pasted_path_may_be_in_quotes() -> None:
    shown = shown_values({"preset": "", "method": {"kind": "lora"}, **GIVEN})
    shown |= {"dataset.folder": ' "C:\\my pictures" ', "output.description": '"quoted"'}
    table = read_values(shown, "lora", "lora_character")
    assert table["dataset"]["folder"] == "C:\\my pictures"
    assert table["output"]["description"] == '"quoted"'


def test_an_embedding_has_no_trigger_word() -> None:
    shown = shown_values({"preset": "", "method": {"kind": "lora"}, **GIVEN}) | {"dataset.trigger_word": "zed"}
    assert read_values(shown, "lora", "lora_character")["dataset"]["trigger_word"] == "zed"
    assert "trigger_word" not in read_values(shown, "textual_inversion", "embedding_style")["dataset"]


def test_errors_are_named_by_label() -> None:
    assert label_of("method.rank", "lora") == "Rank"
    assert label_of("method.start_from", "textual_inversion") == "Embedding to go on from"
    assert label_of("preview.prompts[0].seed", "lora") == "Preview prompts, one a line"
    assert label_of("output.runs_folder", "lora") == ""


def test_the_table_of_a_preset_is_not_changed() -> None:
    before = merge(PRESETS["lora_style"], {})
    round_trip({"preset": "lora_style", "method": {"kind": "lora", "rank": 3}, **GIVEN})
    assert PRESETS["lora_style"] == before


def test_every_preset_and_section_has_its_words() -> None:
    assert set(PURPOSES) == set(PRESETS)
    assert set(LABELS) <= set(BY_KEY)
    kinds = [[PURPOSES[name] for name in PRESETS if PRESETS[name]["method"]["kind"] == kind] for kind in METHOD_CONFIGS]
    assert all(len(labels) == len(set(labels)) for labels in kinds)


def test_a_method_with_the_settings_of_another_has_its_controls() -> None:
    """A LoRA with a word is a LoRA: one control for the rank serves both, and labels stay unique."""
    assert BY_KEY["lora.rank"].methods == ("lora", "pivotal")
    assert BY_KEY["textual_inversion.vectors_per_token"].methods == ("textual_inversion", "pivotal")
    assert "pivotal.rank" not in BY_KEY
    assert {BY_KEY[f"{kind}.start_from"].methods for kind in ("lora", "pivotal")} == {("lora",), ("pivotal",)}
    shown = shown_values({"preset": "", "method": {"kind": "pivotal", "rank": 7, "start_from": "x"}, **GIVEN})
    assert (shown["lora.rank"], shown["pivotal.start_from"], shown["lora.start_from"]) == (7, "x", "")
    assert label_of("method.rank", "pivotal") == "Rank"
    table = read_values(shown, "pivotal", "pivotal_character")
    assert table["method"] == {"kind": "pivotal", "rank": 7, "start_from": "x"}


WORDS = [
    ("zhat", {"word": "zhat"}),
    ("zhat: 2", {"word": "zhat", "vectors_per_token": 2}),
    ("zhat: red hat", {"word": "zhat", "initializer_text": "red hat"}),
    ("big zhat:2,red, old hat ", {"word": "big zhat", "vectors_per_token": 2, "initializer_text": "red, old hat"}),
    ('{"word": "zhat", "start_from": "hat.pt"}', {"word": "zhat", "start_from": "hat.pt"}),
]


@pytest.mark.parametrize(("line", "entry"), WORDS)
def test_further_words_are_one_a_line(line: str, entry: dict[str, Any]) -> None:
    shown = shown_values({"preset": "", "method": {"kind": "textual_inversion"}, **GIVEN})
    assert shown["textual_inversion.further_words"] == ""
    shown |= {"textual_inversion.further_words": f"\n {line}\n\nother: 3\n"}
    table = read_values(shown, "textual_inversion", "embedding_subject")
    assert table["method"]["further_words"] == [entry, {"word": "other", "vectors_per_token": 3}]


def test_further_words_come_back_as_they_were() -> None:
    words = [entry for _, entry in WORDS[:-1]]
    words = [{**entry, "word": f"{entry['word']}{index}"} for index, entry in enumerate(words)]
    words += [{"word": "c", "initializer_text": "3, two"}, {"word": "d", "start_from": "C:\\hat.pt"}]
    method = {"kind": "textual_inversion", "further_words": words}
    config = load({**GIVEN, "method": method})
    assert load(round_trip(dump(config))) == config
    lines = shown_values(dump(config))["textual_inversion.further_words"].splitlines()
    assert lines[:4] == ["zhat0: 4", "zhat1: 2", "zhat2: 4, red hat", "big zhat3: 2, red, old hat"]
    assert json.loads(lines[5]) == {"word": "d", "start_from": "C:\\hat.pt"}
    as_text = {**GIVEN, "method": {"kind": "textual_inversion", "further_words": ["zhat: 2, red hat"]}}
    assert load(as_text).method.further_words[0].initializer_text == "red hat"
