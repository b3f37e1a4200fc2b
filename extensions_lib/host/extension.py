"""Registers Train Studio with the WebUI, which runs our script again at every Reload UI; this module stays loaded."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..ports import Credentials
from .a1111 import WebuiHost
from .requirements import missing_error

if TYPE_CHECKING:
    from ..jobs.manager import JobManager

logger = logging.getLogger(__name__)

TITLE = "Train Studio"
IDENT = "train_studio"


@dataclass(frozen=True)
class Studio:
    """What outlives the page: the job manager with its thread, and the secret by which pages are known."""

    host: WebuiHost
    manager: JobManager
    page_secret: str


@lru_cache(maxsize=1)
def studio() -> Studio:
    """The one of this process."""
    from ..jobs.manager import JobManager

    host = WebuiHost()
    return Studio(host, JobManager(host), secrets.token_urlsafe(32))


def register() -> None:
    """Add our callbacks to the host; those of an earlier load are replaced."""
    from modules import script_callbacks

    for kind, callback in (
        ("ui_settings", on_ui_settings),
        ("ui_tabs", on_ui_tabs),
        ("app_started", on_app_started),
    ):
        script_callbacks.remove_callbacks_for_function(callback)
        _add_callback(kind, callback)


def _add_callback(kind: str, callback: Callable[..., Any]) -> None:
    """Say which file it comes from: the host would look for it on the stack, a tenth of a second each time."""
    from modules import script_callbacks

    add = getattr(script_callbacks, "add_callback", None)
    if "filename" in (getattr(add, "__kwdefaults__", None) or {}):
        callbacks = script_callbacks.callback_map[f"callbacks_{kind}"]
        add(callbacks, callback, name=IDENT, category=kind, filename=__file__)
    else:
        getattr(script_callbacks, f"on_{kind}")(callback, name=IDENT)


def generation_script() -> type:
    """The host's kind of script that is asked before every picture."""
    from modules import scripts

    class TrainStudioScript(scripts.Script):
        """Has no controls."""

        def title(self) -> str:
            """Its name in lists."""
            return TITLE

        def show(self, is_img2img: bool) -> Any:
            """On both pages, whatever script is chosen there."""
            return scripts.AlwaysVisible

        def before_process(self, p: Any, *args: Any) -> None:
            """Before anything of a picture is computed."""
            from .generation import before_generation

            before_generation(studio().host, p)

        def process(self, p: Any, *args: Any) -> None:
            """Before anything of a picture is computed, with the settings and the model that it asked for."""
            from .generation import mark_trial

            mark_trial(studio().host, p)

    return TrainStudioScript


def on_ui_settings() -> None:
    """Add our settings page."""
    from .detect import host_name
    from .settings import add_settings

    add_settings(host_name())


def on_ui_tabs() -> list[tuple[Any, str, str]]:
    """Our tab; when it cannot be made, one that says why. Never keeps the host from starting."""
    try:
        from ..ui.tab import build_tab

        ours = studio()
        tab = build_tab(ours.manager, ours.host, ours.page_secret, WebuiExtras(), note=str(missing_error() or ""))
    except Exception as error:
        logger.exception("Train Studio could not make its tab")
        tab = _notice(error)
    return [(tab, TITLE, IDENT)]


def on_app_started(demo: Any | None, app: Any) -> None:
    """Add our routes to the host's server, which is a new one after every Reload UI."""
    from ..api.routes import add_routes
    from ..ui.live import LivePage

    ours = studio()
    credentials = Credentials(api_users(), ours.page_secret)
    add_routes(app, ours.manager, ours.host, credentials, LivePage(ours.manager, ours.host).fragment)


def api_users() -> tuple[tuple[str, str], ...]:
    """Users and passwords of --api-auth, as the host splits them."""
    from modules import shared

    given = getattr(shared.cmd_opts, "api_auth", None) or ""
    pairs = (pair.partition(":") for pair in given.split(",") if pair)
    return tuple((user, password) for user, _, password in pairs)


class WebuiExtras:
    """What the WebUI adds to our page."""

    def connect_paste(self, textbox: Any, button: Any) -> None:
        """Let `button` put the parameters in `textbox` into txt2img; only while the tabs are being made."""
        from modules import infotext_utils

        binding = infotext_utils.ParamBinding(
            paste_button=button, tabname="txt2img", source_text_component=textbox, source_image_component=None
        )
        infotext_utils.register_paste_params_button(binding)


def _notice(error: Exception) -> Any:
    from ..ui.webui_page import notice_tab

    lines = [f"Train Studio could not make its page: {type(error).__name__}: {error}"]
    missing = missing_error()
    return notice_tab(lines if missing is None else [*lines, str(missing)])
