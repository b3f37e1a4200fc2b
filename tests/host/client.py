"""A small client of a running AUTOMATIC1111 WebUI: its HTTP API, its page's buttons, its cards and its log.

Standard library only (and Pillow for the pixels), so that it runs in any environment pytest runs in.
"""

import base64
import html
import io
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

TIMEOUT = 600.0


@dataclass(frozen=True)
class Picture:
    """One generated picture: its RGB pixels and the generation parameters the host wrote into it."""

    image: Image.Image
    infotext: str

    def same_as(self, other: "Picture") -> bool:
        """True when every pixel is equal; the infotext is not compared."""
        return self.image.size == other.image.size and self.image.tobytes() == other.image.tobytes()

    def distance(self, other: "Picture") -> float:
        """Mean absolute difference per channel, in units of 0 to 255."""
        means = ImageStat.Stat(ImageChops.difference(self.image, other.image)).mean
        return sum(means) / len(means)


@dataclass(frozen=True)
class Card:
    """One Extra Networks card as the page shows it; attribute text is already unescaped."""

    markup: str

    def attribute(self, name: str) -> str:
        """The value of the first HTML attribute of that name, '' if there is none."""
        found = re.search(rf'\b{name}="([^"]*)"', self.markup)
        return html.unescape(found.group(1)) if found else ""

    @property
    def name(self) -> str:
        """The name under which the host lists the file."""
        return self.attribute("data-name")

    @property
    def click(self) -> str:
        """The JavaScript a click runs; it contains what is added to the prompt."""
        return self.attribute("onclick")

    @property
    def preview(self) -> str:
        """Address of the preview picture relative to the page, '' without preview."""
        found = re.search(r'<img src="([^"]*)"', self.markup)
        return html.unescape(found.group(1)) if found else ""

    @property
    def description(self) -> str:
        """The text under the name."""
        found = re.search(r'<span class="description">(.*?)</span>', self.markup, re.DOTALL)
        return html.unescape(found.group(1)) if found else ""

    @property
    def has_metadata_button(self) -> bool:
        """True when the host found metadata in the file's header."""
        return "metadata-button" in self.markup


def cards_in(markup: str) -> dict[str, Card]:
    """Split the HTML of an Extra Networks pane into its cards, by name."""
    parts = markup.split('<div class="card"')[1:]
    cards = [Card('<div class="card"' + part) for part in parts]
    return {card.name: card for card in cards}


class Webui:
    """The server at `url`; `log` is the file it writes to, None when it is not known."""

    def __init__(self, url: str, root: Path, log: Path | None) -> None:
        self.url = url.rstrip("/")
        self.root = root
        self.log = log
        self._page: dict[str, Any] | None = None

    def raw(self, path: str, body: Any = None, timeout: float = TIMEOUT) -> bytes:
        """GET `path`, or POST `body` as JSON when it is given; raises AssertionError with the server's answer."""
        data = None if body is None else json.dumps(body).encode("utf-8")
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode("utf-8", "replace")
            raise AssertionError(f"{path} answered {error.code}: {text[:2000]}") from error

    def get(self, path: str, **query: str) -> Any:
        """GET `path` with the given query and decode the JSON answer."""
        tail = "?" + urllib.parse.urlencode(query) if query else ""
        return json.loads(self.raw(path + tail))

    def post(self, path: str, body: Any) -> Any:
        """POST `body` as JSON to `path` and decode the JSON answer."""
        return json.loads(self.raw(path, body))

    def refresh(self) -> None:
        """Make the host look at its LoRA and embedding folders again."""
        self.post("/sdapi/v1/refresh-loras", {})
        self.post("/sdapi/v1/refresh-embeddings", {})

    def draw(self, prompt: str, seed: int = 1234, steps: int = 8, size: int = 64) -> Picture:
        """Generate one picture with a fixed seed."""
        answer = self.post(
            "/sdapi/v1/txt2img",
            {
                "prompt": prompt,
                "seed": seed,
                "steps": steps,
                "width": size,
                "height": size,
                "cfg_scale": 5,
                "sampler_name": "Euler",
                "scheduler": "Automatic",
                "save_images": False,
            },
        )
        image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")
        return Picture(image, json.loads(answer["info"])["infotexts"][0])

    def _button(self, elem_id: str) -> tuple[int, list[dict[str, Any]]]:
        """Number of the function behind the page's button `elem_id`, and the components that receive its answer."""
        if self._page is None:
            self._page = self.get("/config")
        parts = {part["id"]: part for part in self._page["components"]}
        for index, dependency in enumerate(self._page["dependencies"]):
            targets = [target[0] if isinstance(target, list) else target for target in dependency["targets"]]
            names = [parts[target]["props"].get("elem_id") for target in targets]
            if elem_id in names and dependency["outputs"]:
                return index, [parts[output] for output in dependency["outputs"]]
        raise AssertionError(f"the page has no working button {elem_id!r}")

    def click(self, elem_id: str, *values: Any) -> list[tuple[str, Any]]:
        """Press the page's button `elem_id` as a browser does; the label and the new value of every output."""
        index, outputs = self._button(elem_id)
        body = {"fn_index": index, "data": list(values), "session_hash": "trainstudio"}
        data = self.post("/run/predict", body)["data"]
        plain = [value.get("value") if isinstance(value, dict) else value for value in data]
        return [(part["props"].get("label") or part["type"], value) for part, value in zip(outputs, plain, strict=True)]

    def dialog(self, page: str, name: str) -> dict[str, Any]:
        """What the card's "edit metadata" dialog shows, by label; the unlabelled HTML parts are joined under 'html'."""
        shown = self.click(f"txt2img_{page}_edit_user_metadata_button", name)
        fields = {label: value for label, value in shown if label != "html"}
        return fields | {"html": "".join(str(value) for label, value in shown if label == "html")}

    def cards(self, page: str) -> dict[str, Card]:
        """The cards that the tab `page` ('lora', 'textual_inversion') shows after its Refresh button was pressed."""
        for _, markup in self.click(f"txt2img_{page}_extra_refresh_internal"):
            if f"id='txt2img_{page}_pane'" in markup:
                return cards_in(markup)
        raise AssertionError(f"no pane of the tab {page!r} among the refreshed ones")

    def log_text(self, start: int = 0) -> str:
        """What the server has logged since byte `start`."""
        assert self.log is not None
        return self.log.read_bytes()[start:].decode("utf-8", "replace")

    def log_size(self) -> int:
        """Present length of the log in bytes."""
        assert self.log is not None
        return self.log.stat().st_size
