"""The WebUI's own Lora extension over files of every algorithm, module by module, against our forward pass.

No server is started: the host's classes run in its own Python (`lora_arithmetic.py`) on the model as it loads it. The
models of the other families are small ones with random weights.
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
from extensions_lib.models.bundle import ModelBundle  # noqa: E402
from extensions_lib.models.load import load_bundle  # noqa: E402

from .conftest import PRACTICE_MODEL  # noqa: E402

Record = Callable[[str, object], None]
SCRIPT = Path(__file__).with_name("lora_arithmetic.py")
EVERYTHING = {"layers": "full", "train_text_encoder": True, "dtype": torch.float32}
BASES = ("practice", "sd2", "sdxl")
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
    """A method's adapters off the model, its file, and by layer name what the host computes, and what it applies."""

    method: Lora
    bundle: ModelBundle
    trainable: Trainable
    file: Path
    host: dict[str, torch.Tensor]
    host_bias: dict[str, torch.Tensor]
    applied: dict[str, torch.Tensor]


def moved(trainable: Trainable) -> Trainable:
    with torch.no_grad():
        for index, parameter in enumerate(trainable.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trainable


@pytest.fixture(scope="module", params=BASES)
def results(
    request: pytest.FixtureRequest,
    webui_root: Path,
    family_models,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Trained]:
    """Every method's result on one base model, and what the host computes from its file."""
    folder = tmp_path_factory.mktemp("networks")
    base = PRACTICE_MODEL / "practice.safetensors" if request.param == "practice" else family_models[request.param]
    model = copied_model(base, folder)
    bundle, trainables, files = load_bundle(model), {}, {}
    bundle.freeze()
    info = ArtefactInfo(output_name="x", family=bundle.family.name)
    for name, method in METHODS.items():
        with method.attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
            exported = method.export(moved(trainable), info)
        trainables[name] = trainable
        files[name] = write_atomic(folder / f"{name}.safetensors", exported.tensors, exported.metadata)
    found = host_changes(webui_root, model, folder / "host.safetensors", list(files.values()))
    parts = {
        name: [part(found, number, what) for what in ("weight", "bias", "applied")]
        for number, name in enumerate(METHODS)
    }
    return {n: Trained(method, bundle, trainables[n], files[n], *parts[n]) for n, method in METHODS.items()}


def copied_model(model: Path, folder: Path) -> Path:
    """A checkpoint with a yaml that finds its text model's description and its tokenizer from anywhere."""
    clip = shutil.copytree(PRACTICE_MODEL / "practice-clip", folder / "clip")
    yaml = model.with_suffix(".yaml").read_text(encoding="utf-8")
    for name in ("models/Stable-diffusion/practice-clip", "small-clip"):
        yaml = yaml.replace(f"version: {name}", f"version: {clip}")
    if (model.parent / "small-clip").is_dir():
        shutil.copyfile(model.parent / "small-clip" / "config.json", clip / "config.json")
    (folder / model.with_suffix(".yaml").name).write_text(yaml, encoding="utf-8")
    return Path(shutil.copyfile(model, folder / model.name))


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


@pytest.mark.parametrize("name", METHODS)
def test_the_host_finds_every_module(name: str, results: dict[str, Trained]) -> None:
    assert results[name].host.keys() == set(results[name].trainable.module)


@pytest.mark.parametrize("name", METHODS)
def test_the_hosts_change_is_the_readers(name: str, results: dict[str, Trained], record_property: Record) -> None:
    result = results[name]
    layers, read = result.method.chosen_layers(result.bundle), read_network(result.file)
    largest = max(apart(read[n].delta(layers[n].module.weight, STRENGTH), host) for n, host in result.host.items())
    biases = {n: change.bias_delta(STRENGTH) for n, change in read.items() if change.bias_delta() is not None}
    assert biases.keys() == result.host_bias.keys()
    largest = max([largest, *(apart(biases[n], bias) for n, bias in result.host_bias.items())])
    record_property("difference of the change", largest)
    assert largest < 2e-5


@pytest.mark.parametrize("name", METHODS)
def test_the_host_applies_what_it_computes(name: str, results: dict[str, Trained]) -> None:
    """No layer is skipped, such as an attention of OpenCLIP of which a part is missing."""
    result = results[name]
    layers = result.method.chosen_layers(result.bundle)
    for layer, applied in result.applied.items():
        size = float(layers[layer].module.weight.abs().max())
        expected = result.host[layer].reshape(applied.shape)
        # fp16 differences are added in fp16.
        torch.testing.assert_close(applied, expected, rtol=0, atol=size * (2e-3 if name in HALVES else 1e-6))


@pytest.mark.parametrize("name", METHODS)
def test_our_forward_pass_is_the_hosts(name: str, results: dict[str, Trained], record_property: Record) -> None:
    """Each layer alone, on random inputs: hooked, against the layer with the host's change added to its weight."""
    result, worst = results[name], 0.0
    for layer_name, chosen in result.method.chosen_layers(result.bundle).items():
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
