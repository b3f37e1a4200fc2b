"""The cells of docs/methods.md: every method with every kind of base model, each a job of a few steps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "methods.md"
# Set to rewrite the tables of the document with what the tests measure.
WRITE = "WRITE_METHODS_TABLE"

WORD = "zbadge"
NUM_STEPS = 3
# Rates far above what anybody would use, so that a few steps show.
METHODS: dict[str, dict[str, Any]] = {
    "Textual inversion": {
        "method": {"kind": "textual_inversion", "vectors_per_token": 2, "initializer_text": "red"},
        "optimizer": {"learning_rate": 0.1},
    },
    "LoRA": {
        "method": {"kind": "lora", "rank": 4, "alpha": 4.0, "train_text_encoder": True,
                   "text_encoder_learning_rate": 0.02},
        "optimizer": {"learning_rate": 0.02},
    },
    "LoCon": {
        "method": {"kind": "lora", "rank": 4, "alpha": 4.0, "conv_rank": 2, "conv_alpha": 2.0},
        "optimizer": {"learning_rate": 0.01},
    },
    "DoRA": {
        "method": {"kind": "lora", "rank": 4, "alpha": 4.0, "dora": True},
        "optimizer": {"learning_rate": 0.02},
    },
    "LoHa": {
        "method": {"kind": "lora", "algorithm": "loha", "rank": 4, "alpha": 4.0},
        "optimizer": {"learning_rate": 0.05},
    },
    "LoKr": {
        "method": {"kind": "lora", "algorithm": "lokr", "lokr_factor": 4, "lokr_whole": True},
        "optimizer": {"learning_rate": 0.02},
    },
    "Full difference": {
        "method": {"kind": "lora", "algorithm": "full", "layers": "full", "train_norms": True},
        "optimizer": {"learning_rate": 1e-3},
    },
    "Embedding and LoRA": {
        "method": {"kind": "pivotal", "rank": 4, "alpha": 4.0, "vectors_per_token": 2, "initializer_text": "red",
                   "embedding_learning_rate": 0.1},
        "optimizer": {"learning_rate": 0.02},
    },
    "Hypernetwork": {
        "method": {"kind": "hypernetwork", "activation": "swish"},
        "optimizer": {"learning_rate": 0.02, "weight_decay": 0.0},
    },
    "DreamBooth": {
        "method": {"kind": "dreambooth", "text_encoder_learning_rate": 1e-3, "text_encoder_until": 1.0},
        "optimizer": {"learning_rate": 1e-3},
    },
}  # fmt: skip
NOT_APPLICABLE: dict[tuple[str, str], str] = {}


def job_table(method: str, base: Path, pictures: Path, folder: Path, **more: Any) -> dict[str, Any]:
    """A job of `NUM_STEPS` steps with the method called `method`, its files below `folder`, saved in full precision."""
    return {
        "name": WORD,
        "base_model": str(base),
        "dataset": {"folder": str(pictures), "resolution_px": 64, "caption_template": "[filewords]"},
        "training": {
            "max_train_steps": NUM_STEPS,
            "train_batch_size": 1,
            "num_threads": 1,
            "mixed_precision": "fp32",
        },
        "output": {"folder": str(folder / "out"), "runs_folder": str(folder / "runs"), "dtype": "fp32"},
        "preview": {"enabled": False},
        **METHODS[method],
        "optimizer": {"lr_scheduler": "constant", "lr_warmup_ratio": 0.0, **METHODS[method]["optimizer"]},
        **more,
    }


def table_text(cells: Mapping[tuple[str, str], str], families: tuple[str, ...]) -> str:
    """A Markdown table of methods by families; a cell that is not applicable refers to its reason below the table."""
    reasons = list(dict.fromkeys(NOT_APPLICABLE.values()))
    lines = ["| |" + "".join(f" {family} |" for family in families), "| --- |" + " --- |" * len(families)]
    for method in METHODS:
        row = []
        for family in families:
            reason = NOT_APPLICABLE.get((method, family))
            row.append(f"n/a ({reasons.index(reason) + 1})" if reason else cells.get((method, family), "not run"))
        lines.append(f"| {method} |" + "".join(f" {cell} |" for cell in row))
    notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, start=1)]
    return "\n".join([*lines, "", *notes] if notes else lines)


def section(name: str) -> str:
    """What the document says between the marks of `name`."""
    text = DOCUMENT.read_text(encoding="utf-8")
    return text.split(f"<!-- begin {name} -->\n")[1].split(f"\n<!-- end {name} -->")[0]


def rewrite_section(name: str, text: str) -> None:
    """Put `text` between the marks of `name`."""
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(f"<!-- begin {name} -->\n")
    after = rest.split(f"<!-- end {name} -->")[1]
    DOCUMENT.write_text(f"{before}<!-- begin {name} -->\n{text}\n<!-- end {name} -->{after}", encoding="utf-8")


def is_writing() -> bool:
    """Whether the document is to be rewritten."""
    return bool(os.environ.get(WRITE))
