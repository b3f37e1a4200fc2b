"""Start values by purpose. A preset is a partial job; what the user gives wins over it.

Numbers follow the table of defaults that other trainers agree on; the comment gives the reason of each departure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "lora_character": {
        "method": {"kind": "lora", "rank": 16, "alpha": 8.0, "train_text_encoder": True},
        "optimizer": {"learning_rate": 2e-4, "lr_scheduler": "cosine", "lr_warmup_ratio": 0.05},
        # What 20 to 40 pictures of one person need before they are copied.
        "training": {"num_samples": 2400, "train_batch_size": 2, "loss_weighting": "min_snr"},
    },
    "lora_object": {
        "method": {"kind": "lora", "rank": 16, "alpha": 8.0, "train_text_encoder": True},
        "optimizer": {"learning_rate": 2e-4, "lr_scheduler": "cosine", "lr_warmup_ratio": 0.05},
        # A thing looks the same more often than a face does: two thirds of a character's samples.
        "training": {"num_samples": 1600, "train_batch_size": 2, "loss_weighting": "min_snr"},
    },
    "lora_style": {
        "method": {
            "kind": "lora",
            "rank": 32,
            "alpha": 16.0,
            "train_text_encoder": True,
            "text_encoder_learning_rate": 2e-5,
        },
        "optimizer": {"learning_rate": 1e-4, "lr_scheduler": "cosine", "lr_warmup_ratio": 0.05},
        "training": {"num_samples": 4000, "train_batch_size": 4, "loss_weighting": "min_snr"},
        # A style should not hang on the captions, so some are left out.
        "dataset": {"caption_dropout_rate": 0.05},
    },
    "lora_quick_look": {
        "method": {"kind": "lora", "rank": 8, "alpha": 8.0},
        # Twice the rate and a quarter of the samples: shows whether the pictures and captions are right, not more.
        "optimizer": {"learning_rate": 4e-4, "lr_scheduler": "cosine", "lr_warmup_ratio": 0.05},
        "training": {"num_samples": 600, "train_batch_size": 2, "loss_weighting": "min_snr"},
    },
    "dreambooth_object": {
        "method": {"kind": "dreambooth"},
        "optimizer": {"learning_rate": 2e-6, "lr_scheduler": "constant_with_warmup", "lr_warmup_ratio": 0.05},
        "training": {"num_samples": 1200, "train_batch_size": 2, "state_every_steps": 200},
    },
    "hypernetwork_style": {
        "method": {"kind": "hypernetwork"},
        # The rate of the WebUI's own Train tab; its 100000 steps are twenty times what one style needs.
        "optimizer": {"learning_rate": 1e-5, "lr_scheduler": "cosine", "lr_warmup_ratio": 0.05, "weight_decay": 0.0},
        "training": {"num_samples": 5000, "train_batch_size": 1},
        "dataset": {"caption_template": "style_filewords"},
    },
    "embedding_subject": {
        "method": {"kind": "textual_inversion", "vectors_per_token": 4},
        # Decay would pull the new vectors to zero, which no word of the model is near.
        "optimizer": {"learning_rate": 2e-3, "lr_scheduler": "cosine", "min_lr_ratio": 0.1, "weight_decay": 0.0},
        "training": {"num_samples": 6000, "train_batch_size": 4},
    },
    "embedding_style": {
        "method": {"kind": "textual_inversion", "vectors_per_token": 8, "initializer_text": "style"},
        "optimizer": {"learning_rate": 1e-3, "lr_scheduler": "cosine", "min_lr_ratio": 0.1, "weight_decay": 0.0},
        "training": {"num_samples": 10000, "train_batch_size": 4},
        "dataset": {"caption_template": "style_filewords"},
    },
    "embedding_quick_look": {
        "method": {"kind": "textual_inversion", "vectors_per_token": 4},
        # A fifth of the samples at twice the rate: whether the pictures and captions are right, not more.
        "optimizer": {"learning_rate": 4e-3, "lr_scheduler": "cosine", "min_lr_ratio": 0.1, "weight_decay": 0.0},
        "training": {"num_samples": 1200, "train_batch_size": 4},
    },
    "embedding_negative": {
        # A fault is a manner rather than a thing: as many vectors as a style, and a start near what it is to become.
        "method": {
            "kind": "textual_inversion",
            "vectors_per_token": 8,
            "initializer_text": "bad quality",
            "is_negative": True,
        },
        "optimizer": {"learning_rate": 1e-3, "lr_scheduler": "cosine", "min_lr_ratio": 0.1, "weight_decay": 0.0},
        "training": {"num_samples": 6000, "train_batch_size": 4},
    },
    "embedding_webui": {
        # The same mathematics as the WebUI's own Train tab, so that recipes written for it transfer.
        "method": {"kind": "textual_inversion", "vectors_per_token": 1, "initializer_text": "*"},
        "optimizer": {"learning_rate": "5e-3:200, 1e-3:1000, 5e-4", "lr_warmup_ratio": 0.0, "weight_decay": 0.0},
        "training": {"num_samples": 2000, "train_batch_size": 1, "max_grad_norm": 0.0},
        "dataset": {"caption_template": "subject_filewords"},
        "output": {"file_format": "pt"},
    },
    "pivotal_character": {
        # The vectors find what the subject is nearest to in the first half; the LoRA alone adds what is missing then.
        "method": {"kind": "pivotal", "rank": 16, "alpha": 8.0, "embedding_until": 0.5},
        "optimizer": {"learning_rate": 2e-4, "lr_scheduler": "cosine", "lr_warmup_ratio": 0.05, "weight_decay": 0.0},
        "training": {"num_samples": 2400, "train_batch_size": 2, "loss_weighting": "min_snr"},
    },
}


def default_preset(method_kind: str) -> str:
    """The first preset of a method. Raises KeyError when there is none."""
    for name, values in PRESETS.items():
        if values["method"]["kind"] == method_kind:
            return name
    raise KeyError(method_kind)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the values of `over` put on top, table by table."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = merge(below, value)
        else:
            result[key] = value
    return result
