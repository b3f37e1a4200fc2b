"""The demonstration: teach the practice model a subject it does not know, twice, and measure what it learnt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..config.codec import load
from ..config.job import TrainJobConfig
from ..config.presets import merge
from ..control import JobControl
from ..data.caption_maker import CaptionMaker, load_template
from ..errors import JobStopped
from ..events import EventStream, Listener
from ..formats.atomic import write_bytes_atomic
from ..jobs.run import Outcome, start
from ..methods.base import Trainable
from ..methods.catalogue import make_method
from ..preview.grid import Row, render_grid
from ..preview.sampler import sample_images
from ..training.build import PicturesAndCaptions, Prepared, make_conditioner, prepare, validation_loss
from ..training.previews import no_boundary, png_bytes
from ..training.threads import num_threads
from . import BADGE_FOLDER, practice_checkpoint
from .subjects import PLAIN_NAMES, subject_found

BACKGROUNDS = ("red", "green", "blue", "white")
SAMPLER = {"num_steps": 20, "guidance_scale": 5.0, "sampler": "dpmpp_2m"}
RESOLUTION_PX = 64
NUM_SEEDS = 50
FIRST_SEED = 1000
SEEDS_PER_BATCH = 10

# Layers this narrow are slower in bf16 and on two threads. Rates are higher than a real model would bear.
NUM_THREADS = 1
JOBS: dict[str, dict[str, Any]] = {
    "practice-badge-lora": {
        "dataset": {"trigger_word": "badge"},
        "method": {
            "kind": "lora",
            "rank": 16,
            "alpha": 16.0,
            "train_text_encoder": True,
            "text_encoder_learning_rate": 1e-3,
        },
        "optimizer": {"learning_rate": 4e-3},
        "training": {"max_train_steps": 400, "train_batch_size": 8, "loss_weighting": "none"},
    },
    "practice-badge": {
        "method": {
            "kind": "textual_inversion",
            "vectors_per_token": 12,
            "initializer_text": "white and green striped heart",
        },
        "optimizer": {"learning_rate": 2e-2},
        "training": {"max_train_steps": 240, "train_batch_size": 8},
    },
}


@dataclass(frozen=True)
class DemoReport:
    """Held-out losses at fixed noise, and in how many of `NUM_SEEDS` fresh seeds the badge is found.

    `plain_name` is the caption word with which the base model's loss is lowest.
    """

    plain_name: str
    base_loss: float
    lora_loss: float
    embedding_loss: float
    found_by_base: int
    found_by_lora: int
    found_by_embedding: int
    num_seeds: int
    files: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as sentences."""

        def fall(loss: float) -> str:
            return f"{loss:.4f} ({100 * (1 - loss / self.base_loss):.1f} % lower)"

        return [
            f"held-out loss: base '{self.plain_name}' {self.base_loss:.4f}, LoRA {fall(self.lora_loss)}, "
            f"embedding {fall(self.embedding_loss)}",
            f"badge found in {self.num_seeds} fresh seeds: base {self.found_by_base}, LoRA {self.found_by_lora}, "
            f"embedding {self.found_by_embedding}",
        ]


def run_demo(folder: Path, control: JobControl, listeners: Sequence[Listener] = ()) -> DemoReport:
    """Train LoRA and embedding into `folder`, write `demo.png` and `demo.json` there, and report.

    An earlier demonstration in `folder` is replaced. Raises JobStopped when asked to stop.
    """
    configs = {name: demo_job(name, folder) for name in JOBS}
    outcomes = [start(config, control, listeners) for config in configs.values()]
    if any(outcome.reason != "completed" for outcome in outcomes):
        raise JobStopped(
            "The demonstration was stopped.", "What was trained so far is saved; start it again to see the end."
        )
    with num_threads(NUM_THREADS):
        report, sheet = measure(list(configs.values()), outcomes)
    write_bytes_atomic(folder / "demo.png", png_bytes(sheet), overwrite=True)
    text = json.dumps(dataclasses.asdict(report), indent=2)
    write_bytes_atomic(folder / "demo.json", text.encode(), overwrite=True)
    return report


def demo_job(name: str, folder: Path) -> TrainJobConfig:
    """The settings of one of `JOBS` with its results in `folder`."""
    return load(
        merge(
            {
                "name": name,
                "base_model": str(practice_checkpoint()),
                "dataset": {
                    "folder": str(BADGE_FOLDER / "train"),
                    "validation_folder": str(BADGE_FOLDER / "held_out"),
                    "resolution_px": RESOLUTION_PX,
                    "caption_template": "[filewords]",
                },
                "training": {"mixed_precision": "fp32", "num_threads": NUM_THREADS},
                "preview": {
                    "prompts": [
                        {"prompt": f"a [name] on a {background} background", "seed": 7, **SAMPLER}
                        for background in BACKGROUNDS[:2]
                    ],
                },
                "output": {
                    "folder": str(folder),
                    "runs_folder": str(folder / "runs"),
                    "overwrite": True,
                    "dtype": "fp32",
                },
            },
            JOBS[name],
        )
    )


def measure(configs: list[TrainJobConfig], outcomes: list[Outcome]) -> tuple[DemoReport, Image.Image]:
    """Compare base, LoRA file and embedding file, each as another program would load it."""
    events, control = EventStream("demo"), JobControl()
    prepared = prepare(configs[0], Path(configs[0].output.runs_folder) / "cache" / "latents", events, control)
    base_losses = {name: _base_loss(prepared, configs[0], name) for name in PLAIN_NAMES}
    plain_name = min(base_losses, key=lambda name: base_losses[name])
    rows = [("base", _row(prepared, None, plain_name))]
    found, losses = [_count_found(prepared, None, plain_name)], []
    for label, config, outcome in zip(("LoRA", "embedding"), configs, outcomes, strict=True):
        with loaded(prepared, config, outcome) as trainable:
            losses.append(_loss(prepared, trainable, config, config.trigger_word))
            found.append(_count_found(prepared, trainable, config.trigger_word))
            rows.append((label, _row(prepared, trainable, config.trigger_word)))
    report = DemoReport(
        plain_name,
        base_losses[plain_name],
        *losses,
        *found,
        NUM_SEEDS,
        tuple(str(outcome.path) for outcome in outcomes),
    )
    return report, _sheet(prepared, rows)


@contextmanager
def loaded(prepared: Prepared, config: TrainJobConfig, outcome: Outcome) -> Iterator[Trainable]:
    """The base model with the written file on it."""
    method = dataclasses.replace(config.method, start_from=str(outcome.path))
    with make_method(method, config.output).attach(
        prepared.bundle, config.trigger_word, torch.Generator()
    ) as trainable:
        trainable.module.eval()
        yield trainable


def _loss(prepared: Prepared, trainable: Trainable, config: TrainJobConfig, name: str) -> float:
    captions = CaptionMaker(load_template("[filewords]"), name=name)
    held_out = PicturesAndCaptions(prepared.validation.dataset, prepared.validation.latents, captions)
    renamed = dataclasses.replace(prepared, train=held_out, validation=held_out)
    return validation_loss(renamed, make_conditioner(renamed, trainable, config), config.training.seed)


def _base_loss(prepared: Prepared, config: TrainJobConfig, name: str) -> float:
    nothing = Trainable(torch.nn.Module(), (), trains_text_encoder=False)
    return _loss(prepared, nothing, config, name)


def _draw(
    prepared: Prepared, trainable: Trainable | None, name: str, background: str, seeds: Sequence[int]
) -> list[Image.Image]:
    return sample_images(
        prepared.bundle,
        prompt=f"a {name} on a {background} background",
        seeds=seeds,
        width_px=RESOLUTION_PX,
        height_px=RESOLUTION_PX,
        tokens=trainable.tokens if trainable else {},
        boundary=no_boundary,
        **SAMPLER,
    )


def _row(prepared: Prepared, trainable: Trainable | None, name: str) -> list[Image.Image]:
    return [_draw(prepared, trainable, name, background, [FIRST_SEED])[0] for background in BACKGROUNDS]


def _count_found(prepared: Prepared, trainable: Trainable | None, name: str) -> int:
    """In how many of `NUM_SEEDS` pictures, over all backgrounds, the badge is found."""
    found = 0
    for start_seed in range(0, NUM_SEEDS, SEEDS_PER_BATCH):
        background = BACKGROUNDS[start_seed // SEEDS_PER_BATCH % len(BACKGROUNDS)]
        seeds = range(FIRST_SEED + start_seed, FIRST_SEED + min(start_seed + SEEDS_PER_BATCH, NUM_SEEDS))
        found += sum(subject_found(image) for image in _draw(prepared, trainable, name, background, list(seeds)))
    return found


def _sheet(prepared: Prepared, rows: Sequence[Row]) -> Image.Image:
    examples = prepared.train.dataset.examples[: len(BACKGROUNDS)]
    pictures: list[Image.Image | None] = []
    for example in examples:
        with Image.open(example.path) as image:
            pictures.append(image.convert("RGB"))
    columns = [f"... on a {background} background" for background in BACKGROUNDS]
    return render_grid(columns, [*rows, ("training pictures", pictures)])
