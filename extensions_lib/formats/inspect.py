"""What a file is and what it was trained on, and whether a written LoRA is what was trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .checkpoint import tensors_of
from .diffusers_folder import describe_folder
from .embedding import read_embedding
from .hashes import autov1, data_section_sha256, file_sha256
from .lineage import lineage, lineage_lines
from .network import LayerChange, read_network
from .origin import made_by
from .problems import header_problems, number_problems
from .recognise import Header, Recognised, recognise
from .safetensors_io import describe_tensor, read_header
from .tensor_file import TensorFile
from .torch_file import read_torch_file

_TRAINED_ON = (
    "ss_sd_model_name",
    "ss_new_sd_model_hash",
    "ss_steps",
    "ss_num_train_images",
    "ss_resolution",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_learning_rate",
    "ss_optimizer",
    "ss_seed",
    "ss_training_finished_at",
    "sd_checkpoint_name",
    "sd_checkpoint",
    "step",
    "modelspec.trigger_phrase",
)
# Files whose tensors are read by name; embeddings and hypernetworks have layouts of their own.
_CHECKED_KINDS = ("checkpoint", "unet", "vae", "text_encoder", "lora", "controlnet", "unknown")

# Factors whose first axis is the rank.
_RANK_FIRST = (".lora_down.weight", ".lora_A.weight", ".hada_w1_b", ".lokr_w1_b", ".lokr_w2_b")


def describe_file(path: Path, *, with_hashes: bool = True, with_numbers: bool = False) -> dict[str, object]:
    """Facts about a model file as plain values (JSON-able); no tensor of a `.safetensors` checkpoint is read, unless
    `with_numbers` asks for NaN to be looked for in all of them. A diffusers folder is described as well.

    Keys: 'file', 'size_bytes', 'kind' (checkpoint, unet, vae, text_encoder, lora, embedding, hypernetwork, controlnet,
    unknown), 'family', 'variant', 'num_tensors', 'dtypes', 'details', 'trained_on', 'lineage' (of a merged file: lines
    of a tree), 'made_by' (programs it bears marks of, the last first), 'problems' (texts, with what to do), 'metadata',
    'hashes' (whole-file reads: a 4 GB file takes some seconds). Raises FormatError for damaged
    files, ModelError for missing ones.
    """
    if path.is_dir():
        return describe_folder(path)
    metadata: dict[str, str] = {}
    if path.suffix.lower() == ".safetensors":
        header, metadata = read_header(path)
        found, details = _from_header(path, header, metadata)
    elif path.suffix.lower() == ".png":
        header = {key or "vectors": describe_tensor(tensor) for key, tensor in read_embedding(path).vectors.items()}
        found, details = _from_header(path, header, metadata)
    else:
        header, found, details = _from_pickle(path)
    hashes = _hashes(path, found.kind, metadata) if with_hashes else {}
    problems = header_problems(path, header, metadata, found, hashes.get("data_sha256", ""))
    if with_numbers and header and found.kind in _CHECKED_KINDS:
        problems += number_problems(path)
    return {
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "kind": found.kind,
        "family": found.family,
        "variant": found.variant,
        "num_tensors": len(header),
        "dtypes": dict(Counter(info.dtype for info in header.values())),
        "details": details,
        "trained_on": {key: metadata[key] for key in _TRAINED_ON if key in metadata},
        "lineage": lineage_lines(path.stem, tree) if (tree := lineage(metadata)) else [],
        "made_by": made_by(header, metadata),
        "problems": problems,
        "metadata": metadata,
        "hashes": hashes,
    }


@dataclass(frozen=True)
class VerifiedFile:
    """What an independent reader found in a LoRA file.

    `num_modules` layers name a base weight and fit its shape, `num_unmatched` do not. `max_difference` is the largest
    absolute deviation of a tensor from what was expected, infinity when one is missing or has another shape.
    `is_zero`: at no layer would the file change anything.
    """

    num_modules: int
    num_unmatched: int
    max_difference: float
    is_finite: bool
    is_zero: bool


def verify_lora(
    path: Path, expected: Mapping[str, Tensor], module_shapes: Mapping[str, tuple[int, ...]]
) -> VerifiedFile:
    """Read a file of the LoRA family again and compare it with what was to be written and with the base model.

    `expected` are the file's tensors by name, `module_shapes` the shape of each base weight by layer name. Raises
    FormatError when the file cannot be read.
    """
    found = read_network(path)
    fitting = [name for name, change in found.items() if name in module_shapes and change.fits(module_shapes[name])]
    return VerifiedFile(
        num_modules=len(fitting),
        num_unmatched=len(found) - len(fitting),
        max_difference=_difference(found, expected),
        is_finite=all(change.is_finite for change in found.values()),
        is_zero=all(change.is_zero for change in found.values()),
    )


def _difference(found: Mapping[str, LayerChange], expected: Mapping[str, Tensor]) -> float:
    read = {f"{name}.{suffix}": tensor for name, change in found.items() for suffix, tensor in change.tensors.items()}
    if read.keys() != expected.keys() or any(read[name].shape != expected[name].shape for name in read):
        return math.inf
    apart = (read[name] - expected[name].detach().cpu().float() for name in read)
    return max(float(tensor.abs().nan_to_num(nan=math.inf, posinf=math.inf).max()) for tensor in apart)


def _from_header(path: Path, header: Header, metadata: Mapping[str, str]) -> tuple[Recognised, dict[str, object]]:
    found = recognise(header, metadata)
    if found.kind == "lora":
        return found, _lora_details(path, header)
    if found.kind == "embedding":
        return found, {"shapes": {name: list(info.shape) for name, info in header.items()}}
    return found, {"parts": list(found.parts)} if found.parts else {}


def _lora_details(path: Path, header: Header) -> dict[str, object]:
    layers = {name.split(".", 1)[0] for name in header if name.startswith(("lora_", "oft_"))}
    ranks = {i.shape[0] for name, i in header.items() if name.endswith(_RANK_FIRST) and i.shape}
    details: dict[str, object] = {
        "num_modules": len(layers),
        "num_unet_modules": sum(name.startswith(("lora_unet_", "oft_unet_")) for name in layers),
        "num_text_encoder_modules": sum(name.startswith("lora_te") for name in layers),
        "ranks": sorted(ranks),
        "bundled_embeddings": sorted({name.split(".")[1] for name in header if name.startswith("bundle_emb.")}),
    }
    if path.suffix.lower() == ".safetensors":
        details["alphas"] = _alphas(path, header)
    return details


def _alphas(path: Path, header: Header) -> list[float]:
    names = [name for name, info in header.items() if name.endswith(".alpha") and math.prod(info.shape) == 1]
    with TensorFile(path) as file:
        alphas = {float(file.read(name)) for name in names}
    return sorted(filter(math.isfinite, alphas))


def _from_pickle(path: Path) -> tuple[Header, Recognised, dict[str, object]]:
    content = read_torch_file(path)
    if isinstance(content, Mapping) and any(isinstance(key, int) for key in content):
        return {}, Recognised("hypernetwork"), _hypernetwork_details(content)
    if isinstance(content, Mapping) and "string_to_param" in content:
        embedding = read_embedding(path)
        header = {key or "*": describe_tensor(tensor) for key, tensor in embedding.vectors.items()}
        details = {"name": content.get("name"), "step": embedding.step, "base": embedding.base}
        return header, recognise(header), details
    header = {name: describe_tensor(tensor) for name, tensor in tensors_of(path, content).items()}
    return header, *_from_header(path, header, {})


def _hypernetwork_details(content: Mapping[object, object]) -> dict[str, object]:
    facts = ("name", "step", "layer_structure", "activation_func", "sd_checkpoint_name", "sd_checkpoint")
    widths = sorted(key for key in content if isinstance(key, int))
    return {"widths": widths, **{fact: content[fact] for fact in facts if content.get(fact) is not None}}


def _hashes(path: Path, kind: str, metadata: Mapping[str, str]) -> dict[str, str]:
    """As model sites and the WebUI show them: AutoV1 8, AutoV2 10, AutoV3 12 of these digits.

    'in_webui' is what the WebUI calls the file by: of a LoRA it believes the header.
    """
    whole = file_sha256(path)
    hashes = {"sha256": whole, "autov1": autov1(path), "autov2": whole[:10]}
    if path.suffix.lower() == ".safetensors":
        data = data_section_sha256(path)
        hashes |= {"autov3": data[:12], "data_sha256": data}
        if kind == "lora":
            return hashes | {"in_webui": (metadata.get("sshs_model_hash") or data)[:12]}
    return hashes | {"in_webui": whole[:12] if kind == "embedding" else whole[:10]}
