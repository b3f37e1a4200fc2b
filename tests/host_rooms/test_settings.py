"""Our settings page."""

from __future__ import annotations

import pytest

from extensions_lib.host import settings
from extensions_lib.host.settings import add_settings, refuses_generation

from .webui import Webui


def test_settings_are_declared_with_their_defaults(webui: Webui) -> None:
    add_settings("AUTOMATIC1111")
    assert webui.shared.opts.data == {
        "hidden_tabs": [],
        "train_studio_during_generate": "pause the training",
        "train_studio_dataset_roots": "",
        "train_studio_hide_train_tab": False,
    }
    sections = {info.fields["section"] for info in webui.shared.opts.data_labels.values()}
    assert sections == {("train_studio", "Train Studio")}


def test_the_first_look_comes_before_the_settings_exist(webui: Webui) -> None:
    assert not refuses_generation()
    assert settings.dataset_roots() == ()


def test_refusing_can_be_chosen(webui: Webui) -> None:
    add_settings("AUTOMATIC1111")
    webui.shared.opts.data[settings.DURING_GENERATE] = "refuse with an explanation"
    assert refuses_generation()


@pytest.mark.parametrize("is_open", [True, False])
def test_statement_32_those_kept_out_cannot_let_themselves_in(webui: Webui, is_open: bool) -> None:
    """The host refuses to change a setting whose control is not visible, and one restricted from the API."""
    webui.flags.disable_extension_access = is_open
    add_settings("AUTOMATIC1111")
    info = webui.shared.opts.data_labels[settings.DATASET_ROOTS]
    assert info.component_args == {"visible": not is_open}
    assert info.fields["restrict_api"]


def test_statement_9_the_built_in_train_tab_is_hidden_through_the_hosts_own_list(webui: Webui) -> None:
    opts = webui.shared.opts
    opts.hidden_tabs = ["Extras"]
    add_settings("AUTOMATIC1111")
    opts.set(settings.HIDE_TRAIN_TAB, True)
    assert opts.hidden_tabs == ["Extras", "Train"]
    opts.set(settings.HIDE_TRAIN_TAB, False)
    assert opts.hidden_tabs == ["Extras"]


def test_our_switch_follows_the_hosts_list(webui: Webui) -> None:
    webui.shared.opts.hidden_tabs = ["Train"]
    add_settings("AUTOMATIC1111")
    assert webui.shared.opts.data[settings.HIDE_TRAIN_TAB] is True


def test_forge_has_no_train_tab_to_hide(webui: Webui) -> None:
    add_settings("Forge")
    assert settings.HIDE_TRAIN_TAB not in webui.shared.opts.data_labels
