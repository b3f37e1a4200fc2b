"""Drawing what merges would draw, without writing them: a bundle in memory takes the values of one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..config.merge import MergeConfig
from ..control import JobControl
from ..events import EventStream, PhaseProgress
from ..merge.candidate import candidate_of
from ..merge.plan import unet_source
from ..models.bundle import ModelBundle
from ..models.load import load_bundle
from ..models.refill import Refill
from ..ports import Surroundings
from ..preview.sampler import sample_image
from .build import choose_device
from .lending import Lender
from .memory import out_of_memory_explained, release_memory
from .precision import choose_precision


@dataclass(frozen=True)
class Scene:
    """What is drawn of every candidate: the same noise and the same words."""

    prompt: str
    negative_prompt: str
    seed: int
    width_px: int
    height_px: int
    num_steps: int
    guidance_scale: float
    sampler: str
    clip_skip: int = 1


class Easel:
    """A model on the device whose values are those of the candidate that was put in last."""

    def __init__(self, bundle: ModelBundle, control: JobControl) -> None:
        """`control` is asked before every step of a picture and every tensor."""
        self._bundle = bundle
        self._control = control
        self._refill = Refill(bundle)

    def put(self, config: MergeConfig) -> None:
        """Merge into the model. Raises MergeError, JobStopped; the model is then neither the old one nor the new."""
        with closing(candidate_of(config).tensors(self._control, lambda event: None)) as tensors:
            self._refill(tensors)

    def draw(self, scene: Scene) -> Image.Image:
        """An RGB picture. Raises as `sample_image`."""
        return sample_image(
            self._bundle,
            prompt=scene.prompt,
            negative_prompt=scene.negative_prompt,
            seed=scene.seed,
            width_px=scene.width_px,
            height_px=scene.height_px,
            num_steps=scene.num_steps,
            guidance_scale=scene.guidance_scale,
            sampler=scene.sampler,
            clip_skip=scene.clip_skip,
            boundary=self._control.boundary,
        )


@contextmanager
def easel(
    config: MergeConfig,
    control: JobControl,
    events: EventStream,
    surroundings: Surroundings,
    *,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Easel]:
    """Within the context the device is ours, lent at every boundary, and a model like that of `config` is on it.

    It is loaded from the model that gives the merge its UNet and noise schedule. Raises as `load_bundle`, HostError.
    """
    chosen = choose_device(device)
    lending = Lender(surroundings, events, chosen)
    with surroundings.exclusive():
        control.add_source(lending)
        try:
            events.emit(PhaseProgress(phase="load model", done=0, total=1))
            with out_of_memory_explained("loading the model"):
                path = Path(config.models[unet_source(config)].path)
                bundle = load_bundle(path, unet_dtype=choose_precision(precision, chosen).weight_dtype)
                bundle.freeze()
                bundle.stored.extra.clear()
                bundle.to(chosen)
            lending.note_bundle(bundle)
            events.emit(PhaseProgress(phase="load model", done=1, total=1))
            yield Easel(bundle, control)
        finally:
            control.remove_source(lending)
            lending.forget()
            release_memory()
