"""A candidate in the place of the loaded checkpoint of AUTOMATIC1111's WebUI, until it is taken out again.

The model's own values come back bit by bit, and before the host loads anything else into it. Everything but questions
happens with the queue lock held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import replace
from typing import Any

from ..control import JobControl
from ..errors import ExtensionError, HostError, JobStateError, JobStopped, MergeError
from ..events import Event
from ..ports import Candidate, TrialStatus
from .folders import loaded_model
from .lease import Lease
from .loras import forget_backups, take_loras_out
from .results import clear_encoded_prompts
from .trial_values import TrialValues

logger = logging.getLogger(__name__)

INFOTEXT = "Train Studio trial"
SCHEDULE, OWN_SCHEDULE = "alphas_cumprod", "alphas_cumprod_original"
EMPTY_PROMPT = "cond_stage_model_empty_prompt"
TEXT = ("cond_stage_model.", "conditioner.")
UNET = "model.diffusion_model."
STOPPED = "Stopped; the model is as it was."
ELSEWHERE = "Another checkpoint is chosen: the trial ends with the next picture."
BUSY = "Wait until it is done, or ask for its state again."
FAMILY_FLAGS = {"sd1": "is_sd1", "sd2": "is_sd2", "sdxl": "is_sdxl"}
PARAMETERIZATIONS = {"epsilon": "eps", "v_prediction": "v"}


class WebuiTrials:
    """The one trial of this process; it outlives the page."""

    refusal = ""

    def __init__(self, lease: Lease) -> None:
        """`lease` is the host's queue lock."""
        self._lease = lease
        self._values: TrialValues | None = None
        self._on: TrialStatus | None = None  # of what is in the model
        self._work: TrialStatus | None = None  # of what is being done
        self._text = ""
        self._guard = threading.Lock()  # for what is said; what is done to the model is under the queue lock
        self._control = JobControl()
        self._thread: threading.Thread | None = None
        self._is_told = False

    def current(self) -> TrialStatus:
        """See `ports.Trials.current`. The host does not say when it turns to a checkpoint that it had loaded before."""
        with self._guard:
            status, values = self._work or self._on, self._values
            if status is None:
                return TrialStatus(text=self._text)
            if self._work is not None or values is None:
                return status
            text = self._text if loaded_model() is values.model else ELSEWHERE
            return replace(status, text=text)

    def try_on(self, candidate: Candidate) -> None:
        """See `ports.Trials.try_on`; a trial under way is undone first. Raises JobStateError, HostError, MergeError."""
        model = _ready_model()
        check_fit(candidate, model)
        status = TrialStatus("applying", candidate.title, _title(model), total=len(candidate.shapes))
        self._begin(status, lambda: self._apply(candidate))

    def undo(self) -> None:
        """See `ports.Trials.undo`; one that is being put in is stopped, and what it changed is put back."""
        with self._guard:
            self._control.request_stop()
            if self._work is not None and self._work.state == "applying":
                return
            on = self._on or TrialStatus()
        self._begin(replace(on, state="undoing"), self._restore)

    def wait(self) -> None:
        """Until what was begun is done."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def settle(self) -> None:
        """With the queue lock held: end a trial in a model that is not the host's current one any more."""
        if self._values is not None and loaded_model() is not self._values.model:
            self._end("The trial ended: another checkpoint was chosen.")

    def before_load(self) -> None:
        """Called by the host before it puts a file's weights into a model, which may be the one on trial."""
        if self._values is not None:
            self._end("The trial ended: the WebUI loaded a checkpoint.")

    def mark(self, processing: Any) -> None:
        """Write into a picture's parameters that their model hash is not the whole truth."""
        self.settle()
        if self._on is not None:
            processing.extra_generation_params[INFOTEXT] = self._on.title

    def _begin(self, status: TrialStatus, work: Callable[[], None]) -> None:
        """Start `work` in a thread; one at a time."""
        thread = threading.Thread(target=self._run, args=(work,), name="train-studio-trial", daemon=True)
        with self._guard:
            if self._work is not None:
                raise JobStateError("A trial is being put in or taken out.", BUSY)
            self._work, self._control, self._thread = status, JobControl(), thread
        thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        """The last boundary: what goes wrong is in the status."""
        text = ""
        try:
            with self._lease.borrowed():
                self._lease.make_room()
                work()
        except JobStopped:
            text = STOPPED
        except ExtensionError as error:
            text = str(error)
        except Exception as error:
            logger.exception("A trial failed")
            text = f"{type(error).__name__}: {error}"
        finally:
            with self._guard:
                if self._thread is threading.current_thread():
                    self._work, self._text = None, text

    def _apply(self, candidate: Candidate) -> None:
        model = _ready_model()
        check_fit(candidate, model)
        self._restore()
        self._be_told_before_loads()
        take_out(model)
        self._values = TrialValues(model, lambda: _stored_vae(model))
        try:
            self._put(candidate, self._values)
            with self._guard:
                if self._control.stop_requested:  # asked when the last tensor was in already
                    raise JobStopped(STOPPED)
                self._on, self._work, self._text = TrialStatus("on", candidate.title, _title(model)), None, ""
        except BaseException:
            self._restore()
            raise

    def _put(self, candidate: Candidate, values: TrialValues) -> None:
        model = values.model
        with closing(candidate.tensors(self._control, self._told)) as tensors:
            for name, tensor in tensors:
                if name == SCHEDULE and OWN_SCHEDULE in vars(model):
                    self._set_schedule(values, tensor)
                else:
                    values.put(name, tensor)
        forget(model)
        if any(name.startswith(TEXT) for name in values.changed) and hasattr(model, EMPTY_PROMPT):
            values.set(model, EMPTY_PROMPT, _empty_prompt(model))

    def _set_schedule(self, values: TrialValues, schedule: Any) -> None:
        """The host keeps the checkpoint's own and makes from it, by its settings, the one it samples with."""
        own = getattr(values.model, OWN_SCHEDULE)
        schedule = schedule.to(own.device, own.dtype)
        if SCHEDULE in values.model._buffers and not (own == schedule).all():
            values.set(values.model, OWN_SCHEDULE, schedule)
            _apply_schedule(values.model)

    def _told(self, event: Event) -> None:
        done = getattr(event, "done", None)
        with self._guard:
            if done is not None and self._work is not None:
                self._work = replace(self._work, done=done, total=getattr(event, "total", 0))

    def _be_told_before_loads(self) -> None:
        """The host's own callback comes after it has loaded weights. Once, for good: Reload UI leaves it as it is."""
        from modules import sd_models

        load = sd_models.load_model_weights

        def load_model_weights(*args: Any, **kwargs: Any) -> Any:
            self.before_load()
            return load(*args, **kwargs)

        if not self._is_told:
            sd_models.load_model_weights = load_model_weights
            self._is_told = True

    def _end(self, text: str) -> None:
        """End the trial, with the queue lock held by whoever is about to load or to draw."""
        self._restore()
        self._text = text

    def _restore(self) -> None:
        """Give the model its own values back, with the queue lock held; nothing to do where there is no trial."""
        if self._values is None:
            return
        model = self._values.model
        had_schedule = getattr(model, OWN_SCHEDULE, None)
        take_out(model)
        self._values.undo()
        forget(model)
        if getattr(model, OWN_SCHEDULE, None) is not had_schedule:
            _apply_schedule(model)
        self._values = self._on = None


def check_fit(candidate: Candidate, model: Any) -> None:
    """Whether the candidate could have been loaded where the model is. Raises MergeError, naming both."""
    title = _title(model)
    flag = FAMILY_FLAGS.get(candidate.family, "")
    if not getattr(model, flag, False):
        loaded = next((name for name, other in FAMILY_FLAGS.items() if getattr(model, other, False)), "another kind")
        raise MergeError(
            f"{candidate.title} is {candidate.family}, but {title}, which is loaded, is {loaded}.",
            "Choose a checkpoint of the same family in the WebUI first.",
        )
    _check_prediction(candidate, model, title)
    values = TrialValues(model, lambda: _stored_vae(model))
    own = {name: place for name in values.names() if (place := values.place(name)) is not None}
    unet = {name for name in own if name.startswith(UNET)}
    strangers = [name for name in candidate.shapes if name.startswith(UNET) and name not in unet]
    # A LoRA of the last picture may have given a layer a bias.
    strangers += [name for name in unet if name not in candidate.shapes and not name.endswith(".bias")]
    strangers += [
        name for name, shape in candidate.shapes.items() if name in own and tuple(own[name].shape) != tuple(shape)
    ]
    if strangers:
        raise MergeError(
            f"{candidate.title} does not fit {title}, which is loaded: {len(strangers)} tensors are not the same "
            f"({', '.join(sorted(strangers)[:3])}).",
            "They have different architectures; choose one of the models that are merged in the WebUI first.",
        )


def _check_prediction(candidate: Candidate, model: Any, title: str) -> None:
    usual = None if candidate.family == "sd2" else "epsilon"
    predicted = PARAMETERIZATIONS.get(candidate.prediction_type or usual or "")
    loaded = getattr(model, "parameterization", None)
    if predicted and loaded in PARAMETERIZATIONS.values() and predicted != loaded:
        raise MergeError(
            f"{candidate.title} predicts '{predicted}', but {title}, which is loaded, predicts '{loaded}'.",
            "Choose one of the models that are merged in the WebUI first.",
        )


def take_out(model: Any) -> None:
    """The LoRAs of the last picture out of the model; nothing where the built-in Lora extension is switched off."""
    try:
        import networks
    except ImportError:
        return
    if not _is_gone(model):
        take_loras_out(networks, model)


def forget(model: Any) -> None:
    """What the host remembers of the model's former values: weights below LoRAs and encoded prompts."""
    forget_backups(model)
    clear_encoded_prompts()


def _ready_model() -> Any:
    from modules import sd_models, sd_unet

    model = loaded_model()
    if sd_models.model_data.lock.locked() or model is None or _is_gone(model):
        raise HostError("The WebUI has no checkpoint loaded.", "Wait until it has loaded one, or choose one.")
    if sd_unet.current_unet is not None:
        raise HostError(
            "The WebUI draws with another UNet than the checkpoint's.", "Set 'SD Unet' to None in its settings."
        )
    return model


def _is_gone(model: Any) -> bool:
    """The host throws a model away by taking its values."""
    return any(parameter.is_meta for parameter in model.parameters())


def _title(model: Any) -> str:
    return str(model.sd_checkpoint_info.title)


def _stored_vae(model: Any) -> Mapping[str, Any] | None:
    """The checkpoint's own VAE, which the host keeps while one from another file is in the model."""
    return getattr(model, "base_vae", None) if getattr(model, "loaded_vae_file", None) else None


def _empty_prompt(model: Any) -> Any:
    """As the host computes it when it has loaded a checkpoint."""
    import torch
    from modules import devices, sd_models

    with getattr(devices, "autocast", nullcontext)(), torch.no_grad():
        return sd_models.get_empty_cond(model)


def _apply_schedule(model: Any) -> None:
    from modules import sd_models

    sd_models.apply_alpha_schedule_override(model)
