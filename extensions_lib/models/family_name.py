"""Which family's start values suit a base model, told in milliseconds: no weights are read and none are built."""

from __future__ import annotations

import zipfile
from functools import lru_cache
from pathlib import Path

from ..errors import ModelError
from ..formats.safetensors_io import read_header
from .detect import detect_family
from .family import SD1, SD2, SDXL, ModelFamily
from .prediction import known_prediction_type

V_SUFFIX = "_v"
_SIZE_CONDITIONING = "model.diffusion_model.label_emb."
_MAX_PICKLE_BYTES = 64 * 2**20


def family_name(path: Path) -> str:
    """'sd1', 'sd2' or 'sdxl', with '_v' for v-prediction, of a .safetensors or .ckpt file or a diffusers folder.

    SD 2 without a yaml or marker, which only its weights would tell, is 'sd2_v', as most of its checkpoints are.
    Raises ModelError when the file is missing or is no base model.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"The model {path} does not exist.", "Check the name and the folder.") from error
    return _family_name(path, stat.st_mtime_ns, _yaml_time(path))


def _yaml_time(path: Path) -> int:
    yaml = path.with_suffix(".yaml")
    return yaml.stat().st_mtime_ns if yaml.is_file() else 0


@lru_cache(maxsize=64)
def _family_name(path: Path, changed_at: int, yaml_changed_at: int) -> str:
    if path.is_dir():
        from .load import outline_bundle

        family = outline_bundle(path).family
        return _name(family, family.prediction_type)
    if path.suffix.lower() != ".safetensors":
        family = _family_of_pickle(path)
        return _name(family, known_prediction_type(path, {}, family))
    header = read_header(path)[0]
    family = detect_family(header, path.name)
    return _name(family, known_prediction_type(path, header, family))


def _name(family: ModelFamily, prediction_type: str | None) -> str:
    is_v = prediction_type == "v_prediction" if prediction_type else family.is_probed
    return family.name + (V_SUFFIX if is_v else "")


def _family_of_pickle(path: Path) -> ModelFamily:
    """By the names in the pickle of a zip file, which is not unpickled. Raises ModelError for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if entry.file_size > _MAX_PICKLE_BYTES:
                raise ModelError(f"{path.name} is no model we know.", "Choose a .safetensors file.")
            content = archive.read(entry)
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        message = f"What {path.name} is can be told only by loading it."
        raise ModelError(message, "Choose a .safetensors file.") from error
    if any(name.encode() in content for name in (SDXL.text_encoders[1].prefix, _SIZE_CONDITIONING)):
        return SDXL
    return SD2 if SD2.text_encoders[0].prefix.encode() in content else SD1
