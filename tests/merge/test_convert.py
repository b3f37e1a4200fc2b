"""Converting: every family there and back to the last bit, folders that diffusers loads, and mistakes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from extensions_lib.config.tools import load_tool
from extensions_lib.control import JobControl
from extensions_lib.errors import (
    DiskFullError,
    FormatError,
    JobStopped,
    KeyMismatchError,
    MergeError,
    ModelError,
    OutputError,
    UnsupportedModelError,
)
from extensions_lib.events import Warned
from extensions_lib.formats import atomic
from extensions_lib.formats.inspect import describe_file
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.formats.torch_file import read_torch_file
from extensions_lib.merge import convert as converting
from extensions_lib.merge.tools import ToolResult, run_tool
from extensions_lib.models.family import SD2
from extensions_lib.models.load import load_bundle

from ..model_families import FAMILY_MODELS, FamilyModels
from .conftest import small_model, stored

TURBO = "conditioner.embedders.0."


def convert(
    path: Path, to: str, name: str = "made", events: Any = None, control: Any = None, **more: Any
) -> ToolResult:
    table = {"name": name, "model": str(path), "to": to, "folder": str(path.parent / "out"), **more}
    emit = (events if events is not None else []).append
    return run_tool(load_tool("convert", table), control or JobControl(), emit)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.fixture
def base(tmp_path: Path, family_models: FamilyModels) -> Path:
    """A copy of the small SD 1 checkpoint, alone in a folder with what describes it."""
    return copied(family_models["sd1"], tmp_path)


def copied(path: Path, folder: Path) -> Path:
    shutil.copytree(path.parent / "small-clip", folder / "small-clip")
    shutil.copy(path.with_suffix(".yaml"), folder)
    return Path(shutil.copy(path, folder))


@pytest.mark.parametrize("name", FAMILY_MODELS)
def test_a_folder_and_back_is_the_same_file(name: str, tmp_path: Path, family_models: FamilyModels) -> None:
    path = copied(family_models[name], tmp_path)
    folder = convert(path, "diffusers").path
    back = convert(folder, "safetensors", folder=str(tmp_path / "back"))
    assert back.path.read_bytes() == path.read_bytes()
    assert [each.name for each in back.beside] == ["made.yaml"]
    assert back.beside[0].read_bytes() == path.with_suffix(".yaml").read_bytes()


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl-v-ztsnr", "sd1-inpaint", "sdxl-inpaint"])
def test_diffusers_draws_with_it(
    name: str, tmp_path: Path, family_models: FamilyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = copied(family_models[name], tmp_path)
    folder = convert(path, "diffusers").path
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    bundle, original = load_bundle(folder), load_bundle(path)
    assert bundle.family == original.family and bundle.has_zero_terminal_snr == original.has_zero_terminal_snr
    assert type(pipeline).__name__.endswith("InpaintPipeline") == bundle.is_inpainting
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, bundle.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert pipeline.scheduler.config.prediction_type == bundle.family.prediction_type
    for part, module in bundle.parts.items():
        same(getattr(pipeline, part).state_dict(), module.state_dict())
        same(original.parts[part].state_dict(), module.state_dict())
    for kind in bundle.family.text_encoders:
        tokenizer = getattr(pipeline, kind.part.replace("text_encoder", "tokenizer"))
        ids = tokenizer("a red cat", padding="max_length").input_ids
        end = tokenizer.eos_token_id
        assert ids == [*bundle.tokenizer.chunks("a red cat")[0][:5], *[end if kind.pad_id is None else 0] * 72]
    pipeline.save_pretrained(tmp_path / "theirs")
    theirs = read_tensors(convert(tmp_path / "theirs", "safetensors", name="theirs").path)
    ours = {name: tensor for name, tensor in read_tensors(path).items() if ".resblocks.3." not in name}
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(theirs[name].double(), tensor.double()) for name, tensor in ours.items())
    if not bundle.is_inpainting:
        drawn = pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="latent").images
        assert drawn.shape == (1, 4, 8, 8) and drawn.isfinite().all()


def test_a_folder_among_checkpoints_is_warned_of(base: Path) -> None:
    events: list[Any] = []
    convert(base, "diffusers", events=events)
    assert not any(isinstance(event, Warned) for event in events)
    convert(base, "diffusers", events=events, folder=str(base.parent))
    (warning,) = [event.text for event in events if isinstance(event, Warned)]
    assert warning.startswith(f"{base.parent} holds checkpoints.")


def test_what_describes_a_folder(base: Path) -> None:
    folder = convert(base, "diffusers").path
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline" and index["unet"] == ["diffusers", "UNet2DConditionModel"]
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["beta_schedule"]) == ("epsilon", "scaled_linear")
    assert (scheduler["beta_start"], scheduler["timestep_spacing"]) == (0.00085, "leading")
    assert json.loads((folder / "unet" / "config.json").read_text())["sample_size"] == 64
    assert read_header(folder / "unet" / "diffusion_pytorch_model.safetensors")[1] == {"format": "pt"}
    assert not any("tmp" in name for _, names, files in os.walk(folder.parent) for name in (*names, *files))


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl-v-ztsnr"])
def test_a_folder_of_another_program(name: str, tmp_path: Path, family_models: FamilyModels) -> None:
    """Without what is kept for the way back: markers and SD 2's unused layer are made, a description is written."""
    path = copied(family_models[name], tmp_path)
    folder = convert(path, "diffusers").path
    shutil.rmtree(folder / "single_file")
    back = convert(folder, "safetensors")
    found, expected = read_tensors(back.path), read_tensors(path)
    assert found.keys() == expected.keys()
    unused = "cond_stage_model.model.transformer.resblocks.3."
    same({n: t for n, t in found.items() if unused not in n}, {n: t for n, t in expected.items() if unused not in n})
    assert [each.name for each in back.beside] == ["made.yaml"]
    assert load_bundle(back.path).family == load_bundle(path).family


def test_weights_in_pieces(base: Path) -> None:
    """As diffusers saves networks of more than 10 GB."""
    folder = convert(base, "diffusers").path
    unet = folder / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    tensors = list(read_tensors(weights).items())
    pieces = {f"diffusion_pytorch_model-0000{n + 1}-of-00002.safetensors": dict(tensors[n::2]) for n in (0, 1)}
    for name, piece in pieces.items():
        write_atomic(unet / name, piece, {"format": "pt"})
    index = {"weight_map": {tensor: name for name, piece in pieces.items() for tensor in piece}}
    (unet / f"{weights.name}.index.json").write_text(json.dumps(index))
    weights.unlink()
    assert convert(folder, "safetensors").path.read_bytes() == base.read_bytes()
    found = load_bundle(folder).unet.state_dict()
    same(found, {name: tensor.float() for name, tensor in tensors})
    (unet / f"{weights.name}.index.json").write_text('{"weight_map": {"x": "../../secret.safetensors"}}')
    with pytest.raises(FormatError, match="names no files beside it"):
        convert(folder, "ckpt")


def test_pickles_there_and_back(base: Path) -> None:
    path = stored(base.parent / "old.safetensors", {**read_tensors(base), "model_ema.decay": torch.tensor(0.9)})
    ckpt = convert(path, "ckpt").path
    content = read_torch_file(ckpt)
    same(content["state_dict"], read_tensors(path))
    back = convert(ckpt, "safetensors", name="back").path
    same(read_tensors(back), read_tensors(path))
    assert read_header(back)[1] == {"format": "pt"}
    folder = convert(base, "diffusers").path
    same(read_torch_file(convert(folder, "ckpt", name="of-folder").path)["state_dict"], read_tensors(base))


def test_metadata_is_kept_or_its_loss_is_told(base: Path) -> None:
    about = {"format": "pt", "modelspec.title": "Mine", "modelspec.hash_sha256": "0xold"}
    path = write_atomic(base, read_tensors(base), about, overwrite=True)
    events: list[Any] = []
    convert(path, "ckpt", events=events)
    assert [event.text[:35] for event in events if isinstance(event, Warned)] == ["A .ckpt has no place for metadata; "]
    back = convert(convert(path, "diffusers").path, "safetensors").path
    assert read_header(back)[1] == {"format": "pt", "modelspec.title": "Mine"}


def test_the_description_goes_along(base: Path) -> None:
    result = convert(base, "ckpt")
    assert [each.name for each in result.beside] == ["made.yaml"]
    assert load_bundle(result.path).family == load_bundle(base).family, "its text encoder's folder is still found"


def test_old_names_become_present_ones_in_a_folder(base: Path) -> None:
    tensors = {name.replace(".transformer.text_model.", ".transformer."): t for name, t in read_tensors(base).items()}
    path = write_atomic(base, tensors, {}, overwrite=True)
    same(read_torch_file(convert(path, "ckpt").path)["state_dict"], tensors)
    assert load_bundle(convert(path, "diffusers").path).family == load_bundle(path).family


def test_sd2_without_a_description_is_asked(
    tmp_path: Path, family_models: FamilyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the WebUI does, which runs the UNet once. (One of this size cannot be without a description.)"""
    path = copied(family_models["sd2"], tmp_path)
    answer = replace(SD2, prediction_type="v_prediction", text_width=128)
    monkeypatch.setattr(converting, "known_prediction_type", lambda *arguments: None)
    monkeypatch.setattr(converting, "load_bundle", lambda *arguments, **more: SimpleNamespace(family=answer))
    folder = convert(path, "diffusers").path
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert json.loads((folder / "unet" / "config.json").read_text())["sample_size"] == 96


def test_other_kinds_of_files_become_safetensors(tmp_path: Path) -> None:
    lora = {"lora_unet_a.lora_down.weight": torch.ones(2, 3), "lora_unet_a.lora_up.weight": torch.ones(3, 2)}
    torch.save(lora, tmp_path / "l.pt")
    result = convert(tmp_path / "l.pt", "safetensors")
    assert result.kind == "lora"
    same(read_tensors(result.path), lora)
    with pytest.raises(UnsupportedModelError, match="is a LoRA"):
        convert(result.path, "diffusers")
    torch.save({"string_to_param": {"*": torch.ones(1, 768)}}, tmp_path / "e.pt")
    with pytest.raises(FormatError, match="holds no model"):
        convert(tmp_path / "e.pt", "safetensors")


def test_nothing_to_convert(base: Path) -> None:
    with pytest.raises(MergeError, match=r"is a .safetensors file already"):
        convert(base, "safetensors")
    with pytest.raises(MergeError, match="is a folder already"):
        convert(convert(base, "diffusers").path, "diffusers")


def test_incomplete_models_make_no_folder(base: Path) -> None:
    tensors = {name: t for name, t in read_tensors(base).items() if not name.startswith("first_stage_model.")}
    path = write_atomic(base.with_name("novae.safetensors"), tensors, {})
    shutil.copy(base.with_suffix(".yaml"), path.with_suffix(".yaml"))
    with pytest.raises(MergeError, match="novae.safetensors holds no VAE; a folder for diffusers needs all networks"):
        convert(path, "diffusers")
    own = {**read_tensors(base), "alphas_cumprod": torch.linspace(1, 0.5, 1000)}
    with pytest.raises(UnsupportedModelError, match="has a noise schedule of its own"):
        convert(write_atomic(base, own, {}, overwrite=True), "diffusers")
    assert not (base.parent / "out").exists() or list((base.parent / "out").iterdir()) == []


def test_damaged_folders(base: Path) -> None:
    folder = convert(base, "diffusers").path
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(weights)
    tensors["strange"] = tensors.pop("conv_in.bias")
    tensors["conv_out.bias"] = torch.ones(7)
    write_atomic(weights, tensors, {}, overwrite=True)
    with pytest.raises(KeyMismatchError) as caught:
        convert(folder, "safetensors")
    for text in ("missing (conv_in.bias)", "unexpected (strange)", "than config.json says (conv_out.bias)"):
        assert text in str(caught.value)
    weights.unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        convert(folder, "safetensors")
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_pickles_with_code_are_not_run(base: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (base.parent / "ran",))

    torch.save({"state_dict": small_model(0), "x": Code()}, base.parent / "a.ckpt")
    folder = convert(base, "diffusers").path
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Code()}, folder / "vae" / "diffusion_pytorch_model.bin")
    for source in (base.parent / "a.ckpt", folder):
        with pytest.raises(FormatError, match="were not loaded"):
            convert(source, "safetensors")
    assert not (base.parent / "ran").exists()


def test_names_that_are_taken(base: Path) -> None:
    out = base.parent / "out"
    convert(base, "diffusers")
    with pytest.raises(OutputError, match="already exists"):
        convert(base, "diffusers")
    (out / "made" / "old").touch()
    assert not (convert(base, "diffusers", overwrite=True).path / "old").exists()
    (out / "mine").mkdir()
    (out / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match="is no folder of this kind"):
        convert(base, "diffusers", name="mine", overwrite=True)
    assert (out / "mine" / "diary.txt").read_text() == "dear"
    with pytest.raises(OutputError, match="holds the model to convert"):
        convert(base, "diffusers", name=base.parent.name, folder=str(base.parent.parent), overwrite=True)


@pytest.mark.parametrize("to", ["diffusers", "ckpt"])
@pytest.mark.parametrize("after", [0, 50])
def test_stop_leaves_nothing(base: Path, to: str, after: int) -> None:
    control = JobControl()

    class Listening(list):
        def append(self, event: Any) -> None:
            if event.done > after:
                control.request_stop()

    with pytest.raises(JobStopped):
        convert(base, to, events=Listening(), control=control)
    assert list((base.parent / "out").iterdir()) == []


@pytest.mark.parametrize("to", ["diffusers", "ckpt"])
def test_a_full_disk_leaves_what_was_there(base: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = convert(base, to).path
    before = {path: path.read_bytes() for path in sorted((base.parent / "out").rglob("*")) if path.is_file()}

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_write_through", full)
    with pytest.raises(DiskFullError):
        convert(base, to, overwrite=True)
    assert made.exists()
    assert before == {path: path.read_bytes() for path in sorted((base.parent / "out").rglob("*")) if path.is_file()}


def test_inspect_knows_a_folder(base: Path) -> None:
    facts = describe_file(convert(base, "diffusers").path)
    assert (facts["kind"], facts["variant"], facts["details"]["pipeline"]) == (
        "checkpoint",
        "",
        "StableDiffusionPipeline",
    )
    assert facts["details"]["parts"] == ["text_encoder", "unet", "vae"] and facts["made_by"][0].startswith("diffusers ")
    with pytest.raises(FormatError, match="is no diffusers model"):
        describe_file(base.parent)
