"""How long, how many at once, and how the loss is formed."""

from __future__ import annotations

from dataclasses import dataclass

from .field import option


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The loop and its knobs. A step is one optimizer update."""

    num_samples: int = option(
        2400,
        help="How many pictures the model looks at in all, repeats counted. Unused when a number of steps is given.",
        unit="samples",
        min=1,
        max=100_000_000,
    )
    max_train_steps: int = option(
        0, help="A length in steps instead; 0: as many as the samples take.", unit="steps", min=0, max=10_000_000
    )
    train_batch_size: int = option(1, help="Pictures per micro-batch; needs memory.", min=1, max=1024)
    gradient_accumulation_steps: int = option(
        1, help="Micro-batches per step: a larger batch without its memory.", min=1, max=1024
    )
    seed: int = option(0, help="Decides noise, timesteps and order.", min=0, max=2**32 - 1)
    save_every_steps: int = option(
        0, help="Write the result this often; 0 only at the end.", unit="steps", min=0, max=10_000_000
    )
    state_every_steps: int = option(
        50, help="Save the state a crash is resumed from this often.", unit="steps", min=1, max=100_000, advanced=True
    )
    validation_every_steps: int = option(
        0,
        help="Measure the loss at fixed noise this often; 0 never.",
        unit="steps",
        min=0,
        max=1_000_000,
        advanced=True,
    )
    mixed_precision: str = option(
        "auto",
        help="Number format of the frozen model. auto: bf16 where the device is fast in it.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    device: str = option("auto", help="auto, cpu, cuda or cuda:1.", advanced=True)
    num_threads: int = option(0, help="CPU threads; 0 uses the cores that are idle.", min=0, max=1024, advanced=True)
    gradient_checkpointing: bool = option(False, help="Saves memory, costs about half as much time again.")
    max_grad_norm: float = option(1.0, help="Longer gradients are shortened to this; 0 off.", min=0.0, max=1000.0)
    clip_skip: int = option(1, help="Which layer of the text encoder is used, counted from the end.", min=1, max=12)
    loss_type: str = option(
        "mse", help="huber and smooth_l1 care less about outliers.", choices=("mse", "huber", "smooth_l1")
    )
    huber_c: float = option(
        0.1, help="Where huber and smooth_l1 turn from square to straight.", min=0.0001, max=1.0, advanced=True
    )
    loss_weighting: str = option(
        "none",
        help="Weight of each noise level. min_snr evens out easy and hard levels.",
        choices=("none", "min_snr", "debiased"),
    )
    min_snr_gamma: float = option(5.0, help="Cap of min_snr.", min=0.1, max=100.0, advanced=True)
    noise_offset: float = option(0.0, help="Lets pictures become darker and lighter.", min=0.0, max=1.0)
    pyramid_noise_discount: float = option(0.0, help="Multi-resolution noise; 0 off.", min=0.0, max=0.99)
    input_perturbation: float = option(0.0, help="Extra noise on the input only; 0 off.", min=0.0, max=1.0)
    min_timestep: int = option(0, help="First noise level trained.", min=0, max=999, advanced=True)
    max_timestep: int = option(1000, help="End of the noise levels trained, exclusive.", min=1, max=1000, advanced=True)
    ema_decay: float = option(0.0, help="Average of the parameters that is saved instead; 0 off.", min=0.0, max=0.99999)
    ema_on_cpu: bool = option(
        False, help="Keep the average in the machine's memory: for whole models on a small GPU.", advanced=True
    )

    @property
    def samples_per_step(self) -> int:
        """Pictures an optimizer update is made from."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def num_steps(self) -> int:
        """Length of the run in steps: `max_train_steps` where it is given, else what `num_samples` takes, rounded up.

        The one place that decides it.
        """
        return self.max_train_steps or -(-self.num_samples // self.samples_per_step)
