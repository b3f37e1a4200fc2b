"""The errors a user can meet.

* ExtensionError
  * ConfigError         a job file or form with mistakes, all of them at once
  * DatasetError        pictures or captions that cannot be used
  * ModelError
    * UnsupportedModelError   a model we recognise and do not support
    * FormatError             a file that is not what its name says, or is damaged
    * KeyMismatchError        tensors whose names or shapes do not fit
  * TrainingError
    * NonFiniteLossError      the loss or a gradient became NaN or infinite
    * OutOfMemoryError        the device has too little memory
    * DiskFullError           a file could not be written for lack of room
  * OutputError         a result that cannot be written where it should go
  * MergeError
  * HostError           the WebUI did not do what was asked
  * AccessError         a path or file that the user of the page or the API may not name
  * UnknownJobError     a job id that no run has
  * JobStateError       a request that does not fit the job's state
  * JobStopped          not a failure: the user asked a long phase to end

The message says what is wrong, the value, and what is accepted; the hint says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ExtensionError(Exception):
    """Base of all errors that are meant to be read by a user."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        separator = "\n" if "\n" in self.message else " "
        return f"{self.message}{separator}{self.hint}" if self.hint else self.message


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration: `path` such as 'training.seed', the text names value and accepted range."""

    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


class ConfigError(ExtensionError):
    """All mistakes of one configuration together."""

    def __init__(self, problems: Sequence[Problem], hint: str = "") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 setting is wrong" if count == 1 else f"{count} settings are wrong"
        super().__init__(f"{head}:\n" + "\n".join(f"  {problem}" for problem in self.problems), hint)


class DatasetError(ExtensionError):
    """Pictures or captions that cannot be used."""


class ModelError(ExtensionError):
    """A model file that cannot be used."""


class UnsupportedModelError(ModelError):
    """A model we recognise and do not support."""


class FormatError(ModelError):
    """A file that is not what its name says, or is damaged."""


class KeyMismatchError(ModelError):
    """Tensors whose names or shapes do not fit."""


class TrainingError(ExtensionError):
    """A training run that cannot go on."""


class NonFiniteLossError(TrainingError):
    """The loss or a gradient became NaN or infinite."""


class OutOfMemoryError(TrainingError):
    """The device has too little memory."""


OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a foreign error says that a device or the machine has too little memory.

    Torch has a class of its own for CUDA only; that one is known by its name, so that this module needs no torch.
    """
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


class DiskFullError(TrainingError):
    """A file could not be written for lack of room."""


class OutputError(ExtensionError):
    """A result that cannot be written where it should go."""


class MergeError(ExtensionError):
    """Models that cannot be merged as asked."""


class HostError(ExtensionError):
    """The WebUI did not do what was asked."""


class AccessError(ExtensionError):
    """A path or file that the user of the page or the API may not name."""


class UnknownJobError(ExtensionError):
    """A job id that no run has."""


class JobStateError(ExtensionError):
    """A request that does not fit the job's state, such as stopping a finished one."""


class JobStopped(ExtensionError):
    """The user asked a long phase to end; nothing is lost."""
