"""Promises every method keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.errors import FormatError, KeyMismatchError
from extensions_lib.formats.atomic import write_bytes_atomic
from extensions_lib.formats.hypernetwork import HypernetworkDesign
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.methods.base import Trainable, TrainMethod
from extensions_lib.methods.dreambooth import DreamBooth
from extensions_lib.methods.hypernetwork import Hypernetwork
from extensions_lib.methods.lora import Lora
from extensions_lib.methods.new_words import NewWord
from extensions_lib.methods.pivotal import Pivotal
from extensions_lib.methods.textual_inversion import TextualInversion
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle, outline_bundle
from extensions_lib.models.predict import predict
from extensions_lib.models.text import batch_chunks, encode_prompts

METHODS = {
    "lora": Lora(rank=2, alpha=1.0),
    "lora with text encoder and convolutions": Lora(rank=2, alpha=1.0, conv_rank=2, train_text_encoder=True),
    "loha": Lora(algorithm="loha", rank=2, alpha=1.0),
    "lokr of everything": Lora(
        algorithm="lokr", rank=2, alpha=1.0, lokr_factor=4, layers="full", train_text_encoder=True
    ),
    "lokr with a whole matrix": Lora(algorithm="lokr", lokr_whole=True),
    "dora with convolutions": Lora(rank=2, alpha=1.0, conv_rank=2, dora=True, train_text_encoder=True),
    "dora of a lokr": Lora(algorithm="lokr", rank=2, dora=True, layers="attention"),
    "full difference of everything": Lora(algorithm="full", layers="full", train_norms=True, train_text_encoder=True),
    "textual inversion": TextualInversion(vectors_per_token=3, initializer_text="red circle"),
    "textual inversion of two words": TextualInversion(
        initializer_text="badge", further=(NewWord("red background", 2, "blue"),)
    ),
    "pivotal": Pivotal(
        Lora(rank=2, alpha=1.0, dtype=torch.float32),
        TextualInversion(vectors_per_token=2, initializer_text="badge", further=(NewWord("background", 1, "blue"),)),
    ),
    "hypernetwork": Hypernetwork(),
    "hypernetwork of everything": Hypernetwork(
        HypernetworkDesign((1, 2, 1.5, 1), "swish", "XavierNormal", layer_norm=True, dropout_structure=(0, 0, 0.3, 0)),
        widths=(64,),
    ),
    "dreambooth": DreamBooth(text_encoder_until=0.5),
    "dreambooth of the unet": DreamBooth(train_text_encoder=False),
    "dreambooth and its difference": DreamBooth(difference_rank=4),
}

SIZES = torch.tensor([[64, 64, 0, 0, 64, 64]])


@pytest.fixture(scope="module")
def shared_bundle(practice_model: Path) -> ModelBundle:
    bundle = load_bundle(practice_model)
    bundle.freeze()
    return bundle


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> TrainMethod:
    return METHODS[request.param]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(trainable: Trainable) -> Trainable:
    """Give every parameter values far from its start."""
    with torch.no_grad():
        for index, parameter in enumerate(trainable.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator(index)) * 0.2)
    return trainable


@torch.no_grad()
def outcome(bundle: ModelBundle, tokens: dict[str, list[int]]) -> tuple[Tensor, Tensor]:
    """Text states of a prompt with the placeholder, and what the UNet predicts from them."""
    ids = batch_chunks([bundle.tokenizer.chunks("a zbadge on a red background", tokens)], bundle.tokenizer)
    conditioning = encode_prompts(bundle, ids)
    latents = torch.randn(1, 4, 8, 8, generator=generator(9))
    return conditioning.hidden_states, predict(bundle, latents, torch.tensor([500]), conditioning, SIZES)


def snapshot(bundle: ModelBundle) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in bundle.parts.items()
        for name, tensor in module.state_dict().items()
    }


def test_the_model_is_bit_identical_after_detaching(shared_bundle: ModelBundle, method: TrainMethod) -> None:
    before, picture = snapshot(shared_bundle), outcome(shared_bundle, {})
    with method.attach(shared_bundle, "zbadge", generator()) as trainable:
        moved(trainable)
        changed = outcome(shared_bundle, trainable.tokens)
        assert not torch.equal(changed[1], picture[1])
    after, again = snapshot(shared_bundle), outcome(shared_bundle, {})
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(again[0], picture[0])
    assert torch.equal(again[1], picture[1])
    assert not any(parameter.requires_grad for part in shared_bundle.parts.values() for parameter in part.parameters())


def test_multiplier_zero_is_the_base_model(shared_bundle: ModelBundle, method: TrainMethod) -> None:
    base = outcome(shared_bundle, {})
    with method.attach(shared_bundle, "zbadge", generator()) as trainable:
        moved(trainable)
        with trainable.multiplied(0.0):
            same = outcome(shared_bundle, trainable.tokens)
        different = outcome(shared_bundle, trainable.tokens)
    assert torch.equal(same[0], base[0])
    assert torch.equal(same[1], base[1])
    assert not torch.equal(different[1], base[1])


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if isinstance(method, Lora)])
def test_a_fresh_lora_changes_nothing(shared_bundle: ModelBundle, name: str) -> None:
    base = outcome(shared_bundle, {})
    with METHODS[name].attach(shared_bundle, "zbadge", generator()) as trainable:
        fresh = outcome(shared_bundle, trainable.tokens)
    assert torch.equal(fresh[1], base[1])


def test_only_the_trained_parameters_get_gradients(shared_bundle: ModelBundle, method: TrainMethod) -> None:
    with method.attach(shared_bundle, "zbadge", generator()) as trainable:
        moved(trainable)
        ids = batch_chunks([shared_bundle.tokenizer.chunks("a zbadge", trainable.tokens)], shared_bundle.tokenizer)
        conditioning = encode_prompts(shared_bundle, ids)
        # 16 latents, so that the middle block attends over four places: over one, queries and keys have no gradient.
        latents = torch.randn(1, 4, 16, 16, generator=generator(9))
        prediction = predict(shared_bundle, latents, torch.tensor([500]), conditioning, SIZES)
        prediction.square().mean().backward()
        # The text encoder's last layer norm follows its last linear layer, so every adapter is on the way.
        assert all(
            parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trainable.parameters()
        )
        assert all(parameter.dtype == torch.float32 for parameter in trainable.parameters())
    assert all(parameter.grad is None for part in shared_bundle.parts.values() for parameter in part.parameters())


def test_state_comes_back(shared_bundle: ModelBundle, method: TrainMethod) -> None:
    with method.attach(shared_bundle, "zbadge", generator()) as trainable:
        state = moved(trainable).state()
        expected = outcome(shared_bundle, trainable.tokens)
    with method.attach(shared_bundle, "zbadge", generator(5)) as trainable:
        trainable.load_state(state)
        found = outcome(shared_bundle, trainable.tokens)
    assert torch.equal(found[1], expected[1])


def written(method: TrainMethod, trainable: Trainable, folder: Path) -> Path:
    """The result of `trainable` with the files beside it, these verified as they ask for it."""
    exported = method.export(trainable, ArtefactInfo(output_name="zbadge", steps=3))
    assert [(file.name, file.kind) for file in exported.beside] == list(method.names_beside("zbadge", "zbadge"))
    for file in exported.beside:
        if file.payload is not None:
            (folder / file.name).write_bytes(file.payload)
        else:
            file.verify(write_atomic(folder / file.name, file.tensors, file.metadata))
    path = folder / f"zbadge{method.file_suffix}"
    if exported.payload is not None:
        return write_bytes_atomic(path, exported.payload)
    return write_atomic(path, exported.tensors, exported.metadata)


def started_from(method: TrainMethod, path: Path) -> TrainMethod:
    """`method` going on from a result at `path`, further words from the files beside it."""
    if isinstance(method, TextualInversion):
        further = [dataclasses.replace(w, start_from=path.with_name(f"{w.word}.safetensors")) for w in method.further]
        return dataclasses.replace(method, start_from=path, further=tuple(further))
    return dataclasses.replace(method, start_from=path)


def test_written_file_is_verified_and_starts_the_same_model(
    shared_bundle: ModelBundle, method: TrainMethod, tmp_path: Path
) -> None:
    precise = dataclasses.replace(method, dtype=torch.float32) if hasattr(method, "dtype") else method
    with precise.attach(shared_bundle, "zbadge", generator()) as trainable:
        path = written(precise, moved(trainable), tmp_path)
        num_modules = precise.verify(path, trainable, shared_bundle).num_modules
        assert num_modules == len(trainable.groups) if method.artefact_kind == "embedding" else num_modules > 0
        expected = outcome(shared_bundle, trainable.tokens)
    resumed = started_from(precise, path)
    with resumed.attach(shared_bundle, "zbadge", generator(7)) as trainable:
        found = outcome(shared_bundle, trainable.tokens)
    assert torch.equal(found[1], expected[1])


def test_lora_counts_its_modules_and_tells_a_spoilt_file(shared_bundle: ModelBundle, tmp_path: Path) -> None:
    method = METHODS["lora"]
    with method.attach(shared_bundle, "zbadge", generator()) as trainable:
        path = written(method, moved(trainable), tmp_path)
        assert method.verify(path, trainable, shared_bundle).num_modules == 192
        tensors = read_tensors(path)
        renamed = {name.replace("attn1_to_q", "attn1_to_x"): tensor for name, tensor in tensors.items()}
        write_atomic(path, renamed, {}, overwrite=True)
        with pytest.raises(KeyMismatchError, match="matches 176 of 192 modules"):
            method.verify(path, trainable, shared_bundle)
        write_atomic(path, {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, {}, overwrite=True)
        with pytest.raises(FormatError, match="only zeros"):
            method.verify(path, trainable, shared_bundle)


def test_lora_names_and_shapes(shared_bundle: ModelBundle, tmp_path: Path) -> None:
    method = METHODS["lora with text encoder and convolutions"]
    with method.attach(shared_bundle, "zbadge", generator()) as trainable:
        header, metadata = read_header(written(method, moved(trainable), tmp_path))
    prefix = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    assert header[f"{prefix}.lora_down.weight"].shape[0] == 2
    assert header[f"{prefix}.alpha"].shape == ()
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in header
    assert len(header["lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight"].shape) == 4
    assert metadata["ss_output_name"] == "zbadge"


def test_embedding_file_holds_one_tensor_and_detects_change(shared_bundle: ModelBundle, tmp_path: Path) -> None:
    method = METHODS["textual inversion"]
    with method.attach(shared_bundle, "zbadge", generator()) as trainable:
        path = written(method, moved(trainable), tmp_path)
        width = shared_bundle.text_encoder.config.hidden_size
        assert {name: tensor.shape for name, tensor in read_tensors(path).items()} == {"zbadge": (3, width)}
        moved(trainable)
        with pytest.raises(FormatError, match="not what was trained"):
            method.verify(path, trainable, shared_bundle)


def test_embedding_of_another_width_is_refused(shared_bundle: ModelBundle, tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "wide.safetensors", {"wide": torch.ones(2, 768)}, {})
    method = TextualInversion(start_from=path)
    attached = method.attach(shared_bundle, "x", generator())
    with pytest.raises(KeyMismatchError, match="have width 768; this model needs"), attached:
        pass


def test_lora_started_from_a_larger_one_is_refused(shared_bundle: ModelBundle, tmp_path: Path) -> None:
    large = METHODS["lora with text encoder and convolutions"]
    with large.attach(shared_bundle, "x", generator()) as trainable:
        path = written(large, moved(trainable), tmp_path)
    small = Lora(rank=2, start_from=path)
    with (
        pytest.raises(KeyMismatchError, match="this job does not train"),
        small.attach(shared_bundle, "x", generator()),
    ):
        pass


def test_a_filter_that_leaves_nothing_is_refused(shared_bundle: ModelBundle) -> None:
    method = Lora(rank=2, layer_filter="no such layer")
    with pytest.raises(KeyMismatchError, match="leaves no layer"), method.attach(shared_bundle, "x", generator()):
        pass


def test_row_norms_are_capped_after_an_update(shared_bundle: ModelBundle) -> None:
    method = TextualInversion(vectors_per_token=2, initializer_text="red", max_norm_ratio=1.5)
    with method.attach(shared_bundle, "x", generator()) as trainable:
        with torch.no_grad():
            trainable.parameters()[0].mul_(100)
        trainable.after_update()
        table = shared_bundle.text_encoder.text_model.embeddings.token_embedding.weight
        limit = 1.5 * table.float().norm(dim=1).median()
        assert torch.allclose(trainable.parameters()[0].norm(dim=1), limit.expand(2), rtol=1e-5)


@pytest.fixture(autouse=True)
def _no_leftovers(shared_bundle: ModelBundle) -> Iterator[None]:
    yield
    modules = [module for part in shared_bundle.parts.values() for module in part.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_the_parameters_are_counted_without_weights(
    shared_bundle: ModelBundle, practice_model: Path, method: TrainMethod
) -> None:
    with method.attach(shared_bundle, "zbadge", generator()) as trainable:
        number = sum(parameter.numel() for parameter in trainable.parameters())
    assert method.count_parameters(shared_bundle) == method.count_parameters(outline_bundle(practice_model)) == number


def test_the_ranks_of_a_file_to_go_on_from_count(
    shared_bundle: ModelBundle, practice_model: Path, tmp_path: Path
) -> None:
    small, path = Lora(rank=2, alpha=1.0), tmp_path / "small.safetensors"
    with small.attach(shared_bundle, "zbadge", generator()) as trainable:
        exported = small.export(moved(trainable), ArtefactInfo(output_name="small", steps=3))
    write_atomic(path, exported.tensors, exported.metadata)
    outline = outline_bundle(practice_model)
    assert Lora(rank=64, start_from=path).count_parameters(outline) == small.count_parameters(outline)
    with pytest.raises(KeyMismatchError, match="does not train"):
        Lora(rank=64, layer_filter="attn2", start_from=path).count_parameters(outline)
