"""The Check: what a job will train on, what it will cost, and what would stop it. Trains nothing, writes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.blocks import parse_block_values
from ..config.job import TrainJobConfig
from ..config.methods import BLOCK_RATES
from ..config.presets import AUTO
from ..errors import OutputError
from ..ports import Host
from .check_pictures import Captions, bucket_counts, caption_warnings, captions_of, picture_checks
from .check_report import CheckReport, Findings
from .clashes import name_warnings, word_warnings
from .estimates import MemoryFacts, disk_rooms, existing_parent, memory_gib, seconds_per_step

if TYPE_CHECKING:
    import torch

    from ..data.caption_maker import CaptionMaker
    from ..data.dataset import Dataset
    from ..methods.base import TrainMethod
    from ..models.bundle import ModelBundle
    from ..training.precision import Precision

NO_PICTURES = ("No picture folder is chosen.", "Give the folder that holds the pictures.")
NO_MODEL = ("No base model is chosen.", "Choose the checkpoint to start from.")


@dataclass(frozen=True)
class _Parts:
    """What could be made of the settings; None where a problem was found instead."""

    method: TrainMethod
    outline: ModelBundle | None
    dataset: Dataset | None
    captions: Captions | None
    device: torch.device | None
    precision: Precision | None
    num_parameters: int | None


def check_job(config: TrainJobConfig, host: Host, *, max_pictures: int = 200) -> CheckReport:
    """Look at everything a job needs. What would stop its start is reported as problems, all together, never raised.

    Pictures, crops and captions are made by the code the training uses; at most `max_pictures` are shown.
    """
    from ..methods.catalogue import make_method

    findings = Findings()
    reason = host.unusable_methods().get(config.method.kind)
    if reason:
        findings.add("method.kind", reason, "Choose another method.")
    method = make_method(config.method, config.output)
    outline = _outline(config, findings)
    dataset, skipped, num_ignored = _dataset(config, findings)
    captions = _captions(config, outline, dataset, findings)
    device, precision = _device(config, findings)
    counted = findings.attempt("method", lambda: method.count_parameters(outline)) if outline else None
    parts = _Parts(method, outline, dataset, captions, device, precision, counted)
    _check_settings(config, parts, findings)
    _check_names(config, parts, host, findings)
    pictures, unreadable = picture_checks(config, dataset, captions, max_pictures) if captions else ((), ())
    costs = {**_length(config, dataset), **_costs(config, parts, findings)}
    return CheckReport(
        problems=tuple(findings.problems),
        warnings=tuple(findings.warnings),
        method=config.method.kind,
        max_train_steps=config.training.num_steps,
        pictures=pictures,
        num_pictures=len(dataset.examples) if dataset else 0,
        skipped=(*skipped, *unreadable),
        num_ignored=num_ignored,
        buckets=bucket_counts(dataset) if dataset else {},
        num_parameters=counted,
        **costs,
    )


def _outline(config: TrainJobConfig, findings: Findings) -> ModelBundle | None:
    from ..models.load import outline_bundle

    if not config.base_model.strip():
        findings.add("base_model", *NO_MODEL)
        return None
    vae = Path(config.vae) if config.vae else None
    return findings.attempt("base_model", lambda: outline_bundle(Path(config.base_model), vae_path=vae))


def _dataset(config: TrainJobConfig, findings: Findings) -> tuple[Dataset | None, tuple[tuple[str, str], ...], int]:
    """The pictures, what is skipped with its reason, and the number of other files."""
    from ..data.dataset import NoUsablePictures
    from ..training.build import scan_pictures

    if not config.dataset.folder.strip():
        findings.add("dataset.folder", *NO_PICTURES)
        return None, (), 0
    unusable: list[NoUsablePictures] = []

    def scan() -> Dataset:
        try:
            return scan_pictures(config.dataset, config.dataset.folder)
        except NoUsablePictures as error:
            unusable.append(error)
            raise

    dataset = findings.attempt("dataset.folder", scan)
    if config.dataset.validation_folder:
        findings.attempt(
            "dataset.validation_folder", lambda: scan_pictures(config.dataset, config.dataset.validation_folder)
        )
    if config.prior.kind == "pictures" and config.prior.folder:
        findings.attempt("prior.folder", lambda: scan_pictures(config.dataset, config.prior.folder))
    found = dataset or next(iter(unusable), None)
    if found is None:
        return None, (), 0
    return dataset, tuple((skipped.name, skipped.reason) for skipped in found.skipped), found.num_ignored


def _captions(
    config: TrainJobConfig, outline: ModelBundle | None, dataset: Dataset | None, findings: Findings
) -> Captions | None:
    from ..training.build import make_captions

    maker: CaptionMaker | None = findings.attempt("dataset.caption_template", lambda: make_captions(config))
    if maker is None or dataset is None:
        return None
    tokenizer = outline.tokenizer if outline else None
    captions = findings.attempt("name", lambda: captions_of(config, dataset, maker, tokenizer))
    if captions is not None and tokenizer is not None:
        findings.warnings += caption_warnings(config, dataset, maker, captions, tokenizer)
    return captions


def _device(config: TrainJobConfig, findings: Findings) -> tuple[torch.device | None, Precision | None]:
    from ..training.build import choose_device, job_precision

    device = findings.attempt("training.device", lambda: choose_device(config.training.device))
    if device is None:
        return None, None
    return device, findings.attempt("training.mixed_precision", lambda: job_precision(config, device))


def _check_settings(config: TrainJobConfig, parts: _Parts, findings: Findings) -> None:
    """Learning rates, optimizer, and what settings demand of the model."""
    from ..training.build import make_learning_rates
    from ..training.caveats import model_caveats

    rates = findings.attempt("optimizer.learning_rate", lambda: make_learning_rates(config))
    if rates is not None:
        findings.attempt("optimizer.optimizer", lambda: _try_optimizer(config, rates[0]))
    if parts.outline is None:
        return
    findings.warnings += _family_warnings(config, parts.outline) + model_caveats(parts.outline, config.training)
    num_layers, clip_skip = parts.outline.text_encoder.config.num_hidden_layers, config.training.clip_skip
    if clip_skip > num_layers and parts.outline.family.text_encoders[0].obeys_clip_skip:
        findings.add(
            "training.clip_skip",
            f"clip_skip is {clip_skip}; the text encoder of this base model has {num_layers} layers.",
            f"Choose 1 to {num_layers}.",
        )


def _family_warnings(config: TrainJobConfig, outline: ModelBundle) -> list[str]:
    """Start values of another family train, but not well. What SD 2 predicts is not known before its weights are."""
    family = outline.family
    found = family.name + ("_v" if family.prediction_type == "v_prediction" else "")
    is_same = config.family == found or (family.is_probed and config.family.startswith(family.name))
    if config.family == AUTO or is_same:
        return []
    return [f"The start values are those for {config.family}, the base model is {found}: choose them again."]


def _try_optimizer(config: TrainJobConfig, rate: float) -> None:
    """Make the optimizer for one number a group: a missing package or rates it cannot have show at once."""
    import torch

    from ..methods.base import ParamGroup, Trainable
    from ..training.build import make_job_optimizer

    module = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(1)) for _ in range(4)])
    groups = [ParamGroup("unet", (module[0],))]
    if getattr(config.method, "train_text_encoder", False):
        groups.append(ParamGroup("text_encoder", (module[1],), config.method.text_encoder_learning_rate))
    factor = next((value for value in _rate_factors(config) if value != 1.0), None)
    if factor is not None:
        groups.append(ParamGroup("some layers", (module[2],), rate_factor=factor))
    if getattr(config.method, "embedding_learning_rate", None) is not None:
        groups.append(ParamGroup("embedding", (module[3],), config.method.embedding_learning_rate))
    make_job_optimizer(config, Trainable(module, tuple(groups), trains_text_encoder=False), rate)


def _rate_factors(config: TrainJobConfig) -> tuple[float, ...]:
    """By what the method multiplies the learning rate for some of its parameters."""
    blocks = parse_block_values(getattr(config.method, "block_rates", ""), **BLOCK_RATES)
    return (getattr(config.method, "lora_plus_ratio", 1.0), *(value for _, value in blocks))


def _check_names(config: TrainJobConfig, parts: _Parts, host: Host, findings: Findings) -> None:
    """Where the result goes, whether its name is free, and what its name and word mean in prompts."""
    from ..training.results import check_names, paths_beside, result_path

    folder = existing_parent(Path(config.output.folder))
    if not os.access(folder, os.W_OK):
        findings.add("output.folder", f"The output folder {folder} cannot be written.", "Choose another one.")
    try:
        check_names(config, parts.method)
    except OutputError as error:
        if config.output.overwrite:
            findings.warnings.append(f"A result called {config.name!r} exists already and will be replaced.")
        else:
            findings.add("name", error.message, error.hint)
    results, beside = host.folders().results, paths_beside(config, parts.method)
    findings.warnings += name_warnings(config, result_path(config, parts.method, None), results, beside)
    if getattr(config.method, "embedding_files", "") == "bundled" and not host.reads_words_in_loras:
        findings.warnings.append(
            f"{host.name} does not read a word from inside a LoRA: it would be an ordinary word there. Choose "
            "'beside', so that it becomes an embedding file of its own."
        )
    if parts.outline is not None:
        findings.warnings += word_warnings(config, results, parts.outline.tokenizer.tokenize, beside)


def _length(config: TrainJobConfig, dataset: Dataset | None) -> dict[str, Any]:
    """How often the pictures are seen."""
    if dataset is None:
        return {}
    from ..data.stream import BatchPlan, group_by_bucket

    training = config.training
    plan = BatchPlan(group_by_bucket(dataset.examples), batch_size=training.train_batch_size, seed=training.seed)
    num_micro_batches = training.num_steps * training.gradient_accumulation_steps
    epochs = num_micro_batches / plan.num_micro_batches_per_epoch
    return {"epochs": epochs, "num_samples": round(epochs * plan.num_examples_per_epoch)}


def _costs(config: TrainJobConfig, parts: _Parts, findings: Findings) -> dict[str, Any]:
    """Time, memory and room; a full disk is a problem, too little memory a warning: the rule is rough."""
    from ..training.memory import total_memory_gib

    costs: dict[str, Any] = {"device": str(parts.device or "")}
    pace = seconds_per_step(config)
    if pace is not None:
        costs |= {"seconds_per_step": pace[0], "pace_text": f"as in the earlier run {pace[1]}"}
    if parts.num_parameters is None:
        return costs
    costs["disk"] = disk_rooms(
        config, parts.method.result_bytes(parts.outline, parts.num_parameters), parts.num_parameters
    )
    for room in costs["disk"]:
        if room.free_mib < room.needed_mib:
            findings.add(
                "output.folder",
                f"The disk for the {room.place} has {room.free_mib} MiB free; this job needs {room.needed_mib} MiB.",
                "Free some space, or choose another folder.",
            )
    if parts.dataset is None or parts.device is None or parts.precision is None:
        return costs
    bucket = max((example.bucket for example in parts.dataset.examples), key=lambda size: size[0] * size[1])
    num_chunks = parts.captions.max_chunks if parts.captions else 1
    is_cpu = parts.device.type != "cuda"
    facts = MemoryFacts(parts.outline, parts.num_parameters, bucket, num_chunks, parts.precision, is_cpu)
    costs["memory_gib"] = memory_gib(config, facts)
    total = total_memory_gib(parts.device)
    needed = costs["memory_gib"]
    if total is not None and needed > total:
        findings.warnings.append(
            f"By our estimate the job needs {needed:.1f} GiB of memory; the device {parts.device} has {total:.1f} GiB. "
            "Lower the batch size or the resolution, or switch gradient checkpointing on."
        )
    return costs
