import json
import sys
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.codec import dump, load, read_job_file
from extensions_lib.config.methods import LoraConfig, TextualInversionConfig
from extensions_lib.config.presets import PRESETS, merge
from extensions_lib.config.preview import PreviewPrompt
from extensions_lib.errors import ConfigError


def minimal(**more: Any) -> dict[str, Any]:
    return {"name": "badge", "base_model": "m.safetensors", "dataset": {"folder": "p"}, "method": "lora", **more}


def problems(table: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(table)
    return {problem.path: problem.text for problem in caught.value.problems}


def test_four_values_are_a_job_and_the_preset_fills_the_rest() -> None:
    job = load(minimal())
    assert isinstance(job.method, LoraConfig)
    assert (job.method.rank, job.training.num_steps, job.training.loss_weighting) == (16, 1200, "min_snr")
    assert job.trigger_word == "badge"


def test_what_the_user_gives_wins_over_the_preset() -> None:
    job = load(minimal(method={"kind": "lora", "rank": 3}, training={"max_train_steps": 7}))
    assert (job.method.rank, job.method.alpha, job.training.num_steps, job.training.train_batch_size) == (
        3,
        8.0,
        7,
        2,
    )


def test_a_preset_alone_decides_the_method() -> None:
    table = minimal(preset="embedding_webui")
    del table["method"]
    job = load(table)
    assert isinstance(job.method, TextualInversionConfig)
    assert job.optimizer.learning_rate == "5e-3:200, 1e-3:1000, 5e-4"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_dumps_to_itself(preset: str) -> None:
    table = minimal(preset=preset)
    del table["method"]
    job = load(table)
    assert load(json.loads(json.dumps(dump(job)))) == job


def test_all_mistakes_are_reported_at_once() -> None:
    found = problems(
        {
            "name": "a<b",
            "basemodel": "m",
            "method": {"kind": "lora", "rnk": 3, "rank": 0},
            "training": {"seed": -1, "max_train_steps": "x", "mixed_precision": "bf17", "gradient_checkpointing": 1},
            "preview": {"prompts": [{"promt": "x"}, 3]},
            "dataset": {},
        }
    )
    assert found == {
        "basemodel": "is not a setting; did you mean 'base_model'?",
        "base_model": "is missing: The checkpoint to start from: .safetensors, .ckpt or a diffusers folder.",
        "dataset.folder": "is missing: Folder with the training pictures.",
        "method.rnk": "is not a setting; did you mean 'rank'?",
        "method.rank": "is 0, accepted are 1 to 1024",
        "training.seed": "is -1, accepted are 0 to 4294967295",
        "training.max_train_steps": "must be a whole number, is 'x'",
        "training.mixed_precision": "is 'bf17', accepted are auto, fp32, bf16, fp16; did you mean 'bf16'?",
        "training.gradient_checkpointing": "must be true or false, is 1",
        "preview.prompts[0].promt": "is not a setting; did you mean 'prompt'?",
        "preview.prompts[0].prompt": "is missing: What to draw.",
        "preview.prompts[1]": "must be a table of settings, is 3",
    }


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": " a"}, "name"),
        ({"name": ".."}, "name"),
        ({"training": {"min_timestep": 500, "max_timestep": 500}}, "training.min_timestep"),
        ({"training": {"noise_offset": 0.1, "pyramid_noise_discount": 0.3}}, "training.noise_offset"),
        ({"training": {"noise_offset": float("nan")}}, "training.noise_offset"),
        ({"dataset": {"folder": "p", "resolution_px": 500}}, "dataset.resolution_px"),
        ({"output": {"file_format": "pt"}}, "output.file_format"),
        ({"preset": "lora_charcter"}, "preset"),
        ({"preset": "embedding_style"}, "preset"),
        ({"method": "loha"}, "method.kind"),
        ({"method": 3}, "method.kind"),
        ({"optimizer": {"learning_rate": True}}, "optimizer.learning_rate"),
        ({"schema_version": 99}, "schema_version"),
    ],
)
def test_single_mistakes_name_their_setting(change: dict[str, Any], path: str) -> None:
    assert list(problems(minimal(**change))) == [path]


def test_misspelled_choice_names_the_nearest() -> None:
    assert problems(minimal(preset="lora_charcter"))["preset"].endswith("did you mean 'lora_character'?")


def test_whole_numbers_are_accepted_where_numbers_are() -> None:
    assert load(minimal(optimizer={"learning_rate": 1})).optimizer.learning_rate == 1.0


def test_a_text_is_a_preview_prompt() -> None:
    job = load(minimal(preview={"prompts": ["a [name]", {"prompt": "b", "seed": 3}]}))
    assert job.preview.prompts == (PreviewPrompt(prompt="a [name]"), PreviewPrompt(prompt="b", seed=3))


def test_merge_goes_into_tables_and_leaves_its_arguments() -> None:
    under, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "d": {"e": 5}}
    assert merge(under, over) == {"a": {"b": 1, "c": 4}, "d": {"e": 5}}
    assert under == {"a": {"b": 1, "c": 2}, "d": 3}


def test_toml_and_json_files_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(minimal()), encoding="utf-8")
    (tmp_path / "job.toml").write_text(
        'name = "badge"\nbase_model = "m.safetensors"\nmethod = "lora"\n[dataset]\nfolder = "p"\n', encoding="utf-8"
    )
    assert read_job_file(tmp_path / "job.toml") == read_job_file(tmp_path / "job.json")


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("job.toml", b"name = ", "is not valid TOML"),
        ("job.json", b"{", "is not valid JSON"),
        ("job.json", b"[1]", "must hold a table of settings, holds list"),
        ("job.toml", b"\xff\xfe", "cannot be read"),
    ],
)
def test_broken_files_are_one_clear_problem(tmp_path: Path, name: str, content: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        read_job_file(tmp_path / name)


def test_missing_file_is_one_clear_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_job_file(tmp_path / "none.toml")


def test_config_does_not_import_torch() -> None:
    import subprocess

    code = "import extensions_lib.config.codec, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"method": ["lora"]}, "method.kind"),
        ({"method": {"kind": ["lora"]}}, "method.kind"),
        ({"method": {"kind": {}}}, "method.kind"),
        ({"preset": ["lora_style"]}, "preset"),
        ({"preset": {"a": 1}}, "preset"),
        ({"training": {"seed": 10**400}}, "training.seed"),
        ({"method": {"kind": "lora", "alpha": -(10**400)}}, "method.alpha"),
    ],
)
def test_values_that_cannot_be_looked_up_or_counted_are_mistakes_too(change: dict[str, Any], path: str) -> None:
    assert path in problems(minimal(**change))


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ({"block_ranks": "mid_block"}, "method.block_ranks", "holds 'mid_block'; accepted is 'expression=number'"),
        ({"block_ranks": "mid=1.5"}, "method.block_ranks", "holds 'mid=1.5' (invalid literal"),
        ({"block_ranks": "mid=-1"}, "method.block_ranks", "the number must be at least 0"),
        (
            {"block_rates": "(=2"},
            "method.block_rates",
            "holds '(=2' (it is no regular expression: missing ), unterminated subpattern",
        ),
        ({"block_rates": "mid=inf"}, "method.block_rates", "the number must be at least 0"),
        ({"lokr_factor": 0}, "method.lokr_factor", "is 0, accepted are -1 and whole numbers from 1 on"),
        ({"algorithm": "full", "dora": True}, "method.dora", "is True; the algorithm 'full' has no rank"),
        ({"algorithm": "full", "rank_dropout": 0.1}, "method.rank_dropout", "so leave it 0.0"),
    ],
)
def test_what_only_a_loras_own_rules_tell(method: dict[str, Any], path: str, text: str) -> None:
    assert text in problems(minimal(method={"kind": "lora", **method}))[path]
