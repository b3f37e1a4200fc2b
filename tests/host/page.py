"""The WebUI's page in a browser: our tab by the means of tests/browser, and the host's own controls."""

from __future__ import annotations

import base64
import io
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.browser.studio import TRAIN_MS, Studio

from .client import Picture

# What a picture is drawn with: quick, and not the host's defaults, so that it shows when they come back.
SEED, STEPS, SIZE = 1234, 8, 64
READ = """async (address) => {
    const bytes = new Uint8Array(await (await fetch(address)).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""
BOXES = "#txt2img_prompt textarea", "#txt2img_neg_prompt textarea"


class HostPage(Studio):
    """One open page of the WebUI."""

    def open(self, tab: str = "Train Studio") -> None:
        """Load the page and show a tab."""
        super().open()
        self.show(tab)

    def show(self, tab: str) -> None:
        """Click a tab."""
        self._press_tab("#tabs", tab)

    def _press_tab(self, tabs: str, label: str) -> None:
        exactly = re.compile(rf"^\s*{re.escape(label)}\s*$")
        self.page.locator(f"{tabs} > .tab-nav > button", has_text=exactly).click()

    def _wait_until_ready(self) -> None:
        """The host's own script has run when it has its options."""
        self.page.wait_for_function("typeof opts === 'object' && Object.keys(opts).length > 0", timeout=60_000)

    @property
    def prompt(self) -> Locator:
        return self.page.locator(BOXES[0])

    @property
    def negative(self) -> Locator:
        return self.page.locator(BOXES[1])

    def number(self, name: str) -> Locator:
        """A number of the txt2img page: 'seed', 'steps', 'width', 'height', 'cfg_scale'."""
        return self.page.locator(f"#txt2img_{name} input[type=number]").first

    def numbers(self) -> dict[str, str]:
        return {name: self.number(name).input_value() for name in ("seed", "steps", "width", "height", "cfg_scale")}

    def set_up_txt2img(self, prompt: str, negative: str = "") -> None:
        """Type prompt and settings."""
        self.show("txt2img")
        for name, value in (("steps", STEPS), ("width", SIZE), ("height", SIZE), ("seed", SEED), ("cfg_scale", 5)):
            self.number(name).fill(str(value))
            self.number(name).blur()
        self.prompt.fill(prompt)
        self.negative.fill(negative)

    def generate(self, seconds: float = 90) -> Picture:
        """Press Generate as the page is and return the picture."""
        self.show("txt2img")
        self.page.evaluate("document.querySelector('#html_info_txt2img').dataset.old = 1")
        before = self._address()
        self.page.locator("#txt2img_generate").click()
        end = time.monotonic() + seconds
        while (address := self._address()) in ("", before):
            assert time.monotonic() < end, "no picture: " + self.page.locator("#html_log_txt2img").inner_text()
            self.page.wait_for_timeout(50)
        expect(self.page.locator("#txt2img_interrupt")).to_be_hidden(timeout=TRAIN_MS)
        return self.picture(address)

    def picture(self, address: str) -> Picture:
        """The picture at an address, and what is written in it."""
        image = Image.open(io.BytesIO(base64.b64decode(self.page.evaluate(READ, address))))
        return Picture(image.convert("RGB"), image.info.get("parameters", ""))

    def _address(self) -> str:
        """That of the file in the gallery, '' without one; what is shown while it is drawn is no file."""
        images = self.page.locator("#txt2img_gallery .preview img, #txt2img_gallery .grid-wrap img")
        addresses = images.evaluate_all("images => images.map((image) => image.src)")
        return next((address for address in addresses if "/file=" in address), "")

    def seconds_to_count(self, words: str) -> float:
        """Type into the prompt; how long the number beside it takes to follow."""
        self.show("txt2img")
        counter = self.page.locator("#txt2img_token_counter span").first
        self.prompt.fill("")
        expect(counter).to_have_text(re.compile("^0/"), timeout=TRAIN_MS)
        number = len(words.split())
        self.prompt.press_sequentially(words)
        began = time.monotonic()
        expect(counter).to_have_text(re.compile(f"^{number}/"), timeout=TRAIN_MS)
        return time.monotonic() - began

    def cards(self, tab: str) -> Locator:
        """The cards of an Extra Networks tab ('Lora', 'Textual Inversion') as they are, without pressing Refresh."""
        self.show("txt2img")
        self._press_tab("#txt2img_extra_tabs", tab)
        return self.page.locator("#txt2img_extra_tabs .card:visible")

    def back_to_generation(self) -> None:
        """Leave the cards."""
        self._press_tab("#txt2img_extra_tabs", "Generation")


@contextmanager
def typing(page: Page) -> Iterator[list[str]]:
    """Types into the prompt of `page` all the while, from the page itself, so that the test can do other things."""
    page.evaluate(
        """() => {
            const box = document.querySelector("#txt2img_prompt textarea");
            window.tsTyping = setInterval(() => {
                box.value = box.value.length > 200 ? "a" : box.value + " word";
                updateInput(box);
            }, 150);
        }"""
    )
    try:
        yield []
    finally:
        page.evaluate("() => clearInterval(window.tsTyping)")
