"""Embeddings: several words in one run, rates, files of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import FormatError, KeyMismatchError
from extensions_lib.formats.embedding import bundled_tensors, read_embedding
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.methods.base import Exported, Trainable
from extensions_lib.methods.new_words import NewWord, root_mean_square, token_table
from extensions_lib.methods.textual_inversion import TextualInversion, vectors_of
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle

TWO = TextualInversion(vectors_per_token=3, initializer_text="red circle", further=(NewWord("zhat", 2, "blue"),))
INFO = ArtefactInfo(output_name="zbadge", title="zbadge", steps=3)


@pytest.fixture(scope="module")
def bundle(practice_model: Path) -> ModelBundle:
    loaded = load_bundle(practice_model)
    loaded.freeze()
    return loaded


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def moved(trainable: Trainable) -> Trainable:
    with torch.no_grad():
        for parameter in trainable.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator()))
    return trainable


def save(folder: Path, exported: Exported, name: str = "zbadge.safetensors") -> Path:
    for file in exported.beside:
        write_atomic(folder / file.name, file.tensors, file.metadata)
    return write_atomic(folder / name, exported.tensors, exported.metadata)


def test_each_word_starts_as_it_was_told_and_has_ids_of_its_own(bundle: ModelBundle) -> None:
    table, tokenizer = token_table(bundle.text_encoder), bundle.tokenizer
    (red, circle), (blue,) = tokenizer.tokenize("red circle"), tokenizer.tokenize("blue")
    with TWO.attach(bundle, "zbadge", generator()) as trainable:
        first = tokenizer.num_vocabulary
        assert trainable.tokens == {"zbadge": [first, first + 1, first + 2], "zhat": [first + 3, first + 4]}
        vectors = vectors_of(trainable)
        assert list(vectors) == ["zbadge", "zhat"]
        assert torch.equal(vectors["zbadge"][""], table[[red, red, circle]].float())
        assert torch.equal(vectors["zhat"][""], table[[blue, blue]].float())
        (group,) = trainable.groups
        assert (group.name, group.learning_rate, group.train_share) == ("embedding", None, 1.0)


def test_the_relative_rate_is_a_share_of_the_tables_root_mean_square(bundle: ModelBundle) -> None:
    table = token_table(bundle.text_encoder)
    expected = 0.05 * float(table.double().square().mean().sqrt())
    assert root_mean_square(table.half()) == pytest.approx(root_mean_square(table), rel=1e-3)
    method = dataclasses.replace(TWO, relative_learning_rate=0.05, learning_rate=0.3)
    with method.attach(bundle, "zbadge", generator()) as trainable:
        assert trainable.groups[0].learning_rate == pytest.approx(expected, rel=1e-4)
    with dataclasses.replace(TWO, learning_rate=0.3).attach(bundle, "zbadge", generator()) as trainable:
        assert trainable.groups[0].learning_rate == 0.3


def test_a_step_of_adam_moves_a_row_by_the_relative_rate(bundle: ModelBundle) -> None:
    """Adam's first step is the rate times the gradient's sign: a share of the table's root mean square."""
    method = dataclasses.replace(TWO, relative_learning_rate=0.05)
    with method.attach(bundle, "zbadge", generator()) as trainable:
        (group,) = trainable.groups
        (rows,) = group.parameters
        before = rows.detach().clone()
        rows.grad = torch.randn(rows.shape, generator=generator())
        torch.optim.Adam([rows], lr=group.learning_rate).step()
        share = (rows - before).square().mean().sqrt() / root_mean_square(token_table(bundle.text_encoder))
        assert share.item() == pytest.approx(0.05, rel=1e-3)


def test_each_word_is_a_file_of_its_own(bundle: ModelBundle, tmp_path: Path) -> None:
    with TWO.attach(bundle, "zbadge", generator()) as trainable:
        vectors = vectors_of(moved(trainable))
        path = save(tmp_path, TWO.export(trainable, INFO))
        assert TWO.verify(path, trainable, bundle).num_modules == 1
    for name, count in (("zbadge", 3), ("zhat", 2)):
        written = tmp_path / f"{name}.safetensors"
        (tensor,) = read_tensors(written).values()  # the WebUI refuses a file of two
        assert torch.equal(tensor, vectors[name][""])
        metadata = read_header(written)[1]
        assert (metadata["name"], metadata["num_vectors"], metadata["step"]) == (name, str(count), "3")
        assert metadata["modelspec.title"] == name


def test_the_files_of_a_step_are_called_after_it(bundle: ModelBundle) -> None:
    info = dataclasses.replace(INFO, output_name="zbadge-000500")
    with TWO.attach(bundle, "zbadge", generator()) as trainable:
        (file,) = TWO.export(trainable, info).beside
    assert file.name == "zhat-000500.safetensors"
    assert list(file.tensors) == ["zhat-000500"]
    assert TWO.names_beside("zbadge", "zbadge") == (("zhat.safetensors", "embedding"),)


def test_the_webuis_own_format_for_every_word(bundle: ModelBundle, tmp_path: Path) -> None:
    method = dataclasses.replace(TWO, file_format="pt")
    with method.attach(bundle, "zbadge", generator()) as trainable:
        exported = method.export(moved(trainable), INFO)
        (file,) = exported.beside
        assert file.name == "zhat.pt"
        (tmp_path / "zhat.pt").write_bytes(file.payload)
        file.verify(tmp_path / "zhat.pt")
        assert torch.equal(read_embedding(tmp_path / "zhat.pt").vectors[""], vectors_of(trainable)["zhat"][""])


def test_a_word_that_is_not_what_was_trained_is_told(bundle: ModelBundle, tmp_path: Path) -> None:
    with TWO.attach(bundle, "zbadge", generator()) as trainable:
        (file,) = TWO.export(moved(trainable), INFO).beside
    path = write_atomic(tmp_path / file.name, {"zhat": file.tensors["zhat"] + 1}, {})
    with pytest.raises(FormatError, match="zhat.safetensors read again is not what was trained"):
        file.verify(path)


def test_a_negative_embedding_is_marked_as_one(bundle: ModelBundle) -> None:
    for is_negative in (True, False):
        method = dataclasses.replace(TWO, is_negative=is_negative)
        with method.attach(bundle, "zbadge", generator()) as trainable:
            exported = method.export(trainable, INFO)
        for metadata in (exported.metadata, exported.beside[0].metadata):
            assert ("modelspec.is_negative_embedding" in metadata) is is_negative


def test_a_word_goes_on_from_inside_a_lora(bundle: ModelBundle, tmp_path: Path) -> None:
    width = token_table(bundle.text_encoder).shape[1]
    inside = {name: torch.full((rows, width), float(rows)) for name, rows in (("zbadge", 2), ("zhat", 5))}
    tensors = {key: t for name, rows in inside.items() for key, t in bundled_tensors(name, {"": rows}).items()}
    path = write_atomic(tmp_path / "lora.safetensors", {"lora_unet_x.alpha": torch.ones(()), **tensors}, {})
    method = TextualInversion(start_from=path, further=(NewWord("zhat", start_from=path),))
    with method.attach(bundle, "zbadge", generator()) as trainable:
        assert all(torch.equal(vectors[""], inside[word]) for word, vectors in vectors_of(trainable).items())
        number = sum(parameter.numel() for parameter in trainable.parameters())
    assert method.count_parameters(bundle) == number == 7 * width


def test_files_of_another_family_are_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    vectors = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    path = write_atomic(tmp_path / "xl.safetensors", vectors, {})
    width = token_table(bundle.text_encoder).shape[1]
    attached = TextualInversion(start_from=path).attach(bundle, "x", generator())
    with pytest.raises(KeyMismatchError, match=f"have width 768 and 1280; this model needs {width}"), attached:
        pass
