"""What is wrong with a model file, or could be better, and what to do: from its header, or from its numbers."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .keys import TEXT_PREFIXES
from .passengers import AVERAGED, POSITION_IDS, belongs_to_model
from .recognise import Recognised
from .safetensors_io import DTYPES, TensorInfo, num_bytes
from .tensor_file import TensorFile

Header = Mapping[str, TensorInfo]

_GB = 1e9
_TOKENS = "text_model.embeddings.token_embedding.weight"
_TITLES = {"vae": "VAE", "text_encoder": "text encoder"}
# What torch writes into a .ckpt or .pt since 2025, and the WebUI's check of pickles does not know.
_NEW_RECORDS = (".format_version", ".storage_alignment")
_FAMILY_SIGNS = {"sdxl": ("ss_base_model_version", "sdxl_"), "sd2": ("ss_v2", "True")}


def header_problems(
    path: Path, header: Header, metadata: Mapping[str, str], found: Recognised, data_sha256: str = ""
) -> list[str]:
    """What names, shapes and metadata show. `data_sha256` is the hash of the tensors where it is known."""
    problems = []
    if found.kind in ("checkpoint", "unet"):
        problems += _of_checkpoint(path, header, found)
    elif found.kind == "lora":
        problems += _of_lora(header, metadata, found)
    elif found.kind == "embedding":
        problems += _of_embedding(header)
    stated = metadata.get("sshs_model_hash", "")
    if stated and data_sha256 and stated != data_sha256:
        problems.append(
            f"sshs_model_hash, which the WebUI shows, is {stated[:12]}..., the tensors' is {data_sha256[:12]}...: "
            "the metadata tool puts it right."
        )
    if path.suffix.lower() != ".safetensors" and _has_new_records(path):
        problems.append("It was written by a torch whose files the WebUI refuses: convert it to .safetensors.")
    return problems


def number_problems(path: Path) -> list[str]:
    """What the numbers show: every tensor is read, one at a time. Raises as `TensorFile`."""
    with TensorFile(path) as file:
        return [text for name in file.infos for text in _of_numbers(name, file.read(name))]


def _of_checkpoint(path: Path, header: Header, found: Recognised) -> Iterator[str]:
    for part, title in _TITLES.items():
        if part not in found.parts:
            yield f"It holds no {title}: the WebUI then takes another one, or draws grey."
    averaged = [info for name, info in header.items() if name.startswith(AVERAGED)]
    if averaged:
        yield (
            f"{_size(averaged)} are averaged weights (model_ema.), which no WebUI reads: "
            "prune leaves them out, or puts them in the UNet's place."
        )
    if found.family in TEXT_PREFIXES:
        leftovers = [i for name, i in header.items() if not name.startswith(AVERAGED) and not belongs_to_model(name)]
        if leftovers:
            yield f"{_size(leftovers)} are leftovers of a training: prune leaves them out."
        yield from _of_positions(header, found.family)
    networks = {name: info for name, info in header.items() if not name.startswith(("first_stage_model.", AVERAGED))}
    wide = [info for info in networks.values() if info.dtype == "F32"]
    if _bytes(wide) * 2 > _bytes(networks.values()):
        yield f"{_size(wide)} are float32: prune makes fp16 of them, half as large, which the WebUI computes with."
    if "v_pred" in header and found.family != "sd2" and not path.with_suffix(".yaml").is_file():
        yield "It is marked as v-prediction, but the .yaml by which the WebUI knows that is not beside it."


def _of_positions(header: Header, family: str) -> Iterator[str]:
    for prefix in TEXT_PREFIXES[family].values():
        stored = header.get(prefix + POSITION_IDS)
        if prefix + _TOKENS in header and stored is None:
            yield f"{prefix}{POSITION_IDS} is missing, which older programs need: prune adds it."
        elif stored is not None and stored.dtype != "I64":
            yield f"{prefix}{POSITION_IDS} is {stored.dtype}, not whole numbers: prune writes it anew."


def _of_lora(header: Header, metadata: Mapping[str, str], found: Recognised) -> Iterator[str]:
    if not metadata:
        yield "It has no metadata: the WebUI cannot tell which models it is for. convert-lora writes what it needs."
    elif found.family in _FAMILY_SIGNS:
        key, begins = _FAMILY_SIGNS[found.family]
        if not metadata.get(key, "").startswith(begins):
            yield f"{key} does not say {begins!r}: the WebUI hides it. convert-lora mends that."
    dotted = [name for name in header if name.startswith(("unet.", "text_encoder", "base_model."))]
    if dotted:
        yield f"{len(dotted)} tensors have diffusers' or peft's names, which the WebUI does not read: convert-lora."
    outer = [name for name, i in header.items() if name.endswith(".dora_scale") and i.shape[:1] != (1,)]
    if outer:
        yield f"{len(outer)} layers are DoRA by outputs, which the WebUI computes wrongly: convert-lora."
    rounded = [name for name, i in header.items() if i.dtype == "BF16" and not name.endswith("lora_up.weight")]
    if rounded and set(found.variant.split(", ")) - {"LoRA", "LoCon (CP)", "DoRA"}:
        yield f"{found.variant} in bf16: the WebUI rounds the model's weights to it: convert-lora."


def _of_embedding(header: Header) -> Iterator[str]:
    if len(header) > 1 and not {"clip_l", "clip_g"} <= set(header):
        yield f"It holds {len(header)} tensors ({', '.join(header)}); the WebUI refuses more than one."
    elif len(header) > 2:
        yield f"Beside clip_l and clip_g it holds {', '.join(sorted(set(header) - {'clip_l', 'clip_g'}))}."


def _of_numbers(name: str, tensor: Tensor) -> Iterator[str]:
    if name.endswith(".position_ids"):
        if not torch.equal(tensor.double().reshape(-1), torch.arange(tensor.numel(), dtype=torch.float64)):
            yield f"{name} are not whole numbers from 0: prompts are read wrongly; prune writes them anew."
    elif tensor.is_floating_point():
        numbers = tensor.half() if tensor.element_size() == 1 else tensor  # torch cannot look at float8
        num_bad = int((~torch.isfinite(numbers)).sum())
        if num_bad:
            yield f"{name}: {num_bad} of {tensor.numel()} numbers are NaN or infinite."


def _has_new_records(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(_NEW_RECORDS) for name in archive.namelist())


def _size(infos: Sequence[TensorInfo]) -> str:
    """'686 tensors (3.44 GB)'."""
    return f"{len(infos)} tensors ({_bytes(infos) / _GB:.2f} GB)"


def _bytes(infos: Iterable[TensorInfo]) -> int:
    """Their size together; formats that are not known here do not count."""
    return sum(num_bytes(info) for info in infos if info.dtype in DTYPES)
