"""The same tensors under another header: titles, tags, private facts. The tensors are copied and compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..config.files import MetadataConfig
from ..control import JobControl
from ..errors import FormatError, ModelError, OutputError
from ..events import Warned
from ..formats.atomic import write_file_atomic
from ..formats.hashes import data_section_sha256
from ..formats.metadata_edit import (
    WRITTEN_FIELDS,
    copy_data,
    with_fields,
    with_right_hashes,
    without_keys,
    without_private,
)
from ..formats.recognise import recognise
from ..formats.safetensors_io import header_with_metadata, read_header
from ..models.sibling import sibling_path
from .description import check_description, write_description
from .plan import check_output
from .progress import Emit, Progress

_MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Edited:
    """The written file, what it is (as `recognise` says), and what changed, for the user."""

    path: Path
    kind: str
    text: str
    yaml: Path | None = None


def edit_metadata(config: MetadataConfig, control: JobControl, emit: Emit) -> Edited:
    """Write the file under its new name, or in its own place where that is named and overwriting allowed.

    First what is private goes, then what is to be removed, then what is given is set. Hashes in the header are put
    right. Raises FormatError for anything but a sound .safetensors file; JobStopped; otherwise as `write_file_atomic`.
    """
    path, output = Path(config.file), Path(config.folder) / f"{config.name}.safetensors"
    if path.suffix.lower() != ".safetensors":
        raise FormatError(f"{path.name} has no metadata: only .safetensors files have.", "Convert it first.")
    infos, before = read_header(path)
    is_own_place = output.exists() and output.samefile(path)
    check_output(output, [] if is_own_place else [path], path.stat().st_size, overwrite=config.overwrite)
    try:
        after = _changed(before, config, path, emit)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.", "Check the disk.") from error
    kind, description = recognise(infos).kind, _description(path)
    is_elsewhere = kind in ("checkpoint", "unet") and not is_own_place
    if is_elsewhere:
        check_description(output, description, overwrite=config.overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    _write(path, output, after, Progress("copy (MiB)", path.stat().st_size // _MEGABYTE, control, emit), config)
    yaml = write_description(output, description, overwrite=config.overwrite) if is_elsewhere else None
    return Edited(output, kind, _told(before, after), yaml)


def _description(path: Path) -> bytes | None:
    yaml = sibling_path(path)
    return yaml.read_bytes() if yaml.is_file() else None


def _changed(before: dict[str, str], config: MetadataConfig, path: Path, emit: Emit) -> dict[str, str]:
    kept = without_private(before) if config.private else before
    patterns = [text.strip() for text in config.remove.replace("\n", ",").split(",") if text.strip()]
    unknown = [pattern for pattern in patterns if len(without_keys(before, [pattern])) == len(before)]
    if unknown:
        emit(Warned(text=f"There was nothing to take out for {', '.join(unknown)}."))
    given = {name: getattr(config, name) for name in WRITTEN_FIELDS}
    return with_right_hashes({**with_fields(without_keys(kept, patterns), given), **config.entries()}, path)


def _write(path: Path, output: Path, metadata: dict[str, str], progress: Progress, config: MetadataConfig) -> None:
    header = header_with_metadata(path, metadata)
    digests: list[str] = []

    def write(file: BinaryIO) -> None:
        def count(block: bytes) -> None:
            file.write(block)
            progress.advance(len(block) // _MEGABYTE)

        file.write(header)
        digests.append(copy_data(path, count))

    def check(temporary: Path) -> None:
        if data_section_sha256(temporary) != digests[0]:
            raise OutputError(f"{output} could not be written: the tensors read back differ.", "Check the disk.")

    write_file_atomic(output, write, check, overwrite=config.overwrite)


def _told(before: dict[str, str], after: dict[str, str]) -> str:
    lists = {
        "Set": [key for key in after if key not in before],
        "Changed": [key for key in after if key in before and after[key] != before[key]],
        "Taken out": [key for key in before if key not in after],
    }
    told = [f"{title}: {', '.join(sorted(keys))}." for title, keys in lists.items() if keys]
    return "\n".join(told) or "Nothing changed."
