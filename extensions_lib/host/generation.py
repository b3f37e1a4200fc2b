"""A picture that somebody generates while a training runs."""

from __future__ import annotations

from typing import Any

from . import settings
from .lease import Lease

REFUSAL = (
    "No picture: a training of Train Studio is running, and the settings say that it is not to be interrupted. "
    "Stop or pause it in the Train Studio tab, or choose 'pause the training' in Settings, Train Studio."
)


def before_generation(lease: Lease, processing: Any) -> None:
    """Called by the thread that is about to generate, with the queue lock in its hands."""
    if not lease.is_lent:
        return
    if settings.refuses_generation():
        from modules import shared

        shared.state.interrupted = True
        # The page shows comments, the API only parameters.
        processing.comment(REFUSAL)
        processing.extra_generation_params["Train Studio"] = REFUSAL
    else:
        lease.make_room()
