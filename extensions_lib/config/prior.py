"""What keeps the model from forgetting the rest of the subject's class."""

from __future__ import annotations

from dataclasses import dataclass

from .field import option
from .preview import SAMPLERS

PRIORS = ("none", "pictures", "frozen_base")


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Prior preservation: a second loss in every step, whose mean is weighted and added."""

    kind: str = option(
        "none",
        help="pictures: pictures of the class are learnt beside the subject's. frozen_base: without pictures; where "
        "captions name the class instead of the subject, the model shall answer as its base does.",
        choices=PRIORS,
    )
    prior_loss_weight: float = option(1.0, help="Weight of its loss beside the pictures' own.", min=0.0, max=100.0)
    class_prompt: str = option(
        "",
        help="What the subject is, such as 'a dog'. pictures: what they are drawn with, and their caption; several in "
        "turn as in 'a dog on grass | a dog on a sofa'. frozen_base: takes the place of [name], so 'dog' where "
        "captions say 'a [name]'.",
    )
    folder: str = option("", help="Folder of class pictures; empty: the base model draws them, once.")
    num_class_images: int = option(200, help="How many the base model draws.", min=1, max=100_000)
    num_steps: int = option(30, help="Denoising steps of each.", min=1, max=1000, advanced=True)
    guidance_scale: float = option(
        7.0, help="How strictly they follow the class prompt.", min=0.0, max=100.0, advanced=True
    )
    sampler: str = option("dpmpp_2m", help="Sampling method.", choices=SAMPLERS, advanced=True)

    def problems(self) -> list[tuple[str, str]]:
        """(setting, what is wrong) for what its type and range do not tell."""
        if self.class_prompt.strip(" |") or self.kind == "none" or (self.kind == "pictures" and self.folder):
            return []
        return [("class_prompt", f"is empty; prior.kind {self.kind!r} needs to know what the subject is")]
