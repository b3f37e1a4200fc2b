"""Folders, checkpoints and access, from the host's options."""

from __future__ import annotations

from pathlib import Path

from extensions_lib.config.artefacts import ARTEFACTS
from extensions_lib.config.methods import METHOD_CONFIGS, artefact_kind
from extensions_lib.host import folders
from extensions_lib.host.settings import DATASET_ROOTS, dataset_roots
from extensions_lib.ports import AccessPolicy

from .webui import Webui


def test_results_go_where_the_host_looks_for_them(webui: Webui, tmp_path: Path) -> None:
    found = folders.folders()
    assert found.results == {
        "lora": tmp_path / "models" / "Lora",
        "embedding": tmp_path / "embeddings",
        "checkpoint": tmp_path / "models" / "Stable-diffusion",
        "hypernetwork": tmp_path / "models" / "hypernetworks",
    }
    assert {artefact_kind(method) for method in METHOD_CONFIGS} <= set(found.results) == set(ARTEFACTS)
    assert found.checkpoints == tmp_path / "models" / "Stable-diffusion"
    assert found.work == tmp_path / "train-studio"


def test_flags_move_the_folders_and_missing_flags_do_not_matter(webui: Webui, tmp_path: Path) -> None:
    webui.flags.ckpt_dir = str(tmp_path / "elsewhere")
    webui.flags.hypernetwork_dir = str(tmp_path / "networks")
    del webui.flags.lora_dir, webui.flags.embeddings_dir
    found = folders.folders()
    assert found.checkpoints == tmp_path / "elsewhere"
    assert found.results["lora"] == tmp_path / "models" / "Lora"
    assert found.results["embedding"] == tmp_path / "embeddings"
    assert found.results["checkpoint"] == found.checkpoints
    assert found.results["hypernetwork"] == tmp_path / "networks"


def test_base_models_are_the_hosts_list_in_its_order(webui: Webui, tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.ckpt"):
        webui.list_checkpoint(tmp_path / name)
    assert [model.title for model in folders.base_models()] == ["b.safetensors [0123456789]", "a.ckpt [0123456789]"]
    assert [model.path for model in folders.base_models()] == [tmp_path / "b.safetensors", tmp_path / "a.ckpt"]


def test_the_selected_model_is_the_chosen_one_else_the_loaded_one_else_the_first(webui: Webui, tmp_path: Path) -> None:
    assert folders.selected_base_model() is None
    for name in ("first.safetensors", "chosen.safetensors"):
        webui.list_checkpoint(tmp_path / name)
    assert folders.selected_base_model() == tmp_path / "first.safetensors"
    webui.load(tmp_path / "loaded.safetensors")
    assert folders.selected_base_model() == tmp_path / "loaded.safetensors"
    webui.shared.opts.sd_model_checkpoint = "chosen.safetensors [0123456789]"
    assert folders.selected_base_model() == tmp_path / "chosen.safetensors"


def test_a_title_whose_hash_is_out_of_date_finds_its_file_and_never_a_similar_one(webui: Webui, tmp_path: Path) -> None:
    webui.list_checkpoint(tmp_path / "first.safetensors")
    webui.list_checkpoint(tmp_path / "model.safetensors")
    webui.shared.opts.sd_model_checkpoint = "model.safetensors [ffffffffff]"
    assert folders.selected_base_model() == tmp_path / "model.safetensors"
    webui.shared.opts.sd_model_checkpoint = "mod"
    assert folders.selected_base_model() == tmp_path / "first.safetensors"


def test_a_local_page_may_name_any_path(webui: Webui) -> None:
    assert folders.access(()) == AccessPolicy()


def test_statement_32_a_page_open_to_others_may_name_the_hosts_folders_only(webui: Webui, tmp_path: Path) -> None:
    webui.flags.disable_extension_access = True
    webui.flags.ckpt_dir = str(tmp_path / "checkpoints")
    webui.shared.opts.data[DATASET_ROOTS] = f" {tmp_path / 'mine'} ;; {tmp_path / 'more'}"
    policy = folders.access(dataset_roots())
    assert not policy.allow_pickles
    assert policy.roots == tuple(
        tmp_path / name
        for name in (
            ".", "models", "models/Lora", "embeddings", "checkpoints", "models/hypernetworks", "mine", "more"
        )
    )  # fmt: skip


def test_statement_32_a_host_that_does_not_say_counts_as_open(webui: Webui) -> None:
    del webui.flags.disable_extension_access
    assert folders.access(()).roots is not None


def test_statement_33_hidden_folders_stay_hidden(webui: Webui) -> None:
    webui.flags.hide_ui_dir_config = True
    assert folders.access(()).hide_paths
