import tempfile
from pathlib import Path

import pytest

from extensions_lib.config.codec import load, read_job_file, read_table
from extensions_lib.config.field import option, settings_of
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.methods import METHOD_CONFIGS
from extensions_lib.config.reference import commented_job, presets_table, reference_table


@pytest.mark.parametrize("kind", METHOD_CONFIGS)
def test_commented_job_is_valid_and_shows_the_values_in_force(kind: str, tmp_path: Path) -> None:
    text = commented_job(kind)
    (tmp_path / "job.toml").write_text(text, encoding="utf-8")
    head, *lines = text.splitlines()
    uncommented = [line[2:] if line.startswith("# ") and " = " in line else line for line in lines]
    (tmp_path / "all.toml").write_text("\n".join([head, *uncommented]), encoding="utf-8")
    assert read_job_file(tmp_path / "all.toml") == read_job_file(tmp_path / "job.toml")


def test_commented_job_lists_every_setting() -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        lines = [line.removeprefix("# ") for line in commented_job("lora").splitlines()[1:]]
        file.write("\n".join(lines))
        file.flush()
        table = read_table(Path(file.name))
    for section in ("dataset", "training", "optimizer", "preview", "output"):
        declared = {setting.name for setting in settings_of(type(getattr(load(table), section)))}
        assert set(table[section]) == declared


def test_reference_names_every_setting_once() -> None:
    table = reference_table()
    for section in ("training", "dataset", "optimizer", "output"):
        cls = next(setting.type for setting in settings_of(TrainJobConfig) if setting.name == section)
        for setting in settings_of(cls):
            assert table.count(f"`{section}.{setting.name}`") == 1, setting.name


def test_settings_without_a_default_are_required() -> None:
    required = [setting.name for setting in settings_of(TrainJobConfig) if setting.required]
    assert required == ["name", "base_model", "dataset", "method"]


def test_option_keeps_its_description() -> None:
    field = option(3, help="h", unit="px", min=1, max=4)
    described = field.metadata["option"]
    assert (field.default, described.help, described.unit, described.min, described.max) == (3, "h", "px", 1, 4)


def test_the_documented_start_values_are_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs" / "presets.md").read_text(encoding="utf-8")
    assert written == presets_table(), "run: python -m extensions_lib presets > docs/presets.md"


def test_documentation_is_up_to_date() -> None:
    written = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert written == reference_table(), "run: python -m extensions_lib settings > docs/settings.md"
