"""One training session: everything between a job's settings and its result."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..config.job import TrainJobConfig
from ..control import JobControl
from ..errors import ExtensionError, FormatError, JobStopped, OutputError, TrainingError
from ..events import (
    CheckpointSaved,
    EventStream,
    JobFinished,
    PhaseProgress,
    PreviewReady,
    TrainingStarted,
    ValidationMeasured,
    Warned,
)
from ..formats.embedding import read_embedding
from ..methods.base import Trainable, TrainMethod
from ..methods.catalogue import make_method
from ..methods.known_words import with_known_words
from ..ports import ALONE, Surroundings, publish_and_tell
from .actions import Actions, Every
from .build import (
    Prepared,
    choose_device,
    make_compute_losses,
    make_conditioner,
    make_job_optimizer,
    make_learning_rates,
    num_micro_batches,
    prepare,
    validation_loss,
)
from .conditioning import TextConditioner, unseen_words
from .ema import ParameterEma
from .lending import Lender
from .loop import TrainingLoop
from .memory import release_memory, reset_peak_memory
from .optimizer_state import load_optimizer_state, optimizer_state_tensors
from .precision import make_grad_scaler
from .previews import Previewer, prompts_for
from .results import ResultWriter, check_output, check_room, claimed_results
from .run_state import RunState, load_newest, save_state
from .threads import choose_num_threads, num_threads

PREVIEWS_PER_RUN = 8


@dataclass(frozen=True)
class SessionFolders:
    """Where a session keeps its state and previews, and the latents that all runs share."""

    run: Path
    state: Path
    previews: Path
    latents: Path


@dataclass(frozen=True)
class SessionEnd:
    """How a session ended: 'completed', 'stopped' or 'discarded', after how many steps, and where the result is."""

    reason: str
    step: int
    path: Path | None


def check_before_start(config: TrainJobConfig, run_folder: Path | None = None) -> None:
    """What can be told without loading anything; `run_folder` is that of a resumed run. Raises ExtensionError."""
    own_results = claimed_results(run_folder) if run_folder else frozenset()
    check_output(config, make_method(config.method, config.output), own_results)
    make_learning_rates(config)
    for known in config.dataset.embeddings:
        read_embedding(Path(known.path), known.word)


def completed_steps(state_folder: Path) -> int:
    """The steps that the newest state in a folder has behind it; 0 when there is none."""
    state = load_newest(state_folder)
    return state.step if state else 0


def train(
    config: TrainJobConfig,
    folders: SessionFolders,
    control: JobControl,
    events: EventStream,
    surroundings: Surroundings = ALONE,
) -> SessionEnd:
    """Train from the newest state, or from the beginning when there is none. Raises ExtensionError.

    All of it happens while this thread alone computes; it lends the device at every boundary. Memory is given back
    before others come, after a failure too. A resumed run computes with as many threads as before: sums would be
    rounded differently with another number.
    """
    events.emit(PhaseProgress(phase="wait for the device", done=0, total=1))
    with surroundings.exclusive():
        try:
            control.boundary()
            state = load_newest(folders.state)
            threads = state.values["num_threads"] if state else choose_num_threads(config.training.num_threads)
            lender = Lender(surroundings, events, choose_device(config.training.device))
            with num_threads(threads), _asked(control, lender):
                end = _train(config, folders, state, control, events, lender)
        except BaseException as error:
            release_memory(error)
            raise
        release_memory()
        return end


@contextmanager
def _asked(control: JobControl, lender: Lender) -> Iterator[None]:
    control.add_source(lender)
    try:
        yield
    finally:
        control.remove_source(lender)
        lender.forget()


def _train(
    config: TrainJobConfig,
    folders: SessionFolders,
    state: RunState | None,
    control: JobControl,
    events: EventStream,
    lender: Lender,
) -> SessionEnd:
    started_at = time.time()
    reset_peak_memory(choose_device(config.training.device))
    prepared = prepare(config, folders.latents, events, control, lender.note_bundle)
    method = make_method(config.method, config.output)
    generator = torch.Generator().manual_seed(config.training.seed)
    with (
        method.attach(prepared.bundle, config.trigger_word, generator) as trainable,
        with_known_words(prepared.bundle, trainable, config.dataset.embeddings),
        _training_mode(prepared, trainable, config),
    ):
        check_room(config, method, prepared.bundle, trainable, folders.run)
        run = _Session(folders, config, prepared, method, trainable, control, events, started_at, lender)
        if state is not None:
            run.restore(state)
        return run.execute()


@contextmanager
def _training_mode(prepared: Prepared, trainable: Trainable, config: TrainJobConfig) -> Iterator[None]:
    """Adapters in training mode; with gradient checkpointing the UNet too, which has nothing random in it."""
    unet = prepared.bundle.unet
    trainable.module.train()
    if not config.training.gradient_checkpointing:
        yield
        return
    unet.enable_gradient_checkpointing()
    unet.train()
    try:
        yield
    finally:
        unet.eval()
        unet.disable_gradient_checkpointing()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Within the context nothing is dropped out: neither the answer nor torch's random state may depend on it."""
    module.eval()
    try:
        yield
    finally:
        module.train()


class _Session:
    """The loop of one run together with what happens between its steps."""

    def __init__(
        self,
        folders: SessionFolders,
        config: TrainJobConfig,
        prepared: Prepared,
        method: TrainMethod,
        trainable: Trainable,
        control: JobControl,
        events: EventStream,
        started_at: float,
        lender: Lender,
    ) -> None:
        self.folders, self.config, self.prepared, self.method = folders, config, prepared, method
        self.trainable, self.control, self.events, self.lender = trainable, control, events, lender
        training = config.training
        prompts = prompts_for(config, prepared.train)
        self.previewer = Previewer(config, prepared.bundle, trainable, prompts, folders.previews, control.boundary)
        self.writer = ResultWriter(
            config, method, prepared, trainable, folders.run, started_at, self.previewer.newest_png
        )
        self.ema = self._make_ema()
        base_lr, factor = make_learning_rates(config)
        self.conditioner: TextConditioner = make_conditioner(prepared, trainable, config)
        self.loop = TrainingLoop(
            compute_losses=make_compute_losses(prepared, self.conditioner, trainable, config),
            optimizer=make_job_optimizer(config, trainable, base_lr),
            parameters=trainable.parameters(),
            learning_rate_factor=factor,
            before_step=self.before_step,
            after_update=self.after_update,
            actions=self._actions(),
            events=events,
            control=control,
            max_train_steps=training.num_steps,
            num_micro_batches=num_micro_batches(config),
            max_grad_norm=training.max_grad_norm,
            device=prepared.device,
            scaler=make_grad_scaler(prepared.precision, prepared.device),
        )
        lender.trainable, lender.optimizer = trainable, self.loop.optimizer

    def _make_ema(self) -> ParameterEma | None:
        training = self.config.training
        device = torch.device("cpu") if training.ema_on_cpu else None
        named = dict(self.trainable.module.named_parameters())
        return ParameterEma(named, training.ema_decay, device) if training.ema_decay else None

    def _actions(self) -> Actions:
        training, preview = self.config.training, self.config.preview
        previews = preview.every_steps or -(-training.num_steps // PREVIEWS_PER_RUN)
        return Actions(
            save=self.save_early,
            save_state=self.save_state,
            preview=self.preview,
            validate=self.validate,
            save_every=Every(training.save_every_steps),
            state_every=Every(training.state_every_steps),
            preview_every=Every(previews if preview.enabled else 0),
            validate_every=Every(training.validation_every_steps),
        )

    def execute(self) -> SessionEnd:
        """Run the loop to its end, then save. A failure saves the state first."""
        self._announce()
        try:
            reason = self.loop.run()
        except Exception:
            self._save_state_if_possible()
            raise
        step = self.loop.completed_steps
        self.save_state(step)
        if self.control.discard_requested:
            self.events.emit(JobFinished(reason="discarded", step=step, path=""))
            return SessionEnd("discarded", step, None)
        save = self.save if reason == "completed" else self.save_early
        path = save(step, is_final=True) if step else None
        self.events.emit(JobFinished(reason=reason, step=step, path=str(path or "")))
        return SessionEnd(reason, step, path)

    def _announce(self) -> None:
        parameters = self.trainable.parameters()
        self.events.emit(
            TrainingStarted(
                name=self.config.name,
                method=self.method.kind,
                first_step=self.loop.completed_steps,
                max_train_steps=self.config.training.num_steps,
                num_examples=len(self.prepared.train.dataset.examples),
                num_parameters=sum(parameter.numel() for parameter in parameters),
                run_folder=str(self.folders.run),
            )
        )
        if self.loop.completed_steps == 0:
            self._warn_of_words()
            if self.config.training.validation_every_steps:
                self.validate(0)
            if self.config.preview.enabled and self.config.preview.at_start:
                self.preview(0)

    def _warn_of_words(self) -> None:
        """A word in no caption learns nothing: of captions that change, two epochs are looked at."""
        maker, examples = self.prepared.train.captions, self.prepared.train.dataset.examples
        epochs = range(1 if maker.is_constant else 2)
        captions = [maker.caption(each, seed=self.config.training.seed, epoch=n) for n in epochs for each in examples]
        for word in unseen_words(captions, self.prepared.bundle.tokenizer, self.trainable.tokens):
            self.events.emit(Warned(text=f"No caption has the word {word!r}, so that its vectors learn nothing."))

    def before_step(self, step: int) -> None:
        """What precedes every optimizer update, after `step` of them."""
        self.trainable.before_step(step / self.config.training.num_steps)

    def after_update(self, step: int) -> None:
        """What follows every optimizer update."""
        self.trainable.after_update()
        if self.ema:
            self.ema.update()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within the context the parameters are their moving average, when there is one."""
        if self.ema is None:
            yield
            return
        with self.ema.swapped():
            yield

    def save(self, step: int, *, is_final: bool) -> Path:
        """Write a result with its card and have it published; the final one then gets a picture of its own."""
        with self._averaged():
            written = self.writer.write(step, is_final=is_final)
        path, num_modules = written.path, written.verified.num_modules
        beside = tuple(str(further) for further, _ in written.beside)
        self.events.emit(CheckpointSaved(step=step, path=str(path), num_modules=num_modules, beside=beside))
        self.writer.write_card(path)
        for further, kind in written.beside:
            if kind:
                self.writer.write_card(further, kind)
                self._publish(step, further, kind, num_modules=0)
        self._publish(step, path, self.method.artefact_kind, num_modules)
        if is_final and self.config.preview.enabled:
            self.preview(step)
            self.writer.write_card(path)
        return path

    def save_early(self, step: int, *, is_final: bool = False) -> Path | None:
        """Write a result before the run is complete; one that is of no use yet is a warning, and None."""
        try:
            return self.save(step, is_final=is_final)
        except FormatError as error:
            self.events.emit(Warned(text=f"The result after step {step} is of no use yet: {error}"))
            return None

    def _publish(self, step: int, path: Path, kind: str, num_modules: int) -> None:
        publish_and_tell(self.lender.surroundings, self.events.emit, step, path, kind, num_modules)

    def preview(self, step: int) -> None:
        """Draw the previews; a failure is a warning, the training goes on. A stop ends the drawing."""
        try:
            with self._averaged():
                path, grid = self.previewer.draw(step)
        except JobStopped:
            return
        except (ExtensionError, RuntimeError, OSError, MemoryError) as error:
            self.events.emit(Warned(text=f"No preview after step {step}: {error}"))
            return
        self.events.emit(PreviewReady(step=step, path=str(path), grid_path=str(grid)))

    def validate(self, step: int) -> None:
        """Measure the loss at fixed noise, without dropout, and say so."""
        with self._averaged(), _evaluating(self.trainable.module), torch.no_grad():
            loss = validation_loss(self.prepared, self.conditioner, self.config.training.seed)
        self.events.emit(ValidationMeasured(step=step, loss=loss))

    def save_state(self, step: int) -> None:
        """Everything that a resumed run needs."""
        optimizer_tensors, optimizer_values = optimizer_state_tensors(self.loop.optimizer)
        tensors = {"trainable": self.trainable.state(), "optimizer": optimizer_tensors}
        values = {
            "optimizer": optimizer_values,
            "num_examples_seen": self.loop.num_examples_seen,
            "num_threads": torch.get_num_threads(),
            "base_model_sha256": self.prepared.bundle.source.sha256,
            "pictures_sha256": self._pictures_sha256(),
        }
        if self.ema:
            tensors["ema"] = self.ema.state_tensors()
            values["ema_updates"] = self.ema.num_updates
        if self.loop.scaler:
            values["scaler"] = self.loop.scaler.state_dict()
        save_state(self.folders.state, RunState(step, tensors, values))

    def _save_state_if_possible(self) -> None:
        try:
            self.save_state(self.loop.completed_steps)
        except (OutputError, TrainingError) as error:
            self.events.emit(Warned(text=f"The state could not be saved: {error}"))

    def restore(self, state: RunState) -> None:
        """Continue exactly where `state` was saved. Raises TrainingError when model or pictures are others."""
        self._check_same(state)
        self.trainable.load_state(state.tensors["trainable"])
        load_optimizer_state(self.loop.optimizer, state.tensors.get("optimizer", {}), state.values["optimizer"])
        if self.ema:
            self.ema.load_state(state.tensors["ema"], state.values["ema_updates"])
        if self.loop.scaler:
            self.loop.scaler.load_state_dict(state.values["scaler"])
        self.loop.num_examples_seen = state.values["num_examples_seen"]
        self.loop.completed_steps = state.step

    def _check_same(self, state: RunState) -> None:
        sha256 = self.prepared.bundle.source.sha256
        if state.values["base_model_sha256"] != sha256:
            raise TrainingError(
                f"The base model {self.config.base_model} is not the one this run was started with.",
                f"Put the file with sha256 {state.values['base_model_sha256'][:10]} back, or start a new run.",
            )
        if state.values["pictures_sha256"] != self._pictures_sha256():
            self.events.emit(
                Warned(
                    text="The pictures or captions changed since this run was started; it goes on with the new ones."
                )
            )

    def _pictures_sha256(self) -> str:
        digest = hashlib.sha256()
        for example in self.prepared.train.dataset.examples:
            digest.update(f"{example.name} {example.sha256} {example.caption}\n".encode())
        return digest.hexdigest()
