from __future__ import annotations

import pytest

from extensions_lib.config.training import TrainingConfig
from extensions_lib.models.load import outline_bundle
from extensions_lib.training.caveats import model_caveats

from ..model_families import FamilyModels


@pytest.mark.parametrize(
    ("name", "settings", "starts"),
    [
        ("sdxl-v-ztsnr", {"loss_weighting": "min_snr"}, ["loss_weighting is min_snr, and this model predicts v"]),
        ("sd1-v-ztsnr", {"loss_weighting": "min_snr", "noise_offset": 0.05}, ["loss_weighting is", "noise_offset and"]),
        ("sd1-v-ztsnr", {"loss_weighting": "debiased"}, []),
        ("sd1-v", {"loss_weighting": "min_snr", "pyramid_noise_discount": 0.3}, []),
        ("sdxl", {"clip_skip": 2}, ["clip_skip is 2, and has no effect: SDXL models"]),
        ("sd2-v", {"clip_skip": 3}, ["clip_skip is 3, and has no effect: SD2 models"]),
        ("sd1", {"clip_skip": 2}, []),
    ],
)
def test_what_does_not_go_well_together(
    family_models: FamilyModels, name: str, settings: dict[str, float | str], starts: list[str]
) -> None:
    found = model_caveats(outline_bundle(family_models[name]), TrainingConfig(**settings))
    assert len(found) == len(starts)
    assert all(text.startswith(start) for text, start in zip(found, starts, strict=True))
