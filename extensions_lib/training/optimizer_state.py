"""The state of any optimizer as tensors and JSON, and back, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import TrainingError

# How the update is computed, not what: decided by the machine that resumes.
KEPT_FROM_NEW = frozenset({"params", "fused", "foreach", "capturable", "differentiable"})


def optimizer_state_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state as tensors on the CPU, named like "state.0.exp_avg", and the rest as plain JSON values.

    Tensors of an optimizer on the CPU are not copied: write them before the next step.
    """
    tensors: dict[str, Tensor] = {}
    state = optimizer.state_dict()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    document = {
        "optimizer": type(optimizer).__name__,
        "shapes": _shapes(optimizer),
        "state": _encode({str(index): entry for index, entry in state["state"].items()}, "state", tensors),
        "param_groups": _encode(groups, "param_groups", tensors),
    }
    return tensors, document


def load_optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Put a state of `optimizer_state_tensors` into a new optimizer of the same kind over the same parameters.

    The optimizer may take over the given tensors. Raises TrainingError when kind, groups or shapes differ.
    """
    _check_fits(optimizer, document)
    state = _decode(document["state"], tensors)
    groups = _decode(document["param_groups"], tensors)
    new = optimizer.state_dict()
    merged = [_merge_group(*pair) for pair in zip(new["param_groups"], groups, strict=True)]
    optimizer.load_state_dict({"state": {int(index): entry for index, entry in state.items()}, "param_groups": merged})


def _check_fits(optimizer: Optimizer, document: Mapping[str, Any]) -> None:
    kind, saved_kind = type(optimizer).__name__, document["optimizer"]
    hint = "Resume with the settings the run was started with, or start a new run."
    if kind != saved_kind:
        raise TrainingError(f"The saved state is of the optimizer {saved_kind}, this run uses {kind}.", hint)
    shapes, saved_shapes = _shapes(optimizer), document["shapes"]
    if shapes != saved_shapes:
        counts = f"{sum(map(len, saved_shapes))} parameters, this run trains {sum(map(len, shapes))}"
        raise TrainingError(
            f"The saved optimizer state does not fit: it is for {counts}, and shapes or groups differ.", hint
        )


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _merge_group(new: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    restored = {key: value for key, value in saved.items() if key not in KEPT_FROM_NEW}
    if "betas" in restored:
        restored["betas"] = tuple(restored["betas"])
    return {**new, **restored}


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; tensors inside go to `tensors` under dotted names and leave a reference."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _encode(entry, f"{name}.{key}", tensors) for key, entry in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_encode(entry, f"{name}.{index}", tensors) for index, entry in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"optimizer state {name} is a {type(value).__name__}, which has no JSON form")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return _tensor(content, tensors)
    if kind == "float":
        return float(content)
    return {key: _decode(entry, tensors) for key, entry in content.items()}


def _tensor(name: str, tensors: Mapping[str, Tensor]) -> torch.Tensor:
    if name not in tensors:
        raise TrainingError(
            f"The saved optimizer state lacks the tensor {name}.", "The file is damaged; use an earlier state."
        )
    return tensors[name]
