"""Textual inversion files. V vectors of width d: 768 for Stable Diffusion 1, 1024 for 2, 768 and 1280 for XL."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FormatError, ModelError
from .safetensors_io import read_header, read_tensors
from .torch_file import plain_tensor, read_torch_file

ENCODER_KEYS = ("clip_l", "clip_g")
_BUNDLE_PREFIX = "bundle_emb."
_ONETRAINER_KEY = (
    "emp_params"  # its '_out' twin holds vectors that act after the encoder; the WebUI has no place for them
)
_CARD_CHUNK = "sd-ti-embedding"
_HINT = "Choose a textual inversion embedding."


@dataclass(frozen=True)
class EmbeddingFile:
    """`vectors` (V, d) float32 under 'clip_l'/'clip_g', or '' when there is one set of them.

    `name` is what a prompt calls it, `step` how long it was trained, `base` the checkpoint it was trained on, if known.
    """

    vectors: dict[str, Tensor]
    name: str
    step: int | None = None
    base: str | None = None


def embedding_tensors(name: str, vectors: Tensor) -> dict[str, Tensor]:
    """The one tensor of an SD 1 or 2 embedding: {name: (V, d)}, float32, CPU. ValueError for another rank."""
    if vectors.ndim != 2:
        raise ValueError(f"vectors must have the shape (V, d), not {tuple(vectors.shape)}")
    return {name: vectors.detach().to("cpu", torch.float32).contiguous()}


def file_tensors(name: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an embedding file, from `vectors` as in `EmbeddingFile`: one under `name`, or two for XL.

    Nothing else may stand in the file: the WebUI refuses a second tensor, and takes every one of XL's as a vector.
    Raises ValueError for other keys, another rank, and encoders with different numbers of vectors.
    """
    if set(vectors) == {""}:
        return embedding_tensors(name, vectors[""])
    if set(vectors) != set(ENCODER_KEYS) or len({len(each) for each in vectors.values()}) != 1:
        shapes = {key: tuple(each.shape) for key, each in vectors.items()}
        raise ValueError(f"vectors must be {' and '.join(ENCODER_KEYS)} with as many rows each, not {shapes}")
    return {key: embedding_tensors(key, vectors[key])[key] for key in ENCODER_KEYS}


def bundled_tensors(name: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An embedding as it stands inside a LoRA file, called `name` while the LoRA is in the prompt.

    Keys: 'bundle_emb.<name>.string_to_param.*', for XL 'bundle_emb.<name>.clip_l' and '.clip_g'. The WebUI ends the
    name at its first dot: ValueError for a name with one. Raises else as `file_tensors`.
    """
    if "." in name or not name:
        raise ValueError(f"a bundled embedding cannot be called {name!r}: its name ends at the first dot")
    tensors = file_tensors("string_to_param.*", vectors)
    return {f"{_BUNDLE_PREFIX}{name}.{key}": tensor for key, tensor in tensors.items()}


def bundled_names(path: Path) -> tuple[str, ...]:
    """What the embeddings inside a LoRA file are called; none for other files and for pickles."""
    if path.suffix.lower() != ".safetensors":
        return ()
    header, _ = read_header(path)
    return tuple(sorted({key.split(".")[1] for key in header if key.startswith(_BUNDLE_PREFIX)}))


def pt_embedding_bytes(
    name: str, vectors: Tensor, step: int, checkpoint_hash: str | None, checkpoint_name: str | None
) -> bytes:
    """A `.pt` embedding that the WebUI's own trainer can go on with.

    `vectors` (V, d), `step` finished updates, `checkpoint_hash` 10 hex digits (AutoV2). In torch's old serialization:
    the WebUI refuses zip files of recent torch versions.
    """
    content = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": embedding_tensors(name, vectors)[name]},
        "name": name,
        "step": step,
        "sd_checkpoint": checkpoint_hash,
        "sd_checkpoint_name": checkpoint_name,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def read_embedding(path: Path, name: str = "") -> EmbeddingFile:
    """Read `.safetensors`, `.pt`, `.bin` (the WebUI's, diffusers', kohya's, OneTrainer's layout) or a `.png` card.

    Of a LoRA with embeddings inside it is the one called `name`, or the only one. Raises FormatError for anything
    else, damaged files and pickles with code (never run); ModelError when missing.
    """
    suffix = path.suffix.lower()
    if bundled_names(path):
        return _read_bundled(path, name)
    if suffix == ".safetensors":
        return _from_dict(path, {**read_header(path)[1], **read_tensors(path)})
    content = _read_card(path) if suffix == ".png" else read_torch_file(path)
    if not isinstance(content, Mapping):
        raise FormatError(f"{path} is not an embedding: it holds a {type(content).__name__}.", _HINT)
    return _from_dict(path, content)


def _read_bundled(path: Path, name: str) -> EmbeddingFile:
    names = bundled_names(path)
    chosen = names[0] if len(names) == 1 else name
    if chosen not in names:
        raise FormatError(
            f"{path} holds the embeddings {', '.join(names)}, none called {name!r}.", "Use the word of one of them."
        )
    prefix = f"{_BUNDLE_PREFIX}{chosen}."
    tensors = {key.removeprefix(prefix): t for key, t in read_tensors(path).items() if key.startswith(prefix)}
    return EmbeddingFile(_from_dict(path, tensors).vectors, chosen)


def _from_dict(path: Path, content: Mapping[str, object]) -> EmbeddingFile:
    named = content.get("string_to_param")
    tensors = _tensors(named if isinstance(named, Mapping) else content)
    vectors = {key: _as_vectors(path, tensor) for key, tensor in _chosen(path, tensors).items()}
    base = content.get("sd_checkpoint_name") or content.get("sd_checkpoint")
    return EmbeddingFile(vectors, _name(path, content), _step(content), str(base) if base else None)


def _name(path: Path, content: Mapping[str, object]) -> str:
    """The file's stem, as the WebUI has it; a card is called by the name inside it."""
    inside = content.get("name")
    return inside if path.suffix.lower() == ".png" and isinstance(inside, str) else path.stem


def _step(content: Mapping[str, object]) -> int | None:
    step = content.get("step")
    return int(step) if isinstance(step, (int, str)) and str(step).isdigit() else None


def _tensors(content: Mapping[str, object]) -> dict[str, Tensor]:
    return {str(key): tensor for key, value in content.items() if (tensor := plain_tensor(value)) is not None}


def _chosen(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are the embedding, by the encoder they belong to."""
    by_encoder = {key: tensors[key] for key in ENCODER_KEYS if key in tensors}
    if by_encoder:
        return by_encoder
    if _ONETRAINER_KEY in tensors:
        return {"": tensors[_ONETRAINER_KEY]}
    if len(tensors) == 1:
        return {"": next(iter(tensors.values()))}
    some = ", ".join(sorted(tensors)[:3]) or "none"
    raise FormatError(f"{path} is not an embedding: it holds {len(tensors)} tensors ({some}), one is needed.", _HINT)


def _as_vectors(path: Path, tensor: Tensor) -> Tensor:
    if tensor.ndim not in (1, 2) or not tensor.is_floating_point() or tensor.numel() == 0:
        raise FormatError(
            f"{path} is not an embedding: its tensor is {tensor.dtype} of shape {tuple(tensor.shape)}, not (V, d).",
            _HINT,
        )
    return tensor.float().reshape(-1, tensor.shape[-1]).contiguous()


def _read_card(path: Path) -> dict[str, object]:
    """The embedding in a picture's text chunk: base64 of JSON, a tensor being {'TORCHTENSOR': nested lists}."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get(_CARD_CHUNK)
    except UnidentifiedImageError as error:
        raise FormatError(f"{path} is not a picture.", _HINT) from error
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}.", "Check the name and the folder."
        ) from error
    if not isinstance(text, str):
        raise FormatError(f"{path} is a picture without an embedding in it.", "Choose the original card.")
    try:
        return json.loads(base64.b64decode(text), object_hook=_card_tensor)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: the embedding in this picture is damaged.", "Choose the original card.") from error


def _card_tensor(entry: dict[str, object]) -> object:
    return torch.tensor(entry["TORCHTENSOR"]) if "TORCHTENSOR" in entry else entry
