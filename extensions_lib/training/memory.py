"""How much memory a run took at most, and what to do when there is too little."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import OutOfMemoryError, is_out_of_memory

BYTES_PER_GIB = 2**30


def reset_peak_memory(device: torch.device | str) -> None:
    """Begin a new peak. On a CPU outside Linux the peak stays that of the whole process."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory_gib(device: torch.device | str) -> float | None:
    """The most memory since `reset_peak_memory`, in GiB: tensors on a CUDA device, else the resident process.

    None where the system does not tell (Windows).
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / BYTES_PER_GIB
    return peak_resident_gib()


def peak_resident_gib(status: Path = Path("/proc/self/status")) -> float | None:
    """The peak resident size of this process in GiB; None where the system does not tell."""
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return _peak_from_resource()
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return kibibytes[0] * 1024 / BYTES_PER_GIB if kibibytes else _peak_from_resource()


def _peak_from_resource() -> float | None:
    try:
        import resource
    except ImportError:
        return None
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * bytes_per_unit / BYTES_PER_GIB


def release_memory(error: BaseException | None = None) -> None:
    """Give what is no longer used back to the device; with `error`, also what the frames that failed still hold."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def total_memory_gib(device: torch.device | str) -> float | None:
    """All the memory of a CUDA device, else of the machine, in GiB; None where the system does not tell (Windows)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / BYTES_PER_GIB
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / BYTES_PER_GIB
    except (AttributeError, ValueError, OSError):
        return None


@contextmanager
def out_of_memory_explained(
    activity: str = "training",
    *,
    batch_size: int | None = None,
    gradient_checkpointing: bool | None = None,
    resolution_px: int | None = None,
) -> Iterator[None]:
    """Turn torch's out-of-memory errors into OutOfMemoryError that says what to change; others pass unchanged.

    `activity` completes "Out of memory while ...". The settings, where known, decide which advice is given. The failed
    computation's tensors are released, so a smaller attempt can follow.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        reason = str(error).strip().partition("\n")[0]
        message = f"Out of memory while {activity}" + (f": {reason}" if reason else ".")
        raise OutOfMemoryError(message, memory_hint(batch_size, gradient_checkpointing, resolution_px)) from error


def memory_hint(batch_size: int | None, gradient_checkpointing: bool | None, resolution_px: int | None) -> str:
    """What to change, most useful first; None stands for an unknown setting."""
    advice = []
    if batch_size is None:
        advice.append("lower the batch size")
    elif batch_size > 1:
        advice.append(f"lower the batch size (now {batch_size}; more accumulation steps make up for it)")
    if not gradient_checkpointing:
        advice.append("switch gradient checkpointing on")
    advice.append("lower the resolution" + (f" (now {resolution_px} px)" if resolution_px else ""))
    text = "; ".join(advice)
    return f"{text[0].upper()}{text[1:]}."
