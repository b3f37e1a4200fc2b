"""A picture as the model sees it: upright, RGB, cropped and scaled to its bucket."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import DatasetError
from .buckets import fit_to_bucket
from .example import Example
from .images import WHITE, Colour, UnusablePicture, decode_picture, read_file


@dataclass(frozen=True)
class FittedPicture:
    """What the model will see: `rgb` (mode RGB) of the bucket's size, and the opacity of the whole upright picture."""

    rgb: Image.Image
    alpha: Image.Image | None


def load_fitted(example: Example, *, background: Colour = WHITE) -> FittedPicture:
    """Decode `example` again and fit it to its bucket. Raises DatasetError when the file is no longer what it was."""
    try:
        data = read_file(example.path)
        changed = hashlib.sha256(data).hexdigest() != example.sha256
        picture = None if changed else decode_picture(data, background=background, min_side_px=1)
    except UnusablePicture as error:
        raise UnusablePicture(error.reason, example.name) from error
    if picture is None:
        raise DatasetError(f"The picture {example.name} was changed after the folder was read.", "Start again.")
    return FittedPicture(fit_to_bucket(picture.rgb, example.bucket)[0], picture.alpha)


def to_tensor(rgb: Image.Image) -> Tensor:
    """An RGB picture as (1, 3, height, width) float32 in -1..1."""
    values = torch.from_numpy(np.array(rgb, dtype=np.float32) / 127.5 - 1.0)
    return values.permute(2, 0, 1)[None].contiguous()
