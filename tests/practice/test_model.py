"""The practice checkpoint that ships."""

import numpy as np
import pytest
import torch

from extensions_lib.formats.checkpoint import checkpoint_header
from extensions_lib.models.load import load_bundle
from extensions_lib.practice import MODEL_FOLDER, drawing, practice_checkpoint, scorer, subjects
from extensions_lib.preview.sampler import sample_images

MAX_BYTES = 16_000_000


@pytest.fixture(scope="module")
def bundle():
    return load_bundle(practice_checkpoint())


def draw(bundle, scene, seeds):
    return sample_images(
        bundle,
        prompt=f"a {scene.colour} {scene.shape} on a {scene.background} background",
        seeds=seeds,
        width_px=64,
        height_px=64,
        num_steps=12,
        guidance_scale=5.0,
        sampler="dpmpp_2m",
        boundary=lambda: None,
    )


def test_it_is_one_small_half_precision_file_with_stable_diffusions_names():
    header = checkpoint_header(practice_checkpoint())
    names = [name.split(".")[0] for name in header]
    assert practice_checkpoint().stat().st_size <= MAX_BYTES
    assert {info.dtype for info in header.values()} == {"F16"}
    assert (names.count("model"), names.count("first_stage_model")) == (682, 240)


def test_what_the_webui_needs_lies_beside_it():
    clip = MODEL_FOLDER / "practice-clip"
    needed = {"config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"}
    assert {path.name for path in clip.iterdir()} == needed
    assert f"version: models/Stable-diffusion/{clip.name}" in practice_checkpoint().with_suffix(".yaml").read_text()


@pytest.mark.parametrize("shape", drawing.SHAPES)
def test_it_follows_prompts(bundle, shape):
    number = drawing.SHAPES.index(shape)
    scene = drawing.Scene(shape, list(drawing.COLOURS)[number], list(drawing.COLOURS)[number - 3])
    readings = [scorer.read_picture(picture) for picture in draw(bundle, scene, seeds=range(4))]
    assert sum(reading.colour == scene.colour for reading in readings) >= 3
    assert sum(reading.shape == shape for reading in readings) >= 3
    assert sum(reading.background == scene.background for reading in readings) >= 3


def test_the_badge_survives_the_autoencoder(bundle):
    pictures = [picture for picture, _ in subjects.badge_examples("train")]
    images = torch.tensor(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        decoded = bundle.vae.decode(bundle.vae.encode(images).latent_dist.mean).sample
    arrays = ((decoded.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    assert sum(subjects.subject_found(array) for array in arrays) >= 9


def test_the_base_does_not_know_the_badge(bundle):
    scene = drawing.Scene("badge", "green", "white")
    assert not any(subjects.subject_found(picture) for picture in draw(bundle, scene, seeds=range(5)))
