"""Every method in the real WebUI: trained there, used there at once, and seen to draw what its preview showed.

One picture is drawn four times: with and without the result, by our own previews while training and by the host, which
gets the parameters of "Reproduce". What is measured is noted in `figures` and printed at the end (`pytest -s`).
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from extensions_lib.config.codec import load
from extensions_lib.config.preview import PreviewPrompt
from extensions_lib.practice.subjects import subject_found
from extensions_lib.preview.grid import picture_name
from extensions_lib.ui.infotext import infotext

from .client import Picture
from .server import HostServer, Place, complaints, job_table, wait_for_state

pytestmark = pytest.mark.timeout(1500)

# Mean differences, of 255: between our preview and the host's picture, and what a result must at least change.
SAME, CHANGED = 3.0, 8.0
NUM_SEEDS, FIRST_SEED = 10, 1000
LORA = {"kind": "lora", "rank": 4, "alpha": 4.0}
# Rates are higher than a real model would bear, so that a minute's training shows.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zhyper": ({"kind": "hypernetwork", "activation": "relu"}, {"learning_rate": 3e-3, "weight_decay": 0.0}),
    "zloha": ({**LORA, "algorithm": "loha"}, {"learning_rate": 1e-2}),
    "zlokr": ({**LORA, "algorithm": "lokr", "lokr_whole": True}, {"learning_rate": 1e-2}),
    "zdora": ({**LORA, "dora": True}, {"learning_rate": 4e-3}),
    "zbundle": (
        {**LORA, "kind": "pivotal", "vectors_per_token": 4, "embedding_learning_rate": 2e-2}, {"learning_rate": 4e-3}
    ),
    "zwhole": (
        {"kind": "dreambooth", "text_encoder_learning_rate": 3e-4, "text_encoder_until": 1.0},
        {"learning_rate": 3e-4, "weight_decay": 0.0},
    ),
}  # fmt: skip
STEPS = {"zwhole": 120}
OVERWRITE = {"dtype": "fp32", "overwrite": True}
# A word that the text encoder has one token for is learnt in fewer steps.
WORDS = {"zwhole": "badge"}
VISIBLE = {
    "zhyper": r"visible as <hypernet:zhyper:1>, (\d+) of \1 modules matched",
    "zwhole": r"in the list of checkpoints as zwhole\.safetensors: select it to use it",
}


@dataclass(frozen=True)
class Drawn:
    """One picture with and without a result, by us and by the host, and what the host said of the file."""

    ours: Picture
    ours_base: Picture
    host: Picture
    host_base: Picture
    host_after: Picture
    result: dict[str, Any]

    def distances(self) -> dict[str, float]:
        """Mean absolute differences, of 255."""
        pairs = {
            "host with / ours with": self.host.distance(self.ours),
            "host base / ours base": self.host_base.distance(self.ours_base),
            "host with / host base": self.host.distance(self.host_base),
            "ours with / ours base": self.ours.distance(self.ours_base),
        }
        return {name: round(distance, 2) for name, distance in pairs.items()}


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, Any]]:
    figures: dict[str, Any] = {}
    yield figures
    print("\n" + json.dumps(figures, indent=1))  # noqa: T201


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    server = HostServer(webui_root, Place.make(tmp_path_factory.mktemp("host")))
    server.start("--api", "--skip-install")
    yield server
    server.stop()


def table_of(server: HostServer, name: str) -> dict[str, Any]:
    """The job called `name`, with one preview at its end and one of the base model."""
    method, optimizer = METHODS[name]
    prompt = {"prompt": "a [name] on a red background", "negative_prompt": "a black circle", "seed": 77}
    table = job_table(
        server.place,
        name=name,
        dataset={"trigger_word": WORDS.get(name, name), "caption_template": "[filewords]"},
        optimizer={**optimizer, "lr_scheduler": "constant", "lr_warmup_ratio": 0.0},
        training={"max_train_steps": STEPS.get(name, 40), "train_batch_size": 4, "loss_weighting": "none"},
        preview={"prompts": [{**prompt, "num_steps": 8, "guidance_scale": 5.0}], "every_steps": 1000},
        output={"dtype": "fp32"},
    )
    return {key: value for key, value in table.items() if key != "preset"} | {"method": method}


def preview(server: HostServer, name: str, step: int | None) -> Picture:
    path = server.place.runs / name / "previews" / picture_name(step, 0)
    with Image.open(path) as image:
        return Picture(image.convert("RGB"), "")


def reproduced(server: HostServer, text: str, **more: Any) -> list[Picture]:
    """The host's pictures of generation parameters in its own text format."""
    answer = server.webui.post("/sdapi/v1/txt2img", {"infotext": text, "save_images": False, **more})
    texts = json.loads(answer["info"])["infotexts"]
    images = [Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB") for data in answer["images"]]
    return [Picture(image, text) for image, text in zip(images, texts, strict=True)]


def select(server: HostServer, checkpoint: str) -> None:
    """What choosing it in the list at the top of the page does."""
    server.webui.post("/sdapi/v1/options", {"sd_model_checkpoint": checkpoint})


def parameters(server: HostServer, name: str) -> tuple[str, str]:
    """The parameters of "Reproduce", and the same without what calls the result."""
    config = load(server.webui.get(f"/train-studio/v1/jobs/{name}/config"))
    text = infotext(config, config.preview.prompts[0], name)
    return text, re.sub(r" ?<\w+:\w+:1>", "", text)


@pytest.fixture(scope="module")
def drawn(server: HostServer, figures: dict[str, Any]) -> Callable[[str], Drawn]:
    """A method trained in the host when it is asked for first, and its picture drawn."""
    known: dict[str, Drawn] = {}

    def draw(name: str) -> Drawn:
        if name not in known:
            known[name] = train_and_draw(server, name)
            figures[name] = known[name].distances()
        return known[name]

    return draw


def train(server: HostServer, table: dict[str, Any]) -> dict[str, Any]:
    """Train a job to its end; what the host said of its last result."""
    code, answer, _ = server.status_of("/train-studio/v1/jobs", table)
    assert code == 202, answer
    status = wait_for_state(server, answer["job_id"], "completed", "failed", seconds=600)
    assert status["state"] == "completed", status
    return status["results"][-1]


def train_and_draw(server: HostServer, name: str) -> Drawn:
    table = table_of(server, name)
    result = train(server, table)
    with_result, without = parameters(server, name)
    (base,) = reproduced(server, without)
    if name == "zwhole":
        select(server, "zwhole.safetensors")
    (host,) = reproduced(server, with_result)
    if name == "zwhole":
        select(server, "practice.safetensors")
    (after,) = reproduced(server, without)
    step = table["training"]["max_train_steps"]
    pictures = preview(server, name, step), preview(server, name, None), host, base, after
    return Drawn(*pictures, result)


@pytest.mark.parametrize("name", METHODS)
def test_statement_25_the_host_sees_the_file_at_once(drawn: Callable[[str], Drawn], name: str) -> None:
    expected = VISIBLE.get(name, rf"visible as <lora:{name}:1>, (\d+) of \1 modules matched")
    assert re.fullmatch(expected, drawn(name).result["published"])
    assert drawn(name).result["is_usable"]


@pytest.mark.parametrize("name", METHODS)
def test_the_host_draws_what_the_preview_showed(drawn: Callable[[str], Drawn], name: str) -> None:
    distances = drawn(name).distances()
    assert distances["host with / ours with"] < SAME
    assert distances["host base / ours base"] < SAME
    assert distances["host with / host base"] > CHANGED
    assert distances["ours with / ours base"] > CHANGED


@pytest.mark.parametrize("name", METHODS)
def test_without_it_the_host_draws_as_before(drawn: Callable[[str], Drawn], name: str) -> None:
    assert drawn(name).host_after.same_as(drawn(name).host_base)


def test_a_checkpoint_is_in_the_list_draws_the_subject_and_was_not_selected(
    drawn: Callable[[str], Drawn], server: HostServer, figures: dict[str, Any]
) -> None:
    """In most of ten fresh seeds the badge is found; the base model draws none."""
    assert "Model: practice," in drawn("zwhole").host_base.infotext
    assert "Model: zwhole," in drawn("zwhole").host.infotext
    titles = [model["title"] for model in server.webui.get("/sdapi/v1/sd-models")]
    assert any(title.startswith("zwhole.safetensors") for title in titles)
    found = {}
    config = load(server.webui.get("/train-studio/v1/jobs/zwhole/config"))
    prompt = PreviewPrompt(prompt="a [name] on a green background", seed=FIRST_SEED, guidance_scale=5.0)
    for checkpoint in ("zwhole", "practice"):
        select(server, f"{checkpoint}.safetensors")
        pictures = reproduced(server, infotext(config, prompt, "zwhole"), batch_size=NUM_SEEDS)
        found[checkpoint] = sum(subject_found(picture.image) for picture in pictures)
        assert len(pictures) == NUM_SEEDS
    figures["badge found, of ten"] = found
    assert found["practice"] == 0
    assert found["zwhole"] > NUM_SEEDS / 2


def test_statement_26_a_rewritten_checkpoint_is_the_old_one_until_another_was_selected(
    drawn: Callable[[str], Drawn], server: HostServer
) -> None:
    drawn("zwhole")
    text = parameters(server, "zwhole")[0]
    select(server, "zwhole.safetensors")
    (before,) = reproduced(server, text)
    table = table_of(server, "zwhole") | {"base_model": str(server.place.checkpoints / "practice.safetensors")}
    result = train(server, table | {"training": table["training"] | {"max_train_steps": 1}, "output": OVERWRITE})
    assert result["published"].endswith("but loaded as it was before: select another one, and then it again")
    assert not result["is_usable"]
    (loaded,) = reproduced(server, text)
    for checkpoint in ("practice", "zwhole"):
        select(server, f"{checkpoint}.safetensors")
    (fresh,) = reproduced(server, text)
    select(server, "practice.safetensors")
    assert loaded.same_as(before)
    assert fresh.distance(before) > CHANGED


@pytest.mark.parametrize("name", ["zhyper", "zwhole"])
def test_the_cards_of_other_kinds_are_there(drawn: Callable[[str], Drawn], server: HostServer, name: str) -> None:
    page = {"zhyper": "hypernetworks", "zwhole": "checkpoints"}[name]
    drawn(name)
    card = server.webui.cards(page)[name]
    assert "call it with" in card.description
    assert card.preview


def test_the_log_has_no_traceback_and_no_complaint(drawn: Callable[[str], Drawn], server: HostServer) -> None:
    drawn("zhyper")
    text = complaints(server.log)
    assert "Traceback" not in text
    assert "Error loading hypernetwork" not in text and "Networks with errors" not in text
