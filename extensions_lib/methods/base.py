"""What every training method promises to the one loop that serves them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..formats.metadata import ArtefactInfo
from ..models.bundle import ModelBundle


@dataclass(frozen=True)
class ParamGroup:
    """Parameters that share a learning rate, None meaning the optimizer's own, times `rate_factor`.

    They are trained for the first `train_share` (0 to 1) of the run and stay as they are from then on.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float | None = None
    train_share: float = 1.0
    rate_factor: float = 1.0


@dataclass
class Trainable:
    """What a method put onto a model.

    `module` owns every parameter that is trained, float32. `tokens` maps a placeholder to its extra token ids;
    `known_tokens` those of words that the base model was given besides and that are not trained.
    `trains_text_encoder` forbids caching of text states. `constraints` keep parameters within the method's bounds: each
    is called, without gradient, after every update.
    """

    module: nn.Module
    groups: tuple[ParamGroup, ...]
    trains_text_encoder: bool
    tokens: dict[str, list[int]] = field(default_factory=dict)
    known_tokens: dict[str, list[int]] = field(default_factory=dict)
    constraints: tuple[Callable[[], None], ...] = ()

    @property
    def all_tokens(self) -> dict[str, list[int]]:
        """Every word that captions and prompts may use, with its ids."""
        return {**self.known_tokens, **self.tokens}

    def parameters(self) -> list[nn.Parameter]:
        """Every trained parameter, in the order of the groups."""
        return [parameter for group in self.groups for parameter in group.parameters]

    def before_step(self, progress: float) -> None:
        """To be called before each step, after `progress` (0 to 1) of the run: groups whose share is over rest.

        A parameter at rest takes no gradient, so no optimizer changes it, whatever its momentum or weight decay.
        """
        for group in self.groups:
            for parameter in group.parameters:
                parameter.requires_grad_(progress < group.train_share)

    def after_update(self) -> None:
        """To be called after each optimizer update: applies the constraints."""
        with torch.no_grad():
            for constrain in self.constraints:
                constrain()

    def keep_base_near(self) -> None:
        """To be called by those who need `multiplied(0)` at every step: it should be quick from now on."""

    def state(self) -> dict[str, Tensor]:
        """The trained tensors by name, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.module.state_dict().items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `state`, in place. Raises RuntimeError when names or shapes differ."""
        self.module.load_state_dict(dict(tensors))

    @contextmanager
    def multiplied(self, multiplier: float) -> Iterator[None]:
        """Within the context the additions act with this strength; 0 is the base model, bit for bit."""
        adapters = [module for module in self.module.modules() if hasattr(module, "multiplier")]
        before = [adapter.multiplier for adapter in adapters]
        tokens = self.tokens
        try:
            for adapter in adapters:
                adapter.multiplier = multiplier
            self.tokens = tokens if multiplier else {}
            yield
        finally:
            self.tokens = tokens
            for adapter, value in zip(adapters, before, strict=True):
                adapter.multiplier = value


@dataclass(frozen=True)
class ExportedFile:
    """A file that is written with a result, before it: the yaml of a checkpoint, a further embedding, ...

    `name` is its file name. `kind` is 'lora', 'embedding', ..., which decides the folder and what the host is told; ''
    stays beside the result. It holds `tensors` and `metadata` as a safetensors file, or `payload`. `verify` reads the
    written file again and raises ExtensionError when it is not what it should be.
    """

    name: str
    kind: str = ""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    payload: bytes | None = None
    verify: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Exported:
    """A result ready to be written: `tensors` and `metadata` for a safetensors file, or `payload` for another.

    `beside` are further files, those that `TrainMethod.names_beside` announced.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    payload: bytes | None = None
    beside: tuple[ExportedFile, ...] = ()


@dataclass(frozen=True)
class Verified:
    """What an independent reader found in a written file: modules of the model it matches."""

    num_modules: int


class TrainMethod(ABC):
    """One way of teaching a model. Knows no path but that of the file to go on from."""

    kind: str
    artefact_kind: str

    @abstractmethod
    def attach(
        self, bundle: ModelBundle, placeholder: str, generator: torch.Generator
    ) -> AbstractContextManager[Trainable]:
        """Put the trained parts onto the frozen model; on exit the model is bit-identical to before.

        `placeholder` is the word the result is called by; `generator` (CPU) draws initial values.
        """

    @abstractmethod
    def count_parameters(self, bundle: ModelBundle) -> int:
        """How many numbers `attach` would train; the bundle's networks may be on the meta device. Raises ModelError."""

    @abstractmethod
    def export(self, trainable: Trainable, info: ArtefactInfo) -> Exported:
        """The result as it is to be written."""

    @abstractmethod
    def verify(self, path: Path, trainable: Trainable, bundle: ModelBundle) -> Verified:
        """Read the written file again and compare. Raises KeyMismatchError or FormatError when it does not hold."""

    @property
    def file_suffix(self) -> str:
        """Suffix of the result file."""
        return ".safetensors"

    @property
    def base_dtype(self) -> torch.dtype | None:
        """The number format the UNet has to be loaded in; None: the one that is computed in."""
        return None

    def result_bytes(self, bundle: ModelBundle, num_parameters: int) -> int:
        """The size of one result at most, with `num_parameters` trained; the networks may be on the meta device."""
        return 4 * num_parameters

    def names_beside(self, output_name: str, placeholder: str) -> tuple[tuple[str, str], ...]:
        """(file name, artefact kind) of each further file that `export` writes with the final result `output_name`.

        `placeholder` is the word the result is called by.
        """
        return ()
