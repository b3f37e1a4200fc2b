"""Vectors and a LoRA in one run and, unless asked otherwise, in one file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from extensions_lib.config.codec import load
from extensions_lib.errors import FormatError, KeyMismatchError
from extensions_lib.formats.embedding import bundled_names, bundled_tensors, read_embedding
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.safetensors_io import data_hash, read_header, read_tensors, write_atomic
from extensions_lib.methods.base import Exported, Trainable
from extensions_lib.methods.catalogue import make_method
from extensions_lib.methods.lora import Lora
from extensions_lib.methods.new_words import NewWord, token_table
from extensions_lib.methods.pivotal import Pivotal
from extensions_lib.methods.textual_inversion import TextualInversion
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle

LORA = Lora(rank=2, alpha=1.0, layer_filter="attn2")
WORDS = TextualInversion(
    vectors_per_token=2, initializer_text="badge", further=(NewWord("zhat", 1, "blue"),), learning_rate=3e-3,
    train_share=0.5,
)  # fmt: skip
BUNDLED = Pivotal(LORA, WORDS)
INFO = ArtefactInfo(output_name="my-badge", title="my-badge", steps=3)


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


def save(folder: Path, exported: Exported) -> Path:
    for file in exported.beside:
        file.verify(write_atomic(folder / file.name, file.tensors, file.metadata))
    return write_atomic(folder / "my-badge.safetensors", exported.tensors, exported.metadata)


def test_both_parts_keep_their_own_rates_and_times(bundle: ModelBundle) -> None:
    with BUNDLED.attach(bundle, "zbadge", generator()) as trainable:
        facts = [(group.name, group.learning_rate, group.train_share) for group in trainable.groups]
        assert facts == [("unet", None, 1.0), ("embedding", 3e-3, 0.5)]
        trainable.before_step(0.5)
        wants = {group.name: {p.requires_grad for p in group.parameters} for group in trainable.groups}
        assert wants == {"unet": {True}, "embedding": {False}}


def test_one_file_holds_the_lora_and_its_words(bundle: ModelBundle, tmp_path: Path) -> None:
    with BUNDLED.attach(bundle, "zbadge", generator()) as trainable:
        path = save(tmp_path, BUNDLED.export(moved(trainable), INFO))
        rows = trainable.groups[1].parameters[0].detach().clone()
        with LORA.attach(bundle, "zbadge", generator()) as alone:
            lora_tensors = set(LORA.export(moved(alone), INFO).tensors)
            num_modules = len(lora_tensors) // 3
        assert BUNDLED.verify(path, trainable, bundle).num_modules == num_modules
    assert [file.name for file in tmp_path.iterdir()] == ["my-badge.safetensors"]
    tensors, (_, metadata) = read_tensors(path), read_header(path)
    words = {"bundle_emb.zbadge.string_to_param.*", "bundle_emb.zhat.string_to_param.*"}
    assert set(tensors) == lora_tensors | words
    assert torch.equal(tensors["bundle_emb.zbadge.string_to_param.*"], rows[:2])
    assert torch.equal(tensors["bundle_emb.zhat.string_to_param.*"], rows[2:])
    assert metadata["sshs_model_hash"] == data_hash(tensors)
    assert metadata["modelspec.hash_sha256"] == f"0x{data_hash(tensors)}"
    assert metadata["ss_output_name"] == "my-badge"


@pytest.mark.parametrize(("embedding_files", "is_bundled"), [("beside", False), ("both", True)])
def test_the_words_beside_it_are_files_called_as_prompts_call_them(
    bundle: ModelBundle, tmp_path: Path, embedding_files: str, is_bundled: bool
) -> None:
    method = dataclasses.replace(BUNDLED, embedding_files=embedding_files)
    with method.attach(bundle, "zbadge", generator()) as trainable:
        path = save(tmp_path, method.export(moved(trainable), INFO))
        assert method.verify(path, trainable, bundle).num_modules
        rows = trainable.groups[1].parameters[0].detach().clone()
    assert bundled_names(path) == (("zbadge", "zhat") if is_bundled else ())
    names = method.names_beside("my-badge", "zbadge")
    assert names == (("zbadge.safetensors", "embedding"), ("zhat.safetensors", "embedding"))
    assert torch.equal(read_embedding(tmp_path / "zbadge.safetensors").vectors[""], rows[:2])
    assert torch.equal(read_embedding(tmp_path / "zhat.safetensors").vectors[""], rows[2:])


def test_a_word_inside_that_is_not_what_was_trained_is_told(bundle: ModelBundle, tmp_path: Path) -> None:
    with BUNDLED.attach(bundle, "zbadge", generator()) as trainable:
        exported = BUNDLED.export(moved(trainable), INFO)
        key = "bundle_emb.zhat.string_to_param.*"
        spoilt = {**exported.tensors, key: exported.tensors[key] + 1}
        path = write_atomic(tmp_path / "spoilt.safetensors", spoilt, {})
        with pytest.raises(FormatError, match="read again is not what was trained"):
            BUNDLED.verify(path, trainable, bundle)
        without = {name: tensor for name, tensor in exported.tensors.items() if "lora" in name}
        path = write_atomic(tmp_path / "without.safetensors", without, {})
        with pytest.raises(FormatError, match="is not an embedding"):
            BUNDLED.verify(path, trainable, bundle)


def test_without_a_file_of_its_own_a_word_goes_on_from_inside_the_lora(bundle: ModelBundle, tmp_path: Path) -> None:
    with BUNDLED.attach(bundle, "zbadge", generator()) as trainable:
        path = save(tmp_path, BUNDLED.export(moved(trainable), INFO))
        rows = trainable.groups[1].parameters[0].detach().clone()
    width = rows.shape[1]
    own = write_atomic(tmp_path / "own.safetensors", {"own": torch.full((4, width), 0.5)}, {})
    given = dataclasses.replace(WORDS, start_from=own)
    method = Pivotal(LORA, given, start_from=path)
    with method.attach(bundle, "zbadge", generator()) as trainable:
        found = trainable.groups[1].parameters[0]
        assert torch.equal(found, torch.cat([torch.full((4, width), 0.5), rows[2:]]))
        assert method.count_parameters(bundle) == sum(parameter.numel() for parameter in trainable.parameters())


def test_a_plain_lora_may_be_given_a_word(bundle: ModelBundle, tmp_path: Path) -> None:
    with LORA.attach(bundle, "zbadge", generator()) as trainable:
        path = save(tmp_path, LORA.export(moved(trainable), INFO))
    method = Pivotal(LORA, WORDS, start_from=path)
    badge = bundle.tokenizer.tokenize("badge")[0]
    with method.attach(bundle, "zbadge", generator()) as trainable:
        assert torch.equal(trainable.groups[1].parameters[0][0], token_table(bundle.text_encoder)[badge].float())


def test_the_only_word_inside_may_be_called_anew(bundle: ModelBundle, tmp_path: Path) -> None:
    width = token_table(bundle.text_encoder).shape[1]
    with LORA.attach(bundle, "x", generator()) as trainable:
        tensors = LORA.export(moved(trainable), INFO).tensors
    tensors = {**tensors, **bundled_tensors("old", {"": torch.full((3, width), 0.25)})}
    path = write_atomic(tmp_path / "old.safetensors", tensors, {})
    method = Pivotal(LORA, dataclasses.replace(WORDS, further=()), start_from=path)
    with method.attach(bundle, "new", generator()) as trainable:
        assert torch.equal(trainable.groups[1].parameters[0], torch.full((3, width), 0.25))
        assert list(trainable.tokens) == ["new"]
        number = sum(parameter.numel() for parameter in trainable.parameters())
    assert method.count_parameters(bundle) == number


def test_a_file_that_does_not_fit_is_refused(bundle: ModelBundle, tmp_path: Path) -> None:
    with LORA.attach(bundle, "x", generator()) as trainable:
        tensors = LORA.export(moved(trainable), INFO).tensors
    path = write_atomic(tmp_path / "x.safetensors", {**tensors, **bundled_tensors("x", {"": torch.ones(1, 768)})}, {})
    attached = Pivotal(LORA, WORDS, start_from=path).attach(bundle, "x", generator())
    with pytest.raises(KeyMismatchError, match="have width 768"), attached:
        pass


def test_the_settings_reach_both_parts() -> None:
    table = {
        "kind": "pivotal", "rank": 5, "dropout": 0.25, "vectors_per_token": 3, "initializer_text": "cat",
        "embedding_learning_rate": 0.01, "embedding_until": 0.4, "relative_learning_rate": 0.1, "max_norm_ratio": 2.0,
        "further_words": [{"word": "zhat", "start_from": "hat.pt"}], "start_from": "a.safetensors",
        "embedding_start_from": "b.pt", "embedding_files": "both",
    }  # fmt: skip
    config = load({"name": "x", "base_model": "m", "dataset": {"folder": "p"}, "method": table})
    method = make_method(config.method, config.output)
    assert (method.lora.rank, method.lora.dropout) == (5, 0.25)
    embedding = method.embedding
    assert (embedding.vectors_per_token, embedding.initializer_text, embedding.start_from) == (3, "cat", Path("b.pt"))
    assert (embedding.learning_rate, embedding.train_share) == (0.01, 0.4)
    assert (embedding.relative_learning_rate, embedding.max_norm_ratio) == (0.1, 2.0)
    assert embedding.further == (NewWord("zhat", 4, "", Path("hat.pt")),)
    assert (method.start_from, method.embedding_files) == (Path("a.safetensors"), "both")


ALGORITHMS = {
    "loha": Lora(algorithm="loha", rank=2),
    "lokr": Lora(algorithm="lokr", rank=2, train_text_encoder=True),
    "dora": Lora(rank=2, dora=True, train_text_encoder=True),
    "full": Lora(algorithm="full", layers="full", train_norms=True, train_text_encoder=True),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_goes_with_words(bundle: ModelBundle, tmp_path: Path, name: str) -> None:
    lora = dataclasses.replace(ALGORITHMS[name], dtype=torch.float32)
    method, alone = Pivotal(lora, WORDS), tmp_path / "alone"
    alone.mkdir()
    with lora.attach(bundle, "x", generator()) as trainable:
        num_modules = lora.verify(save(alone, lora.export(moved(trainable), INFO)), trainable, bundle)
    with method.attach(bundle, "zbadge", generator()) as trainable:
        path = save(tmp_path, method.export(moved(trainable), INFO))
        assert method.verify(path, trainable, bundle) == num_modules
        state = trainable.state()
    with dataclasses.replace(method, start_from=path).attach(bundle, "zbadge", generator()) as trainable:
        found = trainable.state()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
