"""Settings to objects: the only place that reads a job's configuration on behalf of the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import ImageColor
from torch import Tensor

from ..config.dataset import DatasetConfig
from ..config.job import TrainJobConfig
from ..config.training import TrainingConfig
from ..control import JobControl
from ..data.caption_maker import CaptionMaker, load_template
from ..data.dataset import Dataset, Progress, do_nothing, scan_folder
from ..data.latent_cache import CachedLatents, cache_latents
from ..diffusion.timesteps import step_generator
from ..errors import ConfigError, Problem
from ..events import EventStream, PhaseProgress, Warned
from ..formats.passengers import AVERAGED
from ..methods.base import Trainable
from ..methods.catalogue import make_method
from ..models.bundle import ModelBundle
from ..models.load import load_bundle
from ..models.predict import predict
from ..models.text import Conditioning
from .actions import MicroBatch
from .batches import Batches, PicturesAndCaptions
from .caveats import model_caveats
from .conditioning import TextConditioner
from .denoising import Denoiser, LossSettings, NoiseSettings, fixed_noise_loss
from .lr_schedule import Schedule, make_schedule, make_text_schedule, parse_lr_text
from .memory import out_of_memory_explained
from .optimizer import make_optimizer
from .precision import BF16, Precision, choose_precision, computed_in
from .prior import Preservation, RenamedCaptions, class_captions, draw_class_pictures

MAX_SKIPPED_NAMED = 20
# Settings of a method that make its forward pass random.
DROPOUTS = ("dropout", "rank_dropout", "module_dropout")


@dataclass(frozen=True)
class Prepared:
    """A frozen base model on its device, the pictures to train and to validate with, and those of the class, if any."""

    bundle: ModelBundle
    device: torch.device
    precision: Precision
    train: PicturesAndCaptions
    validation: PicturesAndCaptions
    prior: PicturesAndCaptions | None = None


def no_interest(bundle: ModelBundle) -> None:
    """For callers of `prepare` that need not know of the model before the pictures are encoded."""


def prepare(
    config: TrainJobConfig,
    cache_folder: Path,
    events: EventStream,
    control: JobControl,
    loaded: Callable[[ModelBundle], None] = no_interest,
) -> Prepared:
    """Look at the pictures, load the model, tell `loaded` of it, encode the pictures.

    Raises ModelError, DatasetError, ConfigError or JobStopped.
    """
    device = choose_device(config.training.device)
    precision = job_precision(config, device)
    dataset = _scan(config.dataset, config.dataset.folder, events, control)
    held_out = config.dataset.validation_folder
    validation = _scan(config.dataset, held_out, events, control) if held_out else dataset
    bundle = load_model(config, device, precision, events)
    for text in model_caveats(bundle, config.training):
        events.emit(Warned(text=text))
    loaded(bundle)
    captions = make_captions(config)
    train = PicturesAndCaptions(dataset, _encode(dataset, bundle, config, cache_folder, events, control), captions)
    prior = _class_pictures(config, bundle, cache_folder, events, control) if config.prior.kind == "pictures" else None
    if not held_out:
        return Prepared(bundle, device, precision, train, train, prior)
    latents = _encode(validation, bundle, config, cache_folder, events, control)
    return Prepared(bundle, device, precision, train, PicturesAndCaptions(validation, latents, captions), prior)


def _class_pictures(
    config: TrainJobConfig, bundle: ModelBundle, cache_folder: Path, events: EventStream, control: JobControl
) -> PicturesAndCaptions:
    """Those of the user's folder, or drawn by the base model into a folder beside that of the latents."""
    folder = config.prior.folder
    if folder:
        dataset = _scan(replace(config.dataset, repeats=1), folder, events, control)
    else:
        drawn = draw_class_pictures(config, bundle, cache_folder.parent / "class-pictures", events, control)
        dataset = _scan(replace(config.dataset, repeats=1, recursive=False), str(drawn), events, control)
        dataset = replace(dataset, examples=dataset.examples[: config.prior.num_class_images])
    latents = _encode(dataset, bundle, config, cache_folder, events, control)
    return PicturesAndCaptions(dataset, latents, class_captions(config.prior))


def load_model(config: TrainJobConfig, device: torch.device, precision: Precision, events: EventStream) -> ModelBundle:
    """The frozen base model on `device`: its UNet in the chosen format, VAE and text encoder in float32."""
    events.emit(PhaseProgress(phase="load model", done=0, total=1))
    unet_dtype = make_method(config.method, config.output).base_dtype or precision.weight_dtype
    with out_of_memory_explained("loading the model"):
        bundle = load_bundle(
            Path(config.base_model), vae_path=Path(config.vae) if config.vae else None, unet_dtype=unet_dtype
        )
        bundle.freeze()
        _drop_averaged_weights(bundle)
        bundle.to(device)
    events.emit(PhaseProgress(phase="load model", done=1, total=1))
    return bundle


def _drop_averaged_weights(bundle: ModelBundle) -> None:
    """No training needs them, and they may be gigabytes."""
    for name in [name for name in bundle.stored.extra if name.startswith(AVERAGED)]:
        del bundle.stored.extra[name]


def choose_device(request: str) -> torch.device:
    """The torch device for 'auto', 'cpu', 'cuda', 'cuda:1', ... Raises ConfigError when there is none of that name."""
    if request == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(request)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        problem = Problem("training.device", f"is {request!r}, which this machine does not have: {error}")
        raise ConfigError([problem], "Use auto or cpu.") from error
    return device


def job_precision(config: TrainJobConfig, device: torch.device) -> Precision:
    """What the UNet is computed in: bf16 when its own weights are trained in that. Raises ConfigError."""
    is_bf16 = make_method(config.method, config.output).base_dtype == torch.bfloat16
    return BF16 if is_bf16 else choose_precision(config.training.mixed_precision, device)


def scan_pictures(
    config: DatasetConfig, folder: str, progress: Progress = do_nothing, boundary: Callable[[], None] = do_nothing
) -> Dataset:
    """The pictures of `folder` as the settings want them. Raises DatasetError or ConfigError."""
    return scan_folder(
        Path(folder),
        resolution_px=config.resolution_px,
        step_px=config.bucket_step_px or None,
        use_buckets=config.use_buckets,
        allow_upscale=config.allow_upscale,
        include_subfolders=config.recursive,
        repeats=config.repeats,
        background=_color(config.background_color),
        progress=progress,
        boundary=boundary,
    )


def _scan(config: DatasetConfig, folder: str, events: EventStream, control: JobControl) -> Dataset:
    dataset = scan_pictures(
        config,
        folder,
        lambda done, total: events.emit(PhaseProgress(phase="look at pictures", done=done, total=total)),
        control.boundary,
    )
    if dataset.skipped:
        named = "".join(f"\n  {skipped}" for skipped in dataset.skipped[:MAX_SKIPPED_NAMED])
        more = len(dataset.skipped) - MAX_SKIPPED_NAMED
        rest = f"\n  and {more} more" if more > 0 else ""
        count = len(dataset.skipped)
        events.emit(Warned(text=f"{count} of {count + len(dataset.examples)} pictures are not used:{named}{rest}"))
    return dataset


def _color(text: str) -> tuple[int, int, int]:
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        problem = Problem("dataset.background_color", f"is {text!r}, accepted are colours such as '#ffffff' or 'white'")
        raise ConfigError([problem]) from error


def make_captions(config: TrainJobConfig) -> CaptionMaker:
    """What makes the texts the pictures are trained with. Raises DatasetError for an unknown template."""
    dataset = config.dataset
    return CaptionMaker(
        load_template(dataset.caption_template),
        name=config.trigger_word,
        shuffle_tags=dataset.shuffle_tags,
        keep_first_tags=dataset.keep_first_tags,
        tag_dropout=dataset.tag_dropout_rate,
        caption_dropout=dataset.caption_dropout_rate,
    )


def _encode(
    dataset: Dataset,
    bundle: ModelBundle,
    config: TrainJobConfig,
    folder: Path,
    events: EventStream,
    control: JobControl,
) -> CachedLatents:
    with out_of_memory_explained("encoding the pictures", resolution_px=config.dataset.resolution_px):
        return cache_latents(
            dataset,
            bundle.vae,
            folder,
            flip=config.dataset.flip,
            progress=lambda done, total: events.emit(PhaseProgress(phase="encode pictures", done=done, total=total)),
            boundary=control.boundary,
        )


def make_conditioner(prepared: Prepared, trainable: Trainable, config: TrainJobConfig) -> TextConditioner:
    """Text states; each caption is encoded once where that is legal."""
    is_frozen = not trainable.trains_text_encoder and prepared.train.captions.is_constant
    return TextConditioner(
        prepared.bundle, clip_skip=config.training.clip_skip, tokens=trainable.all_tokens, is_frozen=is_frozen
    )


def make_denoiser(prepared: Prepared) -> Denoiser:
    """The UNet with its schedule."""

    def answer(noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Tensor) -> Tensor:
        with computed_in(prepared.precision, prepared.bundle.unet.dtype, prepared.device):
            return predict(prepared.bundle, noisy_latents, timesteps, conditioning, sizes)

    return Denoiser(answer, prepared.bundle.alphas_cumprod)


def make_compute_losses(
    prepared: Prepared, conditioner: TextConditioner, trainable: Trainable, config: TrainJobConfig
) -> Callable[[int, int], MicroBatch]:
    """The function the loop calls for each micro-batch; it depends on (step, micro-batch) and the parameters only.

    With prior preservation the second half of a step's micro-batches are those of the class.
    """
    training, seed = config.training, config.training.seed
    accumulation, has_dropout = training.gradient_accumulation_steps, _has_dropout(config)
    batches = _batches(prepared, prepared.train, config)
    denoiser, noise_settings, loss_settings = make_denoiser(prepared), _noise(training), _loss(prepared, training)
    preservation = _preservation(prepared, batches, conditioner, trainable, config)

    def compute_losses(step: int, micro_batch: int) -> MicroBatch:
        with seeded_dropout(has_dropout, seed, step, micro_batch, prepared.device):
            if micro_batch >= accumulation:
                assert preservation is not None
                return preservation.losses(step, micro_batch - accumulation)
            batch = batches.get(step, micro_batch)
            noise, timesteps = denoiser.draw(batch.latents, noise_settings, step, micro_batch)
            conditioning = conditioner(batch.texts)
            losses = denoiser.losses(
                batch.latents, conditioning, batch.sizes, noise, timesteps, loss_settings, batch.masks
            )
            return MicroBatch(losses, torch.ones_like(losses), batch.names)

    return compute_losses


def num_micro_batches(config: TrainJobConfig) -> int:
    """Micro-batches of a step: twice as many with prior preservation."""
    return config.training.gradient_accumulation_steps * (1 if config.prior.kind == "none" else 2)


def _batches(prepared: Prepared, pictures: PicturesAndCaptions, config: TrainJobConfig) -> Batches:
    return Batches(pictures, config, prepared.bundle.family.latent_scale, prepared.device)


def _preservation(
    prepared: Prepared,
    batches: Batches,
    conditioner: TextConditioner,
    trainable: Trainable,
    config: TrainJobConfig,
) -> Preservation | None:
    """The class half of every step, if there is one."""
    prior = config.prior
    if prior.kind == "none":
        return None
    texts = None
    if prior.kind == "frozen_base":
        texts = RenamedCaptions(prepared.train.captions, config.trigger_word, prior.class_prompt.strip())
        trainable.keep_base_near()
    return Preservation(
        batches=batches if prepared.prior is None else _batches(prepared, prepared.prior, config),
        instance_batches=batches,
        conditioner=conditioner,
        denoiser=make_denoiser(prepared),
        noise_settings=_noise(config.training),
        loss_settings=_loss(prepared, config.training),
        trainable=trainable,
        weight=prior.prior_loss_weight,
        num_micro_batches=config.training.gradient_accumulation_steps,
        class_texts=texts,
    )


def _has_dropout(config: TrainJobConfig) -> bool:
    return any(getattr(config.method, name, 0.0) > 0 for name in DROPOUTS)


@contextmanager
def seeded_dropout(has_dropout: bool, seed: int, step: int, micro_batch: int, device: torch.device) -> Iterator[None]:
    """Within the context torch's dropout depends on (seed, step, micro-batch) only; its random state is put back.

    `torch.manual_seed` would seed every device of the machine, of which only this one's state is put back.
    """
    if not has_dropout:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        value = step_generator(seed, step, micro_batch, "dropout").initial_seed()
        torch.default_generator.manual_seed(value)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield


def _noise(training: TrainingConfig) -> NoiseSettings:
    return NoiseSettings(
        seed=training.seed,
        offset=training.noise_offset,
        pyramid_discount=training.pyramid_noise_discount,
        input_perturbation=training.input_perturbation,
        min_timestep=training.min_timestep,
        max_timestep=training.max_timestep,
    )


def _loss(prepared: Prepared, training: TrainingConfig) -> LossSettings:
    prediction_type = prepared.bundle.family.prediction_type
    return LossSettings(
        prediction_type, training.loss_type, training.huber_c, training.loss_weighting, training.min_snr_gamma
    )


def make_learning_rates(config: TrainJobConfig) -> tuple[float, Schedule]:
    """The base learning rate, and its multiplier by completed steps. Raises ConfigError for a bad schedule text."""
    optimizer, num_steps = config.optimizer, config.training.num_steps
    if isinstance(optimizer.learning_rate, str):
        pieces = parse_lr_text(optimizer.learning_rate)
        return pieces[0].rate, make_text_schedule(pieces)
    schedule = make_schedule(
        optimizer.lr_scheduler,
        num_steps=num_steps,
        warmup_steps=round(optimizer.lr_warmup_ratio * num_steps),
        min_ratio=optimizer.min_lr_ratio,
        num_cycles=optimizer.lr_num_cycles,
        power=optimizer.lr_power,
        base_lr=optimizer.learning_rate,
    )
    return optimizer.learning_rate, schedule


def make_job_optimizer(config: TrainJobConfig, trainable: Trainable, base_lr: float) -> torch.optim.Optimizer:
    """The optimizer over the method's groups, each with its own rate. Raises ConfigError for a missing package."""
    groups = [
        {
            "params": list(group.parameters),
            "lr": (base_lr if group.learning_rate is None else group.learning_rate) * group.rate_factor,
        }
        for group in trainable.groups
    ]
    settings = config.optimizer
    return make_optimizer(
        settings.optimizer,
        groups,
        weight_decay=settings.weight_decay,
        beta1=settings.beta1,
        beta2=settings.beta2 or None,
        eps=settings.epsilon,
        rounding_seed=config.training.seed,
    )


def validation_loss(prepared: Prepared, conditioner: TextConditioner, seed: int) -> float:
    """Mean loss over the validation pictures at fixed noise and timesteps, with each picture's own caption."""
    denoiser, pictures = make_denoiser(prepared), prepared.validation
    losses = []
    for example in pictures.dataset.examples:
        latents = (pictures.latents.get(example.index).mean * prepared.bundle.family.latent_scale).unsqueeze(0)
        text = pictures.captions.caption(example, seed=0, epoch=0)
        with torch.no_grad():
            conditioning = conditioner([text])
        losses.append(
            fixed_noise_loss(
                denoiser,
                latents.to(prepared.device),
                conditioning,
                torch.tensor([example.sizes(flip=False)], device=prepared.device),
                prepared.bundle.family.prediction_type,
                seed + example.index,
            )
        )
    return sum(losses) / len(losses)
