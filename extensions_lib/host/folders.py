"""The host's folders and checkpoints, and what of the disk may be named, from its own options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.artefacts import ARTEFACTS
from ..ports import AccessPolicy, BaseModel, HostFolders

WORK_FOLDER = "train-studio"


def folders() -> HostFolders:
    """Where results go by artefact kind, the checkpoints, and our own folder below the host's data."""
    from modules import paths_internal

    return HostFolders(
        results={kind: result_folder(kind) for kind in ARTEFACTS},
        checkpoints=result_folder("checkpoint"),
        work=Path(paths_internal.data_path) / WORK_FOLDER,
    )


def result_folder(kind: str) -> Path:
    """Where the host looks for results of a kind: one of `config.artefacts.ARTEFACTS`."""
    from modules import paths_internal, sd_models

    models = Path(paths_internal.models_path)
    flag, default = {
        "lora": ("lora_dir", models / "Lora"),
        "embedding": ("embeddings_dir", Path(paths_internal.data_path) / "embeddings"),
        "checkpoint": ("ckpt_dir", Path(sd_models.model_path)),
        "hypernetwork": ("hypernetwork_dir", models / "hypernetworks"),
    }[kind]
    return _flag(flag, default)


def model_folders(kind: str) -> tuple[Path, ...]:
    """Where the host looks for files of a kind that can be chosen: as `result_folder`, and 'vae'."""
    from modules import paths_internal

    models = Path(paths_internal.models_path)
    if kind == "vae":
        return tuple(folder for folder in (models / "VAE", _flag("vae_dir", None)) if folder is not None)
    further = (_flag("lyco_dir_backcompat", models / "LyCORIS"),) if kind == "lora" else ()
    return (result_folder(kind), *further)


def base_models() -> tuple[BaseModel, ...]:
    """The checkpoints in the order of the host's own list."""
    from modules import sd_models

    return tuple(BaseModel(info.title, Path(info.filename)) for info in tuple(sd_models.checkpoints_list.values()))


def loaded_model() -> Any | None:
    """The host's model if one is loaded; asking `shared.sd_model` would load one. Forge keeps a stand-in at first."""
    from modules import sd_models

    model = sd_models.model_data.sd_model
    return model if getattr(model, "sd_checkpoint_info", None) is not None else None


def selected_base_model() -> Path | None:
    """The chosen checkpoint, else the loaded one, else the first of the list. Loads nothing."""
    from modules import sd_models, shared

    chosen = getattr(shared.opts, "sd_model_checkpoint", None)
    found = checkpoint_called(chosen) if chosen else None
    if found is None:
        found = getattr(loaded_model(), "sd_checkpoint_info", None)
    if found is None:
        found = next(iter(sd_models.checkpoints_list.values()), None)
    return None if found is None else Path(found.filename)


def checkpoint_called(title: str) -> Any | None:
    """Titles end in ' [hash]' only once the host knows the hash; the host's own search would take a similar name."""
    from modules import sd_models

    aliases = sd_models.checkpoint_aliases
    return aliases.get(title) or aliases.get(title.rpartition(" [")[0])


def access(extra_roots: tuple[Path, ...]) -> AccessPolicy:
    """On a page that others can reach, only the host's folders and `extra_roots`, and no pickles by path.

    The same rule by which the host refuses to install extensions.
    """
    from modules import paths_internal, shared

    hide_paths = bool(getattr(shared.cmd_opts, "hide_ui_dir_config", False))
    if not is_open_to_others():
        return AccessPolicy(hide_paths=hide_paths)
    own = (
        Path(paths_internal.data_path), Path(paths_internal.models_path), *map(result_folder, ARTEFACTS),
        _flag("vae_dir", None),
    )  # fmt: skip
    roots = dict.fromkeys(folder.resolve() for folder in (*own, *extra_roots) if folder is not None)
    return AccessPolicy(roots=tuple(roots), allow_pickles=False, hide_paths=hide_paths)


def is_open_to_others() -> bool:
    """Whether other machines may reach the page and nobody said that they may do anything."""
    from modules import shared

    return bool(getattr(shared.cmd_opts, "disable_extension_access", True))


def _flag(name: str, default: Path | None) -> Any:
    from modules import shared

    value = getattr(shared.cmd_opts, name, None)
    return Path(value) if value else default
