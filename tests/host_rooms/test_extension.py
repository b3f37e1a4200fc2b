"""What is registered with the host, and that nothing of ours can keep it from starting."""

from __future__ import annotations

import logging
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from extensions_lib.errors import HostError
from extensions_lib.host import extension, requirements, settings
from extensions_lib.host.a1111 import WebuiHost
from extensions_lib.host.generation import REFUSAL

from .webui import Webui

ROOT = Path(__file__).resolve().parents[2]


class Callbacks:
    """The host's registry; it finds out who registers by looking at the stack."""

    def __init__(self, webui: Webui) -> None:
        self.registered: dict[str, list[tuple[Callable[..., Any], str]]] = {}
        names = ("on_ui_settings", "on_ui_tabs", "on_app_started")
        webui.module(
            "modules.script_callbacks",
            remove_callbacks_for_function=self.remove,
            **{name: self.adder(name) for name in names},
        )

    def adder(self, kind: str) -> Callable[..., None]:
        def add(callback: Callable[..., Any], *, name: str) -> None:
            self.registered.setdefault(kind, []).append((callback, name))

        return add

    def remove(self, callback: Callable[..., Any]) -> None:
        for kind, entries in self.registered.items():
            self.registered[kind] = [entry for entry in entries if entry[0] is not callback]


@pytest.fixture
def callbacks(webui: Webui) -> Callbacks:
    webui.module("modules.scripts", Script=object, AlwaysVisible=object())
    return Callbacks(webui)


@pytest.fixture
def studio(webui: Webui) -> Iterator[extension.Studio]:
    extension.studio.cache_clear()
    yield extension.studio()
    extension.studio.cache_clear()


def run_script() -> dict[str, Any]:
    """As the host does: a new module each time, not in sys.modules."""
    return runpy.run_path(str(ROOT / "scripts" / "train_studio.py"))


def test_the_script_registers_three_callbacks_once_however_often_it_runs(callbacks: Callbacks) -> None:
    first, second = run_script(), run_script()
    assert {kind: len(entries) for kind, entries in callbacks.registered.items()} == {
        "on_ui_settings": 1, "on_ui_tabs": 1, "on_app_started": 1,
    }  # fmt: skip
    assert first["TrainStudioScript"] is not second["TrainStudioScript"]


def test_statement_5_the_host_need_not_look_for_our_file(callbacks: Callbacks) -> None:
    """Asked by its public functions, it reads the stack, which takes it a tenth of a second for each callback."""
    script_callbacks = sys.modules["modules.script_callbacks"]
    script_callbacks.callback_map = {f"callbacks_{kind}": [] for kind in ("ui_settings", "ui_tabs", "app_started")}

    def add_callback(
        entries: list[Any], callback: Any, *, name: Any = None, category: str = "", filename: Any = None
    ) -> None:
        entries.append((callback, f"{Path(filename).name}/{category}/{name}"))

    script_callbacks.add_callback = add_callback
    run_script()
    assert callbacks.registered == {}
    assert script_callbacks.callback_map == {
        "callbacks_ui_settings": [(extension.on_ui_settings, "extension.py/ui_settings/train_studio")],
        "callbacks_ui_tabs": [(extension.on_ui_tabs, "extension.py/ui_tabs/train_studio")],
        "callbacks_app_started": [(extension.on_app_started, "extension.py/app_started/train_studio")],
    }


def test_the_script_is_short_and_adds_one_name_and_no_path(callbacks: Callbacks) -> None:
    """Statement 6."""
    assert len((ROOT / "scripts" / "train_studio.py").read_text(encoding="utf-8").splitlines()) <= 40
    paths, names = list(sys.path), {name.partition(".")[0] for name in sys.modules}
    run_script()
    assert sys.path == paths
    assert {name.partition(".")[0] for name in sys.modules} - names <= {"extensions_lib"}


def test_a_failure_of_ours_is_one_line_and_no_more(
    callbacks: Callbacks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(extension, "register", fail)
    with caplog.at_level(logging.INFO):
        assert run_script()["TrainStudioScript"] is None
    assert caplog.messages == ["Train Studio is not available: RuntimeError: no such thing"]


def test_an_old_python_is_told_so(callbacks: Callbacks, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert run_script()["TrainStudioScript"] is None
    assert callbacks.registered == {}
    assert "needs Python 3.10 or newer" in caplog.text


def test_the_tab_is_ours_by_label_and_ident(studio: extension.Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statement 9: no other tab has them."""
    bindings: list[Any] = []
    stub_paste(monkeypatch, bindings)
    [(tab, label, ident)] = extension.on_ui_tabs()
    assert (label, ident) == ("Train Studio", "train_studio")
    assert type(tab).__name__ == "Blocks"
    [binding] = bindings
    assert binding.tabname == "txt2img"


def stub_paste(monkeypatch: pytest.MonkeyPatch, bindings: list[Any]) -> None:
    module = SimpleNamespace(
        ParamBinding=lambda **fields: SimpleNamespace(**fields), register_paste_params_button=bindings.append
    )
    monkeypatch.setitem(sys.modules, "modules.infotext_utils", module)
    monkeypatch.setattr(sys.modules["modules"], "infotext_utils", module, raising=False)


def texts_of(tab: Any) -> list[str]:
    return [block.value for block in tab.blocks.values() if isinstance(getattr(block, "value", None), str)]


def test_statement_3_a_page_that_cannot_be_made_says_why(
    studio: extension.Studio, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from extensions_lib.ui import tab

    def fail(*args: Any, **options: Any) -> None:
        raise ImportError("cannot import <thing>")

    monkeypatch.setattr(tab, "build_tab", fail)
    [(notice, label, _ident)] = extension.on_ui_tabs()
    assert label == "Train Studio"
    assert "ImportError: cannot import &lt;thing&gt;" in texts_of(notice)[0]
    assert "Traceback" in caplog.text


def test_statement_3_missing_packages_are_named_with_the_way_to_get_them(
    webui: Webui, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert requirements.missing_error() is None
    monkeypatch.setitem(requirements.PACKAGES, "no_such_package_here", "no-such-package==1.0")
    with pytest.raises(HostError, match="not installed: no-such-package==1.0.") as caught:
        WebuiHost().exclusive()
    assert caught.value.hint.endswith(": pip install --no-deps no-such-package==1.0")
    assert not webui.lock._lock.locked()


def test_statement_3_the_tab_is_made_without_them_and_says_so(
    studio: extension.Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_paste(monkeypatch, [])
    monkeypatch.setitem(requirements.PACKAGES, "no_such_package_here", "no-such-package==1.0")
    [(tab, _label, _ident)] = extension.on_ui_tabs()
    assert any("not installed: no-such-package==1.0." in text for text in texts_of(tab))


def test_a_package_that_is_blocked_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert requirements.missing_packages() == ("diffusers==0.31.0",)


def test_the_studio_survives_a_reload_of_the_page(studio: extension.Studio) -> None:
    """Statement 14: the manager with its thread, and the secret open pages have."""
    assert extension.studio() is studio
    assert len(studio.page_secret) >= 32
    assert isinstance(studio.host, WebuiHost)


def test_statement_31_users_are_those_of_the_hosts_api(webui: Webui) -> None:
    assert extension.api_users() == ()
    webui.flags.api_auth = "ann:one:two,bob:three"
    assert extension.api_users() == (("ann", "one:two"), ("bob", "three"))


class Picture:
    """A `StableDiffusionProcessing`."""

    def __init__(self) -> None:
        self.comments: list[str] = []
        self.extra_generation_params: dict[str, str] = {}

    def comment(self, text: str) -> None:
        self.comments.append(text)


def generate(callbacks: Callbacks) -> Picture:
    picture = Picture()
    script = extension.generation_script()()
    assert script.show(is_img2img=False) is sys.modules["modules.scripts"].AlwaysVisible
    script.before_process(picture)
    return picture


def test_statement_19_a_picture_during_a_training_can_be_refused_with_an_explanation(
    webui: Webui, callbacks: Callbacks, studio: extension.Studio
) -> None:
    webui.shared.opts.data[settings.DURING_GENERATE] = settings.REFUSE
    assert generate(callbacks).comments == []
    assert not webui.shared.state.interrupted
    with studio.host.exclusive():
        studio.host.lease._is_lent = True
        picture = generate(callbacks)
        assert (picture.comments, picture.extra_generation_params) == ([REFUSAL], {"Train Studio": REFUSAL})
        assert webui.shared.state.interrupted
        studio.host.lease._is_lent = False


def test_statement_19_a_picture_that_slipped_in_gets_the_hosts_model(
    webui: Webui, callbacks: Callbacks, studio: extension.Studio
) -> None:
    model = webui.load(webui.root / "base.safetensors")
    with studio.host.exclusive():
        assert model.device == "cpu"
        studio.host.lease._is_lent = True
        assert generate(callbacks).comments == []
        assert model.device == "cuda"
        studio.host.lease._is_lent = False
    assert not webui.shared.state.interrupted


def test_statement_5_importing_and_registering_is_quick_and_without_torch() -> None:
    import subprocess

    script = (
        "import sys, time; started = time.process_time(); import extensions_lib.host.extension; "
        "print(time.process_time() - started < 0.3, 'torch' in sys.modules, 'gradio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]
