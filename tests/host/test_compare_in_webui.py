"""Comparing merges in the running WebUI before one is saved: grids, votes, and a trial while a training runs."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402

from .client import Picture  # noqa: E402
from .server import HostServer, Place, complaints, job_table, wait_for_state  # noqa: E402

API = "/train-studio/v1"
PROMPT = "a red circle on a blue background"
# Mean difference, of 255: rounding to 8 bits and another torch.
ROUNDING, VISIBLE = 1.5, 2.0
DRAWN = {
    "prompts": PROMPT, "picture_seed": 1234, "num_steps": 8, "guidance_scale": 5.0, "sampler": "euler",
    "width_px": 64, "height_px": 64, "precision": "fp32",
}  # fmt: skip
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    place = Place.make(tmp_path_factory.mktemp("comparing"))
    own, other = (place.checkpoints / f"{name}.safetensors" for name in ("practice", "other"))
    tensors = read_tensors(own)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if name.startswith("model.") and tensor.is_floating_point() and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
            tensors[name] = (tensor.float() + 0.3 * noise).to(tensor.dtype)
    write_atomic(other, tensors, {})
    shutil.copyfile(own.with_suffix(".yaml"), other.with_suffix(".yaml"))
    host = HostServer(webui_root, place)
    host.start("--api", "--skip-install", options={"randn_source": "CPU", "live_previews_enable": False})
    yield host
    host.stop()
    assert "Traceback" not in complaints(host.log)


@pytest.fixture(scope="module")
def models(server: HostServer) -> list[str]:
    listed = {entry["model_name"]: entry["title"] for entry in server.webui.get("/sdapi/v1/sd-models")}
    return [listed["practice"], listed["other"]]


def asked(server: HostServer, path: str, body: Any) -> dict[str, Any]:
    status, answer, _ = server.status_of(f"{API}{path}", body)
    assert status == 202, answer
    return answer


def trial(server: HostServer, path: str, body: Any, until: str) -> None:
    asked(server, path, body)
    end = time.monotonic() + 60
    while (answer := server.status_of(f"{API}/trial")[1])["state"] != until:
        assert time.monotonic() < end and answer["state"] in ("applying", "undoing"), answer
        time.sleep(0.05)


def picture(content: bytes) -> Picture:
    return Picture(Image.open(io.BytesIO(content)).convert("RGB"), "")


def test_a_cell_of_a_grid_is_what_the_webui_draws_with_that_merge(
    server: HostServer, models: list[str], record_property: Record
) -> None:
    table = {"tool": "grid", "name": "sheet", "models": models, "x_values": "0 | 0.5 | 1", **DRAWN}
    job = wait_for_state(server, asked(server, "/tools", table)["job_id"], "completed", "failed")
    assert job["state"] == "completed", job
    sheet = server.place.folder / "train-studio" / "grids" / "sheet.png"
    assert [result["path"] for result in job["results"]] == [str(sheet)]
    assert server.webui.raw(f"{API}/jobs/sheet/previews/000000-0.png") == sheet.read_bytes()
    base, half, whole = (picture((sheet.parent / "sheet" / f"0-00-{c:02}.png").read_bytes()) for c in range(3))
    off = {"base": server.webui.draw(PROMPT).distance(base)}
    trial(server, "/trial", {"tool": "merge", "models": models, "alpha": "0.5"}, "on")
    off["half"] = server.webui.draw(PROMPT).distance(half)
    trial(server, "/trial/undo", {}, "none")
    for name, found in off.items():
        record_property(f"{name}: host against grid", found)
        assert found < ROUNDING
    assert base.distance(half) > VISIBLE and half.distance(whole) > VISIBLE


def test_two_votes(server: HostServer, models: list[str]) -> None:
    before = server.webui.draw(PROMPT)
    assert asked(server, "/votes", {"name": "best", "models": models, **DRAWN}) == {"name": "best"}
    for number, vote in enumerate(("left", "alike")):
        found = server.webui.get(f"{API}/votes/best")
        wait_for_state(server, found["pair"]["job_id"], "completed")
        left, right = (picture(server.webui.raw(f"{API}/votes/best/pictures/{s}-0.png")) for s in ("left", "right"))
        # The text encoders of the two models are the same, and so are pictures that differ in theirs.
        assert (left.distance(right) > 0) == (number > 0)
        asked(server, "/votes/best/vote", {"vote": vote, "number": number})
        assert server.status_of(f"{API}/votes/best/vote", {"vote": vote, "number": number})[0] == 409
    found = server.webui.get(f"{API}/votes/best")
    assert (found["number"], found["votes"]) == (2, ["left", "alike"])
    assert found["alpha"].startswith("0.5, 0.5, ") and found["alpha"].split("TE=")[1] in ("0.25", "0.75")
    wait_for_state(server, found["pair"]["job_id"], "completed")
    asked(server, "/votes/best/forget", {})
    assert server.webui.get(f"{API}/votes") == {"votes": []}
    assert server.webui.draw(PROMPT).same_as(before)


def test_a_trial_while_a_training_runs(server: HostServer, models: list[str]) -> None:
    """It is let in between two steps; the training reads files and goes on as if there was none."""
    before = server.webui.draw(PROMPT)
    table = job_table(server.place, name="long", training={"max_train_steps": 400})
    job_id = asked(server, "/jobs", table)["job_id"]
    wait_for_state(server, job_id, "training")
    trial(server, "/trial", {"tool": "merge", "models": models, "alpha": "0.5"}, "on")
    during = server.webui.draw(PROMPT)
    assert during.distance(before) > VISIBLE and "Train Studio trial" in during.infotext
    trial(server, "/trial/undo", {}, "none")
    assert server.webui.draw(PROMPT).same_as(before)
    assert server.status_of(f"{API}/jobs/{job_id}")[1]["state"] == "training"
    server.status_of(f"{API}/jobs/{job_id}/ask", {"request": "discard"})
    wait_for_state(server, job_id, "discarded")
    assert server.webui.draw(PROMPT).same_as(before)
