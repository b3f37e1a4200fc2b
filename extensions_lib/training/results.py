"""Writing a result: export, write, read again and compare, and the files beside it that make the WebUI's card."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ..config.codec import dump
from ..config.job import FOLDERS_BESIDE, TrainJobConfig
from ..data.summary import summarise
from ..errors import DiskFullError, FormatError, OutputError
from ..formats.atomic import write_bytes_atomic
from ..formats.checkpoint import write_checkpoint
from ..formats.metadata import ArtefactInfo
from ..formats.sidecar import write_sidecars
from ..methods.base import Exported, ExportedFile, Trainable, TrainMethod, Verified
from ..models.bundle import ModelBundle
from .build import Prepared
from .run_state import KEPT_STATES

SPARE_BYTES = 16 * 2**20
# What an optimizer keeps of each trained number; adafactor two thirds of a number for a 3x3 convolution, less else.
STATE_BYTES = {"adamw": 8, "adamw8bit": 3, "prodigy": 16, "adafactor": 3, "lion": 4}
CLAIMS_NAME = "results.txt"


def result_path(config: TrainJobConfig, method: TrainMethod, step: int | None) -> Path:
    """`<folder>/<name>.safetensors` for the final result, `<name>-000500.safetensors` for the one after step 500."""
    suffix = "" if step is None else f"-{step:06d}"
    return Path(config.output.folder) / f"{config.name}{suffix}{method.file_suffix}"


def path_beside(config: TrainJobConfig, name: str, kind: str) -> Path:
    """Where the further file `name` of an artefact kind goes: to the folder for its kind, else beside the result."""
    folders = {each: getattr(config.output, setting) for setting, each in FOLDERS_BESIDE.items()}
    return Path(folders.get(kind) or config.output.folder) / name


def paths_beside(config: TrainJobConfig, method: TrainMethod) -> list[tuple[Path, str]]:
    """The further files of the final result, each with its artefact kind."""
    named = method.names_beside(config.name, config.trigger_word)
    return [(path_beside(config, name, kind), kind) for name, kind in named]


def check_output(config: TrainJobConfig, method: TrainMethod, own: Collection[Path] = ()) -> None:
    """Before any work: the folders can be written, and the names are free but for the results this run wrote itself.

    Raises OutputError.
    """
    beside = [path.parent for path, _ in paths_beside(config, method)]
    for folder in dict.fromkeys([Path(config.output.folder), *beside]):
        _check_writable(folder, config.name)
    _spare_the_base(config, method)
    if not config.output.overwrite:
        check_names(config, method, own)


def _spare_the_base(config: TrainJobConfig, method: TrainMethod) -> None:
    """No result may take the place of the base model or of its yaml, whatever may be overwritten."""
    base, result = Path(config.base_model).absolute(), result_path(config, method, None).absolute()
    beside = method.names_beside(config.name, config.trigger_word)
    files = [result, *(path_beside(config, *named).absolute() for named in beside)]
    taken = [path for path in files if path.resolve() in (base.resolve(), base.with_suffix(".yaml").resolve())]
    if taken:
        raise OutputError(f"{taken[0]} belongs to the base model, which is never overwritten.", "Choose another name.")


def _check_writable(folder: Path, name: str) -> None:
    probe = folder / f".{name}.tmp-{os.getpid()}-{threading.get_ident()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"The output folder {folder} cannot be written: {error.strerror or error}.", "Choose another output.folder."
        ) from error


def check_names(config: TrainJobConfig, method: TrainMethod, own: Collection[Path] = ()) -> None:
    """Raises OutputError when a result of another run has one of the names this job will use; writes nothing."""
    final = (result_path(config, method, None), *(path for path, _ in paths_beside(config, method)))
    foreign = [path for wanted in final for path in _of_any_step(wanted) if path not in own]
    if foreign:
        raise OutputError(f"{foreign[0]} exists already.", "Choose another name, or set output.overwrite = true.")


def _of_any_step(final: Path) -> list[Path]:
    """The files there are with the name of a result, or with that of its earlier steps."""
    steps = re.compile(re.escape(final.stem) + r"-\d{6,}" + re.escape(final.suffix))
    found = sorted(final.parent.iterdir()) if final.parent.is_dir() else []
    return [path for path in found if path == final or steps.fullmatch(path.name)]


def claimed_results(run_folder: Path) -> frozenset[Path]:
    """The results that a run has written or was about to write when it ended."""
    file = run_folder / CLAIMS_NAME
    return frozenset(map(Path, file.read_text(encoding="utf-8").splitlines())) if file.exists() else frozenset()


def claim_result(run_folder: Path, path: Path, *, overwrite: bool) -> None:
    """Note, before it is written, that `path` is this run's own, so that a crash on the way does not disown it.

    Raises OutputError when a file of that name appeared meanwhile and `overwrite` is not asked for.
    """
    if path in claimed_results(run_folder):
        return
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} appeared while this job ran.", "Move it away and resume the run; its state is saved."
        )
    with (run_folder / CLAIMS_NAME).open("a", encoding="utf-8") as file:
        file.write(f"{path}\n")
        file.flush()
        os.fsync(file.fileno())


def check_room(
    config: TrainJobConfig, method: TrainMethod, bundle: ModelBundle, trainable: Trainable, run: Path
) -> None:
    """Raises DiskFullError when the results, or the states in the folder `run`, would not fit on their disks."""
    num_parameters = sum(parameter.numel() for parameter in trainable.parameters())
    needs = bytes_needed(config, method.result_bytes(bundle, num_parameters), num_parameters)
    for folder, needed in zip((Path(config.output.folder), run), needs, strict=True):
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DiskFullError(
                f"The disk of {folder} has {free / 2**20:.0f} MiB free; this job needs {needed / 2**20:.0f} MiB there.",
                "Free some space, or choose another folder.",
            )


def bytes_needed(config: TrainJobConfig, result_bytes: int, num_parameters: int) -> tuple[int, int]:
    """Room for all results of a run, and in its folder for the states: a new one is written before the oldest goes.

    A state holds the trained numbers, what the optimizer keeps of each, and their average.
    """
    every, training = config.training.save_every_steps, config.training
    num_results = 1 + (max(training.num_steps - 1, 0) // every if every else 0)
    weight = 2 if getattr(config.method, "weight_dtype", "fp32") == "bf16" else 4
    each = weight + STATE_BYTES[config.optimizer.optimizer] + (4 if training.ema_decay else 0)
    return num_results * result_bytes + SPARE_BYTES, (KEPT_STATES + 1) * each * num_parameters + SPARE_BYTES


@dataclass(frozen=True)
class Written:
    """A result that was written and read again, and the further files of it, each with its artefact kind."""

    path: Path
    verified: Verified
    beside: tuple[tuple[Path, str], ...] = ()


@dataclass(frozen=True)
class ResultWriter:
    """Writes results of one run. `preview_png` gives the newest preview picture of a step, or None."""

    config: TrainJobConfig
    method: TrainMethod
    prepared: Prepared
    trainable: Trainable
    run_folder: Path
    started_at: float
    preview_png: Callable[[], bytes | None]

    def write(self, step: int, *, is_final: bool) -> Written:
        """The result after `step` steps, read again and compared. Earlier files of this run are replaced.

        What belongs to it comes first, so that whoever finds the result finds all of it. Raises FormatError, and leaves
        no file, when it would be of no use.
        """
        path = result_path(self.config, self.method, None if is_final else step)
        exported = self.method.export(self.trainable, self._info(path.stem, step))
        beside = tuple((self._write_beside(file), file.kind) for file in exported.beside)
        self._write(path, exported)
        try:
            verified = self.method.verify(path, self.trainable, self.prepared.bundle)
        except FormatError:
            path.unlink(missing_ok=True)  # what does nothing shall not lie where the WebUI looks
            raise
        return Written(path, verified, beside)

    def _write_beside(self, file: ExportedFile) -> Path:
        path = path_beside(self.config, file.name, file.kind)
        self._write(path, file)
        if file.verify is not None:
            file.verify(path)
        return path

    def _write(self, path: Path, content: Exported | ExportedFile) -> None:
        claim_result(self.run_folder, path, overwrite=self.config.output.overwrite)
        if content.payload is not None:
            write_bytes_atomic(path, content.payload, overwrite=True)
        else:
            write_checkpoint(path, content.tensors, content.metadata, overwrite=True, require_finite=True)

    def write_card(self, path: Path, kind_beside: str = "") -> None:
        """Preview picture and user metadata beside a result; what the user put there stays.

        `kind_beside` is the artefact kind of a further file, which has no previews of its own.
        """
        output, kind = self.config.output, kind_beside or self.method.artefact_kind
        written = write_sidecars(
            path,
            kind,
            activation_text=self.config.trigger_word,
            description=output.description or self._description(path.stem if kind == "embedding" else ""),
            notes="",
            sd_version=self.prepared.bundle.family.sd_version,
            preferred_weight=output.preferred_weight,
            negative_text=output.negative_text,
            preview_png=None if kind_beside else self.preview_png(),
            own=claimed_results(self.run_folder),
        )
        for sidecar in written:
            claim_result(self.run_folder, sidecar, overwrite=True)

    def _description(self, own_name: str) -> str:
        """`own_name` is that of a file which is called by it."""
        count = len(self.prepared.train.dataset.examples)
        base, word = self.prepared.bundle.source.name, own_name or self.config.trigger_word
        if self.config.is_negative:
            return f"Trained on {count} pictures of what to avoid with {base}; put '{word}' into the negative prompt."
        return f"Trained on {count} pictures with {base}; call it with '{word}'."

    def _info(self, output_name: str, step: int) -> ArtefactInfo:
        config, source = self.config, self.prepared.bundle.source
        training, optimizer, dataset = config.training, config.optimizer, config.dataset
        summary = summarise(self.prepared.train.dataset.examples)
        named = config.output.include_captions
        prior = self.prepared.prior
        return ArtefactInfo(
            output_name=output_name,
            family=self.prepared.bundle.family.name,
            prediction_type=self.prepared.bundle.family.prediction_type,
            title=config.name,
            description=config.output.description or None,
            trigger_word=config.trigger_word,
            base_model_name=source.path.name,
            base_model_sha256=source.sha256 or None,
            base_model_autov1=source.autov1 or None,
            resolution_px=(dataset.resolution_px, dataset.resolution_px),
            steps=step,
            max_train_steps=training.num_steps,
            learning_rate=optimizer.learning_rate,
            unet_learning_rate=optimizer.learning_rate,
            optimizer=optimizer.optimizer,
            lr_scheduler=optimizer.lr_scheduler,
            lr_warmup_steps=round(optimizer.lr_warmup_ratio * training.num_steps),
            seed=training.seed,
            train_batch_size=training.train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            gradient_checkpointing=training.gradient_checkpointing,
            max_grad_norm=training.max_grad_norm,
            mixed_precision=self.prepared.precision.name,
            clip_skip=training.clip_skip,
            num_images=summary.num_images,
            num_regularization_images=None if prior is None else len(prior.dataset.examples),
            prior_loss_weight=None if config.prior.kind == "none" else config.prior.prior_loss_weight,
            enable_bucket=dataset.use_buckets,
            shuffle_caption=dataset.shuffle_tags,
            keep_tokens=dataset.keep_first_tags,
            flip_augmentation=dataset.flip,
            caption_dropout_rate=dataset.caption_dropout_rate,
            tag_frequency=summary.tag_frequency if named else None,
            bucket_info=summary.bucket_info,
            dataset_dirs=summary.dataset_dirs if named else None,
            noise_offset=training.noise_offset,
            min_snr_gamma=training.min_snr_gamma if training.loss_weighting == "min_snr" else None,
            started_at=self.started_at,
            finished_at=time.time(),
            job_json=json.dumps(dump(config), ensure_ascii=False) if named else None,
        )
