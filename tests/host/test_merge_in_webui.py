"""What merge and bake write, used by the running WebUI: a merge made by its own jobs, and a baked checkpoint beside the
LoRA that is applied when the picture is drawn.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from extensions_lib.config.tools import load_tool  # noqa: E402
from extensions_lib.control import JobControl  # noqa: E402
from extensions_lib.formats.metadata import ArtefactInfo  # noqa: E402
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402
from extensions_lib.merge.tools import run_tool  # noqa: E402
from extensions_lib.methods.lora import Lora  # noqa: E402
from extensions_lib.models.load import load_bundle  # noqa: E402
from extensions_lib.preview.sampler import sample_image  # noqa: E402

from .client import Picture  # noqa: E402
from .server import HostServer, Place, wait_for_state  # noqa: E402

PROMPT = "a red circle on a blue background"
SEED, NUM_STEPS, SIZE_PX, GUIDANCE = 1234, 8, 64, 5.0
# Mean difference, of 255: rounding to 8 bits and another torch; the same sum in another order; what everybody sees.
ROUNDING, SAME, VISIBLE = 1.5, 0.1, 2.0
STRENGTH = 0.7
PARTS = ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")
FAMILIES = ("practice", "sd2", "sdxl")
# Each with the deviation of the numbers put into its parameters, so that the picture changes.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"layers": "attention"}, 0.08),
    "locon": ({"layers": "full", "conv_rank": 2}, 0.05),
    "loha": ({"algorithm": "loha", "layers": "full"}, 0.05),
    "lokr": ({"algorithm": "lokr", "lokr_whole": True, "layers": "full"}, 0.05),
    "dora": ({"dora": True, "layers": "full"}, 0.05),
    "full": ({"algorithm": "full", "layers": "full", "train_norms": True}, 0.02),
}
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def server(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostServer]:
    place = Place.make(tmp_path_factory.mktemp("merging"))
    host = HostServer(webui_root, place)
    host.make_family_models()
    place.loras.mkdir(parents=True, exist_ok=True)
    host.start("--api", "--skip-install", options={"randn_source": "CPU", "live_previews_enable": False})
    yield host
    host.stop()


def changed_model(source: Path, target: Path, seed: int) -> None:
    """A copy with other weights in every part, and its description."""
    tensors = read_tensors(source)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if name.startswith(PARTS) and tensor.is_floating_point() and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std().nan_to_num()
            tensors[name] = (tensor.float() + 0.2 * noise).to(tensor.dtype)
    write_atomic(target, tensors, {})
    shutil.copyfile(source.with_suffix(".yaml"), target.with_suffix(".yaml"))


def select(server: HostServer, name: str) -> None:
    server.webui.post("/sdapi/v1/options", {"sd_model_checkpoint": name})


def drawn(server: HostServer, more: str = "") -> Picture:
    return server.webui.draw(PROMPT + more, SEED, NUM_STEPS, SIZE_PX)


def preview_of(path: Path) -> Picture:
    """What our own sampler draws with the file."""
    bundle = load_bundle(path)
    bundle.freeze()
    image = sample_image(
        bundle, prompt=PROMPT, seed=SEED, width_px=SIZE_PX, height_px=SIZE_PX, num_steps=NUM_STEPS,
        guidance_scale=GUIDANCE, sampler="euler", boundary=lambda: None,
    )  # fmt: skip
    return Picture(image, "")


def test_a_merge_by_the_webuis_own_jobs_is_listed_and_draws_as_our_preview(
    server: HostServer, record_property: Record
) -> None:
    folder = server.place.checkpoints
    changed_model(folder / "practice.safetensors", folder / "other.safetensors", 1)
    server.webui.post("/sdapi/v1/refresh-checkpoints", {})
    select(server, "practice")
    base = drawn(server)
    titles = {entry["model_name"]: entry["title"] for entry in server.webui.get("/sdapi/v1/sd-models")}
    table = {"tool": "merge", "name": "mixed", "alpha": "0.5, TE=0.2", "models": [titles["practice"], titles["other"]]}
    status, answer, _ = server.status_of("/train-studio/v1/tools", table)
    assert status == 202, answer
    job = wait_for_state(server, answer["job_id"], "completed", "failed", "stopped")
    assert job["state"] == "completed", job
    (result,) = job["results"]
    assert result["is_usable"] and "mixed" in result["published"], result
    assert Path(result["path"]) == folder / "mixed.safetensors" and (folder / "mixed.yaml").is_file()
    assert "mixed" in [entry["model_name"] for entry in server.webui.get("/sdapi/v1/sd-models")]
    select(server, "mixed")
    found = drawn(server)
    assert "Model: mixed," in found.infotext
    off = found.distance(preview_of(folder / "mixed.safetensors"))
    record_property("host against preview", off)
    assert off < ROUNDING and found.distance(base) > VISIBLE
    select(server, "practice")
    assert drawn(server).same_as(base)


def network(method: str, base: Path, target: Path) -> Path:
    """A file of that kind whose numbers change the picture."""
    settings, deviation = METHODS[method]
    bundle = load_bundle(base)
    bundle.freeze()
    made = Lora(rank=4, alpha=4.0, train_text_encoder=True, dtype=torch.float32, **settings)
    with made.attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
        with torch.no_grad():
            for index, parameter in enumerate(trainable.parameters()):
                generator = torch.Generator().manual_seed(index)
                parameter.add_(torch.randn(parameter.shape, generator=generator) * deviation)
        exported = made.export(trainable, ArtefactInfo(output_name=target.stem, family=bundle.family.name))
    return write_atomic(target, exported.tensors, exported.metadata)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_baked_checkpoint_draws_what_the_file_draws_when_it_is_applied(
    server: HostServer, family: str, method: str, record_property: Record
) -> None:
    folder, name = server.place.checkpoints, f"z{family}{method}"
    base = folder / f"{family}.safetensors"
    file = network(method, base, server.place.loras / f"{name}.safetensors")
    table = {
        "name": f"{name}baked", "base": str(base), "folder": str(folder), "dtype": "fp32",
        "networks": [{"path": str(file), "strength": str(STRENGTH)}],
    }  # fmt: skip
    run_tool(load_tool("bake", table), JobControl(), lambda event: None)
    server.webui.refresh()
    server.webui.post("/sdapi/v1/refresh-checkpoints", {})
    select(server, family)
    before, applied = drawn(server), drawn(server, f" <lora:{name}:{STRENGTH}>")
    select(server, f"{name}baked")
    baked = drawn(server)
    off, change = baked.distance(applied), applied.distance(before)
    record_property("baked against applied", off)
    record_property("applied against base", change)
    print(f"\n{family} {method}: baked against applied {off:.4f}, applied against base {change:.2f}")  # noqa: T201
    assert off < SAME and change > VISIBLE
    (folder / f"{name}baked.safetensors").unlink()
