"""Short jobs for every method, on the practice model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from extensions_lib.config.presets import merge

MakeJob = Callable[..., dict[str, Any]]

# One job table a method, with a rate at which some steps show.
JOBS: dict[str, dict[str, Any]] = {
    "lora": {
        "method": {"kind": "lora", "rank": 4, "alpha": 4.0, "train_text_encoder": True, "dropout": 0.2},
        "optimizer": {"learning_rate": 3e-3},
    },
    "loha with every dropout": {
        "method": {
            "kind": "lora",
            "algorithm": "loha",
            "rank": 4,
            "alpha": 4.0,
            "dropout": 0.1,
            "rank_dropout": 0.2,
            "module_dropout": 0.2,
        },
        "optimizer": {"learning_rate": 1e-2},
    },
    "lokr with a bounded norm": {
        "method": {"kind": "lora", "algorithm": "lokr", "lokr_whole": True, "max_norm": 2.0, "rank_dropout": 0.1},
        "optimizer": {"learning_rate": 1e-2},
    },
    "dora with rates of its own": {
        "method": {
            "kind": "lora",
            "rank": 4,
            "dora": True,
            "rs_lora": True,
            "lora_plus_ratio": 4.0,
            "block_rates": "up_blocks=0.5",
            "block_ranks": "mid_block=8; attn1=2",
            "layers": "attention",
        },
        "optimizer": {"learning_rate": 3e-3},
    },
    "full difference": {
        "method": {"kind": "lora", "algorithm": "full", "layers": "full", "train_norms": True},
        "optimizer": {"learning_rate": 1e-4},
    },
    "hypernetwork": {
        "method": {"kind": "hypernetwork", "dropout_structure": "0, 0.1, 0"},
        "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.0},
    },
    "hypernetwork with layer norms": {
        "method": {"kind": "hypernetwork", "layer_structure": "1, 1.5, 1", "layer_norm": True, "activation": "relu"},
        "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.0},
    },
    "textual inversion": {
        "method": {"kind": "textual_inversion", "vectors_per_token": 2, "initializer_text": "red"},
        "optimizer": {"learning_rate": 5e-2},
    },
    "textual inversion of two words": {
        "method": {
            "kind": "textual_inversion",
            "vectors_per_token": 2,
            "initializer_text": "red",
            "relative_learning_rate": 1.0,
            "further_words": [{"word": "zhat", "vectors_per_token": 1, "initializer_text": "blue"}],
        },
        "dataset": {"caption_template": "[filewords] with a zhat"},
    },
    "pivotal": {
        "method": {
            "kind": "pivotal",
            "rank": 4,
            "alpha": 4.0,
            "vectors_per_token": 2,
            "initializer_text": "red",
            "embedding_learning_rate": 5e-2,
            "embedding_until": 0.5,
            "embedding_files": "both",
            "further_words": ["zhat: 1, blue"],
        },
        "optimizer": {"learning_rate": 3e-3},
        "dataset": {"caption_template": "[filewords] with a zhat"},
    },
    "dreambooth": {
        "method": {"kind": "dreambooth", "text_encoder_learning_rate": 1e-4, "text_encoder_until": 0.75},
        "optimizer": {"learning_rate": 2e-4},
    },
    "dreambooth in bf16": {
        "method": {"kind": "dreambooth", "train_text_encoder": False, "weight_dtype": "bf16"},
        "optimizer": {"optimizer": "adafactor", "learning_rate": 1e-4},
    },
    "dreambooth with class pictures": {
        "method": {"kind": "dreambooth", "train_text_encoder": False},
        "optimizer": {"learning_rate": 2e-4},
        "prior": {"kind": "pictures", "class_prompt": "a circle", "num_class_images": 3, "num_steps": 2},
    },
    "lora with a frozen base": {
        "method": {"kind": "lora", "rank": 4, "alpha": 4.0, "train_text_encoder": True, "dropout": 0.2},
        "optimizer": {"learning_rate": 3e-3},
        "prior": {"kind": "frozen_base", "class_prompt": "circle"},
    },
}


@pytest.fixture
def job(tmp_path: Path, pictures: Path, practice_model: Path) -> MakeJob:
    """`job(name, folder, **changes)`: the table of a job of the method called `name`, with files below `folder`."""

    def make(name: str, folder: str, /, **changes: Any) -> dict[str, Any]:
        table = {
            "name": "zbadge",
            "base_model": str(practice_model),
            "dataset": {"folder": str(pictures), "resolution_px": 64, "caption_template": "[filewords]"},
            "training": {
                "max_train_steps": 4,
                "train_batch_size": 2,
                "state_every_steps": 1,
                "num_threads": 1,
                "mixed_precision": "fp32",
            },
            "preview": {"enabled": False},
            "output": {"folder": str(tmp_path / folder), "runs_folder": str(tmp_path / f"runs-{folder}")},
        }
        return merge(merge(table, JOBS[name]), changes)

    return make
