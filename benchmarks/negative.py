"""Whether a negative embedding keeps out of pictures what it was shown, on the practice model.

    python -m benchmarks.negative [--folder FOLDER]

A word is trained on pictures that have only a red background in common, none of which is said in their captions. Then
pictures are drawn from prompts that say nothing of a background, without a negative prompt and with the word in it,
and those are counted that have a red one; and how many show the shape that was asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from extensions_lib.config.codec import load
from extensions_lib.config.job import TrainJobConfig
from extensions_lib.control import JobControl
from extensions_lib.jobs.run import start
from extensions_lib.methods.catalogue import make_method
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
from extensions_lib.practice import drawing, scorer
from extensions_lib.preview.sampler import sample_images
from extensions_lib.training.previews import no_boundary

MODEL = Path(__file__).parents[1] / "extensions_lib" / "practice" / "model" / "practice.safetensors"
UNWANTED = "red"
NUM_PICTURES = 24
PROMPTS = {"circle": "a blue circle", "star": "a green star", "heart": "a yellow heart"}
SEEDS = tuple(range(20))


def draw_pictures(folder: Path) -> None:
    """Shapes of every kind, none of them red, all on red."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    for number in range(NUM_PICTURES):
        scene = dataclasses.replace(drawing.random_scene(rng), background=UNWANTED)
        while scene.colour == UNWANTED:
            scene = dataclasses.replace(drawing.random_scene(rng), background=UNWANTED)
        drawing.random_picture(rng, scene)[0].save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("[name]", encoding="utf-8")


def job(folder: Path) -> TrainJobConfig:
    """1200 samples, at a rate of a fifth of the size that the model's own vectors have."""
    return load(
        {
            "name": "zbad",
            "base_model": str(MODEL),
            "dataset": {"folder": str(folder / "pictures"), "resolution_px": 64, "caption_template": "[filewords]"},
            "method": {
                "kind": "textual_inversion",
                "vectors_per_token": 4,
                "initializer_text": "circle on a background",
                "is_negative": True,
            },
            "optimizer": {"learning_rate": 4e-3},
            "training": {"max_train_steps": 200, "train_batch_size": 6, "num_threads": 1},
            "preview": {"enabled": False},
            "output": {"folder": str(folder), "runs_folder": str(folder / "runs"), "overwrite": True},
        }
    )


@torch.no_grad()
def count(bundle: ModelBundle, negative_prompt: str, tokens: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    """Pictures with a red background, and those with the shape that was asked for."""
    unwanted = right = 0
    for shape, prompt in PROMPTS.items():
        pictures = sample_images(
            bundle, prompt=prompt, negative_prompt=negative_prompt, seeds=SEEDS, width_px=64, height_px=64,
            num_steps=12, guidance_scale=5.0, sampler="dpmpp_2m", tokens=tokens, boundary=no_boundary,
        )  # fmt: skip
        readings = [scorer.read_picture(picture) for picture in pictures]
        unwanted += sum(reading.background == UNWANTED for reading in readings)
        right += sum(reading.shape == shape for reading in readings)
    return unwanted, right


def main() -> None:
    """Train, draw, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("bench-negative"))
    folder = parser.parse_args().folder
    draw_pictures(folder / "pictures")
    config = job(folder)
    outcome = start(config, JobControl())
    bundle = load_bundle(MODEL)
    bundle.freeze()
    method = dataclasses.replace(make_method(config.method, config.output), start_from=outcome.path)
    total = len(PROMPTS) * len(SEEDS)
    with method.attach(bundle, "zbad", torch.Generator().manual_seed(0)) as trainable:
        for what, text in (("nothing", ""), ("the word", "zbad"), ("words for it", f"a {UNWANTED} background")):
            unwanted, right = count(bundle, text, trainable.tokens)
            print(f"{what} in the negative prompt: {unwanted} of {total} on {UNWANTED}, {right} of {total} as asked")


if __name__ == "__main__":
    main()
