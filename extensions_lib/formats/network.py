"""What a file of the LoRA family does to the layers of a model: one reader for every algorithm the WebUI computes.

It shares no code with the adapters that are trained, so that a file can be checked against them, and baked into a
checkpoint later. Letters: O output, I input width or channels of the base weight, kh kw its kernel, F = I * kh * kw,
R rank. Source of the arithmetic: LyCORIS, `docs/Algo-Details.md`; where readers differ, what the WebUI computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FormatError, KeyMismatchError
from .checkpoint import read_checkpoint
from .keys import kernel_size
from .suffixes import lora_algorithms, tensors_by_layer

DOWN, UP, ALPHA, SCALE, DORA_SCALE = "lora_down.weight", "lora_up.weight", "alpha", "scale", "dora_scale"
_CORE = "lora_mid.weight"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class LayerChange:
    """What a file holds for one layer: its tensors by suffix, float32 on the CPU, of one `algorithm`.

    `algorithm` is 'LoRA', 'LoHa', 'LoKr', 'full difference' or 'norm difference'.
    """

    name: str
    algorithm: str
    tensors: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the base weight this change fits: (O, I), (O, I, kh, kw), a norm layer's (O,).

        Where the tensors leave the kernel open, it is the one that layers of this name have.
        """
        shape = _ALGORITHMS[self.algorithm].shape(self.tensors)
        kernel = kernel_size(self.name)
        if len(shape) == 2 and kernel > 1 and shape[1] % kernel**2 == 0:
            return (shape[0], shape[1] // kernel**2, kernel, kernel)
        return shape

    @property
    def flat_shape(self) -> tuple[int, int]:
        """(O, F) of the base weight this change fits; (O, 1) of a norm layer's."""
        outputs, *inputs = _ALGORITHMS[self.algorithm].shape(self.tensors)
        return outputs, math.prod(inputs)

    @property
    def needs_base(self) -> bool:
        """What it adds depends on the base weight: a DoRA."""
        return DORA_SCALE in self.tensors

    def fits(self, weight_shape: tuple[int, ...]) -> bool:
        """Whether a base weight of this shape, (O,), (O, I) or (O, I, kh, kw), can be changed so."""
        outputs, *inputs = weight_shape
        scale = self.tensors.get(DORA_SCALE)
        fits_scale = scale is None or tuple(scale.shape) == _scale_shape(weight_shape)
        return self.flat_shape == (outputs, math.prod(inputs)) and fits_scale

    def delta(self, base: Tensor, multiplier: float = 1.0) -> Tensor:
        """What is added to the weight `base` at strength `multiplier`, float32 on the CPU, of the shape of `base`.

        Raises KeyMismatchError when the shapes do not fit.
        """
        if not self.fits(tuple(base.shape)):
            raise KeyMismatchError(
                f"The layer {self.name} has a weight of shape {tuple(base.shape)}; the file's change of it "
                f"({self.algorithm}) is for {self.flat_shape}{self._scale_text()}.",
                "Choose a file made for this kind of model; a dora_scale must be of the form (1, inputs).",
            )
        change = self.undecomposed().reshape(base.shape)
        if self.needs_base:
            change = decomposed(base.detach().to("cpu", torch.float32), change, self.tensors[DORA_SCALE])
        return change * multiplier

    def undecomposed(self) -> Tensor:
        """What is added to any base weight at strength 1, float32, of `shape`; of a DoRA without its lengths."""
        return _ALGORITHMS[self.algorithm].product(self.tensors).reshape(self.shape) * self.scale

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """up (O, R), down (R, F), whose product times `scale` is `undecomposed()`; None where an algorithm has none."""
        if self.algorithm != "LoRA":
            return None
        up, down, core = self.tensors[UP].flatten(1), self.tensors[DOWN].flatten(1), self.tensors.get(_CORE)
        if core is not None:
            down = torch.einsum("r s h w, s i -> r i h w", core, down).flatten(1)
        return up, down

    def bias_delta(self, multiplier: float = 1.0) -> Tensor | None:
        """What is added to the layer's bias (O,) at strength `multiplier`, or None."""
        added = self.tensors.get(_ALGORITHMS[self.algorithm].bias)
        return None if added is None else added * multiplier

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by: `scale`, else alpha / R, else 1."""
        if SCALE in self.tensors:
            return _number(self.tensors[SCALE])
        return _number(self.tensors[ALPHA]) / self.rank if self.rank and ALPHA in self.tensors else 1.0

    @property
    def rank(self) -> int:
        """R, by which alpha is divided; 0 where alpha has no effect."""
        return _ALGORITHMS[self.algorithm].rank(self.tensors)

    @property
    def is_finite(self) -> bool:
        """No number of the change is NaN or infinite."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors.values())

    @property
    def is_zero(self) -> bool:
        """It changes nothing, whatever the base weight: some factor is zero. Never said of a DoRA."""
        if self.needs_base:
            return False
        others = (ALPHA, SCALE, _ALGORITHMS[self.algorithm].bias)
        has_weight = all(bool(tensor.any()) for suffix, tensor in self.tensors.items() if suffix not in others)
        bias = self.bias_delta()
        return not has_weight and (bias is None or not bool(bias.any()))

    def _scale_text(self) -> str:
        scale = self.tensors.get(DORA_SCALE)
        return "" if scale is None else f" with dora_scale {tuple(scale.shape)}"


def lora_change(
    name: str,
    up: Tensor,
    down: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> LayerChange:
    """Factors up (O, R), down (R, F) for a weight of `shape`, rounded as a file of `dtype` holds them.

    Their product is multiplied by `scale`: alpha is scale * R. A convolution's kernel goes with `down`.
    """
    rank, kernel = len(down), shape[2:]
    ones = [1] * len(kernel)
    factors = {DOWN: down.reshape(rank, shape[1], *kernel), UP: up.reshape(shape[0], rank, *ones)}
    rounded = {suffix: tensor.detach().to("cpu", dtype).float() for suffix, tensor in factors.items()}
    return LayerChange(name, "LoRA", {**rounded, ALPHA: torch.tensor(scale * rank)})


def read_network(path: Path) -> dict[str, LayerChange]:
    """The changes of a LoRA-family file by layer name; an embedding bundled with it is left out.

    Raises FormatError for (IA)3, GLoRA, OFT and other algorithms, for layers that are incomplete or whose parts do not
    fit together, and for damaged files; ModelError for a missing one.
    """
    return network_of(path, read_checkpoint(path).tensors)


def network_of(path: Path, tensors: Tensors) -> dict[str, LayerChange]:
    """The same from the tensors of the file `path`, which messages name. Raises FormatError as `read_network`."""
    if not lora_algorithms(tensors):
        raise FormatError(f"{path} is not a LoRA: it has no tensors of one.", "Choose a LoRA or LyCORIS file.")
    layers = tensors_by_layer(path, tensors)
    return {name: _layer_change(path, name, found) for name, found in layers.items()}


def changes_tensors(changes: Iterable[LayerChange], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a file with these changes; number formats as in `network_tensors`."""
    return network_tensors({change.name: change.tensors for change in changes}, dtype)


def network_tensors(layers: Mapping[str, Tensors], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a LoRA-family file, on the CPU, from {layer name: {suffix: tensor}}.

    Factors of a plain LoRA are written in `dtype`; they are cast when they are loaded. Whole differences are written
    in fp16 for bf16, because the WebUI adds in the file's format and would round the base weight to 8 bits. All else
    is float32: it is small, a CPU cannot multiply LoHa and LoKr factors in fp16, so that the WebUI would skip such
    layers without a word, and the lengths of a DoRA are part of the weight itself.
    """
    whole = torch.float16 if dtype == torch.bfloat16 else dtype
    dtypes = {DOWN: dtype, UP: dtype, "diff": whole, "diff_b": whole}
    return {
        f"{name}.{suffix}": tensor.detach().to("cpu", dtypes.get(suffix, torch.float32)).contiguous()
        for name, tensors in layers.items()
        for suffix, tensor in tensors.items()
    }


def decomposed(base: Tensor, change: Tensor, dora_scale: Tensor) -> Tensor:
    """The difference a DoRA makes: every input's column of `base + change` gets the length `dora_scale`, less `base`.

    `base` and `change` (O, I) or (O, I, kh, kw), `dora_scale` (1, I) or (1, I, 1, 1).
    """
    changed = base + change
    lengths = changed.transpose(0, 1).flatten(1).norm(dim=1)
    return changed * (dora_scale / lengths.reshape(dora_scale.shape)) - base


def _scale_shape(weight_shape: tuple[int, ...]) -> tuple[int, ...]:
    """(1, I) for a weight (O, I), (1, I, 1, 1) for a convolution's."""
    return (1, *weight_shape[1:2], *(1 for _ in weight_shape[2:]))


@dataclass(frozen=True)
class _Algorithm:
    """How one algorithm's tensors make a change. `needed` must all be there, `shape` is the weight's, (O, F) where the
    tensors do not tell the kernel; `product` gives (O, F) or the weight's own shape, `rank` 0 means that alpha has no
    effect. `bias` names what is added to the layer's bias.
    """

    needed: tuple[str, ...]
    shape: Callable[[Tensors], tuple[int, ...]]
    product: Callable[[Tensors], Tensor]
    rank: Callable[[Tensors], int]
    bias: str = ""


def _lora_shape(t: Tensors) -> tuple[int, ...]:
    if _CORE in t:
        return t[UP].shape[0], t[DOWN].shape[1], *t[_CORE].shape[2:]
    return t[UP].shape[0], *t[DOWN].shape[1:]


def _lora_product(t: Tensors) -> Tensor:
    up, down = t[UP].flatten(1), t[DOWN].flatten(1)
    return _tucker(t[_CORE], up.T, down) if _CORE in t else up @ down


def _loha_shape(t: Tensors) -> tuple[int, ...]:
    if "hada_t1" in t:  # w*_a (R, O), w*_b (R, I)
        return t["hada_w1_a"].shape[1], t["hada_w1_b"].shape[1], *t["hada_t1"].shape[2:]
    return t["hada_w1_a"].shape[0], *t["hada_w1_b"].shape[1:]


def _loha_product(t: Tensors) -> Tensor:
    return _loha_half(t, 1) * _loha_half(t, 2)


def _loha_half(t: Tensors, number: int) -> Tensor:
    a, b = t[f"hada_w{number}_a"], t[f"hada_w{number}_b"]
    core = t.get(f"hada_t{number}")
    return a @ b.flatten(1) if core is None else _tucker(core, a, b)


def _lokr_factors(t: Tensors) -> tuple[Tensor, Tensor]:
    """w1 (o1, i1) and w2 (o2, i2) or (o2, i2, kh, kw) of the Kronecker product; O = o1 * o2, I = i1 * i2."""
    first = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        return first, t["lokr_w2"]
    if "lokr_t2" in t:
        return first, _tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    return first, t["lokr_w2_a"] @ t["lokr_w2_b"]


def _lokr_shape(t: Tensors) -> tuple[int, ...]:
    (o1, i1), (o2, i2, *kernel) = (factor.shape for factor in _lokr_factors(t))
    return o1 * o2, i1 * i2, *kernel


def _lokr_product(t: Tensors) -> Tensor:
    first, second = _lokr_factors(t)
    return torch.kron(first, second.flatten(1))


def _lokr_rank(t: Tensors) -> int:
    """That of the second factor, else of the first; two whole factors have none, and their alpha counts for nothing."""
    factored = t.get("lokr_w2_b", t.get("lokr_w1_b"))
    return 0 if factored is None else factored.shape[0]


def _tucker(core: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    """(O, I, kh, kw) of a `core` (R, R, kh, kw) between `outputs` (R, O) and `inputs` (R, I)."""
    return torch.einsum("r s h w, r o, s i -> o i h w", core, outputs, inputs)


def _no_rank(t: Tensors) -> int:
    return 0


# In the order in which the WebUI tries them.
_ALGORITHMS = {
    "LoRA": _Algorithm((DOWN, UP), _lora_shape, _lora_product, lambda t: t[DOWN].shape[0]),
    "LoHa": _Algorithm(
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
        _loha_shape,
        _loha_product,
        lambda t: t["hada_w1_b"].shape[0],
    ),
    "LoKr": _Algorithm((), _lokr_shape, _lokr_product, _lokr_rank),
    "full difference": _Algorithm(("diff",), lambda t: tuple(t["diff"].shape), lambda t: t["diff"], _no_rank, "diff_b"),
    "norm difference": _Algorithm(
        ("w_norm", "b_norm"), lambda t: tuple(t["w_norm"].shape), lambda t: t["w_norm"], _no_rank, "b_norm"
    ),
}
_LOKR_FACTORS = (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")), (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))


def _layer_change(path: Path, name: str, parts: Tensors) -> LayerChange:
    tensors = {suffix: tensor.to("cpu", torch.float32) for suffix, tensor in parts.items()}
    algorithm = next((name for name, entry in _ALGORITHMS.items() if _is_complete(name, entry, tensors)), None)
    if algorithm is None:
        raise FormatError(
            f"{path}: the layer {name} has {', '.join(sorted(parts))}, which is no whole change of a layer.",
            "The file is incomplete, or made with an algorithm that is not supported.",
        )
    change = LayerChange(name, algorithm, tensors)
    _check_parts(path, change)
    return change


def _is_complete(algorithm: str, entry: _Algorithm, tensors: Tensors) -> bool:
    if algorithm == "LoKr":
        return all(any(all(part in tensors for part in way) for way in ways) for ways in _LOKR_FACTORS)
    return all(suffix in tensors for suffix in entry.needed)


def _check_parts(path: Path, change: LayerChange) -> None:
    """Raises FormatError when the factors cannot be multiplied."""
    entry, meta = _ALGORITHMS[change.algorithm], {name: t.to("meta") for name, t in change.tensors.items()}
    try:
        shape = entry.shape(meta)
        fits = bool(shape) and entry.product(meta).numel() == math.prod(shape) > 0
        fits = fits and all(tensor.numel() for tensor in meta.values())
        fits = fits and all(meta[name].numel() == 1 for name in (ALPHA, SCALE) if name in meta)
    except (RuntimeError, IndexError, ValueError):
        fits = False
    if not fits:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(change.tensors.items()))
        raise FormatError(f"{path}: the parts of {change.name} do not fit together: {shapes}.", "The file is damaged.")


def _number(tensor: Tensor) -> float:
    return float(tensor.reshape(-1)[0])
