"""Making a result usable in the prompt at once, and asking the host whether it is. With the queue lock held.

The host keeps what it read before: file lists, weights with a LoRA already added, encoded prompts. Whatever belongs to
a rewritten file must go, or the next picture shows the old one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import HostError
from ..ports import Published
from .checkpoints import publish_checkpoint
from .detect import A1111, FORGE
from .folders import loaded_model, result_folder
from .hypernetworks import publish_hypernetwork
from .loras import take_loras_out

MISSED_LORA_HINT = "Press the refresh button of the LoRA cards; if it stays away, look at the WebUI's log."
FORGE_TEXT_ENGINES = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")


def publish(path: Path, kind: str, num_modules: int, host_name: str) -> Published:
    """Refresh the host's list for a result of this kind and say how it sees the file. Raises HostError."""
    outside = _outside_of_folder(path, kind)
    if outside is not None:
        return outside
    try:
        published = _PUBLISHERS[kind](path, num_modules, host_name)
    except Exception as error:
        raise HostError(
            f"{host_name} could not take in {path.name}: {type(error).__name__}: {error}",
            "The file is complete. Press the refresh button of its list, or restart the WebUI.",
        ) from error
    clear_encoded_prompts()
    return published


def clear_encoded_prompts() -> None:
    """Prompts are cached by their text, whatever the embedding or LoRA in them now contains."""
    from modules import processing

    for cls in (processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            cached = vars(cls).get(name)
            if cached is not None:
                setattr(cls, name, [None] * len(cached))


def _outside_of_folder(path: Path, kind: str) -> Published | None:
    folder = result_folder(kind)
    if path.resolve().is_relative_to(folder.resolve()):
        return None
    return Published(f"saved outside of the WebUI's folder: copy it to {folder} to use it", is_usable=False)


def _publish_lora(path: Path, num_modules: int, host_name: str) -> Published:
    try:
        import networks
    except ImportError:
        return Published("the WebUI's built-in Lora extension is switched off", is_usable=False)
    networks.list_available_networks()
    listed = networks.available_networks.get(path.stem)
    if listed is None:
        raise HostError(f"{path.stem} is not in the WebUI's list of LoRAs.", MISSED_LORA_HINT)
    if Path(listed.filename).resolve() != path.resolve():
        return Published(f"hidden by another file of the same name: {listed.filename}", is_usable=False)
    tag = f"visible as <lora:{path.stem}:1>"
    model = loaded_model()
    if model is None:
        return Published(f"{tag}; no checkpoint is loaded yet", is_usable=True)
    if host_name != A1111:
        networks.load_lora_state_dict.cache_clear()
        model.current_lora_hash = ""
        return Published(tag, is_usable=True)
    take_loras_out(networks, model)
    networks.networks_in_memory.pop(path.stem, None)
    num_matched = len(networks.load_network(path.stem, listed).modules)
    if num_matched == 0:
        title = model.sd_checkpoint_info.title
        return Published(f"{tag}, but made for another kind of model than {title}, which is loaded", is_usable=False)
    count = f"{num_matched} of {num_modules}" if num_modules else f"{num_matched}"
    return Published(f"{tag}, {count} modules matched", is_usable=num_matched >= num_modules)


def _publish_embedding(path: Path, num_modules: int, host_name: str) -> Published:
    """Take in this one file: reading all of them again would need the model on the device to learn its width."""
    if host_name == FORGE:
        return _publish_embedding_on_forge(path)
    from modules import sd_hijack

    if loaded_model() is None:
        return Published(f"usable as {path.stem} when a checkpoint is loaded", is_usable=True)
    database = sd_hijack.model_hijack.embedding_db
    for known in (database.word_embeddings, database.skipped_embeddings):
        hiding = known.get(path.stem)
        if hiding is not None and _is_another_file(hiding, path):
            return Published(f"hidden by another file of the same name: {hiding.filename}", is_usable=False)
    database.skipped_embeddings.pop(path.stem, None)
    database.load_from_file(str(path), path.name)
    return _embedding_answer(path.stem, database)


def _is_another_file(embedding: Any, path: Path) -> bool:
    filename = getattr(embedding, "filename", None)
    return bool(filename) and Path(filename).is_file() and Path(filename).resolve() != path.resolve()


def _publish_embedding_on_forge(path: Path) -> Published:
    """Forge keeps one database for the page's cards and one in each text encoder of the loaded model."""
    from modules import ui_extra_networks_textual_inversion as page

    page.embedding_db.load_textual_inversion_embeddings(force_reload=True, sync_with_sd_model=False)
    model = loaded_model()
    engines = [engine for name in FORGE_TEXT_ENGINES if (engine := getattr(model, name, None)) is not None]
    if not engines:
        return Published(f"usable as {path.stem} when a checkpoint is loaded", is_usable=True)
    for engine in engines:
        engine.embeddings.load_textual_inversion_embeddings()
    return _embedding_answer(path.stem, engines[0].embeddings)


def _embedding_answer(name: str, database: Any) -> Published:
    embedding = database.word_embeddings.get(name)
    if embedding is not None:
        return Published(f"visible as {name}, {_count(embedding.vectors, 'vector')}", is_usable=True)
    skipped = database.skipped_embeddings.get(name)
    if skipped is None:
        raise HostError(f"{name} is not in the WebUI's list of embeddings.")
    return Published(
        f"skipped: its vectors are {skipped.shape} wide, the loaded checkpoint needs {database.expected_shape}",
        is_usable=False,
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


_PUBLISHERS: dict[str, Callable[[Path, int, str], Published]] = {
    "lora": _publish_lora,
    "embedding": _publish_embedding,
    "checkpoint": lambda path, num_modules, host_name: publish_checkpoint(path),
    "hypernetwork": publish_hypernetwork,
}
