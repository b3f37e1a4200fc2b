"""What Train Studio writes, used by a real AUTOMATIC1111 WebUI: listing, cards, pictures, log.

The base prompt is drawn before the files are there, with them, and after they are gone. The last group of tests feeds
damaged files to the host and demands that it complains: it shows that the silence demanded above means something.
"""

import hashlib
import json
import re
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .client import Card, Picture, Webui
from .conftest import Result, header_of, lent

PROMPT = "a red circle on a blue background"
VISIBLE = 0.5
COMPLAINT = re.compile(
    r"mismatch|unmatched|didn't match keys|Networks with errors|couldn't find supported operation|Lora not found"
    r"|Couldn't find network|Network \S+ layer |Error loading embedding|Unable to load Textual inversion"
    r"|Skip bundle embedding|reading extra network user metadata|Traceback",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Installed:
    """The files under test as the host sees them, and the pictures drawn before they were there."""

    lora: Result
    embedding: Result
    alias: str
    plain: Picture
    words: Picture

    @property
    def lora_prompt(self) -> str:
        """The base prompt with the LoRA, named as a click on its card names it."""
        return f"{PROMPT} <lora:{self.alias}:1>"

    @property
    def embedding_prompt(self) -> str:
        """The base prompt with the embedding's name."""
        return f"{PROMPT}, {self.embedding.stem}"


@pytest.fixture(scope="module")
def installed(demo_outputs: dict[str, Result], webui: Webui) -> Iterator[Installed]:
    """Both results and their sidecars in models/Lora and embeddings, after the pictures without them were drawn."""
    lora, embedding = demo_outputs["lora"], demo_outputs["embedding"]
    alias = str(header_of(lora.file).get("__metadata__", {}).get("ss_output_name", lora.stem))
    words = webui.draw(f"{PROMPT}, {embedding.stem}")
    plain = webui.draw(PROMPT)
    with ExitStack() as stack:
        stack.callback(webui.refresh)
        stack.enter_context(lent(lora.family(), webui.root / "models" / "Lora"))
        stack.enter_context(lent(embedding.family(), webui.root / "embeddings"))
        webui.refresh()
        yield Installed(lora, embedding, alias, plain, words)


def short_hash(file: Path, skip_header: bool) -> str:
    """First 12 digits of the sha256 of a file, or of the bytes after its safetensors header."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little") if skip_header else 0
    return hashlib.sha256(data[start:]).hexdigest()[:12]


def hashes_in(drawn: Picture, kind: str) -> list[str]:
    """The entries `name: hash` of "Lora hashes" or "TI hashes" in a picture's infotext."""
    found = re.search(rf'{kind} hashes: "([^"]*)"', drawn.infotext)
    return found.group(1).split(", ") if found else []


@contextmanager
def gone(webui: Webui, installed: Installed, shelf: Path) -> Iterator[None]:
    """The host without the two files while the block runs; they come back afterwards."""
    places = [(installed.lora, webui.root / "models" / "Lora"), (installed.embedding, webui.root / "embeddings")]
    moved = [(folder / path.name, shelf / path.name) for result, folder in places for path in result.family()]
    for place, kept in moved:
        shutil.move(place, kept)
    try:
        webui.refresh()
        yield
    finally:
        for place, kept in moved:
            shutil.move(kept, place)
        webui.refresh()


# Listing


def test_the_api_lists_the_lora(webui: Webui, installed: Installed) -> None:
    """GET /sdapi/v1/loras has the file under its stem and its alias, with the metadata of its header."""
    listed = {entry["name"]: entry for entry in webui.get("/sdapi/v1/loras")}
    entry = listed[installed.lora.stem]
    assert entry["alias"] == installed.alias
    assert Path(entry["path"]) == webui.root / "models" / "Lora" / installed.lora.file.name
    assert entry["metadata"], "the host found no metadata in the header"


def test_the_api_loads_the_embedding(webui: Webui, installed: Installed) -> None:
    """GET /sdapi/v1/embeddings has it among the loaded ones (width of the model), not among the skipped ones."""
    answer = webui.get("/sdapi/v1/embeddings")
    assert installed.embedding.stem not in answer["skipped"]
    (tensor,) = [entry for name, entry in header_of(installed.embedding.file).items() if name != "__metadata__"]
    loaded = answer["loaded"][installed.embedding.stem]
    assert [loaded["vectors"], loaded["shape"]] == tensor["shape"]


# Cards


@pytest.fixture(scope="module", params=["lora", "embedding"])
def shown(request: pytest.FixtureRequest, webui: Webui, installed: Installed) -> tuple[Result, Card, dict[str, object]]:
    """The file, its card on the refreshed tab of the page, and its "edit metadata" dialog; once for each file."""
    page = {"lora": "lora", "embedding": "textual_inversion"}[request.param]
    result: Result = getattr(installed, request.param)
    cards = webui.cards(page)
    assert result.stem in cards, f"the tab {page} shows {sorted(cards)}"
    return result, cards[result.stem], webui.dialog(page, result.stem)


def test_the_card_shows_the_preview(webui: Webui, shown: tuple[Result, Card, dict[str, object]]) -> None:
    """The card has a picture, and the page's address for it delivers the very file that was written."""
    result, card, _ = shown
    assert card.preview.startswith("./sd_extra_networks/thumb?"), f"no preview on the card of {result.stem}"
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(card.preview).query)
    written = result.file.with_name(Path(query["filename"][0]).name)
    assert webui.raw(card.preview[1:]) == written.read_bytes()


def test_the_card_shows_the_description(shown: tuple[Result, Card, dict[str, object]]) -> None:
    """The description in the sidecar is not empty and stands on the card and in the dialog."""
    result, card, dialog = shown
    description = result.user_metadata()["description"]
    assert description
    assert card.description == description
    assert dialog["Description"] == description


def test_the_dialog_names_file_and_hash(shown: tuple[Result, Card, dict[str, object]]) -> None:
    """The table in the dialog has file name and hash; its notes are those of the sidecar."""
    result, _, dialog = shown
    is_lora = "Activation text" in dialog
    assert result.file.name in str(dialog["html"])
    assert short_hash(result.file, skip_header=is_lora) in str(dialog["html"])
    assert dialog["Notes"] == result.user_metadata().get("notes", "")


def test_the_single_card_equals_the_one_on_the_page(
    webui: Webui, shown: tuple[Result, Card, dict[str, object]]
) -> None:
    """The address that the page uses after an edit delivers the same card."""
    result, card, dialog = shown
    query = {"page": "lora" if "Activation text" in dialog else "textual inversion", "tabname": "txt2img"}
    single = Card(webui.get("/sd_extra_networks/get-single-card", name=result.stem, **query)["html"])
    assert (single.name, single.click, single.description) == (card.name, card.click, card.description)
    assert single.preview == card.preview


def test_a_click_on_the_lora_card_adds_lora_and_activation_text(webui: Webui, installed: Installed) -> None:
    """The click inserts `<lora:alias:` and the activation text of the sidecar."""
    activation = installed.lora.user_metadata()["activation text"]
    assert activation
    click = webui.cards("lora")[installed.lora.stem].click
    assert f"<lora:{installed.alias}:" in click
    assert f'" {activation}"' in click


def test_a_click_on_the_embedding_card_adds_its_name(webui: Webui, installed: Installed) -> None:
    """The click inserts the name by which the prompt finds it."""
    click = webui.cards("textual_inversion")[installed.embedding.stem].click
    assert f'"{installed.embedding.stem}"' in click


def test_the_lora_dialog_is_filled(webui: Webui, installed: Installed) -> None:
    """Version, activation text, weight and the training facts of the header are shown."""
    webui.cards("lora")
    dialog = webui.dialog("lora", installed.lora.stem)
    sidecar = installed.lora.user_metadata()
    assert dialog["Stable Diffusion version"] == "SD1"
    assert sidecar["sd version"] == "SD1"
    assert dialog["Activation text"] == sidecar["activation text"]
    assert float(dialog["Preferred weight"]) == float(sidecar.get("preferred weight", 0))
    for label in ("Output name:", "Model:", "Kohya module:", "Date trained:", "Dataset size:"):
        assert label in dialog["html"], f"the dialog does not show {label}"


def test_the_metadata_button_shows_the_header(webui: Webui, installed: Installed) -> None:
    """The card has the button, and its address delivers every key of the file's metadata."""
    assert webui.cards("lora")[installed.lora.stem].has_metadata_button
    answer = webui.get("/sd_extra_networks/metadata", page="lora", item=installed.lora.stem)
    assert set(json.loads(answer["metadata"])) == set(header_of(installed.lora.file)["__metadata__"])


# Pictures


def test_the_same_request_draws_the_same_picture(webui: Webui, installed: Installed) -> None:
    """Without this no other comparison means anything; the base prompt is as before the files were there."""
    first = webui.draw(PROMPT)
    assert first.same_as(webui.draw(PROMPT))
    assert first.same_as(installed.plain)
    assert first.image.getextrema() != ((0, 0), (0, 0), (0, 0))


def test_the_lora_changes_the_picture(webui: Webui, installed: Installed) -> None:
    """Same seed, same words, visibly another picture; the infotext has the hash of the file's data."""
    drawn = webui.draw(installed.lora_prompt)
    assert drawn.distance(installed.plain) > VISIBLE
    expected = f"{installed.alias}: {short_hash(installed.lora.file, skip_header=True)}"
    assert expected in hashes_in(drawn, "Lora")


def test_weight_zero_is_no_change(webui: Webui, installed: Installed) -> None:
    """The change comes from the weights: at weight 0 the picture is the base picture."""
    drawn = webui.draw(f"{PROMPT} <lora:{installed.alias}:0>")
    assert drawn.same_as(installed.plain)


def test_the_embedding_changes_the_picture(webui: Webui, installed: Installed) -> None:
    """The name draws something else than the same letters did as plain words; the infotext has the file's hash."""
    drawn = webui.draw(installed.embedding_prompt)
    assert drawn.distance(installed.words) > VISIBLE
    assert drawn.distance(installed.plain) > VISIBLE
    expected = f"{installed.embedding.stem}: {short_hash(installed.embedding.file, skip_header=False)}"
    assert expected in hashes_in(drawn, "TI")


def test_without_them_the_picture_is_as_before(webui: Webui, installed: Installed) -> None:
    """After each use the base prompt draws the base picture again, bit for bit, and names no hashes."""
    for prompt in (installed.lora_prompt, installed.embedding_prompt):
        assert not webui.draw(prompt).same_as(installed.plain)
        again = webui.draw(PROMPT)
        assert again.same_as(installed.plain)
        assert "hashes" not in again.infotext


def test_after_removal_nothing_is_left(webui: Webui, installed: Installed, tmp_path: Path) -> None:
    """Files gone and lists refreshed: not listed any more, the name is only words again, the picture is as before."""
    webui.draw(installed.embedding_prompt)
    with gone(webui, installed, tmp_path):
        assert webui.draw(PROMPT).same_as(installed.plain)
        assert webui.draw(installed.embedding_prompt).same_as(installed.words)
        assert installed.lora.stem not in [entry["name"] for entry in webui.get("/sdapi/v1/loras")]
        assert installed.embedding.stem not in webui.get("/sdapi/v1/embeddings")["loaded"]
    assert installed.embedding.stem in webui.get("/sdapi/v1/embeddings")["loaded"]


# Log


@pytest.fixture
def log_start(webui: Webui) -> int:
    """Where the server's log ends now; skips the test when the log cannot be read."""
    if webui.log is None:
        pytest.skip("WEBUI_LOG does not name the log of the server at WEBUI_URL")
    return webui.log_size()


def test_nothing_is_reported(webui: Webui, installed: Installed, log_start: int) -> None:
    """Listing, loading and applying both leave no complaint in the log, at the host's most talkative level."""
    webui.refresh()
    webui.cards("lora")
    webui.draw(PROMPT)
    webui.draw(f"{installed.embedding_prompt} <lora:{installed.alias}:1>")
    text = webui.log_text(log_start)
    assert "Ending job scripts_txt2img" in text, "no INFO lines: start the server with SD_WEBUI_LOG_LEVEL=DEBUG"
    assert not COMPLAINT.findall(text), text[-4000:]


def rewritten(source: Path, target: Path, change: str) -> None:
    """A copy of a LoRA with one layer renamed ('unknown layer') or one matrix transposed on paper ('wrong shape')."""
    data = source.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    header = header_of(source)
    ups = [name for name in header if name.endswith("lora_up.weight") and len(header[name]["shape"]) == 2]
    layer = ups[0].partition(".")[0]
    if change == "unknown layer":
        header = {name.replace(layer + ".", "lora_unet_no_such_layer."): entry for name, entry in header.items()}
    else:
        header[ups[0]]["shape"] = header[ups[0]]["shape"][::-1]
    header["__metadata__"] = {"ss_output_name": target.stem}
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    target.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [("unknown layer", "didn't match keys"), ("wrong shape", "Network train_studio_damaged layer ")],
)
def test_a_damaged_lora_is_reported(
    webui: Webui, installed: Installed, log_start: int, tmp_path: Path, change: str, complaint: str
) -> None:
    """The log check can fail: the host does complain about a LoRA that does not fit."""
    damaged = tmp_path / "train_studio_damaged.safetensors"
    rewritten(installed.lora.file, damaged, change)
    with lent([damaged], webui.root / "models" / "Lora"):
        webui.refresh()
        webui.draw(PROMPT)
        webui.draw(f"{PROMPT} <lora:{damaged.stem}:1>")
    webui.refresh()
    text = webui.log_text(log_start)
    assert complaint in text
    assert COMPLAINT.search(text)
    assert webui.draw(PROMPT).same_as(installed.plain)
