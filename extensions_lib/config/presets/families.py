"""What other model families need instead of Stable Diffusion 1's start values.

A family is made of parts that are laid over each other in order: 'sdxl_v' is 'sdxl', then 'v'. Within a part, what
holds for all comes first, then for a method, then for one preset.
"""

from __future__ import annotations

from typing import Any

from .because import Because

ALL = "*"

_NO_TEXT = Because(False, "few train it beyond SD 1: a large text encoder forgets faster than it learns")
_HALF = Because(1e-4, "half of SD 1's: a larger model moves further with the same steps")
_LORA_QUICK = Because(2e-4, "twice a character's, as for SD 1")

PARTS: dict[str, tuple[str, ...]] = {
    "sd1": (),
    "sd1_v": ("v",),
    "sd2": ("sd2",),
    "sd2_v": ("sd2", "v", "sd2_v"),
    "sdxl": ("sdxl",),
    "sdxl_v": ("sdxl", "v"),
}
FAMILY_NAMES = tuple(PARTS)

OVERLAYS: dict[str, dict[str, dict[str, Any]]] = {
    "sd2": {
        "lora": {"method": {"train_text_encoder": _NO_TEXT}, "optimizer": {"learning_rate": _HALF}},
        "lora_quick_look": {"optimizer": {"learning_rate": _LORA_QUICK}},
        "pivotal": {
            "method": {"embedding_learning_rate": Because(5e-4, "half of SD 1's: the text encoder is larger")},
            "optimizer": {"learning_rate": _HALF},
        },
        "textual_inversion": {
            "optimizer": {"learning_rate": Because(1e-3, "half of SD 1's: the text encoder is larger")},
        },
        "embedding_style": {"optimizer": {"learning_rate": Because(5e-4, "half of a subject's, as for SD 1")}},
        "embedding_negative": {"optimizer": {"learning_rate": Because(5e-4, "as for a style")}},
        "embedding_quick_look": {"optimizer": {"learning_rate": Because(2e-3, "twice a subject's, as for SD 1")}},
        "embedding_webui": {
            "optimizer": {
                "learning_rate": Because("5e-3:200, 1e-3:1000, 5e-4", "as the WebUI's own Train tab for all models")
            },
        },
        "dreambooth": {
            "method": {"train_text_encoder": _NO_TEXT},
            "optimizer": {"learning_rate": Because(1e-6, "what SD 2 bears without blurring, for faces and things")},
        },
    },
    "sd2_v": {
        ALL: {"dataset": {"resolution_px": Because(768, "the size this model was made at")}},
        "dreambooth_object": {"training": {"num_samples": Because(2000, "larger pictures settle later")}},
    },
    "sdxl": {
        ALL: {
            "dataset": {"resolution_px": Because(1024, "the size this model was made at")},
            "training": {"gradient_checkpointing": Because(True, "large pictures need the memory it saves")},
        },
        "lora": {
            "method": {
                "rank": Because(32, "for a model three times as large as SD 1"),
                "alpha": Because(16.0, "half the rank: steps of half of SD 1's size, 5e-5"),
                "train_text_encoder": _NO_TEXT,
            },
            "optimizer": {"learning_rate": _HALF},
        },
        "lora_style": {"training": {"num_samples": Because(5000, "a large model takes a style in more slowly")}},
        "lora_loha": {
            "method": {
                "rank": Because(8, "8 by 8: as much as a LoRA of 64 could change"),
                "alpha": Because(4.0, "half the rank, as for a LoRA"),
            },
        },
        "lora_quick_look": {
            "method": {
                "rank": Because(8, "enough to see a likeness"),
                "alpha": Because(8.0, "the whole rank: larger steps"),
            },
            "optimizer": {"learning_rate": _LORA_QUICK},
        },
        "pivotal": {
            "method": {
                "rank": Because(32, "for a model three times as large as SD 1"),
                "alpha": Because(16.0, "half the rank: steps of half of SD 1's size, 5e-5"),
                "relative_learning_rate": Because(0.05, "its two encoders have words of different size"),
            },
            "optimizer": {"learning_rate": _HALF},
        },
        "textual_inversion": {
            "method": {"relative_learning_rate": Because(0.05, "its two encoders have words of different size")},
        },
        "embedding_style": {
            "method": {"relative_learning_rate": Because(0.025, "half of a subject's, as for SD 1")},
        },
        "embedding_negative": {"method": {"relative_learning_rate": Because(0.025, "as for a style")}},
        "embedding_quick_look": {
            "method": {"relative_learning_rate": Because(0.1, "twice a subject's, as for SD 1")},
        },
        "embedding_webui": {
            "method": {"relative_learning_rate": Because(0.0, "the rate is the schedule text of the recipe")},
            "output": {"file_format": Because("safetensors", "its Train tab cannot go on with this model")},
        },
        "dreambooth": {
            "method": {"train_text_encoder": _NO_TEXT},
            "optimizer": {
                "optimizer": Because("adafactor", "its averages take almost no memory, AdamW's four times the model"),
                "learning_rate": Because(5e-6, "what trainers use with Adafactor, whose steps are bounded"),
            },
            "training": {
                "num_samples": Because(3000, "1500 steps of two pictures"),
                "train_batch_size": Because(1, "the whole model and its gradients leave little room"),
                "gradient_accumulation_steps": Because(2, "two pictures a step without their memory"),
            },
        },
    },
    "v": {
        ALL: {"training": {"loss_weighting": Because("none", "v-prediction weighs the noise levels by itself")}},
    },
}
