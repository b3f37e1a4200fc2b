"""A new or rewritten hypernetwork in the host's list, read by the host's own loader with its check of pickles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import HostError
from ..ports import Published
from .detect import A1111
from .folders import loaded_model

HINT = "Press the refresh button of the hypernetwork cards; if it stays away, look at the WebUI's log."


def publish_hypernetwork(path: Path, num_modules: int, host_name: str) -> Published:
    """List the host's hypernetworks again, forget what it read under this name, and say what it matches.

    `num_modules` counts the attentions of the model whose width the file should have. Raises HostError.
    """
    if host_name != A1111:
        return Published(f"{host_name} never applies hypernetworks", is_usable=False)
    from modules import shared
    from modules.hypernetworks import hypernetwork

    shared.reload_hypernetworks()
    listed = shared.hypernetworks.get(path.stem)
    if listed is None:
        raise HostError(f"{path.stem} is not in the WebUI's list of hypernetworks.", HINT)
    if Path(listed).resolve() != path.resolve():
        return Published(f"hidden by another file of the same name: {listed}", is_usable=False)
    # In place: the host's attentions hold this very list, and take from it by name what they know already.
    shared.loaded_hypernetworks[:] = [one for one in shared.loaded_hypernetworks if one.name != path.stem]
    loaded = hypernetwork.load_hypernetwork(path.stem)
    if loaded is None:
        raise HostError("the WebUI's own loader refuses the file", "Its log says why.")
    return _matched(path.stem, tuple(loaded.layers), num_modules)


def _matched(name: str, widths: tuple[int, ...], num_modules: int) -> Published:
    tag = f"visible as <hypernet:{name}:1>"
    model = loaded_model()
    if model is None:
        return Published(f"{tag}; no checkpoint is loaded yet", is_usable=True)
    num_matched = sum(width in widths for width in _attention_widths(model))
    if num_matched == 0:
        title = model.sd_checkpoint_info.title
        return Published(f"{tag}, but made for another kind of model than {title}, which is loaded", is_usable=False)
    return Published(f"{tag}, {num_matched} of {num_modules} modules matched", is_usable=num_matched >= num_modules)


def _attention_widths(model: Any) -> list[int]:
    """What each attention of the UNet takes its keys from: the width by which the host looks a hypernetwork up."""
    return [
        module.to_k.in_features
        for module in model.model.diffusion_model.modules()
        if type(module).__name__ == "CrossAttention"
    ]
