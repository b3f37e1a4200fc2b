"""Every method on every family in the WebUI: what it draws with a result is what our own preview drew.

The base models are small ones of random weights, built and written by the WebUI's own classes, so that reading them is
tested too. The LDM classes know open_clip's models by name only; its smallest is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from extensions_lib.config.codec import load
from extensions_lib.control import JobControl
from extensions_lib.jobs.run import start
from extensions_lib.methods.catalogue import make_method

from .cells import METHODS, NOT_APPLICABLE, WORD, is_writing, job_table, rewrite_section, table_text
from .client import Picture
from .conftest import lent
from .server import HostServer, Place

FAMILIES = ("sd1-v", "sd2", "sd2-v", "sdxl", "sdxl-v")
CELLS = [(method, family) for method in METHODS for family in FAMILIES if (method, family) not in NOT_APPLICABLE]
SEED, NUM_STEPS, SIZE_PX = 5, 8, 64
# Mean difference of two pictures of one model, of 255: the host cuts off what we round.
SAME = 1.0


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    """The host with the small models."""
    place = Place.make(tmp_path_factory.mktemp("families"))
    host = HostServer(webui_root, place)
    host.make_family_models()
    host.start("--api", options={"randn_source": "CPU", "live_previews_enable": False})
    yield host
    host.stop()


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[tuple[str, str], str]]:
    """What the cells say; written into the document at the end when that is asked for."""
    cells: dict[tuple[str, str], str] = {}
    yield cells
    if is_writing():
        rewrite_section("webui", table_text(cells, FAMILIES))


def drawn_by_us(path: Path) -> Picture:
    """One of our own previews."""
    with Image.open(path) as image:
        return Picture(image.convert("RGB"), "")


@contextmanager
def used(host: HostServer, kind: str, result: Path) -> Iterator[str]:
    """Within the context a result lies where the host looks for its kind. Gives what the prompt needs.

    Taken away again, because the host finds an embedding's name at the beginning of a longer word too.
    """
    folders = {
        "lora": host.place.loras,
        "embedding": host.place.embeddings,
        "checkpoint": host.place.checkpoints,
        "hypernetwork": host.place.folder / "models" / "hypernetworks",
    }
    files = [file for file in result.parent.iterdir() if file.suffix in (".safetensors", ".pt", ".yaml")]
    with lent(files, folders[kind]):
        host.webui.refresh()
        host.webui.post("/sdapi/v1/refresh-checkpoints", {})
        if kind == "hypernetwork":
            host.webui.cards("hypernetworks")  # the tab's button is the only way to have them listed again
        host.webui.draw("", steps=1)  # it keeps the last prompt as it was encoded, whatever the words now mean
        yield {"lora": f" <lora:{result.stem}:1>", "hypernetwork": f" <hypernet:{result.stem}:1>"}.get(kind, "")
    host.webui.refresh()


@pytest.mark.parametrize(("method", "family"), CELLS, ids=lambda name: name.replace(" ", "-"))
def test_the_webui_draws_what_our_preview_drew(
    server: HostServer,
    method: str,
    family: str,
    pictures: Path,
    tmp_path: Path,
    measured: dict[tuple[str, str], str],
) -> None:
    """Without the result, with it, and without it again."""
    number = CELLS.index((method, family))
    word, prompt = f"{WORD}{chr(97 + number // 26)}{chr(97 + number % 26)}", "a [name], red"
    preview = {"prompt": prompt, "seed": SEED, "num_steps": NUM_STEPS, "guidance_scale": 5.0, "sampler": "euler"}
    table = job_table(method, server.place.checkpoints / f"{family}.safetensors", pictures, tmp_path)
    table |= {"name": word, "preview": {"every_steps": 100, "prompts": [preview]}}
    config = load(table)
    ended = start(config, JobControl())
    kind = make_method(config.method, config.output).artefact_kind
    previews = ended.run_folder / "previews"
    ours_before = drawn_by_us(previews / "base-0.png")
    ours_with = drawn_by_us(previews / f"{ended.step:06d}-0.png")

    text = prompt.replace("[name]", word)
    server.webui.post("/sdapi/v1/options", {"sd_model_checkpoint": family})
    before = server.webui.draw(text, SEED, NUM_STEPS, SIZE_PX)
    with used(server, kind, ended.path) as suffix:
        if kind == "checkpoint":
            server.webui.post("/sdapi/v1/options", {"sd_model_checkpoint": word})
        with_result = server.webui.draw(text + suffix, SEED, NUM_STEPS, SIZE_PX)
    off, change = with_result.distance(ours_with), with_result.distance(before)
    assert before.distance(ours_before) < SAME
    assert off < SAME
    assert change > 5 * off
    measured[method, family] = f"{off:.2f} of {change:.1f}"
    if kind == "lora":
        assert server.webui.draw(text, SEED, NUM_STEPS, SIZE_PX).same_as(before)
