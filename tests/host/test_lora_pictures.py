"""A file of every LoRA algorithm in a running WebUI: its picture is the one that our own preview draws."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from extensions_lib.formats.metadata import ArtefactInfo  # noqa: E402
from extensions_lib.formats.safetensors_io import write_atomic  # noqa: E402
from extensions_lib.methods.lora import Lora  # noqa: E402
from extensions_lib.models.load import load_bundle  # noqa: E402
from extensions_lib.preview.sampler import sample_image  # noqa: E402

from .client import Picture, Webui  # noqa: E402
from .conftest import PRACTICE_MODEL, lent  # noqa: E402

PROMPT = "a red circle on a blue background"
# Mean difference, of 255: what rounding to 8 bits and another torch make of a picture, and what everybody sees.
ROUNDING, VISIBLE = 1.5, 6.0
Record = Callable[[str, object], None]
# Each with the deviation of the numbers put into its parameters, so that the picture changes and stays one.
METHODS = {
    "zlora": (Lora(rank=4, alpha=4.0, layers="full", train_text_encoder=True), 0.08),
    "zloha": (Lora(algorithm="loha", rank=4, alpha=4.0, layers="full", train_text_encoder=True), 0.05),
    "zlokr": (Lora(algorithm="lokr", lokr_whole=True, layers="full", train_text_encoder=True), 0.06),
    "zdora": (Lora(rank=4, alpha=4.0, layers="full", train_text_encoder=True, dora=True), 0.06),
    "zfull": (Lora(algorithm="full", layers="full", train_text_encoder=True, train_norms=True), 0.02),
}


@pytest.fixture(scope="module")
def previews(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Picture]]:
    """Each method's file and what our preview draws with it."""
    bundle = load_bundle(PRACTICE_MODEL / "practice.safetensors")
    bundle.freeze()
    folder, found = tmp_path_factory.mktemp("networks"), {}
    for name, (method, deviation) in METHODS.items():
        with method.attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
            with torch.no_grad():
                for index, parameter in enumerate(trainable.parameters()):
                    generator = torch.Generator().manual_seed(index)
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * deviation)
            exported = method.export(trainable, ArtefactInfo(output_name=name))
            image = sample_image(
                bundle,
                prompt=PROMPT,
                seed=1234,
                width_px=64,
                height_px=64,
                num_steps=8,
                guidance_scale=5.0,
                sampler="euler",
                boundary=lambda: None,
                adapters=(trainable.module,),
            )
        path = write_atomic(folder / f"{name}.safetensors", exported.tensors, exported.metadata)
        found[name] = (path, Picture(image, ""))
    return found


@pytest.fixture(scope="module")
def drawn(webui: Webui, previews: dict[str, tuple[Path, Picture]]) -> Iterator[dict[str, Picture]]:
    """The host's pictures, with each file and, as '', without."""
    with lent([path for path, _ in previews.values()], webui.root / "models" / "Lora"):
        webui.refresh()
        yield {
            "": webui.draw(PROMPT),
            **{name: webui.draw(f"{PROMPT} <lora:{name}:1>") for name in METHODS},
        }
    webui.refresh()


@pytest.mark.parametrize("name", METHODS)
def test_the_hosts_picture_is_our_previews(
    name: str, drawn: dict[str, Picture], previews: dict[str, tuple[Path, Picture]], record_property: Record
) -> None:
    ours, host = previews[name][1], drawn[name]
    assert isinstance(ours.image, Image.Image)
    record_property("host against preview", host.distance(ours))
    record_property("host against base", host.distance(drawn[""]))
    assert host.distance(drawn[""]) > VISIBLE
    assert host.distance(ours) < ROUNDING
