"""What is tried in the WebUI's model now, as HTML."""

from __future__ import annotations

from html import escape

from ..ports import Trials
from .markup import button, part, progress_bar

UNDO = "Undo the trial"


def trial_html(trials: Trials) -> str:
    """What is tried, with the button that ends it; '' when nothing is and there is nothing to say."""
    status = trials.current()
    if trials.refusal or (status.state == "none" and not status.text):
        return ""
    undo = button(UNDO, post="trial/undo", style="stop")
    title, model = escape(status.title), escape(status.model)
    problem = f"<p>{escape(status.text)}</p>" if status.text else ""
    if status.state == "none":
        return part("trial", problem)
    if status.state == "on":
        said = f"<p><strong>On trial:</strong> {title}, in place of {model}. Generate draws with it.</p>"
        return part("trial", f"{said}{problem}{undo}")
    if status.state == "undoing":
        return part("trial", f"<p>Taking {title} out of {model}.</p>", data_ts_active=True)
    done = status.done if status.done else None
    bar = progress_bar(done, status.total, f"{status.done} of {status.total} tensors")
    return part("trial", f"<p>Putting {title} in place of {model}.</p>{bar}{undo}", data_ts_active=True)
