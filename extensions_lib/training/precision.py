"""Number formats: what the frozen model is stored in and what is computed in.

Trained parameters are float32, but for a whole UNet that is trained in bf16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, Problem

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
FIRST_CUDA_MAJOR_WITH_BF16 = 8


@dataclass(frozen=True)
class Precision:
    """`weight_dtype` of the frozen UNet and of what is computed in it, and whether small gradients must be scaled up
    lest they vanish."""

    name: str
    weight_dtype: torch.dtype
    needs_scaler: bool


FP32 = Precision("fp32", torch.float32, needs_scaler=False)
BF16 = Precision("bf16", torch.bfloat16, needs_scaler=False)
FP16 = Precision("fp16", torch.float16, needs_scaler=True)


def choose_precision(request: str, device: torch.device | str) -> Precision:
    """The format for `request`, one of PRECISIONS, on `device`.

    "auto" is bf16 where the device computes in it, else fp16 on a CUDA device and fp32 elsewhere. Raises ConfigError
    for a format that the device lacks.
    """
    device = torch.device(device)
    return precision_for(request, device.type, has_bf16=has_fast_bf16(device))


def precision_for(request: str, device_type: str, *, has_bf16: bool) -> Precision:
    """`choose_precision` for a device of `device_type` ("cpu", "cuda", ...) with or without bf16 units."""
    is_cuda = device_type == "cuda"
    if request == "auto":
        return BF16 if has_bf16 else FP16 if is_cuda else FP32
    if request == "fp32":
        return FP32
    if request == "bf16":
        if not has_bf16:
            alternative = "auto, fp16 or fp32" if is_cuda else "auto or fp32"
            raise _refused(f"bf16 is not supported by this device ({device_type})", f"Choose {alternative}.")
        return BF16
    if request == "fp16":
        if not is_cuda:
            raise _refused(
                f"fp16 needs a CUDA device, this one is {device_type}", "Choose auto, which is never slower."
            )
        return FP16
    raise _refused(f"unknown precision {request!r}, expected one of {', '.join(PRECISIONS)}", "")


def _refused(text: str, hint: str) -> ConfigError:
    return ConfigError([Problem("training.mixed_precision", text)], hint)


def computed_in(precision: Precision, own: torch.dtype, device: torch.device) -> AbstractContextManager[object]:
    """Within the context a network whose weights are `own` computes in the format of `precision`.

    Only weights that are trained in float32 differ from it; torch then casts them at each use.
    """
    if own != torch.float32 or precision.weight_dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=precision.weight_dtype)


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether the device has instructions for bf16. torch runs bf16 without them too, but slower than float32."""
    device = torch.device(device)
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() also says yes to emulation.
        is_nvidia = torch.version.hip is None
        major = torch.cuda.get_device_capability(device)[0]
        return major >= FIRST_CUDA_MAJOR_WITH_BF16 if is_nvidia else torch.cuda.is_bf16_supported()
    return device.type == "cpu" and cpu_has_bf16()


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has AVX512-BF16, AMX or Arm's bf16, as far as the system tells."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return _torch_finds_cpu_bf16()
    listed = (line.partition(":") for line in lines)
    return any(name.strip() in ("flags", "Features") and CPU_BF16_FLAGS & {*flags.split()} for name, _, flags in listed)


def _torch_finds_cpu_bf16() -> bool:
    """For systems without /proc; the questions are private to torch and missing in older versions."""
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, bool)() for question in questions)


def make_grad_scaler(precision: Precision, device: torch.device | str) -> Any:
    """A gradient scaler for fp16, None for the other formats."""
    if not precision.needs_scaler:
        return None
    device_type = torch.device(device).type
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device_type)
    return torch.cuda.amp.GradScaler()
