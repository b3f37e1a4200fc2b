"""The script and the style of the page: good citizens in somebody else's page."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "javascript" / "train_studio.js"
STYLE = ROOT / "style.css"
PAGE = Path(__file__).with_name("page.html")
TAB = "#tab_train_studio"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def selectors(css: str) -> Iterator[str]:
    """Every selector of a style sheet, those inside @media and @supports too. Raises ValueError when it is torn."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    depth, head = [], ""
    for sign in css:
        if sign == "{":
            is_group = head.strip().startswith(("@media", "@supports"))
            if not is_group:
                yield from (selector.strip() for selector in re.split(r",(?![^(]*\))", head))
            depth.append(is_group)
            head = ""
        elif sign == "}":
            depth.pop()
            head = ""
        elif sign == ";" and not (depth and not depth[-1]):
            raise ValueError(f"A statement outside any rule: {head.strip()!r}.")
        else:
            head += sign
    if depth or head.strip():
        raise ValueError(f"The sheet ends within a rule: {head.strip()!r}.")


def test_statement_11_every_selector_begins_with_our_tab() -> None:
    found = list(selectors(STYLE.read_text(encoding="utf-8")))
    assert len(found) > 50
    assert [selector for selector in found if not re.match(rf"{TAB}(?![\w-])", selector)] == []


@pytest.mark.parametrize(
    ("css", "expected"),
    [
        ("a, #x b:is(i, u) { top: 0; } /* c { } */ d{}", ["a", "#x b:is(i, u)", "d"]),
        ("@media (x) { a { top: 0 } @supports (y) { b {} } } c {}", ["a", "b", "c"]),
        ("@keyframes spin { from {} }", ["@keyframes spin", "from"]),
    ],
)
def test_the_test_finds_selectors(css: str, expected: list[str]) -> None:
    assert list(selectors(css)) == expected


@pytest.mark.parametrize("css", ["@import url(x);", "a {", "a { } b"])
def test_the_test_finds_what_is_no_rule(css: str) -> None:
    with pytest.raises(ValueError, match="outside any rule|within a rule"):
        list(selectors(css))


def test_classes_in_the_pages_code_are_ours() -> None:
    for path in sorted((ROOT / "extensions_lib" / "ui").glob("*.py")):
        for names in re.findall(r'class="([\w -]+)"', path.read_text(encoding="utf-8")):
            assert all(name.startswith("ts-") for name in names.split()), (path.name, names)


def test_statement_11_the_script_is_one_expression_with_one_name() -> None:
    code = re.sub(r"^\s*//.*$", "", SCRIPT.read_text(encoding="utf-8"), flags=re.MULTILINE).strip()
    assert re.match(r"window\.trainStudio = window\.trainStudio \|\| \(\(\) => \{\n    \"use strict\";", code)
    assert code.endswith("})();")
    assert set(re.findall(r"\bwindow\.(\w+) =(?!=)", code)) == {"trainStudio"}


def test_statement_12_the_script_listens_to_no_keys() -> None:
    assert not re.search(r"key(down|up|press)|accesskey|onkey", SCRIPT.read_text(encoding="utf-8"), re.IGNORECASE)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script did in a real browser; see page.html."""
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    folder = tmp_path_factory.mktemp("page")
    page = folder / "page.html"
    page.write_text(PAGE.read_text(encoding="utf-8").replace("SCRIPT", SCRIPT.as_uri()), encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=120000",
        f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(html.unescape(re.search(r'<pre id="report">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert "error" not in found, found["error"]
    return found


def test_statement_11_the_script_defines_one_global(report: dict[str, Any]) -> None:
    assert report["globals"] == ["trainStudio"]


def test_root_may_appear_later(report: dict[str, Any]) -> None:
    assert report["requestsWithoutRoot"] == 0
    assert report["foundLater"] == "first"
    assert [request[:2] for request in report["firstRequests"]] == [
        ["GET", "./train-studio/v1/page/live?selected=&seen="],
        ["GET", "./train-studio/v1/page/history?selected=&seen="],
    ]
    assert report["firstRequests"][0][3] == {"X-Train-Studio-Page": "1"}


def test_only_what_changed_is_replaced_and_the_view_stays(report: dict[str, Any]) -> None:
    assert report["newStripAtItsEnd"] > 300
    assert report["afterChange"] == {
        "isSameHead": True,
        "isOpen": True,
        "text": "s2",
        "left": 30,
        "focus": "SUMMARY",
        "order": ["head", "older", "new"],
    }
    assert sorted(report["removed"]) == ["head", "new"]


def test_what_is_being_typed_or_selected_is_left_alone(report: dict[str, Any]) -> None:
    assert report["whileTyping"] == ["Goold", "changed"]
    assert report["afterTyping"] == ["Gochanged", "24"]
    assert report["whileSelected"] == "changed"
    assert report["afterSelected"] == "third"


def test_buttons_post_json_with_the_fields_beside_them(report: dict[str, Any]) -> None:
    ((method, url, body, headers),) = report["posted"]
    assert (method, url) == ("POST", "./train-studio/v1/jobs/a%20b/continue")
    assert json.loads(body) == {"x": 1, "max_train_steps": 24}
    assert headers == {"X-Train-Studio-Page": "1", "Content-Type": "application/json"}
    assert report["belowMinimum"] == []


def test_a_refusal_is_shown_with_its_hint_until_something_works(report: dict[str, Any]) -> None:
    assert report["refused"] == ["Not now <b>. Wait.", False]
    assert report["messageGone"] == ""


def test_only_our_own_buttons_act_and_questions_are_asked(report: dict[str, Any]) -> None:
    assert report["outside"] == []
    assert report["notConfirmed"] == [[["confirm", "Really?"]], []]
    assert report["confirmed"] == [["./train-studio/v1/jobs/a/ask", '{"request":"discard"}']]


def test_statement_12_keys_neither_start_nor_stop(report: dict[str, Any]) -> None:
    assert report["keys"] == []


def test_statement_30_adding_to_the_prompt_leaves_the_rest_alone(report: dict[str, Any]) -> None:
    assert report["word"] == report["wordAgain"] == "a cathedral, cat"
    assert report["lora"] == report["loraAgain"] == "a cathedral, cat, <lora:zcat-000400:1> zcat"
    assert report["oddName"] == "a cathedral, cat, <lora:zcat-000400:1> zcat, cat (x"
    assert report["untouched"] == ["blurry", "7", "640"]
    assert [each[0] for each in report["promptHeard"]].count("input") == 3
    assert report["promptHeard"][-1] == ["switch_to_txt2img"]


def test_statement_30_reproduce_hands_over_the_whole_infotext(report: dict[str, Any]) -> None:
    text = "a <lora:x:1>\nNegative prompt: \nSteps: 1"
    assert report["reproduced"] == [text, [["input", text], ["train_studio_paste"]]]
    assert report["loaded"] == ["run:a b", [["input", "run:a b"], ["train_studio_load_button"]]]


def test_a_selected_run_is_asked_for(report: dict[str, Any]) -> None:
    assert report["selected"] == ["\u00fc b", "\u00fc b"]


def test_without_a_prompt_the_text_is_copied(report: dict[str, Any]) -> None:
    assert report["withoutPrompt"] == [True, ["<lora:zcat-000400:1> zcat"], "copied"]
    assert report["withoutClipboard"] == [["copy text"], "not copied"]
    assert report["labels"] == ["L", "C"]


def test_statement_25_a_new_result_refreshes_the_cards(report: dict[str, Any]) -> None:
    assert report["noCardsYet"] == []
    assert report["cards"] == [["txt2img_lora_extra_refresh_internal"]]
    assert report["cardsUnchanged"] == []
    assert report["checkpoints"] == [["txt2img_lora_extra_refresh_internal"], ["refresh_sd_model_checkpoint"]]


def test_statement_13_a_lost_connection_is_said_and_tried_again(report: dict[str, Any]) -> None:
    assert report["lost"] == "Connection lost, retrying."
    assert report["keptTrying"] is True
    assert report["stillThere"] == "z"
    assert report["back"] == ""


def test_statement_13_a_running_job_is_asked_for_every_second(report: dict[str, Any]) -> None:
    assert 4 <= report["activePolls"] <= 6
    assert 2 <= report["idlePolls"] <= 3
