"""AUTOMATIC1111's model on the device: it stays where it is put, and nothing in the host brings it back by itself."""

from __future__ import annotations

from ..errors import HostError

RESTORE_HINT = "Choose the checkpoint again in the WebUI, or restart it, before you generate."


class A1111Memory:
    """Moves the loaded checkpoints off the device and the current one back onto it."""

    def is_loading(self) -> bool:
        """The first load runs in a thread of its own; while it does, torch makes modules without weights."""
        from modules import sd_models

        return sd_models.model_data.lock.locked()

    def free(self) -> None:
        """Move every loaded checkpoint to main memory. Nothing to do on the CPU. Raises HostError."""
        from modules import devices, sd_models, sd_unet

        if devices.device.type == "cpu":
            return
        try:
            if sd_unet.current_unet is not None:
                sd_unet.apply_unet("None")
            for model in sd_models.model_data.loaded_sd_models:
                sd_models.send_model_to_cpu(model)
        except Exception as error:
            raise HostError(f"The WebUI's model could not be moved off {devices.device}: {error}") from error
        devices.torch_gc()

    def restore(self) -> None:
        """Move the current checkpoint back. Nothing to do on the CPU. Raises HostError."""
        from modules import devices, sd_models

        model = sd_models.model_data.sd_model
        if devices.device.type == "cpu" or model is None:
            return
        devices.torch_gc()
        try:
            sd_models.send_model_to_device(model)
        except Exception as error:
            raise HostError(
                f"The WebUI's model could not be moved back to {devices.device}: {error}", RESTORE_HINT
            ) from error
