"""A new or rewritten checkpoint in the host's list. Which model is loaded is the user's choice, and stays."""

from __future__ import annotations

from pathlib import Path

from ..errors import HostError
from ..ports import Published
from .folders import checkpoint_called

HINT = "Press the refresh button beside the list of checkpoints; if it stays away, look at the WebUI's log."


def publish_checkpoint(path: Path) -> Published:
    """List the host's checkpoints again and say how `path` is called there. Raises HostError."""
    from modules import sd_models

    sd_models.list_models()
    _keep_selection()
    for info in sd_models.checkpoints_list.values():
        if Path(info.filename).resolve() == path.resolve():
            return _listed(info.name, path)
    if path.is_dir():
        return Published("a folder for other programs: the WebUI lists files only", is_usable=False)
    raise HostError(f"{path.name} is not in the WebUI's list of checkpoints.", HINT)


def known_sha256(path: Path) -> str | None:
    """The hash that the host has kept of a checkpoint, if the file has the very time it had then. Reads no model.

    The host itself believes its hash of a file that was replaced by an older one. Of LoRAs it keeps other hashes, which
    leave out the header.
    """
    from modules import hashes, sd_models

    for info in tuple(sd_models.checkpoints_list.values()):
        if Path(info.filename).resolve() == path.resolve():
            kept = hashes.cache("hashes").get(f"checkpoint/{info.name}") or {}
            return kept.get("sha256") if kept.get("mtime") == path.stat().st_mtime else None
    return None


def _keep_selection() -> None:
    """The chosen title ends in the hash of a file that may be another now; what it names is the same file.

    A title that is in no list makes the host load the first checkpoint there is with the next picture.
    """
    from modules import sd_models, shared

    chosen = shared.opts.data.get("sd_model_checkpoint")
    if not chosen or chosen in sd_models.checkpoint_aliases:
        return
    found = checkpoint_called(chosen)
    if found is not None:
        shared.opts.data["sd_model_checkpoint"] = found.title


def _listed(name: str, path: Path) -> Published:
    """The host compares names only: a file that is loaded stays as it was read until another one was loaded."""
    if not _is_loaded(path):
        return Published(f"in the list of checkpoints as {name}: select it to use it", is_usable=True)
    text = f"in the list of checkpoints as {name}, but loaded as it was before: select another one, and then it again"
    return Published(text, is_usable=False)


def _is_loaded(path: Path) -> bool:
    from modules import sd_models

    data = sd_models.model_data
    infos = [getattr(model, "sd_checkpoint_info", None) for model in (data.sd_model, *_all_loaded(data))]
    return any(info is not None and Path(info.filename).resolve() == path.resolve() for info in infos)


def _all_loaded(data: object) -> tuple[object, ...]:
    """Forge keeps one model and has no list of them."""
    return tuple(getattr(data, "loaded_sd_models", ()))
