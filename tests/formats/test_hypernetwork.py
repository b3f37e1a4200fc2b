"""Hypernetwork files: the WebUI's names and defaults, read again by arithmetic of our own."""

from __future__ import annotations

import io
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.errors import FormatError
from extensions_lib.formats.hypernetwork import HypernetworkDesign, hypernetwork_bytes, read_hypernetwork
from extensions_lib.formats.inspect import describe_file

# What the WebUI's unpickler (modules/safe.py of 1.10) lets through, of what a file of tensors needs.
ALLOWED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch HalfStorage"}
DROPOUT = (0, 0.3, 0.3, 0)


def networks(design: HypernetworkDesign, *widths: int, seed: int = 0) -> dict[int, Any]:
    """Random tensors of the shapes that `design` asks for."""
    generator = torch.Generator().manual_seed(seed)

    def part(width: int) -> dict[str, torch.Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in design.tensor_shapes(width).items()}

    return {width: (part(width), part(width)) for width in widths}


def written(path: Path, design: HypernetworkDesign, *widths: int, **more: Any) -> Path:
    path.write_bytes(hypernetwork_bytes(networks(design, *widths), design, name=path.stem, step=7, **more))
    return path


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize(
    ("design", "names"),
    [
        (HypernetworkDesign((1, 2, 1)), {"linear.0": (640, 320), "linear.1": (320, 640)}),
        (HypernetworkDesign((1, 2, 1), "relu"), {"linear.0": (640, 320), "linear.2": (320, 640)}),
        (
            HypernetworkDesign((1, 2, 1), "relu", activate_output=True, dropout_structure=(0, 0.1, 0)),
            {"linear.0": (640, 320), "linear.3": (320, 640)},
        ),
        (
            HypernetworkDesign((1, 2, 1), "relu", layer_norm=True),
            {"linear.0": (640, 320), "linear.2": (640,), "linear.3": (320, 640), "linear.4": (320,)},
        ),
        (
            HypernetworkDesign((1, 2, 2, 1), "swish", layer_norm=True, dropout_structure=DROPOUT),
            {
                "linear.0": (640, 320), "linear.2": (640,), "linear.4": (640, 640), "linear.6": (640,),
                "linear.8": (320, 640), "linear.9": (320,),
            },
        ),
    ],
)  # fmt: skip
def test_tensors_are_numbered_as_in_the_webuis_files(
    design: HypernetworkDesign, names: dict[str, tuple[int, ...]]
) -> None:
    shapes = design.tensor_shapes(320)
    assert {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith("weight")} == names
    assert {name: shapes[f"{name}.bias"] for name in names} == {name: shape[:1] for name, shape in names.items()}


def test_sizes_are_cut_off_as_the_webui_does() -> None:
    assert HypernetworkDesign((1, 1.3, 1)).tensor_shapes(33)["linear.0.weight"] == (42, 33)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    design = HypernetworkDesign((1, 2, 1.5, 1), "swish", "XavierUniform", True, True, DROPOUT)
    path = written(
        tmp_path / "cat.pt", design, 32, 64, checkpoint_hash="0123456789", checkpoint_name="base", optional_info="{}"
    )
    found = read_hypernetwork(path)
    assert (found.design, found.name, found.step, found.base) == (design, "cat", 7, "base")
    expected = networks(design, 32, 64)
    for width in (32, 64):
        for part in (0, 1):
            tensors = found.networks[width][part]
            assert tensors.keys() == expected[width][part].keys()
            assert all(torch.equal(tensors[name], tensor) for name, tensor in expected[width][part].items())


def test_every_setting_is_written_because_the_webuis_defaults_differ(tmp_path: Path) -> None:
    path = written(tmp_path / "cat.pt", HypernetworkDesign((1, 2.5, 1), "relu"), 32)
    content = torch.load(path, weights_only=True)
    assert {key: value for key, value in content.items() if isinstance(key, str)} == {
        "step": 7, "name": "cat", "layer_structure": [1, 2.5, 1], "activation_func": "relu", "is_layer_norm": False,
        "weight_initialization": "Normal", "sd_checkpoint": None, "sd_checkpoint_name": None, "activate_output": False,
        "use_dropout": False, "dropout_structure": [0, 0, 0], "last_layer_dropout": False, "optional_info": None,
    }  # fmt: skip
    assert [type(size) for size in content["layer_structure"]] == [int, float, int]


def test_the_pickle_names_only_what_the_webui_allows(tmp_path: Path) -> None:
    design = HypernetworkDesign((1, 2, 1), "relu", layer_norm=True)
    halves = {width: tuple({n: t.half() for n, t in part.items()} for part in pair)
              for width, pair in networks(design, 32).items()}  # fmt: skip
    for tensors in (networks(design, 32), halves):
        data = hypernetwork_bytes(tensors, design, name="cat", step=1)
        assert not data.startswith(b"PK"), "the WebUI refuses the zip files of recent torch versions"
        assert globals_in(data) <= ALLOWED


def globals_in(data: bytes) -> set[str]:
    """Every global that the pickles of a file in torch's old serialization name."""
    stream, found = io.BytesIO(data), set()
    for _ in range(4):  # magic number, protocol, system, content; the list of storages and the numbers follow
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "GLOBAL":
                found.add(argument)
    return found


def test_the_reader_computes_by_hand(tmp_path: Path) -> None:
    """[1, 1] with a layer norm of gain (1, 2) and bias (0, 1): x + m * (norm(x W + b) * gain + bias)."""
    design = HypernetworkDesign((1, 1), layer_norm=True, dropout_structure=(0, 0))
    network = {
        "linear.0.weight": torch.tensor([[1.0, 0.0], [0.0, 3.0]]),
        "linear.0.bias": torch.tensor([0.0, -2.0]),
        "linear.1.weight": torch.tensor([1.0, 2.0]),
        "linear.1.bias": torch.tensor([0.0, 1.0]),
    }
    still = {name: torch.zeros_like(tensor) for name, tensor in network.items()}
    path = tmp_path / "cat.pt"
    path.write_bytes(hypernetwork_bytes({2: (network, still)}, design, name="cat", step=0))
    found, states = read_hypernetwork(path), torch.tensor([[[1.0, 2.0]]])
    # Behind the layer (1, 4), normalised (-1, 1), with gain and bias (-1, 3).
    assert torch.allclose(found.apply(states, 0), torch.tensor([[[0.0, 5.0]]]), atol=1e-4)
    assert torch.allclose(found.apply(states, 0, 0.5), torch.tensor([[[0.5, 3.5]]]), atol=1e-4)
    assert torch.equal(found.apply(states, 1), states)
    assert torch.equal(found.apply(torch.ones(1, 1, 3), 0), torch.ones(1, 1, 3))


def test_old_files_have_other_names_and_defaults(tmp_path: Path) -> None:
    part = {"linear1.weight": torch.ones(4, 2), "linear1.bias": torch.zeros(4),
            "linear2.weight": torch.ones(2, 4), "linear2.bias": torch.zeros(2)}  # fmt: skip
    found = read_hypernetwork(saved(tmp_path / "old.pt", {2: (part, part), "step": 3}))
    assert found.design == HypernetworkDesign(activate_output=True)
    assert torch.equal(found.apply(torch.ones(1, 1, 2), 0), torch.full((1, 1, 2), 9.0))


def test_dropout_without_its_structure_is_that_of_older_versions(tmp_path: Path) -> None:
    design = HypernetworkDesign((1, 2, 2, 1), dropout_structure=(0, 0.3, 0, 0))
    content = {**networks(design, 8), "layer_structure": [1, 2, 2, 1], "use_dropout": True}
    assert read_hypernetwork(saved(tmp_path / "a.pt", content)).design.dropout_structure == (0, 0.3, 0, 0)
    later = HypernetworkDesign((1, 2, 2, 1), dropout_structure=DROPOUT)
    content = {**content, **networks(later, 8), "last_layer_dropout": True}
    assert read_hypernetwork(saved(tmp_path / "b.pt", content)).design.dropout_structure == DROPOUT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_func": "prelu"}, "uses the activation 'prelu'"),
        ({"layer_structure": [1]}, "at least two entries are needed"),
        ({"layer_structure": "1, 2, 1"}, "its layer_structure is '1, 2, 1', not a list of numbers"),
        ({"dropout_structure": [0, 0]}, "3 sizes of layers and 2 dropouts"),
        ({"layer_structure": [1, 3, 1]}, "does not fit its own layer structure at width 8: linear.0.bias"),
        ({"activation_func": "relu"}, "does not fit its own layer structure"),
        ({8: [{}]}, "holds no pair of networks under the width 8"),
    ],
)
def test_files_that_contradict_themselves_are_refused(tmp_path: Path, change: dict[Any, Any], message: str) -> None:
    design = HypernetworkDesign()
    content = {**networks(design, 8), "layer_structure": [1, 2, 1], "dropout_structure": [0, 0, 0]}
    with pytest.raises(FormatError, match=message):
        read_hypernetwork(saved(tmp_path / "cat.pt", {**content, **change}))


def test_another_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not a hypernetwork"):
        read_hypernetwork(saved(tmp_path / "cat.pt", {"string_to_param": {"*": torch.ones(1, 2)}}))


def test_inspect_knows_it(tmp_path: Path) -> None:
    facts = describe_file(written(tmp_path / "cat.pt", HypernetworkDesign(activation="relu"), 32, 64))
    assert facts["kind"] == "hypernetwork"
    assert facts["details"] == {
        "widths": [32, 64], "name": "cat", "step": 7, "layer_structure": [1, 2, 1], "activation_func": "relu"
    }  # fmt: skip
