"""A picture that somebody generates while a training runs, or while a merge is on trial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import settings
from .trial import WebuiTrials

if TYPE_CHECKING:
    from .a1111 import WebuiHost

REFUSAL = (
    "No picture: a training of Train Studio is running, and the settings say that it is not to be interrupted. "
    "Stop or pause it in the Train Studio tab, or choose 'pause the training' in Settings, Train Studio."
)


def before_generation(host: WebuiHost, processing: Any) -> None:
    """Called by the thread that is about to generate, with the queue lock in its hands."""
    lease = host.lease
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


def mark_trial(host: WebuiHost, processing: Any) -> None:
    """Called by the thread that generates when the picture's own settings, its checkpoint too, are in force."""
    if isinstance(host.trials, WebuiTrials):
        host.trials.mark(processing)
