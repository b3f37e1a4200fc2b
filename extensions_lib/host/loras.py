"""The LoRAs that the built-in Lora extension leaves in the weights of the host's layers after a picture."""

from __future__ import annotations

from typing import Any


def take_loras_out(networks: Any, model: Any) -> None:
    """The layers keep the weights of the last generation's LoRAs, and compare only names before they do so again."""
    import torch

    with torch.no_grad():
        for module in _layers(model):
            if getattr(module, "network_current_names", ()):
                networks.network_restore_weights_from_backup(module)
                module.network_current_names = ()


def forget_backups(model: Any) -> None:
    """The layers keep what they were before the first LoRA, and would go back to it after the next."""
    for module in _layers(model):
        module.network_current_names = ()
        module.network_weights_backup = None
        module.network_bias_backup = None


def _layers(model: Any) -> tuple[Any, ...]:
    return tuple(getattr(model, "network_layer_mapping", {}).values())
