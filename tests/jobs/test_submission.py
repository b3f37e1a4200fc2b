"""From a form or an API request to a job, with what the host knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extensions_lib.errors import AccessError, ConfigError
from extensions_lib.jobs.submission import prepare_job
from extensions_lib.ports import AccessPolicy, BaseModel

LORA = {"name": "cat", "dataset": {"folder": "pictures"}, "method": "lora"}


def test_the_host_fills_in_base_model_and_folders(recording_host: Any) -> None:
    recording_host.selected = Path("/models/base.safetensors")
    config = prepare_job(LORA, recording_host)
    folders = recording_host.folders()
    assert config.base_model == str(Path("/models/base.safetensors"))
    assert config.output.folder == str(folders.results["lora"])
    assert config.output.lora_folder == str(folders.results["lora"])
    assert config.output.embedding_folder == str(folders.results["embedding"])
    assert config.output.runs_folder == str(folders.runs)
    embedding = prepare_job({**LORA, "method": {"kind": "textual_inversion"}}, recording_host)
    assert embedding.output.folder == str(folders.results["embedding"])


def test_the_method_may_come_from_the_preset(recording_host: Any) -> None:
    recording_host.selected = Path("/models/base.safetensors")
    table = {"name": "cat", "dataset": {"folder": "pictures"}, "preset": "embedding_style"}
    config = prepare_job(table, recording_host)
    assert config.output.folder == str(recording_host.folders().results["embedding"])


def test_what_the_user_says_wins_but_for_the_runs(recording_host: Any, tmp_path: Path) -> None:
    table = {**LORA, "base_model": "mine.safetensors", "output": {"folder": str(tmp_path), "runs_folder": "elsewhere"}}
    config = prepare_job(table, recording_host)
    assert (config.base_model, config.output.folder) == ("mine.safetensors", str(tmp_path))
    assert config.output.runs_folder == str(recording_host.folders().runs)
    emptied = prepare_job({**table, "output": {"folder": ""}}, recording_host)
    assert emptied.output.folder == str(recording_host.folders().results["lora"])


def test_a_title_of_the_host_names_its_file(recording_host: Any) -> None:
    recording_host.models = (BaseModel("base.safetensors [1234567890]", Path("/models/sd/base.safetensors")),)
    config = prepare_job({**LORA, "base_model": "base.safetensors [1234567890]"}, recording_host)
    assert config.base_model == str(Path("/models/sd/base.safetensors"))


def test_without_any_checkpoint_one_is_asked_for(recording_host: Any) -> None:
    with pytest.raises(ConfigError, match="base_model: is missing, and the WebUI has no checkpoint selected"):
        prepare_job(LORA, recording_host)


def test_statement_36_a_method_without_effect_is_refused_with_the_reason(recording_host: Any) -> None:
    recording_host.selected = Path("/models/base.safetensors")
    recording_host.unusable = {"lora": "this host loads none."}
    with pytest.raises(ConfigError, match="method.kind: is 'lora', which is of no use here: this host loads none"):
        prepare_job(LORA, recording_host)


@pytest.mark.parametrize("wrong", [{"output": 3}, {"output": {"foldre": "x"}}, {"method": "lroa"}, {"base_model": 7}])
def test_mistakes_are_reported_by_the_strict_reader(recording_host: Any, wrong: dict[str, Any]) -> None:
    recording_host.selected = Path("/models/base.safetensors")
    with pytest.raises(ConfigError):
        prepare_job({**LORA, **wrong}, recording_host)


def test_the_hosts_policy_is_asked(recording_host: Any, tmp_path: Path) -> None:
    recording_host.selected = tmp_path / "base.safetensors"
    recording_host.models = (BaseModel("base", recording_host.selected),)
    recording_host.policy = AccessPolicy(roots=(tmp_path / "allowed",))
    inside = {**LORA, "dataset": {"folder": str(tmp_path / "allowed" / "cat")}}
    prepare_job(inside, recording_host)
    with pytest.raises(AccessError, match="dataset.folder is"):
        prepare_job({**inside, "dataset": {"folder": str(tmp_path)}}, recording_host)
