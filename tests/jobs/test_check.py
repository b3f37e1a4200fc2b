"""The Check on the practice model: what it shows is what the training would use, and it stops nothing by itself."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from extensions_lib.config.codec import dump, load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.presets import merge
from extensions_lib.data.fitted import load_fitted
from extensions_lib.events import StepCompleted
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.jobs.check import check_job
from extensions_lib.jobs.check_report import PACE_UNKNOWN, CheckReport
from extensions_lib.jobs.estimates import PROCESS_BYTES, MemoryFacts, memory_gib
from extensions_lib.methods.catalogue import make_method
from extensions_lib.models.load import load_bundle
from extensions_lib.ports import HostFolders
from extensions_lib.training.build import make_captions, scan_pictures
from extensions_lib.training.conditioning import TextConditioner
from extensions_lib.training.precision import BF16, FP32

EMBEDDING = {"kind": "textual_inversion", "vectors_per_token": 3}


class Folders:
    """The part of a host that the Check asks."""

    name = "Forge"
    reads_words_in_loras = False

    def __init__(self, work: Path, unusable: Mapping[str, str]) -> None:
        self._work, self._unusable = work, unusable

    def folders(self) -> HostFolders:
        results = {"lora": self._work / "Lora", "embedding": self._work / "embeddings"}
        return HostFolders(results, self._work / "checkpoints", self._work)

    def unusable_methods(self) -> Mapping[str, str]:
        return self._unusable


@pytest.fixture
def job(tmp_path: Path, pictures: Path, practice_model: Path) -> Callable[..., TrainJobConfig]:
    def make(**changes: Any) -> TrainJobConfig:
        table = {
            "name": "zbadge",
            "base_model": str(practice_model),
            "dataset": {"folder": str(pictures), "resolution_px": 64},
            "method": {"kind": "lora", "rank": 2},
            "training": {"max_train_steps": 12, "train_batch_size": 2, "mixed_precision": "fp32", "device": "cpu"},
            "output": {"folder": str(tmp_path / "Lora"), "runs_folder": str(tmp_path / "runs")},
        }
        return load(merge(table, changes) | ({"method": changes["method"]} if "method" in changes else {}))

    return make


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., CheckReport]:
    def run(config: TrainJobConfig, unusable: Mapping[str, str] | None = None, **options: Any) -> CheckReport:
        return check_job(config, Folders(tmp_path, unusable or {}), **options)

    return run


def decoded(uri: str) -> np.ndarray:
    kind, data = uri.split(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=np.float32)


def names(report: CheckReport) -> list[str]:
    return [problem.setting for problem in report.problems]


def everything_below(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_sound_job(job, check, tmp_path: Path) -> None:
    before = everything_below(tmp_path)
    report = check(job())
    assert everything_below(tmp_path) == before
    assert report.problems == () and report.warnings == () and report.can_start
    assert (report.num_pictures, report.buckets, report.skipped) == (5, {"64x64": 3, "80x48": 2}, ())
    assert report.num_ignored == 5
    # 3 pictures in one bucket and 2 in the other, two at a time: 3 steps an epoch.
    assert (report.max_train_steps, report.epochs, report.num_samples) == (12, 4.0, 20)
    assert (report.seconds_per_step, report.pace_text) == (None, PACE_UNKNOWN)
    assert report.device == "cpu" and 0.5 < report.memory_gib < 1.5
    assert [room.place for room in report.disk] == ["results", "run"]
    assert all(room.needed_mib >= 16 and room.free_mib > 0 for room in report.disk)


@pytest.mark.parametrize("family", ["sd1_v", "sd2", "sdxl"])
def test_start_values_of_another_family_are_a_warning(job, check, family: str) -> None:
    assert check(job(family="sd1")).warnings == ()
    report = check(job(family=family))
    assert report.warnings == (f"The start values are those for {family}, the base model is sd1: choose them again.",)
    assert report.can_start


def test_pictures_are_those_the_training_uses(job, check) -> None:
    config = job()
    report = check(config)
    dataset = scan_pictures(config.dataset, config.dataset.folder)
    for picture, example in zip(report.pictures, dataset.examples, strict=True):
        seen = load_fitted(example, background=dataset.background).rgb
        assert (picture.name, picture.bucket_px) == (example.name, seen.size)
        assert picture.thumb_px == seen.size
        shown = decoded(picture.thumb)
        assert np.abs(shown - np.asarray(seen, dtype=np.float32)).mean() < 3  # JPEG
    wide = report.pictures[1]
    assert (wide.size_px, wide.crop_px) == ((96, 64), (0, 3, 96, 61))


@pytest.mark.parametrize("method", [{"kind": "lora", "rank": 2}, EMBEDDING], ids=["lora", "embedding"])
def test_tokens_are_those_the_text_encoder_gets(job, check, method, practice_model: Path, monkeypatch) -> None:
    config = job(method=method, dataset={"caption_template": "a photo of [name], [filewords]" + ", red circle" * 40})
    report = check(config)
    bundle = load_bundle(practice_model)
    tokenizer, maker = bundle.tokenizer, make_captions(config)
    first, ends = tokenizer.num_vocabulary, {tokenizer.start_id, tokenizer.end_id}

    def name_of(token: int) -> str:
        return f"zbadge {token - first + 1}/3" if token >= first else tokenizer.decode([token])

    examples = scan_pictures(config.dataset, config.dataset.folder).examples
    generator = torch.Generator().manual_seed(0)
    with make_method(config.method, config.output).attach(bundle, config.trigger_word, generator) as trainable:
        conditioner = TextConditioner(bundle, clip_skip=1, tokens=trainable.tokens, is_frozen=False)
        monkeypatch.setattr(conditioner, "_encode", lambda chunks: chunks)
        encoded = [conditioner([maker.caption(example, seed=0, epoch=0)])[0] for example in examples]
    for picture, example, ids in zip(report.pictures, examples, encoded, strict=True):
        assert picture.caption == maker.caption(example, seed=0, epoch=0)
        assert len(picture.chunks) == 2
        assert [list(chunk) for chunk in picture.chunks] == [
            [name_of(token) for token in chunk if token not in ends] for chunk in ids
        ]
        assert picture.num_tokens == sum(map(len, picture.chunks)) and picture.limit == 75
    assert any("more than 75 tokens" in warning for warning in report.warnings)


def test_several_words_are_looked_for_in_the_captions(job, check, pictures: Path) -> None:
    (pictures / "1.txt").write_text("a zhat", encoding="utf-8")
    (pictures / "2.txt").write_text("nothing", encoding="utf-8")
    words = ["zhat: 2", "zbag"]
    report = check(job(method={**EMBEDDING, "further_words": words}, dataset={"caption_template": "[filewords]"}))
    assert [warning for warning in report.warnings if "aption" in warning] == [
        "With captions that lack each of the words 'zbadge', 'zhat', 'zbag', so that they do not teach it: "
        "1 picture (2.png).",
        "No caption has the word 'zbag', so that its vectors learn nothing.",
    ]
    assert report.pictures[1].chunks == (("a", "zhat 1/2", "zhat 2/2"),)
    assert report.num_parameters == (3 + 2 + 4) * 32


@pytest.mark.parametrize(("embedding_files", "is_told"), [("bundled", True), ("both", False), ("beside", False)])
def test_a_host_that_reads_no_words_in_loras(job, check, embedding_files: str, is_told: bool) -> None:
    report = check(job(method={"kind": "pivotal", "embedding_files": embedding_files}))
    assert any("Forge does not read a word from inside a LoRA" in warning for warning in report.warnings) is is_told


def test_what_is_no_word_is_marked(job, check) -> None:
    report = check(job(dataset={"caption_template": "[name] <lora:other:1>, [filewords]"}))
    assert {picture.left_out for picture in report.pictures} == {("<lora:other:1>",)}
    assert "lora" not in [token for chunk in report.pictures[0].chunks for token in chunk]


def test_a_mask_shows_what_counts(job, check, pictures: Path) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (0, 0, 32, 64))
    image.save(pictures / "half.png")
    config = job(dataset={"use_alpha_masks": True, "unmasked_weight": 0.0})
    by_name = {picture.name: picture for picture in check(config).pictures}
    mask = decoded(by_name["half.png"].mask)
    assert mask[:, :24].min() > 240 and mask[:, 40:].max() < 15
    assert by_name["0.png"].mask == ""
    assert {picture.mask for picture in check(job()).pictures} == {""}


def test_a_dirty_folder_lists_every_picture(job, check, pictures: Path) -> None:
    (pictures / "copy.png").write_bytes((pictures / "0.png").read_bytes())
    (pictures / "empty.jpg").write_bytes(b"")
    (pictures / "cut.png").write_bytes((pictures / "1.png").read_bytes()[:60])
    Image.new("RGB", (8, 8)).save(pictures / "tiny.png")
    (pictures / "2.txt").write_text("only a circle", encoding="utf-8")
    report = check(job(dataset={"caption_template": "[filewords]"}))
    reasons = dict(report.skipped)
    assert set(reasons) == {"copy.png", "empty.jpg", "cut.png", "tiny.png"}
    assert reasons["copy.png"] == "the same file as 0.png" and reasons["empty.jpg"] == "empty file (0 bytes)"
    assert report.num_pictures == 5
    assert report.warnings == (
        "With captions that lack the word 'zbadge', so that they do not teach it: 1 picture (2.png).",
    )


def test_nothing_usable_is_a_problem_and_still_listed(job, check, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    report = check(job(dataset={"folder": str(folder)}))
    assert names(report) == ["dataset.folder"] and "holds no usable picture" in report.problems[0].message
    assert report.skipped == (("a.png", "empty file (0 bytes)"),)
    assert (report.num_pictures, report.epochs, report.pictures) == (0, None, ())


def test_all_problems_are_told_at_once(job, check, tmp_path: Path, practice_model: Path) -> None:
    (tmp_path / "Lora").mkdir()
    (tmp_path / "Lora" / "zbadge.safetensors").write_bytes(b"taken")
    report = check(
        job(
            base_model=str(tmp_path / "none.safetensors"),
            dataset={"folder": str(tmp_path / "nowhere"), "caption_template": "nope", "validation_folder": "no-where"},
            training={"device": "cuda:77"},
            optimizer={"learning_rate": "5e-3:x"},
        ),
        {"lora": "This WebUI ignores LoRA files."},
    )
    assert names(report) == [
        "method.kind",
        "base_model",
        "dataset.folder",
        "dataset.validation_folder",
        "dataset.caption_template",
        "training.device",
        "optimizer.learning_rate",
        "name",
    ]
    assert all(problem.message for problem in report.problems) and all(problem.hint for problem in report.problems)
    assert not report.can_start and report.memory_gib is None and report.num_parameters is None
    json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("changes", "setting", "text"),
    [
        ({"base_model": " "}, "base_model", "No base model is chosen."),
        ({"dataset": {"folder": ""}}, "dataset.folder", "No picture folder is chosen."),
        ({"training": {"clip_skip": 5}}, "training.clip_skip", "has 4 layers"),
        ({"vae": "gone.safetensors"}, "base_model", "gone.safetensors does not exist"),
        ({"method": {"kind": "lora", "layer_filter": "("}}, "method", "not a regular expression"),
        ({"method": {"kind": "lora", "start_from": "gone.safetensors"}}, "method", "gone.safetensors"),
        ({"optimizer": {"optimizer": "prodigy"}}, "optimizer.optimizer", "prodigy needs"),
        (
            {"optimizer": {"optimizer": "prodigy"}, "method": {"kind": "lora", "block_rates": "mid=0.5"}},
            "optimizer.optimizer",
            "needs one learning rate for all parts, got",
        ),
        ({"dataset": {"background_color": "#xyz"}}, "dataset.background_color", "'#xyz'"),
        ({"training": {"mixed_precision": "fp16"}}, "training.mixed_precision", "fp16 needs a CUDA device"),
    ],
)
def test_single_problems(job, check, changes: dict[str, Any], setting: str, text: str) -> None:
    report = check(job(**changes))
    assert names(report) == [setting]
    assert text in report.problems[0].message


def test_a_lora_is_no_base_model(job, check, practice_model: Path, tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "x.safetensors", {"lora_unet_a.lora_up.weight": torch.zeros(2, 2)}, {})
    problem = check(job(base_model=str(path))).problems[0]
    assert problem.message.startswith("x.safetensors is a LoRA or LyCORIS file.") and problem.hint


def test_a_result_that_may_be_replaced_is_a_warning(job, check, tmp_path: Path) -> None:
    (tmp_path / "Lora").mkdir()
    (tmp_path / "Lora" / "zbadge.safetensors").write_bytes(b"old")
    report = check(job(output={"overwrite": True}))
    assert report.can_start
    assert report.warnings == ("A result called 'zbadge' exists already and will be replaced.",)


def test_a_folder_that_cannot_be_written(job, check, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    report = check(job(output={"folder": str(tmp_path / "new" / "Lora")}))
    assert [problem.message for problem in report.problems] == [f"The output folder {tmp_path} cannot be written."]


def test_a_full_disk_is_a_problem(job, check, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 3 * 2**20}))
    report = check(job())
    assert names(report) == ["output.folder", "output.folder"]
    assert report.problems[0].message.startswith("The disk for the results has 3 MiB free; this job needs 17 MiB.")


def test_too_little_memory_is_a_warning(job, check, monkeypatch) -> None:
    monkeypatch.setattr("extensions_lib.training.memory.total_memory_gib", lambda device: 0.25)
    report = check(job())
    assert report.can_start and "the device cpu has 0.2 GiB" in report.warnings[0]


def test_changing_captions_are_said_to_change(job, check) -> None:
    report = check(job(dataset={"caption_dropout_rate": 0.9}))
    assert report.warnings == ("Captions change each time they are used; those of the first epoch are shown.",)


def test_a_picture_that_changes_meanwhile_is_listed(job, check, pictures: Path, monkeypatch) -> None:
    def scan_and_change(*arguments: Any) -> Any:
        dataset = scan_pictures(*arguments)
        (pictures / "3.png").write_bytes(b"other")
        return dataset

    monkeypatch.setattr("extensions_lib.training.build.scan_pictures", scan_and_change)
    report = check(job())
    assert report.skipped == (("3.png", "The picture 3.png was changed after the folder was read."),)
    assert [picture.name for picture in report.pictures] == ["0.png", "1.png", "2.png", "4.png"]
    assert report.pictures[3].caption == "zbadge, a zbadge, number 4"


def test_long_lists_are_cut_and_counted(job, check) -> None:
    report = check(job(), max_pictures=2)
    assert [picture.name for picture in report.pictures] == ["0.png", "1.png"]
    assert (report.num_pictures, sum(report.buckets.values())) == (5, 5)


def write_run(runs: Path, name: str, config: TrainJobConfig, seconds: list[float], age: int) -> None:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(dump(config)), encoding="utf-8")
    events = [
        StepCompleted(step=step, loss=0.1, learning_rate=1e-4, num_examples_seen=step, seconds=each, peak_memory_gib=1)
        for step, each in enumerate(seconds, start=1)
    ]
    text = "".join(json.dumps(event.to_json()) + "\n" for event in events)
    (folder / "events.jsonl").write_text(text, encoding="utf-8")
    os.utime(folder / "events.jsonl", (1_000_000 - age, 1_000_000 - age))


def test_time_is_that_of_the_newest_run_that_was_alike(job, check, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs, "other-size", job(dataset={"resolution_px": 128}), [7.0] * 9, age=0)
    write_run(runs, "other-batch", job(training={"train_batch_size": 1}), [7.0] * 9, age=1)
    write_run(runs, "other-method", job(method=EMBEDDING), [7.0] * 9, age=2)
    write_run(runs, "too-short", job(), [7.0] * 4, age=3)
    write_run(runs, "alike", job(name="another", optimizer={"learning_rate": 1e-5}), [9.0, 2.0, 2.5, 2.0, 3.0], age=4)
    write_run(runs, "older", job(), [7.0] * 9, age=5)
    (runs / "broken").mkdir()
    (runs / "broken" / "events.jsonl").write_text("{", encoding="utf-8")
    report = check(job())
    assert (report.seconds_per_step, report.pace_text) == (2.5, "as in the earlier run alike")


def test_reading_the_file_may_take_more_than_training(job, practice_model: Path) -> None:
    """On a CPU the pages of the open file count beside its tensors; the networks here are smaller than the file."""
    bundle = load_bundle(practice_model)
    config = job(preview={"enabled": False})
    with_file = MemoryFacts(bundle, 0, (8, 8), 1, BF16, is_cpu=True)
    bundle.unet, bundle.vae, bundle.text_encoders = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), {}
    bundle.unet.config, bundle.vae.config = load_bundle(practice_model).unet.config, None
    expected = 2 * practice_model.stat().st_size + PROCESS_BYTES
    assert memory_gib(config, with_file) * 2**30 == pytest.approx(expected)


def test_memory_follows_its_rule(job, practice_model: Path) -> None:
    bundle = load_bundle(practice_model)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in bundle.parts.items()}

    def gib(precision: Any, batch: int, **training: Any) -> float:
        config = job(training={"train_batch_size": batch, **training}, preview={"enabled": False})
        return memory_gib(config, MemoryFacts(bundle, 1000, (64, 64), 1, precision, is_cpu=False)) * 2**30

    # Levels of 64 channels at 64, 16, 4 and 1 latent pixels, 5 layers each, 40 numbers kept for each of them; the text
    # encoder, 4 layers 32 wide, keeps 22.
    unet = 40 * 5 * 64 * (64 + 16 + 4 + 1)
    text = 22 * 4 * 32 * 77
    rest = 4 * (sizes["vae"] + sizes["text_encoder"])
    assert gib(FP32, 2) == pytest.approx(4 * sizes["unet"] + rest + 16 * 1000 + 2 * 4 * (unet + text))
    assert gib(BF16, 2) == pytest.approx(2 * sizes["unet"] + rest + 16 * 1000 + 2 * (2 * unet + 4 * text))
    assert gib(FP32, 8, gradient_checkpointing=True) < gib(FP32, 8)
    assert gib(FP32, 1, ema_decay=0.9) - gib(FP32, 1) == pytest.approx(4000)
