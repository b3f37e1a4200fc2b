"""What prune and convert write, loaded by the running WebUI: it draws what it drew with the file they began with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from extensions_lib.config.tools import load_tool  # noqa: E402
from extensions_lib.control import JobControl  # noqa: E402
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402
from extensions_lib.merge.tools import run_tool  # noqa: E402

from .client import Picture  # noqa: E402
from .server import HostServer, Place  # noqa: E402

PROMPT = "a red circle on a blue background"
SEED, NUM_STEPS, SIZE_PX = 1234, 4, 64
UNET = "model.diffusion_model."
FAMILIES = ("practice", "sd2", "sdxl")
VISIBLE = 2.0  # mean difference, of 255


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    place = Place.make(tmp_path_factory.mktemp("files"))
    host = HostServer(webui_root, place)
    host.make_family_models()
    host.start("--api", "--skip-install", options={"randn_source": "CPU", "live_previews_enable": False})
    yield host
    host.stop()


def drawn(server: HostServer, name: str) -> Picture:
    server.webui.post("/sdapi/v1/refresh-checkpoints", {})
    server.webui.post("/sdapi/v1/options", {"sd_model_checkpoint": name})
    picture = server.webui.draw(PROMPT, SEED, NUM_STEPS, SIZE_PX)
    assert f"Model: {name}," in picture.infotext
    return picture


def use(tool: str, model: Path, name: str, **settings: str) -> Path:
    table = {"name": name, "model": str(model), "folder": str(model.parent), **settings}
    return run_tool(load_tool(tool, table), JobControl(), lambda event: None).path


def with_leftovers(path: Path, target: Path) -> Path:
    """A training's checkpoint: the good UNet is the averaged one, the other is noise, and more stands beside them."""
    tensors = read_tensors(path)
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith(UNET)}
    averaged = {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor for name, tensor in unet.items()}
    noise = {name: torch.randn_like(tensor.float()).to(tensor.dtype) * 0.02 for name, tensor in unet.items()}
    more = {"optimizer.state": torch.ones(9), "first_stage_model.loss.logvar": torch.ones(1)}
    write_atomic(target, {**tensors, **averaged, **noise, **more}, {})
    shutil.copyfile(path.with_suffix(".yaml"), target.with_suffix(".yaml"))
    return target


@pytest.mark.parametrize("family", FAMILIES)
def test_the_webui_draws_the_same_with_what_was_made_of_a_file(server: HostServer, family: str, tmp_path: Path) -> None:
    checkpoints = server.place.checkpoints
    base = checkpoints / f"{family}.safetensors"
    expected = drawn(server, family)
    full = with_leftovers(base, checkpoints / f"z{family}full.safetensors")
    assert drawn(server, full.stem).distance(expected) > VISIBLE
    pruned = use("prune", full, f"z{family}pruned", dtype="keep", ema="use")
    assert drawn(server, pruned.stem).same_as(expected)
    folder = use("convert", pruned, f"z{family}folder", to="diffusers", folder=str(tmp_path))
    old = use("convert", folder, f"z{family}old", to="ckpt", folder=str(checkpoints))
    assert old.suffix == ".ckpt" and drawn(server, old.stem).same_as(expected)
