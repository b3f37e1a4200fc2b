"""What all models of one kind share, as data: Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats.keys import TEXT_PREFIXES


@dataclass(frozen=True)
class TextEncoderKind:
    """How a family's text encoder lies in a checkpoint, and what of it the UNet is told.

    `layout` is 'clip' (Hugging Face's names) or 'open_clip'; the last `num_unused_layers` of the file are not loaded.
    `pad_id` follows a chunk's first end token to its end; None: more end tokens. `state` is 'normed', a hidden state
    after the final layer norm, or 'penultimate', the one before the last layer as it is. Only where
    `obeys_clip_skip` a user may choose an earlier one, as in the WebUI. `has_pooled`: it also gives the pooled state.
    """

    part: str
    prefix: str
    layout: str = "clip"
    num_unused_layers: int = 0
    pad_id: int | None = None
    state: str = "normed"
    obeys_clip_skip: bool = False
    has_pooled: bool = False


@dataclass(frozen=True)
class ModelFamily:
    """What all models of one kind share.

    `latent_scale` multiplies the VAE's latents; `text_width` is D, the width of the text conditioning;
    `prediction_type` is 'epsilon' or 'v_prediction'; `sd_version` is the WebUI's name ('SD1'). The UNet's attention
    has `num_heads` heads, or heads of `head_channels`, where no yaml says otherwise. `has_size_conditioning`: it is
    told of sizes and the pooled text. `zeroes_empty_negative`: an empty negative prompt is all zeros in the WebUI.
    `is_probed`: what the UNet predicts is found by asking it.
    """

    name: str
    latent_scale: float
    text_width: int
    prediction_type: str
    sd_version: str
    native_resolution_px: int
    text_encoders: tuple[TextEncoderKind, ...]
    num_heads: int = 8
    head_channels: int | None = None
    has_size_conditioning: bool = False
    zeroes_empty_negative: bool = False
    is_probed: bool = False

    def text_encoder(self, part: str) -> TextEncoderKind | None:
        """The text encoder called `part`; None when the family has none of that name."""
        return next((kind for kind in self.text_encoders if kind.part == part), None)


SD1 = ModelFamily(
    name="sd1",
    latent_scale=0.18215,
    text_width=768,
    prediction_type="epsilon",
    sd_version="SD1",
    native_resolution_px=512,
    text_encoders=(TextEncoderKind("text_encoder", TEXT_PREFIXES["sd1"]["text_encoder"], obeys_clip_skip=True),),
)
SD2 = ModelFamily(
    name="sd2",
    latent_scale=0.18215,
    text_width=1024,
    prediction_type="epsilon",
    sd_version="SD2",
    native_resolution_px=768,
    text_encoders=(
        TextEncoderKind(
            "text_encoder",
            TEXT_PREFIXES["sd2"]["text_encoder"],
            layout="open_clip",
            num_unused_layers=1,
            pad_id=0,
        ),
    ),
    head_channels=64,
    is_probed=True,
)
SDXL = ModelFamily(
    name="sdxl",
    latent_scale=0.13025,
    text_width=2048,
    prediction_type="epsilon",
    sd_version="SDXL",
    native_resolution_px=1024,
    text_encoders=(
        TextEncoderKind("text_encoder", TEXT_PREFIXES["sdxl"]["text_encoder"], state="penultimate"),
        TextEncoderKind(
            "text_encoder_2",
            TEXT_PREFIXES["sdxl"]["text_encoder_2"],
            layout="open_clip",
            pad_id=0,
            state="penultimate",
            has_pooled=True,
        ),
    ),
    head_channels=64,
    has_size_conditioning=True,
    zeroes_empty_negative=True,
)
FAMILIES = {family.name: family for family in (SD1, SD2, SDXL)}
