"""The page as a person uses it, and the process that serves it."""

from __future__ import annotations

import base64
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Dialog, Locator, Page, Request, Route, expect

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 60.0
# On one core a step of the practice model and its pictures take their time.
TRAIN_MS = 90_000
# Within this time every page shows what a job does.
LIVE_MS = 2_000
# The page that gradio 3 serves asks for it; nothing of ours does.
GRADIO_FOREIGN = "https://cdnjs.cloudflare.com/ajax/libs/iframe-resizer/"
# Fast settings of a small run, by the keys of the form's fields.
SMALL = {
    "training.max_train_steps": "12", "training.train_batch_size": "1", "training.validation_every_steps": "6",
    "preview.every_steps": "4", "prompt.num_steps": "3", "preview.prompts": "a [name] on a red background",
}  # fmt: skip
# Ends only when it is stopped; draws nothing by itself but the base model's picture and that of step 0.
LONG = SMALL | {
    "training.max_train_steps": "100000", "training.validation_every_steps": "0", "preview.every_steps": "100000",
}  # fmt: skip
CONTROLS = {
    "button", "checkbox", "combobox", "link", "listbox", "radio", "slider", "spinbutton", "switch", "textbox",
}  # fmt: skip
STEP = "[data-ts-part=progress] dl.ts-figures dd"
UNFOLD = """(control) => {
    for (let around = control; around; around = around.parentElement) {
        const head = around.querySelector(":scope > .label-wrap");
        if (head?.nextElementSibling.style.display === "none") head.click();
    }
}"""
DROP = """(files) => {
    const transfer = new DataTransfer();
    for (const [name, type, base64] of files) {
        const bytes = Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
        transfer.items.add(new File([bytes], name, {type}));
    }
    return transfer;
}"""


class Server:
    """`python -m extensions_lib ui` on a folder and a free port, which it keeps when it is started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder.with_name(folder.name + ".log")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it says where it is."""
        known = len(self.log())
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "-m", "extensions_lib", "ui", "--port", str(self._port), "--folder", self.folder]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while "Train Studio is at" not in self.log()[known:]:
            assert self._process.poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.05)

    def kill(self) -> None:
        """End it the hard way, as a crash of the machine would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""


class Studio:
    """One open page. `errors` are those in its console and requests to other machines; `questions` it asked, which are
    answered as `accepts` says.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.questions: list[str] = []
        self.accepts = True
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self._answer)
        page.route(lambda address: not address.startswith((url, "data:", "blob:")), self._refuse)

    @property
    def live(self) -> Locator:
        """The part that shows one job."""
        return self.page.locator("[data-ts-fragment=live]")

    @property
    def history(self) -> Locator:
        """The part that lists all runs."""
        return self.page.locator("[data-ts-fragment=history]")

    @property
    def state(self) -> Locator:
        """The state of the shown job in words."""
        return self.live.locator(".ts-state")

    @property
    def timeline(self) -> Locator:
        """The preview pictures of the first prompt, the base model's first."""
        return self.live.locator(".ts-strip").first.locator("figure img")

    @property
    def message(self) -> Locator:
        """What the form said after a button."""
        return self.page.locator("#train_studio_message")

    @property
    def report(self) -> Locator:
        """What Check found."""
        return self.page.locator("#train_studio_report")

    def open(self) -> None:
        """Load the page and wait until its form can be used."""
        self.page.goto(self.url)
        self._wait_until_ready()

    def reload(self) -> None:
        """Load it again, as F5 does."""
        self.page.reload()
        self._wait_until_ready()

    def show_tab(self, name: str) -> None:
        """Click one of the tabs of the left column."""
        exactly = re.compile(rf"^\s*{re.escape(name)}\s*$")
        self.page.locator("#train_studio_tabs > .tab-nav > button", has_text=exactly).click()

    def setting(self, key: str) -> Locator:
        """The control of a setting, by the key of its field: 'training.seed', 'lora.rank', 'prompt.num_steps'."""
        return self.page.locator(f"#train_studio_{key.replace('.', '_')}").locator("input, textarea").first

    def fill(self, settings: dict[str, str]) -> None:
        """Type settings, in the accordions where they stand."""
        for key, value in settings.items():
            self.unfold_for(key)
            self.setting(key).fill(value)

    def unfold_for(self, key: str) -> None:
        """Open the accordions around a setting."""
        self.setting(key).evaluate(UNFOLD)
        expect(self.setting(key)).to_be_visible()

    def choose(self, box: str, label: str) -> None:
        """Choose an entry of a dropdown list."""
        place = self.page.locator(f"#train_studio_{box}")
        field = place.locator("input")
        field.click()
        place.locator(self.option(label)).click()  # another list may still be closing
        expect(field).to_have_value(label)

    def option(self, label: str) -> Locator:
        """An entry of the dropdown list that is open."""
        return self.page.locator(f'[data-testid=dropdown-option][aria-label="{label}"]')

    def drop(self, files: Iterable[Path]) -> None:
        """Drop files on the page with the mouse."""
        kinds = {".png": "image/png", ".txt": "text/plain"}
        files = list(files)
        payload = [(file.name, kinds[file.suffix], base64.b64encode(file.read_bytes()).decode()) for file in files]
        transfer = self.page.evaluate_handle(DROP, payload)
        place = self.page.locator("#train_studio_files")
        place.locator(".boundedheight").dispatch_event("drop", {"dataTransfer": transfer})
        expect(place.locator("tr.file")).to_have_count(len(files))

    def press(self, name: str) -> None:
        """Click Check or Train."""
        self.page.locator("#train_studio_left").get_by_role("button", name=name, exact=True).click()

    def check(self, num_pictures: int) -> None:
        """Click Check and wait for its pictures; the first one in a process imports torch."""
        self.press("Check")
        expect(self.report.locator("img")).to_have_count(num_pictures, timeout=TRAIN_MS)

    def ask(self, name: str) -> None:
        """Click a button of the shown job."""
        self.live.get_by_role("button", name=name, exact=True).first.click()

    def train(self, settings: dict[str, str]) -> None:
        """Type settings, press Train and wait until the job is taken."""
        self.fill(settings)
        self.press("Train")
        expect(self.message).to_contain_text("started")

    def expect_state(self, words: str) -> None:
        """Wait until the shown job is in a state."""
        expect(self.state).to_have_text(words, timeout=TRAIN_MS)

    def expect_step_after(self, step: int) -> int:
        """Wait until more than `step` steps are done; the number that is shown then."""
        reached = f"(step) => parseInt(document.querySelector('{STEP}')?.textContent ?? '0') > step"
        self.page.wait_for_function(reached, arg=step, timeout=TRAIN_MS)
        return self.step()

    def step(self) -> int:
        """How many steps the shown job has done."""
        return int(self.live.locator(STEP).first.inner_text().split(" of ")[0])

    def copied(self) -> str:
        """What is on the clipboard."""
        return self.page.evaluate("navigator.clipboard.readText()")

    def _wait_until_ready(self) -> None:
        expect(self.page.get_by_role("button", name="Train", exact=True)).to_be_visible()

    def _answer(self, dialog: Dialog) -> None:
        self.questions.append(dialog.message)
        if self.accepts:
            dialog.accept()
        else:
            dialog.dismiss()

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _refuse(self, route: Route, request: Request) -> None:
        if not request.url.startswith(GRADIO_FOREIGN):
            self.errors.append(f"asked another machine: {request.url}")
        route.fulfill(status=200, body="", content_type="text/javascript")


def nameless_controls(studio: Studio) -> list[str]:
    """Roles and values of the controls without an accessible name."""
    session = studio.page.context.new_cdp_session(studio.page)
    found = []
    for node in session.send("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value")
        if not node.get("ignored") and role in CONTROLS and not node.get("name", {}).get("value", "").strip():
            found.append(f"{role} {node.get('value', {}).get('value', '')}")
    return found


def is_scrolled_sideways(studio: Studio) -> bool:
    """Whether something is wider than the window."""
    return studio.page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
