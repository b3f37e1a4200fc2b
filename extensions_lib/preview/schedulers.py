"""The sampling methods by name, as diffusers schedulers set up like the WebUI's samplers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError, Problem

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

SMALLEST_ALPHA_CUMPROD = 2.0**-24  # a schedule that ends in pure noise (zero terminal SNR) has no finite sigma there


@dataclass(frozen=True)
class SamplerKind:
    """A sampling method: its class in diffusers, the options given to it, and where it looks.

    `draws_noise`: it adds noise between steps. `told_timesteps`: it is given n timesteps evenly from the last to the
    first inclusive, because its own spacing would leave out the first, where the WebUI ends.
    """

    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draws_noise: bool = False
    told_timesteps: bool = False


# Spacing as in the WebUI: k-diffusion's samplers walk evenly from timestep 999 to 0 ("linspace"), DDIM up from 1 by
# 1000 // n ("leading", offset 1). The WebUI's DDIM stops at timestep 1; here that last step is taken too.
_EVEN = {"timestep_spacing": "linspace"}
_KARRAS = {"timestep_spacing": "linspace", "use_karras_sigmas": True}
_DDIM = {"timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}

SAMPLER_KINDS: dict[str, SamplerKind] = {
    "ddim": SamplerKind("DDIMScheduler", _DDIM),
    "euler": SamplerKind("EulerDiscreteScheduler", _EVEN),
    "euler_a": SamplerKind("EulerAncestralDiscreteScheduler", _EVEN, draws_noise=True),
    "heun": SamplerKind("HeunDiscreteScheduler", _EVEN),
    "dpmpp_2m": SamplerKind("DPMSolverMultistepScheduler", _EVEN, told_timesteps=True),
    "dpmpp_2m_karras": SamplerKind("DPMSolverMultistepScheduler", _KARRAS),
}


def sampler_kind(name: str) -> SamplerKind:
    """The sampling method called `name`. Raises ConfigError naming the known ones."""
    if name not in SAMPLER_KINDS:
        raise ConfigError([Problem("sampler", f"there is no {name!r}; accepted are {', '.join(SAMPLER_KINDS)}")])
    return SAMPLER_KINDS[name]


def build_scheduler(
    kind: SamplerKind, alphas_cumprod: Tensor, prediction_type: str, num_steps: int, device: torch.device
) -> SchedulerMixin:
    """A scheduler ready for `num_steps` steps with the model's own noise schedule.

    `alphas_cumprod` (N,): share of signal left at each training timestep.
    `prediction_type`: 'epsilon' or 'v_prediction'.
    """
    import diffusers

    betas = betas_of(alphas_cumprod)
    options = dict(kind.options)
    if num_steps == 1:
        options["timestep_spacing"] = "trailing"  # the others would put a single step at the clean end
    scheduler = getattr(diffusers, kind.scheduler)(
        num_train_timesteps=len(betas), trained_betas=betas, prediction_type=prediction_type, **options
    )
    if kind.told_timesteps:
        even = torch.linspace(len(betas) - 1, 0, num_steps, dtype=torch.float64).round().to(torch.int64)
        scheduler.set_timesteps(timesteps=even.tolist(), device=device)
    else:
        scheduler.set_timesteps(num_steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else looked up by timestep, and wrong when the first one occurs twice
    return scheduler


def betas_of(alphas_cumprod: Tensor) -> list[float]:
    """beta_t = 1 - abar_t / abar_(t-1), the inverse of the cumulative product; abar is kept above 2**-24."""
    kept = alphas_cumprod.detach().to("cpu", torch.float64).clamp(min=SMALLEST_ALPHA_CUMPROD)
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    return (1 - kept / before).tolist()
