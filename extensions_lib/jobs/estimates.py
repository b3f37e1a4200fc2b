"""What a job will cost: time from an earlier run that was alike, memory by rule, room on the disks.

All are estimates, and say so where they are shown.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.job import TrainJobConfig
from ..errors import ExtensionError
from ..events import StepCompleted
from .check_report import DiskRoom
from .store import RunFolder

if TYPE_CHECKING:
    from ..models.bundle import ModelBundle
    from ..training.precision import Precision

MIN_STEPS = 5
MEBI, GIBI = 2**20, 2**30

# float32 parameter, its gradient, and the optimizer's state.
BYTES_PER_PARAMETER = {"adamw": 16, "adamw8bit": 10, "prodigy": 24, "adafactor": 10, "lion": 12}

# Numbers kept for the backward pass, for every layer, channel and latent pixel of the UNet; see `memory_gib`.
UNET_NUMBERS = 40
UNET_NUMBERS_CHECKPOINTED = 6.5
TEXT_NUMBERS = 22  # for every layer, token and channel of the text encoder
DECODE_NUMBERS = 5  # for every pixel and channel of the VAE's second width, while a preview is decoded
CHUNK_TOKENS = 77
PROCESS_BYTES = 0.55 * GIBI  # Python and the libraries, part of what a CPU run is measured by
VAE_PX = 8


def seconds_per_step(config: TrainJobConfig) -> tuple[float, str] | None:
    """The median seconds of a step of the newest run that was alike, and the run's name; None when there is none.

    Alike are runs on this machine with the same base model, method, resolution, batch, accumulation, number format,
    device, threads and checkpointing, of at least five steps.
    """
    for folder, earlier in _newest_first(Path(config.output.runs_folder)):
        if _pace_settings(earlier) == _pace_settings(config):
            seconds = _step_seconds(folder)
            if len(seconds) >= MIN_STEPS:
                return statistics.median(seconds), folder.job_id
    return None


def _newest_first(runs: Path) -> Iterator[tuple[RunFolder, TrainJobConfig]]:
    logs = [path for path in runs.glob("*/events.jsonl") if path.is_file()]
    for log in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True):
        folder = RunFolder(log.parent)
        try:
            yield folder, folder.training()
        except (ExtensionError, ValueError):
            continue


def _step_seconds(folder: RunFolder) -> list[float]:
    try:
        return [event.seconds for event in folder.events() if isinstance(event, StepCompleted)]
    except (KeyError, TypeError, ValueError, OSError):
        return []  # the log of another version


def _pace_settings(config: TrainJobConfig) -> tuple[object, ...]:
    training = config.training
    return (
        Path(config.base_model).expanduser().absolute(),
        config.method.kind,
        config.prior.kind,
        getattr(config.method, "train_text_encoder", True),
        config.dataset.resolution_px,
        training.train_batch_size,
        training.gradient_accumulation_steps,
        training.mixed_precision,
        training.device,
        training.num_threads,
        training.gradient_checkpointing,
    )


@dataclass(frozen=True)
class MemoryFacts:
    """What the memory of a job depends on besides its settings.

    `outline` may be on the meta device. `bucket_px` is the largest picture (width, height), `num_chunks` the number of
    77-token chunks of the longest caption.
    """

    outline: ModelBundle
    num_parameters: int
    bucket_px: tuple[int, int]
    num_chunks: int
    precision: Precision
    is_cpu: bool


def memory_gib(config: TrainJobConfig, facts: MemoryFacts) -> float:
    """The most memory the run takes, in GiB, as events measure it: tensors on a CUDA device, the process on a CPU.

    The sum of the weights (the UNet in its number format, VAE and text encoders in float32), 8 to 24 bytes for each
    trained number, and what the backward pass keeps, or a preview's decoding takes if that is more. On a CPU the
    libraries come on top, and reading the file may be the peak.

    The constants were counted from the tensors that torch saved: 39.7 and 38.8 numbers at the widths of SD 1.5 (256 and
    512 px), 42 to 50 at the practice model's; with gradient checkpointing 6.4 and 6.6. Compared with measured peaks of
    the process: the practice model's demonstration 0.58 GiB (LoRA) and 0.60 GiB (embedding), estimated 0.63 and 0.62;
    published shapes on a CPU (LoRA, bf16, 256 px) 4.39 GiB of SD 1.5, 5.28 of SD 2.1 and 13.35 of SDXL, estimated 4.52,
    5.41 and 13.47: reading the file. On a GPU nothing was compared yet.
    """
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in facts.outline.parts.items()}
    rest = sum(parts.values()) - parts["unet"]
    is_whole = config.method.artefact_kind == "checkpoint"
    weights = _base_weights(config, facts, parts) if is_whole else parts["unet"] * _itemsize(facts) + 4 * rest
    working = max(_activation_bytes(config, facts), _decode_bytes(config, facts))
    training = weights + facts.num_parameters * _bytes_per_parameter(config, facts) + working
    return (max(training, _loading_bytes(facts)) + PROCESS_BYTES if facts.is_cpu else training) / GIBI


def _loading_bytes(facts: MemoryFacts) -> int:
    """What reading a file takes on a CPU: its pages, which count while it is open, and its tensors."""
    path = facts.outline.source.path
    return 2 * path.stat().st_size if path.is_file() else 0


def _bytes_per_parameter(config: TrainJobConfig, facts: MemoryFacts) -> float:
    """A trained number, its gradient, what the optimizer keeps of it, and its average if that is there too."""
    needed = BYTES_PER_PARAMETER[config.optimizer.optimizer]
    if getattr(config.method, "weight_dtype", "fp32") == "bf16":
        needed -= 4  # number and gradient are half as large
    is_near = facts.is_cpu or not config.training.ema_on_cpu
    return needed + (4 if config.training.ema_decay and is_near else 0)


def _base_weights(config: TrainJobConfig, facts: MemoryFacts, parts: Mapping[str, int]) -> float:
    """What a whole model in training needs besides its trained copies.

    On a CUDA device the originals of trained networks wait outside it, unless the frozen base is asked at every step.
    Weights trained in float32 are there once more in the format they are computed in.
    """
    own = 2 if config.method.weight_dtype == "bf16" else 4
    sizes = {name: count * (own if name == "unet" else 4) for name, count in parts.items()}
    trained = {"unet", *(parts if config.method.train_text_encoder else ())} - {"vae"}
    are_near = facts.is_cpu or config.prior.kind == "frozen_base"
    kept = sum(size for name, size in sizes.items() if are_near or name not in trained)
    return kept + (parts["unet"] * _itemsize(facts) if own == 4 and _itemsize(facts) < 4 else 0)


def _itemsize(facts: MemoryFacts) -> int:
    return facts.precision.weight_dtype.itemsize


def _activation_bytes(config: TrainJobConfig, facts: MemoryFacts) -> float:
    """What forward keeps for backward; with gradient checkpointing also one block's worth, computed again."""
    unet = facts.outline.unet.config
    num_layers = 2 * unet.layers_per_block + 1
    pixels = facts.bucket_px[0] * facts.bucket_px[1] / VAE_PX**2
    levels = [channels * pixels / 4**level for level, channels in enumerate(unet.block_out_channels)]
    if config.training.gradient_checkpointing:
        numbers = UNET_NUMBERS_CHECKPOINTED * num_layers * sum(levels)
        numbers += UNET_NUMBERS * (unet.layers_per_block + 1) * max(levels)
    else:
        numbers = UNET_NUMBERS * num_layers * sum(levels)
    kept = numbers * facts.precision.weight_dtype.itemsize
    if getattr(config.method, "train_text_encoder", True):
        for encoder in facts.outline.text_encoders.values():
            layers, width = encoder.config.num_hidden_layers, encoder.config.hidden_size
            kept += 4 * TEXT_NUMBERS * layers * width * CHUNK_TOKENS * facts.num_chunks
    return kept * config.training.train_batch_size


def _decode_bytes(config: TrainJobConfig, facts: MemoryFacts) -> float:
    if not config.preview.enabled:
        return 0
    channels = facts.outline.vae.config.block_out_channels
    resolution = config.dataset.resolution_px
    sizes = [(p.width_px or resolution) * (p.height_px or resolution) for p in config.preview.prompts]
    return 4 * DECODE_NUMBERS * channels[min(1, len(channels) - 1)] * max(sizes, default=resolution**2)


def disk_rooms(config: TrainJobConfig, result_bytes: int, num_parameters: int) -> tuple[DiskRoom, ...]:
    """The room for results and for the run, and what is free where they go, in MiB."""
    from ..training.results import bytes_needed

    folders = {"results": Path(config.output.folder), "run": Path(config.output.runs_folder)}
    needs = bytes_needed(config, result_bytes, num_parameters)
    return tuple(
        DiskRoom(place, -(-needed // MEBI), shutil.disk_usage(existing_parent(folder)).free // MEBI)
        for (place, folder), needed in zip(folders.items(), needs, strict=True)
    )


def existing_parent(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
