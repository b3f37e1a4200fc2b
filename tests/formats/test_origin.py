"""Which program made a file, by the marks of each."""

from __future__ import annotations

import json

import pytest

from extensions_lib.formats.lineage import lineage
from extensions_lib.formats.origin import made_by

KOHYA = {"ss_network_module": "networks.lora", "ss_sd_scripts_commit_hash": "abc"}
SUPERMERGER = {
    "type": "sd-webui-supermerger", "model_a": "aa", "model_b": "bb", "model_c": None, "mode": "Weight sum",
    "base_alpha": 0.3,
}  # fmt: skip


def recipe(kind: str) -> dict[str, str]:
    return {"sd_merge_recipe": json.dumps({"type": kind})}


@pytest.mark.parametrize(
    ("names", "metadata", "expected"),
    [
        ([], {}, []),
        ([], {"train_studio.version": "0.9", **KOHYA}, ["Train Studio 0.9 (training)"]),
        ([], {"train_studio.merge": '{"version": "0.9"}', **recipe("train_studio")}, ["Train Studio 0.9 (merge)"]),
        (
            [],
            {"train_studio.version": "1", "train_studio.resize": '{"version": "1"}', "train_studio.job": "{}", **KOHYA},
            ["Train Studio 1 (resize)", "Train Studio 1 (training)"],
        ),
        ([], {"train_studio.version": "1", "train_studio.extract": '{"version": "1"}'}, ["Train Studio 1 (extract)"]),
        (
            [],
            {"train_studio.resize": '{"version": "1"}', **KOHYA},
            ["Train Studio 1 (resize)", "sd-scripts (kohya)"],
        ),
        ([], KOHYA, ["sd-scripts (kohya)"]),
        ([], {"ss_network_module": "lycoris.kohya"}, ["LyCORIS in sd-scripts (kohya)"]),
        (["emb_params"], {}, ["sd-scripts (kohya)"]),
        ([], {"ot_revision": "1", "ss_network_module": "networks.lora"}, ["OneTrainer"]),
        (["emp_params", "emp_params_out"], {}, ["OneTrainer"]),
        ([], {"software": '{"name": "ai-toolkit"}'}, ["ai-toolkit"]),
        ([], recipe("webui"), ["the WebUI's checkpoint merger"]),
        ([], recipe("sd-webui-supermerger"), ["SuperMerger"]),
        ([], recipe("x"), ["a merger that calls itself 'x'"]),
        ([], {"mecha_recipe": "..."}, ["sd-mecha"]),
        ([], {"workflow": "{}"}, ["ComfyUI"]),
        (["unet.a.lora_A.weight"], {}, ["peft"]),
        (["unet.a.lora_A.weight"], {"software": '{"name": "ai-toolkit"}'}, ["ai-toolkit"]),
        ([], {"train_studio.merge": "no json", "sd_merge_recipe": "[1]"}, []),
    ],
)
def test_marks(names: list[str], metadata: dict[str, str], expected: list[str]) -> None:
    assert made_by(names, metadata) == expected


def test_supermergers_lineage() -> None:
    models = {"aa": {"name": "one"}, "bb": {"name": "two"}}
    tree = lineage({"sd_merge_recipe": json.dumps(SUPERMERGER), "sd_merge_models": json.dumps(models)})
    assert [model["name"] for model in tree["models"]] == ["one", "two"]
    assert (tree["formula"], tree["multiplier"]) == ("Weight sum", 0.3)


def test_models_made_of_each_other_are_told_once() -> None:
    hashes = [f"{i:064}" for i in range(30)]
    recipe = {"type": "webui-merge", "model_hashes": hashes}
    models = {sha256: {"name": "m", "sd_merge_recipe": recipe} for sha256 in hashes}
    tree = lineage({"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(models)})
    assert len(tree["models"]) == 30
    assert sum(json.dumps(tree).count(sha256) for sha256 in hashes) < 30 * 10


def test_deep_texts_are_no_lineage() -> None:
    assert lineage({"sd_merge_recipe": "[" * 100_000}) is None
