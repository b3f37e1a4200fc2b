"""The WebUI's own Lora extension over files of every algorithm, module by module, against our forward pass.

No server is started: the host's classes run in its own Python (`lora_arithmetic.py`) on the model as it loads it.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from extensions_lib.adapters.attach import hooked  # noqa: E402
from extensions_lib.formats.metadata import ArtefactInfo  # noqa: E402
from extensions_lib.formats.network import read_network  # noqa: E402
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402
from extensions_lib.methods.base import Trainable  # noqa: E402
from extensions_lib.methods.lora import Lora  # noqa: E402
from extensions_lib.models.load import load_bundle  # noqa: E402

from .conftest import PRACTICE_MODEL  # noqa: E402

Record = Callable[[str, object], None]
SCRIPT = Path(__file__).with_name("lora_arithmetic.py")
EVERYTHING = {"layers": "full", "train_text_encoder": True, "dtype": torch.float32}
METHODS = {
    "lora": Lora(rank=4, alpha=2.0, conv_rank=2, **EVERYTHING),
    "rs-lora": Lora(rank=4, alpha=2.0, rs_lora=True, **EVERYTHING),
    "lora in halves": Lora(rank=4, alpha=2.0, **{**EVERYTHING, "dtype": torch.float16}),
    "loha": Lora(algorithm="loha", rank=4, alpha=2.0, **EVERYTHING),
    "lokr": Lora(algorithm="lokr", rank=1, alpha=2.0, **EVERYTHING),
    "lokr whole": Lora(algorithm="lokr", lokr_whole=True, **EVERYTHING),
    "dora": Lora(rank=4, alpha=2.0, dora=True, **EVERYTHING),
    "dora of loha": Lora(algorithm="loha", rank=4, alpha=2.0, dora=True, **EVERYTHING),
    "dora of lokr": Lora(algorithm="lokr", rank=1, alpha=2.0, dora=True, **EVERYTHING),
    "full with norms": Lora(algorithm="full", train_norms=True, **EVERYTHING),
    "full in halves": Lora(algorithm="full", **{**EVERYTHING, "dtype": torch.float16}),
}
STRENGTH = 0.5  # not 1, at which it would not matter where a DoRA's strength is applied
HALVES = ("lora in halves", "full in halves")


@dataclass(frozen=True)
class Trained:
    """A method's adapters off the model, its file, and what the host adds by layer name."""

    trainable: Trainable
    file: Path
    host: dict[str, torch.Tensor]
    host_bias: dict[str, torch.Tensor]


def moved(trainable: Trainable) -> Trainable:
    with torch.no_grad():
        for index, parameter in enumerate(trainable.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trainable


@pytest.fixture(scope="module")
def bundle():
    bundle = load_bundle(PRACTICE_MODEL / "practice.safetensors")
    bundle.freeze()
    return bundle


@pytest.fixture(scope="module")
def trained(webui_root: Path, bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """Every method's result, and what the host computes from its file."""
    folder = tmp_path_factory.mktemp("networks")
    trainables, files = {}, {}
    for name, method in METHODS.items():
        with method.attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
            exported = method.export(moved(trainable), ArtefactInfo(output_name="x"))
        trainables[name] = trainable
        files[name] = write_atomic(folder / f"{name}.safetensors", exported.tensors, exported.metadata)
    found = host_changes(webui_root, copied_model(folder), folder / "host.safetensors", list(files.values()))
    return {
        name: Trained(trainables[name], files[name], part(found, number, "weight"), part(found, number, "bias"))
        for number, name in enumerate(METHODS)
    }


def copied_model(folder: Path) -> Path:
    """The practice model with a yaml that finds its tokenizer from anywhere."""
    shutil.copyfile(PRACTICE_MODEL / "practice.safetensors", folder / "practice.safetensors")
    yaml = (PRACTICE_MODEL / "practice.yaml").read_text(encoding="utf-8")
    assert "models/Stable-diffusion/" in yaml
    yaml = yaml.replace("models/Stable-diffusion/", f"{PRACTICE_MODEL}/")
    (folder / "practice.yaml").write_text(yaml, encoding="utf-8")
    return folder / "practice.safetensors"


def host_changes(root: Path, model: Path, output: Path, files: list[Path]) -> dict[str, torch.Tensor]:
    python = os.environ.get("WEBUI_PYTHON", str(root / "venv" / "bin" / "python"))
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("PYTHONPATH", None)
    command = [python, SCRIPT, root, model, output, str(STRENGTH), *files]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return read_tensors(output)


def part(found: dict[str, torch.Tensor], number: int, ending: str) -> dict[str, torch.Tensor]:
    names = ((*name.split("/"), tensor) for name, tensor in found.items())
    return {layer: tensor for file, layer, what, tensor in names if file == str(number) and what == ending}


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest number."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


@pytest.fixture(params=METHODS)
def one(request: pytest.FixtureRequest, trained: dict[str, Trained]) -> tuple[str, Trained]:
    return request.param, trained[request.param]


def test_the_host_finds_every_module(one: tuple[str, Trained]) -> None:
    assert one[1].host.keys() == set(one[1].trainable.module)


def test_the_hosts_change_is_the_readers(one: tuple[str, Trained], bundle, record_property: Record) -> None:
    name, result = one
    layers = METHODS[name].chosen_layers(bundle)
    read = read_network(result.file)
    largest = max(apart(read[n].delta(layers[n].module.weight, STRENGTH), host) for n, host in result.host.items())
    biases = {n: change.bias_delta(STRENGTH) for n, change in read.items() if change.bias_delta() is not None}
    assert biases.keys() == result.host_bias.keys()
    largest = max([largest, *(apart(biases[n], bias) for n, bias in result.host_bias.items())])
    record_property("difference of the change", largest)
    assert largest < 2e-5


def test_our_forward_pass_is_the_hosts(one: tuple[str, Trained], bundle, record_property: Record) -> None:
    """Each layer alone, on random inputs: hooked, against the layer with the host's change added to its weight."""
    name, result = one
    layers, worst = METHODS[name].chosen_layers(bundle), 0.0
    for layer_name, chosen in layers.items():
        layer, x, adapter = chosen.module, inputs_of(chosen.module), result.trainable.module[layer_name]
        with torch.no_grad(), result.trainable.multiplied(STRENGTH), hooked({layer: adapter}):
            ours = layer(x)
        worst = max(worst, apart(ours, host_output(layer, x, result, layer_name)))
    record_property("difference of the forward pass", worst)
    assert worst < (2e-3 if name in HALVES else 2e-5)


def inputs_of(layer: torch.nn.Module) -> torch.Tensor:
    """A batch of two for any layer."""
    generator = torch.Generator().manual_seed(3)
    if isinstance(layer, torch.nn.Conv2d):
        return torch.randn(2, layer.in_channels, 4, 4, generator=generator)
    if isinstance(layer, torch.nn.GroupNorm):
        return torch.randn(2, layer.num_channels, 4, 4, generator=generator)
    return torch.randn(2, 5, layer.weight.shape[-1], generator=generator)


@torch.no_grad()
def host_output(layer: torch.nn.Module, x: torch.Tensor, result: Trained, name: str) -> torch.Tensor:
    """The layer's output with the host's change in its weight and bias, which are put back."""
    weight, bias = layer.weight.clone(), None if layer.bias is None else layer.bias.clone()
    layer.weight += result.host[name].reshape(weight.shape)
    if name in result.host_bias:
        layer.bias += result.host_bias[name]
    try:
        return layer(x)
    finally:
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
