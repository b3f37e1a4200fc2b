"""The WebUI's own hypernetwork classes over our files, and ours over its own, network by network and through the UNet.

No server is started: the host's classes run in its own Python (`hypernetwork_arithmetic.py`) on the model as it loads
it; they list the files, check their pickles and call them by name as a prompt does.
"""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from extensions_lib.formats.atomic import write_bytes_atomic  # noqa: E402
from extensions_lib.formats.hypernetwork import (  # noqa: E402
    HypernetworkDesign,
    hypernetwork_bytes,
    read_hypernetwork,
)
from extensions_lib.formats.metadata import ArtefactInfo  # noqa: E402
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402
from extensions_lib.methods.base import Trainable  # noqa: E402
from extensions_lib.methods.hypernetwork import PARTS, Hypernetwork  # noqa: E402
from extensions_lib.models.bundle import ModelBundle  # noqa: E402
from extensions_lib.models.load import load_bundle  # noqa: E402
from extensions_lib.models.predict import predict  # noqa: E402
from extensions_lib.models.text import Conditioning  # noqa: E402

from .conftest import PRACTICE_MODEL  # noqa: E402
from .test_network_arithmetic import apart, copied_model  # noqa: E402

Record = Callable[[str, object], None]
SCRIPT = Path(__file__).with_name("hypernetwork_arithmetic.py")
STRENGTH = 0.5
SDXL_WIDTHS = (640, 1280, 2048)
SINGLE = torch.float32
DESIGNS = {
    "linear": HypernetworkDesign(),
    "relu": HypernetworkDesign((1, 2, 1), "relu", "XavierUniform"),
    "swish with norms and dropout": HypernetworkDesign(
        (1, 2, 2, 1), "swish", "KaimingNormal", layer_norm=True, dropout_structure=(0, 0.3, 0.3, 0)
    ),
    "tanh to the end": HypernetworkDesign((1, 1.5, 1), "tanh", "XavierNormal", activate_output=True),
    "mish of four layers": HypernetworkDesign(
        (1, 2, 4, 2, 1), "mish", "KaimingUniform", activate_output=True, dropout_structure=(0,) * 5
    ),
    "one layer": HypernetworkDesign((1, 1), "elu", layer_norm=True, dropout_structure=(0, 0)),
    "leakyrelu": HypernetworkDesign((1, 2, 1), "leakyrelu", "KaimingUniform"),
    "sigmoid": HypernetworkDesign((1, 2, 1), "sigmoid", "XavierNormal"),
    "softsign": HypernetworkDesign((1, 2, 1), "softsign", "XavierNormal"),
    "gelu": HypernetworkDesign((1, 2, 1), "gelu", "XavierNormal"),
    "silu": HypernetworkDesign((1, 2, 1), "silu", "XavierNormal"),
    "softplus": HypernetworkDesign((1, 2, 1), "softplus", "XavierNormal"),
    "selu": HypernetworkDesign((1, 2, 1), "selu", "XavierNormal"),
    "celu": HypernetworkDesign((1, 2, 1), "celu", "XavierNormal"),
    "relu6": HypernetworkDesign((1, 2, 1), "relu6", "XavierNormal"),
    "hardtanh": HypernetworkDesign((1, 2, 1), "hardtanh", "XavierNormal"),
    "logsigmoid": HypernetworkDesign((1, 2, 1), "logsigmoid", "XavierNormal"),
    "tanhshrink": HypernetworkDesign((1, 2, 1), "tanhshrink", "XavierNormal"),
}
HALVES = "in halves"
METHODS = {name: Hypernetwork(design, dtype=SINGLE) for name, design in DESIGNS.items()} | {
    "one width": Hypernetwork(HypernetworkDesign(activation="relu"), widths=(64,), dtype=SINGLE),
    HALVES: Hypernetwork(HypernetworkDesign(activation="relu"), dtype=torch.float16),
}
FEW = ("relu", "swish with norms and dropout", HALVES)
# Each base model with the methods that are tried on it; the arithmetic of one network is the same on all of them.
CASES = [("practice", name) for name in METHODS] + [(base, name) for base in ("sd2", "sdxl") for name in FEW]
BATCH = 2
SIZES = torch.tensor([[64, 64, 0, 0, 64, 64]] * BATCH)


@dataclass(frozen=True)
class Answers:
    """What the host computed by name, of what, and our networks on our model."""

    host: dict[str, torch.Tensor]
    inputs: dict[str, torch.Tensor]
    trainables: dict[str, Trainable]
    bundle: ModelBundle
    folder: Path

    @torch.no_grad()
    def ours(self) -> torch.Tensor:
        """Our UNet's answer to what the host's was given."""
        inputs = self.inputs
        conditioning = Conditioning(inputs["context"], inputs.get("pooled"))
        return predict(self.bundle, inputs["x"], inputs["timesteps"], conditioning, SIZES)


def moved(trainable: Trainable) -> Trainable:
    with torch.no_grad():
        for index, parameter in enumerate(trainable.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trainable


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def answers_on(webui_root: Path, family_models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answers]:
    """`answers_on("sd2")`: files of the methods tried on that base model, and what the host makes of them."""
    known: dict[str, Answers] = {}

    def answer(base: str) -> Answers:
        if base not in known:
            model = PRACTICE_MODEL / "practice.safetensors" if base == "practice" else family_models[base]
            known[base] = ask_host(webui_root, base, model, tmp_path_factory.mktemp("hypernetworks"))
        return known[base]

    return answer


def ask_host(root: Path, base: str, checkpoint: Path, folder: Path) -> Answers:
    model = copied_model(checkpoint, folder)
    bundle, trainables = load_bundle(model), {}
    bundle.freeze()
    for name in [name for tried, name in CASES if tried == base]:
        with METHODS[name].attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
            exported = METHODS[name].export(moved(trainable), ArtefactInfo(output_name=name))
        trainables[name] = trainable
        write_bytes_atomic(folder / f"{name}.pt", exported.payload)
    write_bytes_atomic(folder / "real sdxl.pt", sdxl_file())
    widths = {int(width) for trainable in trainables.values() for width in trainable.module}
    inputs = {f"states/{width}": random(BATCH, 5, width) for width in {32, 64, *widths, *SDXL_WIDTHS}}
    inputs |= {"x": random(BATCH, 4, 8, 8), "timesteps": torch.tensor([400, 900])}
    inputs |= told(bundle)
    given = write_atomic(folder / "inputs.safetensors", inputs, {})
    output = folder / "host.safetensors"
    python = os.environ.get("WEBUI_PYTHON", str(root / "venv" / "bin" / "python"))
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("PYTHONPATH", None)
    command = [python, SCRIPT, root, model, given, output, str(STRENGTH), folder, folder / "own.pt"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return Answers(read_tensors(output), inputs, trainables, bundle, folder)


def told(bundle: ModelBundle) -> dict[str, torch.Tensor]:
    """Text states, and for SDXL what the host's UNet takes as one vector 'y': pooled state and sizes as waves."""
    unet = bundle.unet
    found = {"context": random(BATCH, 77, unet.config.cross_attention_dim)}
    if bundle.family.has_size_conditioning:
        waves = unet.add_time_proj(SIZES.flatten()).reshape(BATCH, -1)
        pooled = random(BATCH, unet.config.projection_class_embeddings_input_dim - waves.shape[1])
        found |= {"pooled": pooled, "y": torch.cat([pooled, waves], dim=1)}
    return found


def sdxl_file() -> bytes:
    """A hypernetwork for the widths of SDXL's attentions, which the WebUI's own page does not offer."""
    design = HypernetworkDesign((1, 1.25, 1), "relu")
    networks = {
        width: tuple(
            {name: random(*shape) * 0.02 for name, shape in design.tensor_shapes(width).items()} for _ in PARTS
        )
        for width in SDXL_WIDTHS
    }
    return hypernetwork_bytes(networks, design, name="sdxl", step=1)


@pytest.fixture(params=CASES, ids=" ".join)
def case(request: pytest.FixtureRequest, answers_on: Callable[[str], Answers]) -> tuple[str, Answers]:
    base, name = request.param
    return name, answers_on(base)


@torch.no_grad()
def test_each_network_computes_the_same(case: tuple[str, Answers], record_property: Record) -> None:
    (name, answers), worst = case, 0.0
    trainable = answers.trainables[name]
    with trainable.multiplied(STRENGTH):
        for width, pair in trainable.module.items():
            for number, part in enumerate(PARTS):
                ours = pair[part].eval()(answers.inputs[f"states/{width}"])
                worst = max(worst, apart(ours, answers.host[f"{name}/{width}/{number}"]))
    record_property("largest difference of a network", worst)
    assert worst < (1e-3 if name == HALVES else 1e-6)


@torch.no_grad()
def test_the_reader_computes_the_same(case: tuple[str, Answers]) -> None:
    name, answers = case
    found = read_hypernetwork(answers.folder / f"{name}.pt")
    for width in found.networks:
        for part in (0, 1):
            ours = found.apply(answers.inputs[f"states/{width}"], part, STRENGTH)
            assert apart(ours, answers.host[f"{name}/{width}/{part}"]) < 1e-6


def test_the_unet_answers_the_same(case: tuple[str, Answers], record_property: Record) -> None:
    """The whole UNet with the file, called by name in the host; and it is far from the UNet without it."""
    name, answers = case
    with METHODS[name].attach(answers.bundle, "x", torch.Generator().manual_seed(0)) as trainable:
        trainable.load_state(answers.trainables[name].state())
        with trainable.multiplied(STRENGTH):
            ours = answers.ours()
    difference, effect = (apart(one, answers.host[f"{name}/unet"]) for one in (ours, answers.host["unet"]))
    record_property("difference of the UNet's answer", difference)
    record_property("what the file changes", effect)
    assert difference < (2e-3 if name == HALVES else 2e-5) < 0.01 < effect


@pytest.mark.parametrize("base", ["practice", "sd2", "sdxl"])
def test_the_base_model_is_the_same(answers_on: Callable[[str], Answers], base: str) -> None:
    answers = answers_on(base)
    assert apart(answers.ours(), answers.host["unet"]) < 2e-5


@torch.no_grad()
def test_the_host_applies_a_file_of_sdxls_real_widths(answers_on: Callable[[str], Answers]) -> None:
    """Its own attention class of SDXL looks up a width of 2048 like any other."""
    answers = answers_on("practice")
    found, states = read_hypernetwork(answers.folder / "real sdxl.pt"), answers.inputs["states/2048"]
    keys, values = answers.host["real sdxl/sdxl"]
    assert apart(found.apply(states, 0, STRENGTH), keys) < 1e-6
    assert apart(found.apply(states, 1, STRENGTH), values) < 1e-6
    assert apart(keys, states) > 0.01


@torch.no_grad()
def test_files_of_the_hosts_own_are_read_and_gone_on_from(answers_on: Callable[[str], Answers]) -> None:
    answers = answers_on("practice")
    path = answers.folder / "own.pt"
    found = read_hypernetwork(path)
    assert found.design == HypernetworkDesign(
        (1, 2, 2, 1), "swish", "KaimingNormal", True, activate_output=True, dropout_structure=(0, 0.3, 0.3, 0)
    )
    method = Hypernetwork(start_from=path)
    with method.attach(answers.bundle, "x", torch.Generator().manual_seed(0)) as trainable:
        for width, pair in trainable.module.items():
            states = answers.inputs[f"states/{width}"]
            for number, part in enumerate(PARTS):
                expected = answers.host[f"own/{width}/{number}"]
                assert apart(pair[part](states), expected) < 1e-6
                assert apart(found.apply(states, number), expected) < 1e-6
