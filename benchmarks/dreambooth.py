"""What DreamBooth learns and forgets on the practice model, beside a LoRA.

    python -m benchmarks.dreambooth [--folder FOLDER] [--only NAME ...]

Trains the badge of the demonstration as a LoRA, and as DreamBooth without prior preservation, with class pictures, and
with the frozen base as target. Reports for each: the loss on held-out pictures of the badge, in how many fresh seeds it
is found, and how far the class ("square") has drifted: the loss on class pictures nobody trained on, the mean
difference of pixels (0 to 255) to the base model's pictures of the same seeds, and how many of them still show a square
on the background asked for. Results that are in FOLDER already are only measured.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from extensions_lib.config.codec import load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.config.presets import merge
from extensions_lib.config.prior import PriorConfig
from extensions_lib.control import JobControl
from extensions_lib.data.caption_maker import CaptionMaker, Template
from extensions_lib.events import EventStream
from extensions_lib.jobs.run import start
from extensions_lib.methods.base import Trainable
from extensions_lib.methods.catalogue import make_method
from extensions_lib.practice import BADGE_FOLDER, drawing, practice_checkpoint
from extensions_lib.practice.demo import BACKGROUNDS, JOBS, NUM_THREADS, RESOLUTION_PX, SAMPLER
from extensions_lib.practice.scorer import read_picture
from extensions_lib.practice.subjects import subject_found
from extensions_lib.preview.grid import render_grid
from extensions_lib.preview.sampler import sample_images
from extensions_lib.training.batches import PicturesAndCaptions
from extensions_lib.training.build import Prepared, make_conditioner, prepare, validation_loss
from extensions_lib.training.previews import no_boundary
from extensions_lib.training.threads import num_threads

CLASS = "square"
WORD = "badge"
FIRST_SEED = 1000
NUM_SUBJECT, NUM_CLASS = 50, 24
NUM_CLASS_IMAGES = 64
CLASS_PROMPTS = [f"a {CLASS} on {drawing.with_article(background)} background" for background in drawing.BACKGROUNDS]
DREAMBOOTH = {
    "method": {
        "kind": "dreambooth",
        "train_text_encoder": True,
        "text_encoder_learning_rate": 3e-4,
        "text_encoder_until": 1.0,
    },
    "optimizer": {"learning_rate": 5e-4, "lr_scheduler": "cosine"},
    "training": {"max_train_steps": 300, "train_batch_size": 8, "loss_weighting": "none"},
}
PICTURES = {
    "kind": "pictures", "class_prompt": " | ".join(CLASS_PROMPTS), "num_class_images": NUM_CLASS_IMAGES,
    "num_steps": SAMPLER["num_steps"], "guidance_scale": SAMPLER["guidance_scale"],
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": JOBS["practice-badge-lora"],
    "DreamBooth": DREAMBOOTH,
    "with class pictures": {**DREAMBOOTH, "prior": PICTURES},
    "with the frozen base": {**DREAMBOOTH, "prior": {"kind": "frozen_base", "class_prompt": CLASS}},
}


@dataclass(frozen=True)
class Measured:
    """One line of the table; the counts are out of NUM_SUBJECT and NUM_CLASS."""

    held_out_loss: float
    num_found: int
    class_loss: float
    class_difference: float
    num_class_right: int
    num_class_leaked: int


def job(name: str, folder: Path) -> TrainJobConfig:
    """The settings of one of VARIANTS with its result in `folder`."""
    table = {
        "name": name.lower().replace(" ", "-"),
        "base_model": str(practice_checkpoint()),
        "dataset": {
            "folder": str(BADGE_FOLDER / "train"),
            "validation_folder": str(BADGE_FOLDER / "held_out"),
            "resolution_px": RESOLUTION_PX,
            "caption_template": "[filewords]",
            "trigger_word": WORD,
        },
        "training": {"mixed_precision": "fp32", "num_threads": NUM_THREADS, "state_every_steps": 10_000},
        "preview": {"enabled": False},
        "output": {"folder": str(folder), "runs_folder": str(folder / "runs"), "overwrite": True, "dtype": "fp32"},
    }
    return load(merge(table, VARIANTS[name]))


def result_of(name: str, folder: Path) -> Path:
    """Where the result of a variant stands."""
    return folder / f"{job(name, folder).name}.safetensors"


@contextmanager
def attached(prepared: Prepared, name: str, folder: Path) -> Iterator[Trainable]:
    """The base model with the written file of a variant on it."""
    config = job(name, folder)
    method = dataclasses.replace(config.method, start_from=str(result_of(name, folder)))
    with make_method(method, config.output).attach(prepared.bundle, WORD, torch.Generator()) as trainable:
        trainable.module.eval()
        yield trainable


def draw(prepared: Prepared, name: str, count: int, first_seed: int) -> list[tuple[str, Image.Image]]:
    """(background, picture) of `count` seeds, the backgrounds in turn."""
    found = []
    for place, background in enumerate(BACKGROUNDS):
        seeds = list(range(first_seed + place, first_seed + count, len(BACKGROUNDS)))
        images = sample_images(
            prepared.bundle,
            prompt=f"a {name} on a {background} background",
            seeds=seeds,
            width_px=RESOLUTION_PX,
            height_px=RESOLUTION_PX,
            boundary=no_boundary,
            **SAMPLER,
        )
        found += [(background, image) for image in images]
    return found


def loss(prepared: Prepared, trainable: Trainable, config: TrainJobConfig, pictures: PicturesAndCaptions) -> float:
    """The loss at fixed noise on these pictures."""
    chosen = dataclasses.replace(prepared, train=pictures, validation=pictures)
    return validation_loss(chosen, make_conditioner(chosen, trainable, config), config.training.seed)


def measure(
    prepared: Prepared, trainable: Trainable, config: TrainJobConfig, word: str, base: Sequence[Image.Image]
) -> tuple[Measured, list[Image.Image], list[Image.Image]]:
    """What the model in memory knows of the badge, called `word`, and of its class; with pictures of both."""
    held_out = dataclasses.replace(prepared.validation, captions=CaptionMaker(Template(("[filewords]",)), name=word))
    subject = draw(prepared, word, NUM_SUBJECT, FIRST_SEED)
    of_class = draw(prepared, CLASS, NUM_CLASS, FIRST_SEED)
    readings = [(background, read_picture(image)) for background, image in of_class]
    images = [image for _, image in of_class]
    differences = [
        float(np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).mean())
        for image, other in zip(images, base or images, strict=True)
    ]
    assert prepared.prior is not None
    measured = Measured(
        held_out_loss=loss(prepared, trainable, config, held_out),
        num_found=sum(subject_found(image) for _, image in subject),
        class_loss=loss(prepared, trainable, config, prepared.prior),
        class_difference=sum(differences) / len(differences),
        num_class_right=sum(read.shape == CLASS and read.background == background for background, read in readings),
        num_class_leaked=sum(subject_found(image) for image in images),
    )
    return measured, [image for _, image in subject], images


def report(folder: Path, names: Sequence[str]) -> None:
    """Measure the base and every variant; print a table, and draw a sheet of the first pictures of each."""
    config = job("DreamBooth", folder)
    unseen = PriorConfig(**{**PICTURES, "sampler": "euler_a", "num_class_images": NUM_CLASS})
    latents = folder / "runs" / "cache" / "latents"
    prepared = prepare(dataclasses.replace(config, prior=unseen), latents, EventStream("benchmark"), JobControl())
    nothing = Trainable(torch.nn.Module(), (), trains_text_encoder=False)
    measured, subject, of_class = measure(prepared, nothing, config, CLASS, [])
    lines, rows, base = {"base": measured}, [("base", subject[:4] + of_class[:4])], of_class
    for name in names:
        with attached(prepared, name, folder) as trainable:
            lines[name], subject, of_class = measure(prepared, trainable, config, WORD, base)
        rows.append((name, subject[:4] + of_class[:4]))
    print("| | held-out loss | badges found | class loss | difference | squares right | badges for squares |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, line in lines.items():
        fall = 1 - line.held_out_loss / lines["base"].held_out_loss
        print(
            f"| {name} | {line.held_out_loss:.4f} ({100 * fall:.1f} % lower) | {line.num_found} of {NUM_SUBJECT} "
            f"| {line.class_loss:.4f} | {line.class_difference:.1f} | {line.num_class_right} of {NUM_CLASS} "
            f"| {line.num_class_leaked} |",
            flush=True,
        )
    columns = [f"{WORD} {number}" for number in range(1, 5)] + [f"{CLASS} {number}" for number in range(1, 5)]
    render_grid(columns, rows).save(folder / "dreambooth.png")


def main() -> None:
    """Train what is missing, measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "dreambooth")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        if not result_of(name, folder).exists():
            start(job(name, folder), JobControl())
    with num_threads(NUM_THREADS):
        report(folder, options.only)


if __name__ == "__main__":
    main()
