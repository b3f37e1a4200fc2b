"""What a user should know of settings that do not go well with the base model."""

from __future__ import annotations

from ..config.training import TrainingConfig
from ..models.bundle import ModelBundle


def model_caveats(bundle: ModelBundle, training: TrainingConfig) -> list[str]:
    """One text for each setting that this model ignores or is harmed by; its networks may be on the meta device."""
    family = bundle.family
    is_v = family.prediction_type == "v_prediction"
    caveats = []
    if training.loss_weighting == "min_snr" and is_v and bundle.has_zero_terminal_snr:
        caveats.append(
            "loss_weighting is min_snr, and this model predicts v with zero terminal SNR: pure noise would weigh 0 "
            "and everything above timestep 900 less than 0.003, so that what the schedule was made for is not trained. "
            "Choose none or debiased."
        )
    if bundle.has_zero_terminal_snr and (training.noise_offset or training.pyramid_noise_discount):
        caveats.append(
            "noise_offset and pyramid_noise_discount make up for a schedule that does not end in pure noise; this "
            "model's does. Set them to 0."
        )
    if training.clip_skip > 1 and not family.text_encoders[0].obeys_clip_skip:
        caveats.append(
            f"clip_skip is {training.clip_skip}, and has no effect: {family.sd_version} models always use the layer "
            "they were made with, here as in the WebUI."
        )
    return caveats
