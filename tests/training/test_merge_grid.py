"""Grids of merges: each picture is that of the saved merge, and nothing is written of a grid that fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from extensions_lib.config.grid import GridConfig, cells, listed
from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, JobStopped, OutputError
from extensions_lib.events import Event, EventStream, PhaseProgress
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic
from extensions_lib.models.load import load_bundle
from extensions_lib.ports import ALONE, Surroundings
from extensions_lib.preview.sampler import sample_image
from extensions_lib.training.tools import foresee, run_tool

PROMPTS = "a red circle | a blue square"


@pytest.fixture(scope="module")
def models(practice_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The practice model, and one with other weights in every part."""
    folder = shutil.copytree(practice_model.parent, tmp_path_factory.mktemp("grid") / "models")
    other = folder / "other.safetensors"
    tensors = read_tensors(practice_model)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if name.startswith(("model.", "cond", "first")) and tensor.is_floating_point() and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
            tensors[name] = (tensor.float() + 0.2 * noise).to(tensor.dtype)
    write_atomic(other, tensors, {})
    other.with_suffix(".yaml").write_bytes(practice_model.with_suffix(".yaml").read_bytes())
    return [str(folder / practice_model.name), str(other)]


def table(models: list[str], folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": "sheet", "folder": str(folder), "models": [{"path": path} for path in models],
        "x_values": "0 | 0.5", "prompts": PROMPTS, "num_steps": 3, "width_px": 64, "height_px": 64,
        "precision": "fp32", **more,
    }  # fmt: skip


def draw(given: dict[str, Any], surroundings: Surroundings = ALONE, control: JobControl | None = None) -> Any:
    events: list[Event] = []
    stream = EventStream("grid", (events.append,))
    return run_tool(load_tool("grid", given), control or JobControl(), stream, surroundings), events


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def test_each_picture_is_that_of_the_saved_merge(models: list[str], tmp_path: Path) -> None:
    result, events = draw(table(models, tmp_path, y="text_encoder", y_values="a | b"))
    found = sorted(path.name for path in (tmp_path / "sheet").iterdir())
    assert found == [f"{prompt}-{row:02}-{column:02}.png" for prompt in (0, 1) for row in (0, 1) for column in (0, 1)]
    assert result.path == tmp_path / "sheet.png" and result.text.startswith("8 pictures")
    assert PhaseProgress(phase="draw", done=8, total=8) in [_bare(event) for event in events]
    merge = {
        "name": "saved", "folder": str(Path(models[0]).parent), "models": [{"path": path} for path in models],
        "alpha": "0.5", "text_encoder": "b",
    }  # fmt: skip
    saved = run_tool(load_tool("merge", merge), JobControl(), EventStream("x"), ALONE).path
    expected = _drawn(saved, "a blue square")
    assert ImageChops.difference(picture(tmp_path / "sheet" / "1-01-01.png"), expected).getbbox() is None
    base = _drawn(Path(models[0]), "a red circle")
    assert ImageChops.difference(picture(tmp_path / "sheet" / "0-00-00.png"), base).getbbox() is None
    assert ImageChops.difference(base, picture(tmp_path / "sheet" / "0-00-01.png")).getbbox() is not None


def _bare(event: Event) -> Event:
    return PhaseProgress(phase=event.phase, done=event.done, total=event.total)


def _drawn(path: Path, prompt: str) -> Image.Image:
    """What a preview of the file draws."""
    bundle = load_bundle(path)
    bundle.freeze()
    return sample_image(
        bundle, prompt=prompt, seed=1, width_px=64, height_px=64, num_steps=3, guidance_scale=7.0,
        sampler="dpmpp_2m", boundary=lambda: None,
    )  # fmt: skip


def test_the_device_is_asked_for_and_lent(models: list[str], tmp_path: Path) -> None:
    calls = []

    class Host(type(ALONE)):
        @contextmanager
        def exclusive(self) -> Iterator[None]:
            calls.append("taken")
            yield
            calls.append("given back")

        def lend(self, parked: Any) -> None:
            with parked():
                calls.append("lent")

    draw(table(models, tmp_path, prompts="a", x_values="0.5"), Host())
    assert calls[0] == "taken" and calls[-1] == "given back" and calls.count("lent") > 3


def test_a_stopped_grid_leaves_nothing(models: list[str], tmp_path: Path) -> None:
    control = JobControl()

    class Host(type(ALONE)):
        def lend(self, parked: Any) -> None:
            control.request_stop()

    with pytest.raises(JobStopped):
        draw(table(models, tmp_path), Host(), control)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused_before_any_work(models: list[str], tmp_path: Path) -> None:
    (tmp_path / "sheet.png").touch()
    with pytest.raises(OutputError, match="already exists"):
        foresee(load_tool("grid", table(models, tmp_path)))


def test_cells_are_merges_with_the_values_of_their_type(tmp_path: Path) -> None:
    given = table(["a", "b"], tmp_path, formula="ties", x="density", x_values="0.2 | 0.4", y="formula")
    config: GridConfig = load_tool("grid", given | {"y_values": "ties | dare"})
    found = [(cell.column, cell.row, cell.merge.density, cell.merge.formula) for cell in cells(config)]
    assert found == [(0, 0, 0.2, "ties"), (1, 0, 0.4, "ties"), (0, 1, 0.2, "dare"), (1, 1, 0.4, "dare")]
    assert (cells(config)[1].x_label, cells(config)[2].y_label) == ("density 0.4", "formula dare")


def test_values_may_hold_what_block_weights_hold() -> None:
    assert listed("0.5, IN04-IN08:attn1|attn2=0.2 | 1;TE=0\n0.3") == ["0.5, IN04-IN08:attn1|attn2=0.2", "1;TE=0", "0.3"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_values": " "}, "x_values: are none"),
        ({"x": "density", "x_values": "0.5 | 2"}, "x_values: hold '2': density: is 2.0, accepted are 0.001 to 1"),
        ({"x": "density", "x_values": "much"}, "density: must be a number, is 'much'"),
        ({"y": "beta"}, "y_values: and y belong together"),
        ({"y": "alpha", "y_values": "1"}, "y: is 'alpha', as x is"),
        ({"y": "beta", "y_values": "0.5"}, "beta: is given, but weighted_sum has no second ratio"),
        ({"prompts": ""}, "prompts: are none"),
        ({"width_px": 100}, "width_px: is 100; accepted are multiples of 8"),
        ({"x_values": " | ".join(["0"] * 501)}, "make 1002 pictures"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tool("grid", table(["a", "b"], tmp_path, **changes))
    assert said in caught.value.message
