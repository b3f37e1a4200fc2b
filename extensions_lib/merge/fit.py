"""Whether the tensors of several models fit each other, by their headers alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..config.merge import MODEL_LETTERS
from ..errors import MergeError
from .models import INPUT_WEIGHT, PART_TITLES, Model, few

POSITION_IDS = re.compile(r"\.position_ids$")
# Not in every file, and of no effect in the WebUI: where another model lacks them, A's stay.
_OPTIONAL = re.compile(
    r"\.position_ids$|\.logit_scale$|\.text_projection(\.weight)?$|^cond_stage_model\.model\.transformer\.resblocks\.23\."
)
_FLOATS = ("F", "BF")
LATENT_CHANNELS = 4


def check_families(models: Sequence[Model]) -> None:
    """All models must be of one family. Raises MergeError naming each."""
    if len({model.family for model in models}) > 1:
        listed = ", ".join(f"{label(i, model)} is {model.family}" for i, model in enumerate(models))
        raise MergeError(f"The models are of different families: {listed}.", "Merge models of one family.")


def check_part(models: Sequence[Model], part: str) -> list[str]:
    """The names of a part's tensors to merge: those of A that all models have, with shapes that fit.

    Raises MergeError when a model has not the part, lacks tensors of A, or has another shape somewhere.
    """
    title = PART_TITLES[part]
    having = [model for model in models if model.names(part)]
    if not having:
        return []
    if len(having) < len(models):
        lacking = [label(i, model) for i, model in enumerate(models) if not model.names(part)]
        other = MODEL_LETTERS[next(i for i, model in enumerate(models) if model.names(part))]
        raise MergeError(
            f"{few(lacking)} holds no {title}, so it cannot be merged.",
            f"Take it from one model: set {part} to '{other}'.",
        )
    names = [name for name in models[0].names(part) if is_weight(models[0], name)]
    for index, model in enumerate(models[1:], start=1):
        _check_names(names, models[0], index, model, part)
    common = [name for name in names if all(name in model.infos for model in models)]
    wrong = [name for name in common if not _shapes_fit(name, models)]
    if wrong:
        shapes = few((f"{name} {[list(model.infos[name].shape) for model in models]}" for name in wrong), 2)
        raise MergeError(
            f"The {title}s do not fit each other: {len(wrong)} tensors have other shapes ({shapes}).",
            "These models have different architectures; choose others.",
        )
    if INPUT_WEIGHT in common:
        _check_inputs(models)
    return common


def is_weight(model: Model, name: str) -> bool:
    """Whether a tensor is to be merged: numbers with a fraction, and neither positions nor empty."""
    info = model.infos[name]
    return info.dtype.startswith(_FLOATS) and 0 not in info.shape and not POSITION_IDS.search(name)


def merged_channels(name: str, models: Sequence[Model]) -> int | None:
    """How many input channels of the first convolution are merged; None where all of the tensor is."""
    if name != INPUT_WEIGHT:
        return None
    channels = [model.infos[name].shape[1] for model in models]
    return min(channels) if min(channels) < channels[0] else None


def label(index: int, model: Model) -> str:
    """'B (name.safetensors)'."""
    return f"{MODEL_LETTERS[index].upper()} ({model.path.name})"


def plain_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without ones at its end: a 1x1 convolution is a matrix, written in another way."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _check_names(names: Sequence[str], model_a: Model, index: int, model: Model, part: str) -> None:
    missing = [name for name in names if name not in model.infos and not _OPTIONAL.search(name)]
    strangers = [
        name for name in model.names(part) if name not in model_a.infos and not _OPTIONAL.search(name)
    ]  # fmt: skip
    if missing:
        raise MergeError(
            f"{label(index, model)} lacks {len(missing)} tensors of A's {PART_TITLES[part]}: {few(missing)}.",
            "The file is incomplete, or of another architecture.",
        )
    if strangers:
        raise MergeError(
            f"{label(index, model)} has {len(strangers)} tensors in its {PART_TITLES[part]} that A lacks: "
            f"{few(strangers)}.",
            "The model is of another architecture, or A is incomplete.",
        )


def _shapes_fit(name: str, models: Sequence[Model]) -> bool:
    shapes = [model.infos[name].shape for model in models]
    if name == INPUT_WEIGHT:
        shapes = [shape[:1] + shape[2:] for shape in shapes]
    return len({plain_shape(shape) for shape in shapes}) == 1


def _check_inputs(models: Sequence[Model]) -> None:
    """A model for inpainting or with a picture as instruction has more input channels, and must be A."""
    channels = [model.infos[INPUT_WEIGHT].shape[1] for model in models]
    most, others = max(channels), set(channels) - {max(channels)}
    if channels[0] == most and others <= {LATENT_CHANNELS}:
        return
    listed = ", ".join(f"{label(i, model)} has {channels[i]}" for i, model in enumerate(models))
    better = models[channels.index(most)].path.name
    raise MergeError(
        f"The models take different numbers of input channels: {listed}.",
        f"Put {better} first; the others must have as many or {LATENT_CHANNELS}.",
    )
