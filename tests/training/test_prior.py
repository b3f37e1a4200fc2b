"""The class half of a step: what is added, with what weight, and where class pictures come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from extensions_lib.config.codec import load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.presets import merge
from extensions_lib.control import JobControl
from extensions_lib.data.caption_maker import CaptionMaker, Template
from extensions_lib.errors import ConfigError, JobStopped
from extensions_lib.events import Event, EventStream, PhaseProgress
from extensions_lib.methods.base import Trainable
from extensions_lib.methods.catalogue import make_method
from extensions_lib.training.actions import MicroBatch
from extensions_lib.training.build import (
    Prepared,
    make_compute_losses,
    make_conditioner,
    num_micro_batches,
    prepare,
)
from extensions_lib.training.prior import RenamedCaptions, draw_class_pictures, picture_path

PICTURES = {"kind": "pictures", "class_prompt": "a red circle", "num_class_images": 3, "num_steps": 2}
FROZEN = {"kind": "frozen_base", "class_prompt": "circle"}


@pytest.fixture
def table(tmp_path: Path, pictures: Path, practice_model: Path) -> dict[str, Any]:
    return {
        "name": "zbadge",
        "base_model": str(practice_model),
        "dataset": {"folder": str(pictures), "resolution_px": 64, "caption_template": "a [name] on red"},
        "method": {"kind": "dreambooth", "train_text_encoder": True},
        "training": {
            "max_train_steps": 4,
            "train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_threads": 1,
            "mixed_precision": "fp32",
        },
        "output": {"folder": str(tmp_path / "out"), "runs_folder": str(tmp_path / "runs")},
    }


def prepared_for(config: TrainJobConfig, tmp_path: Path) -> Prepared:
    return prepare(config, tmp_path / "cache" / "latents", EventStream("test"), JobControl())


def all_batches(
    config: TrainJobConfig, prepared: Prepared, trainable: Trainable, step: int
) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """The instance and class micro-batches of a step."""
    conditioner = make_conditioner(prepared, trainable, config)
    compute_losses = make_compute_losses(prepared, conditioner, trainable, config)
    batches = [compute_losses(step, place) for place in range(num_micro_batches(config))]
    return [b for b in batches if not b.is_prior], [b for b in batches if b.is_prior]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_two_means_are_apart_and_the_weight_is_outside(table: dict[str, Any], tmp_path: Path, step: int) -> None:
    """Five pictures in batches of two, and three of the class: the numbers of examples differ from step to step."""
    config = load(merge(table, {"prior": {**PICTURES, "prior_loss_weight": 0.7}}))
    prepared = prepared_for(config, tmp_path)
    with make_method(config.method, config.output).attach(prepared.bundle, "zbadge", torch.Generator()) as trainable:
        instance, prior = all_batches(config, prepared, trainable, step)
    losses, class_losses = torch.cat([b.losses for b in instance]), torch.cat([b.losses for b in prior])
    weights = torch.cat([b.weights for b in instance])
    weighted = sum((b.losses * b.weights).sum() for b in instance + prior) / weights.sum()
    expected = losses.mean() + 0.7 * class_losses.mean()
    assert torch.allclose(weighted, expected, rtol=1e-6)
    assert {name for batch in prior for name in batch.names} <= {f"class-{seed:06d}.png" for seed in range(3)}


def test_noise_levels_are_weighted_in_both_halves(table: dict[str, Any], tmp_path: Path) -> None:
    plain = load(merge(table, {"prior": PICTURES}))
    weighted = load(merge(table, {"prior": PICTURES, "training": {"loss_weighting": "min_snr", "min_snr_gamma": 0.1}}))
    prepared = prepared_for(plain, tmp_path)
    method = make_method(plain.method, plain.output)
    with method.attach(prepared.bundle, "zbadge", torch.Generator()) as trainable:
        for before, after in zip(
            all_batches(plain, prepared, trainable, 0), all_batches(weighted, prepared, trainable, 0), strict=True
        ):
            ratios = torch.cat([b.losses for b in after]) / torch.cat([b.losses for b in before])
            assert bool((ratios <= 1 + 1e-6).all())
            assert len({round(ratio, 4) for ratio in ratios.tolist()}) > 1


@pytest.mark.parametrize("method", [{"kind": "dreambooth"}, {"kind": "lora", "rank": 2, "train_text_encoder": True}])
def test_the_frozen_base_asks_nothing_of_a_model_that_is_still_the_base(
    table: dict[str, Any], tmp_path: Path, method: dict[str, Any]
) -> None:
    config = load({**table, "method": method, "prior": FROZEN})
    prepared = prepared_for(config, tmp_path)
    assert prepared.prior is None
    with make_method(config.method, config.output).attach(prepared.bundle, "zbadge", torch.Generator()) as trainable:
        before = all_batches(config, prepared, trainable, 0)[1]
        assert all(not batch.losses.any() for batch in before)
        with torch.no_grad():
            for parameter in trainable.parameters():
                parameter.add_(0.01)
        after = all_batches(config, prepared, trainable, 0)[1]
        assert all(bool((batch.losses > 0).all()) for batch in after)
        sum(batch.losses.sum() for batch in after).backward()
        assert any(parameter.grad is not None for parameter in trainable.parameters())


def test_class_pictures_are_drawn_once_and_a_stop_keeps_what_is_there(table: dict[str, Any], tmp_path: Path) -> None:
    config = load(merge(table, {"prior": {**PICTURES, "num_class_images": 6}}))
    bundle = prepared_for(load(table), tmp_path).bundle
    control, seen = JobControl(), []

    def stop_at_four(event: Event) -> None:
        seen.append(event)
        if isinstance(event, PhaseProgress) and event.done == 4:
            control.request_stop()

    with pytest.raises(JobStopped):
        draw_class_pictures(config, bundle, tmp_path / "class", EventStream("x", (stop_at_four,)), control)
    (folder,) = (tmp_path / "class").iterdir()
    first = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert sorted(first) == [picture_path(folder, seed).name for seed in range(4)]
    again: list[Event] = []
    drawn = draw_class_pictures(config, bundle, tmp_path / "class", EventStream("x", (again.append,)), JobControl())
    assert drawn == folder
    assert [event.done for event in again if isinstance(event, PhaseProgress)] == [4, 6]
    assert all((folder / name).read_bytes() == data for name, data in first.items())
    more = dataclasses.replace(config, prior=dataclasses.replace(config.prior, num_class_images=5))
    kept: list[Event] = []
    draw_class_pictures(more, bundle, tmp_path / "class", EventStream("x", (kept.append,)), JobControl())
    assert [event.done for event in kept if isinstance(event, PhaseProgress)] == [5]
    with Image.open(picture_path(folder, 0)) as image:
        assert image.size == (64, 64)


def test_several_prompts_are_drawn_in_turn_and_are_the_captions(table: dict[str, Any], tmp_path: Path) -> None:
    several = {**PICTURES, "class_prompt": " a red circle | a blue square |"}
    prior = prepared_for(load(merge(table, {"prior": several})), tmp_path).prior
    texts = [prior.captions.caption(example, seed=0, epoch=0) for example in prior.dataset.examples]
    assert texts == ["a red circle", "a blue square", "a red circle"]
    assert prior.dataset.num_ignored == 3  # the captions


def test_another_base_or_prompt_has_pictures_of_its_own(table: dict[str, Any], tmp_path: Path) -> None:
    bundle = prepared_for(load(table), tmp_path).bundle
    other = dataclasses.replace(bundle, source=dataclasses.replace(bundle.source, sha256="1" * 64))
    folders = set()
    for changes, base in (({}, bundle), ({}, other), ({"class_prompt": "a dog"}, bundle), ({"num_steps": 1}, bundle)):
        config = load(merge(table, {"prior": {**PICTURES, "num_class_images": 1, **changes}}))
        folders.add(draw_class_pictures(config, base, tmp_path / "class", EventStream("x"), JobControl()))
    assert len(folders) == 4


def test_pictures_of_a_folder_have_their_own_captions_or_the_class_prompt(
    table: dict[str, Any], tmp_path: Path, pictures: Path
) -> None:
    for prompt in ("", "a thing"):
        config = load(merge(table, {"prior": {"kind": "pictures", "folder": str(pictures), "class_prompt": prompt}}))
        prior = prepared_for(config, tmp_path).prior
        texts = [prior.captions.caption(example, seed=0, epoch=0) for example in prior.dataset.examples]
        assert texts == [prompt or example.caption.replace("[name]", "") for example in prior.dataset.examples]


def test_captions_name_the_class_instead_of_the_subject(table: dict[str, Any], tmp_path: Path) -> None:
    example = prepared_for(load(table), tmp_path).train.dataset.examples[0]
    example = dataclasses.replace(example, caption="zbadge and zbadges by [name]")
    renamed = RenamedCaptions(CaptionMaker(Template(("a [name], [filewords]",)), name="zbadge"), "zbadge", "badge")
    assert renamed.caption(example, seed=0, epoch=0) == "a badge, badge and zbadges by badge"
    assert renamed.is_constant


@pytest.mark.parametrize("prior", [{"kind": "pictures"}, {"kind": "frozen_base", "class_prompt": " "}])
def test_the_class_has_to_be_named(table: dict[str, Any], prior: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"prior\.class_prompt: is empty"):
        load({**table, "prior": prior})
