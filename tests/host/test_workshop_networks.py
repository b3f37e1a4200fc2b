"""LoRA files that the workshop writes, in the WebUI's own Lora extension: every layer found, and changed as meant."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from extensions_lib.config.tools import load_tool  # noqa: E402
from extensions_lib.control import JobControl  # noqa: E402
from extensions_lib.formats.keys import lora_layer_name  # noqa: E402
from extensions_lib.formats.network import read_network  # noqa: E402
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402
from extensions_lib.merge.layers import layer_places  # noqa: E402
from extensions_lib.merge.models import read_model  # noqa: E402
from extensions_lib.merge.tools import run_tool  # noqa: E402

from .test_network_arithmetic import STRENGTH, copied_model, host_changes, part  # noqa: E402

Weights = dict[str, torch.Tensor]
PATHS = {
    "unet": (
        "down_blocks.1.attentions.0.proj_in",
        "down_blocks.1.resnets.0.conv1",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "up_blocks.0.upsamplers.0.conv",
        "conv_out",
    ),
    "text_encoder": ("text_model.encoder.layers.0.self_attn.v_proj", "text_model.encoder.layers.0.mlp.fc1"),
    "text_encoder_2": ("text_model.encoder.layers.0.self_attn.q_proj",),
}
FILES = ("peft", "dora of outputs", "dora as factors", "combined", "side by side", "resized", "extracted")


@dataclass(frozen=True)
class Seen:
    """A written file, what its layers should add at strength 1, and what the host computes and applies at STRENGTH."""

    file: Path
    expected: Weights
    computed: Weights
    applied: Weights


class Workshop:
    """The tools on one base model; files in a folder, all float32."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base, self.folder = base, folder
        self.model = read_model(base)
        self.family, tensors = self.model.family, read_tensors(base)
        self.weights = {n: p.rows(tensors[p.weight]).float() for n, p in layer_places(self.model).items()}

    def run(self, kind: str, name: str, **settings: object) -> Path:
        table = {"name": name, "folder": str(self.folder), "dtype": "fp32", **settings}
        return run_tool(load_tool(kind, table), JobControl(), lambda event: event).path

    def peft(self, name: str, seed: int, lengths: str = "") -> tuple[Path, Weights]:
        """A LoRA of rank 2 as peft writes it, with `lengths` a DoRA; and what it adds."""
        generator, tensors, added = torch.Generator().manual_seed(seed), {}, {}
        for network, paths in PATHS.items():
            for path in paths if (self.family, network) != ("sd2", "text_encoder_2") else ():
                layer = lora_layer_name(path, network, self.family)
                weight, own = self.weights[layer], f"{network}.{path}"
                outputs, *inputs = weight.shape
                ones = [1 for _ in inputs[1:]]
                up = 0.1 * torch.randn(outputs, 2, *ones, generator=generator)
                down = 0.1 * torch.randn(2, *inputs, generator=generator)
                tensors |= {f"{own}.lora_A.weight": down, f"{own}.lora_B.weight": up}
                change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
                if lengths:
                    magnitude = 1 + torch.rand(outputs, generator=generator)
                    tensors[f"{own}.{lengths}"] = magnitude
                    changed = (weight + change).flatten(1)
                    factors = magnitude[:, None] / changed.norm(dim=1, keepdim=True)
                    change = (changed * factors).reshape(weight.shape) - weight
                added[layer] = change
        return write_atomic(self.folder / f"{name}.safetensors", tensors, {}), added


def written(shop: Workshop) -> dict[str, tuple[Path, Weights]]:
    """Every file by what it is, and what its layers should add."""
    (first, a), (second, b) = shop.peft("first", 1), shop.peft("second", 2)
    dora, c = shop.peft("dora", 3, "lora_magnitude_vector")
    # Small ones cannot be told by their widths.
    own_first, own_second = (
        shop.run("convert-lora", f"own-{path.stem}", network=str(path), family=shop.family) for path in (first, second)
    )
    both = [{"path": str(own_first), "weight": "0.5"}, {"path": str(own_second), "weight": "-1"}]
    sums = {name: 0.5 * a[name] - b[name] for name in a}
    tuned = shop.run("bake", "tuned", base=str(shop.base), networks=[{"path": str(first)}])
    own = {"network": str(dora), "base": str(shop.base)}
    loha = loha_file(shop)
    halves = {name: change.undecomposed() for name, change in read_network(loha).items()}
    return {
        "peft": (own_first, a),
        "dora of outputs": (shop.run("convert-lora", "whole", **own), c),
        "dora as factors": (shop.run("convert-lora", "factors", rank=1024, **own), c),
        "combined": (shop.run("combine", "combined", networks=both), sums),
        "side by side": (shop.run("combine", "beside", networks=both, formula="concat"), sums),
        "resized": (shop.run("resize", "resized", network=str(loha), rank=1024), halves),
        "extracted": (shop.run("extract", "extracted", base=str(shop.base), tuned=str(tuned), rank=8), a),
    }


def loha_file(shop: Workshop) -> Path:
    """A LoHa of a convolution, whose kernel its tensors do not tell, and of a linear layer."""
    generator, tensors = torch.Generator().manual_seed(4), {}
    for path in PATHS["unet"][:2]:
        name = lora_layer_name(path, "unet", shop.family)
        outputs, inputs = shop.weights[name].flatten(1).shape
        for half in "w1", "w2":
            tensors[f"{name}.hada_{half}_a"] = 0.2 * torch.randn(outputs, 2, generator=generator)
            tensors[f"{name}.hada_{half}_b"] = 0.2 * torch.randn(2, inputs, generator=generator)
    return write_atomic(shop.folder / "loha.safetensors", tensors, {"ss_base_model_version": "sd_v1"})


@pytest.fixture(scope="module", params=["sd2", "sdxl"])
def seen(
    request: pytest.FixtureRequest, webui_root: Path, family_models, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Seen]:
    """Every file on one base model, as the host sees it."""
    folder = tmp_path_factory.mktemp("workshop")
    model = copied_model(family_models[request.param], folder)
    files = written(Workshop(model, folder))
    found = host_changes(webui_root, model, folder / "host.safetensors", [path for path, _ in files.values()])
    return {
        what: Seen(path, expected, part(found, number, "weight"), part(found, number, "applied"))
        for number, (what, (path, expected)) in enumerate(files.items())
    }


@pytest.mark.parametrize("what", FILES)
def test_the_host_finds_every_layer_and_computes_what_is_meant(
    what: str, seen: dict[str, Seen], record_property: Callable[[str, object], None]
) -> None:
    file, worst = seen[what], 0.0
    assert file.computed.keys() == read_network(file.file).keys() >= file.expected.keys()
    for name, change in file.computed.items():
        wanted = STRENGTH * file.expected.get(name, torch.zeros(change.shape)).reshape(change.shape)
        size = float(wanted.abs().max())
        worst = max(worst, float((change - wanted).abs().max()) / (size or 1.0))
    record_property("difference of the change", worst)
    assert worst < 2e-5


@pytest.mark.parametrize("what", FILES)
def test_the_host_applies_it(what: str, seen: dict[str, Seen]) -> None:
    """No layer is skipped, such as an attention of OpenCLIP of which a part is missing."""
    for name, applied in seen[what].applied.items():
        computed = seen[what].computed[name].reshape(applied.shape)
        torch.testing.assert_close(applied, computed, rtol=1e-3, atol=1e-5)
