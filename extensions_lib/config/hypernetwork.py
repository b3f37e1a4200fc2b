"""Hypernetworks: their settings, and their layers as text: '1, 2, 1', each a multiple of the width it acts on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from .field import option

MAX_MULTIPLE = 64
# Those the WebUI builds without parameters of their own; its 'swish' is torch's Hardswish.
ACTIVATIONS = (
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish", "gelu", "silu", "softplus",
    "selu", "celu", "relu6", "hardtanh", "logsigmoid", "tanhshrink",
)  # fmt: skip
WEIGHT_INITS = ("Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal")


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig:
    """Small networks before the keys and values of every attention, called by <hypernet:name:weight>."""

    artefact_kind: ClassVar[str] = "hypernetwork"
    train_text_encoder: ClassVar[bool] = False
    kind: str = option("hypernetwork", help="The method.", choices=("hypernetwork",))
    layer_structure: str = option(
        "1, 2, 1", help="Sizes of the layers as multiples of the width they act on; the first and the last are 1."
    )
    activation: str = option("swish", help="Function between the layers; linear: none.", choices=ACTIVATIONS)
    weight_init: str = option(
        "Normal", help="Normal: the run starts close to the base model.", choices=WEIGHT_INITS, advanced=True
    )
    layer_norm: bool = option(
        False,
        help="Normalise behind each layer; the run then starts further from the base model.",
        advanced=True,
    )
    activate_output: bool = option(False, help="The function behind the last layer too.", advanced=True)
    dropout_structure: str = option(
        "", help="Shares dropped behind each entry of the layer structure, such as '0, 0.3, 0'; empty: none.",
        advanced=True,
    )  # fmt: skip
    widths: str = option(
        "", help="Widths to act on, such as '768' for the text alone; empty: all of the model's.", advanced=True
    )
    start_from: str = option("", help="A hypernetwork to go on from; its layers are kept.")

    @property
    def dropout(self) -> float:
        """The largest share that is dropped."""
        return max(parse_numbers(self.dropout_structure), default=0.0)

    def problems(self) -> list[tuple[str, str]]:
        """(setting, what is wrong) for what its type and range do not tell."""
        found = []
        try:
            num_sizes = len(parse_layer_structure(self.layer_structure))
        except ValueError as error:
            found.append(("layer_structure", str(error)))
            num_sizes = 0
        checks = {"widths": parse_widths}
        if num_sizes:
            checks["dropout_structure"] = partial(parse_dropout_structure, num_sizes=num_sizes)
        for name, parse in checks.items():
            try:
                parse(getattr(self, name))
            except ValueError as error:
                found.append((name, str(error)))
        return found


def parse_numbers(text: str) -> tuple[float, ...]:
    """The numbers of '1, 2, 1'; empty text gives none. Raises ValueError that says what is accepted."""
    try:
        return tuple(float(entry) for entry in text.split(",") if entry.strip())
    except ValueError as error:
        raise ValueError(f"is {text!r}, accepted are numbers with commas between them") from error


def parse_layer_structure(text: str) -> tuple[float, ...]:
    """Sizes of the layers as multiples of the width: at least two, the first and the last 1. Raises ValueError."""
    sizes = parse_numbers(text)
    if len(sizes) < 2 or sizes[0] != 1 or sizes[-1] != 1:
        raise ValueError(f"is {text!r}, accepted are at least two numbers, of which the first and the last are 1")
    if not all(0 < size <= MAX_MULTIPLE for size in sizes):
        raise ValueError(f"is {text!r}, accepted are sizes above 0 up to {MAX_MULTIPLE}")
    return sizes


def parse_dropout_structure(text: str, num_sizes: int) -> tuple[float, ...]:
    """Dropout behind each entry of a layer structure with `num_sizes` of them; empty text: none. Raises ValueError."""
    if not text.strip():
        return (0.0,) * num_sizes
    dropouts = parse_numbers(text)
    if len(dropouts) != num_sizes or dropouts[0] != 0 or dropouts[-1] != 0:
        raise ValueError(
            f"is {text!r}, accepted are {num_sizes} numbers, one for each of layer_structure, the first and the last 0"
        )
    if not all(0 <= share < 1 for share in dropouts):
        raise ValueError(f"is {text!r}, accepted are shares from 0 to below 1")
    return dropouts


def parse_widths(text: str) -> tuple[int, ...]:
    """Widths such as '768, 320'; empty text gives none. Raises ValueError."""
    widths = parse_numbers(text)
    if not all(width >= 1 and width.is_integer() for width in widths):
        raise ValueError(f"is {text!r}, accepted are whole numbers such as '768, 320'")
    return tuple(int(width) for width in widths)
