"""Our page in the host's settings."""

from __future__ import annotations

from pathlib import Path

from .detect import FORGE
from .folders import is_open_to_others

SECTION = ("train_studio", "Train Studio")
CATEGORY = "training"
DURING_GENERATE = "train_studio_during_generate"
PAUSE = "pause the training"
REFUSE = "refuse with an explanation"
DATASET_ROOTS = "train_studio_dataset_roots"
HIDE_TRAIN_TAB = "train_studio_hide_train_tab"
TRAIN_TAB = "Train"


def add_settings(host_name: str) -> None:
    """Declare our settings, once for every page the host builds."""
    from modules import shared

    from ..ui.webui_page import radio_setting

    def add(key: str, **fields: object) -> None:
        info = shared.OptionInfo(section=SECTION, category_id=CATEGORY, **fields)
        shared.opts.add_option(key, info)

    add(
        DURING_GENERATE,
        default=PAUSE,
        label="When somebody generates while a training runs",
        **radio_setting([PAUSE, REFUSE]),
    )
    # Whoever the roots are meant to keep out must not be able to change them.
    add(
        DATASET_ROOTS,
        default="",
        label="More folders with training pictures, separated by ;  (matter with --listen or --share only)",
        component_args={"visible": not is_open_to_others()},
        restrict_api=True,
    )
    if host_name != FORGE:
        add(
            HIDE_TRAIN_TAB,
            default=False,
            label="Hide the WebUI's built-in Train tab",
            onchange=_apply_hide_train_tab,
        )
        shared.opts.data_labels[HIDE_TRAIN_TAB].needs_reload_ui()
        shared.opts.data[HIDE_TRAIN_TAB] = TRAIN_TAB in shared.opts.hidden_tabs


def refuses_generation() -> bool:
    """Whether a generation during a training is refused rather than let in."""
    from modules import shared

    return shared.opts.data.get(DURING_GENERATE, PAUSE) == REFUSE


def dataset_roots() -> tuple[Path, ...]:
    """The folders the owner of the machine added."""
    from modules import shared

    text = shared.opts.data.get(DATASET_ROOTS, "")
    return tuple(Path(part.strip()) for part in text.split(";") if part.strip())


def _apply_hide_train_tab() -> None:
    """Our switch is a second handle on the host's own list of hidden tabs."""
    from modules import shared

    hidden = [label for label in shared.opts.hidden_tabs if label != TRAIN_TAB]
    if shared.opts.data[HIDE_TRAIN_TAB]:
        hidden.append(TRAIN_TAB)
    shared.opts.hidden_tabs = hidden
