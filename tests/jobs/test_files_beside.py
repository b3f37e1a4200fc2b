"""Further files that a method writes with its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from extensions_lib.config.codec import load
from extensions_lib.control import JobControl
from extensions_lib.errors import FormatError, OutputError
from extensions_lib.events import CheckpointSaved, Event
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.safetensors_io import read_tensors
from extensions_lib.jobs.results import delete_other_results
from extensions_lib.jobs.run import start
from extensions_lib.jobs.status import SavedResult
from extensions_lib.jobs.store import RunFolder
from extensions_lib.methods.base import Exported, ExportedFile, Trainable
from extensions_lib.methods.lora import Lora
from extensions_lib.training import session

from .conftest import MakeJob

WORD = {"word": torch.ones(1, 4)}


@dataclasses.dataclass(frozen=True)
class LoraWithWord(Lora):
    """A LoRA that writes an embedding, and a note without a kind, with every result."""

    def names_beside(self, output_name: str, placeholder: str) -> tuple[tuple[str, str], ...]:
        return ((f"{output_name}-word.safetensors", "embedding"), (f"{output_name}.yaml", ""))

    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        (word, _), (note, _) = self.names_beside(info.output_name, "")
        beside = (ExportedFile(word, "embedding", WORD, verify=read_tensors), ExportedFile(note, payload=b"a: 1"))
        return dataclasses.replace(super().export(trainable, info), beside=beside)


@pytest.fixture
def with_word(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    method = LoraWithWord(rank=2, alpha=2.0, layer_filter="attn2")
    monkeypatch.setattr(session, "make_method", lambda config, output: method)
    return


@pytest.mark.usefixtures("with_word")
def test_each_goes_to_the_folder_of_its_kind_and_is_told(job: MakeJob, tmp_path: Path) -> None:
    words = tmp_path / "words"
    events: list[Event] = []
    table = job(
        training={"max_train_steps": 2, "save_every_steps": 1, "train_batch_size": 1},
        output={"embedding_folder": str(words)},
    )
    start(load(table), JobControl(), (events.append,))
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    assert [event.beside for event in saved] == [
        (str(words / "zbadge-000001-word.safetensors"), str(tmp_path / "out" / "zbadge-000001.yaml")),
        (str(words / "zbadge-word.safetensors"), str(tmp_path / "out" / "zbadge.yaml")),
    ]
    assert torch.equal(read_tensors(words / "zbadge-word.safetensors")["word"], WORD["word"])
    assert (tmp_path / "out" / "zbadge.yaml").read_bytes() == b"a: 1"
    results = [SavedResult(event.step, event.path, 1, beside=event.beside) for event in saved]
    gone = delete_other_results(RunFolder(tmp_path / "runs" / "zbadge"), results, keep_step=2, other_runs=())
    assert {path.name for path in gone} == {
        "zbadge-000001.safetensors", "zbadge-000001.json", "zbadge-000001.yaml",
        "zbadge-000001-word.safetensors", "zbadge-000001-word.json",
    }  # fmt: skip
    assert {path.name for path in words.iterdir()} == {"zbadge-word.safetensors", "zbadge-word.json"}


@pytest.mark.usefixtures("with_word")
def test_one_that_is_there_is_never_replaced_unasked(job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    yaml = tmp_path / "out" / "zbadge.yaml"
    yaml.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"zbadge\.yaml exists already"):
        start(load(job()), JobControl())
    assert yaml.read_bytes() == b"precious"
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("with_word")
def test_its_folder_is_looked_at_before_any_work(job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file/words cannot be written"):
        start(load(job(output={"embedding_folder": str(tmp_path / "file" / "words")})), JobControl())


def test_one_that_reads_back_wrong_is_an_error(job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise FormatError(f"{path.name} is wrong.")

    class Spoilt(LoraWithWord):
        def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
            exported = super().export(trainable, info)
            word = dataclasses.replace(exported.beside[0], verify=refuse)
            return dataclasses.replace(exported, beside=(word,))

    monkeypatch.setattr(session, "make_method", lambda config, output: Spoilt(rank=2, layer_filter="attn2"))
    with pytest.raises(FormatError, match=r"zbadge-word\.safetensors is wrong"):
        start(load(job(training={"max_train_steps": 1})), JobControl())
    assert not (tmp_path / "out" / "zbadge.safetensors").exists()
