"""Words of finished embeddings in the captions of another training, DreamBooth and LoRA above all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from extensions_lib.config.codec import load
from extensions_lib.config.dataset import KnownEmbedding
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, FormatError, KeyMismatchError, ModelError
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.safetensors_io import write_atomic
from extensions_lib.jobs.draw import draw_previews
from extensions_lib.jobs.run import resume, start
from extensions_lib.jobs.store import RunFolder
from extensions_lib.methods.base import TrainMethod
from extensions_lib.methods.dreambooth import DreamBooth
from extensions_lib.methods.known_words import with_known_words
from extensions_lib.methods.lora import Lora
from extensions_lib.methods.new_words import token_table
from extensions_lib.methods.textual_inversion import TextualInversion
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
from extensions_lib.models.text import batch_chunks, encode_prompts

from ..model_families import FamilyModels

METHODS = {
    "dreambooth": DreamBooth(train_text_encoder=True),
    "lora": Lora(rank=2, alpha=1.0, dtype=torch.float32, train_text_encoder=True),
    "textual_inversion": TextualInversion(vectors_per_token=2, initializer_text="red"),
}
INFO = ArtefactInfo(output_name="x", family="sd1", prediction_type="epsilon", base_model_name="b", base_model_sha256="")


@pytest.fixture(scope="module", params=("sd1", "sdxl"))
def bundle(request: pytest.FixtureRequest, family_models: FamilyModels) -> ModelBundle:
    loaded = load_bundle(family_models[request.param])
    loaded.freeze()
    return loaded


def embedding(bundle: ModelBundle, folder: Path, word: str = "zhat", num_vectors: int = 3) -> KnownEmbedding:
    keys = [""] if len(bundle.text_encoders) == 1 else ["clip_l", "clip_g"]
    generator = torch.Generator().manual_seed(len(word))
    tensors = {
        key or "emb_params": torch.randn(num_vectors, token_table(encoder).shape[1], generator=generator)
        for key, encoder in zip(keys, bundle.text_encoders.values(), strict=True)
    }
    return KnownEmbedding(path=str(write_atomic(folder / f"{word}.safetensors", tensors, {})))


def states(bundle: ModelBundle, text: str, tokens: dict[str, list[int]]) -> torch.Tensor:
    ids = batch_chunks([bundle.tokenizer.chunks(text, tokens)], bundle.tokenizer)
    with torch.no_grad():
        return encode_prompts(bundle, ids, 1).hidden_states


def attached(bundle: ModelBundle, method: TrainMethod) -> Any:
    return method.attach(bundle, "zbadge", torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", METHODS)
def test_the_word_means_its_vectors_and_everything_comes_back(kind: str, bundle: ModelBundle, tmp_path: Path) -> None:
    known = embedding(bundle, tmp_path)
    text = "a red square in a zhat"
    expected_method = TextualInversion(vectors_per_token=3, start_from=Path(known.path))
    with expected_method.attach(bundle, "zhat", torch.Generator()) as taught:
        expected = states(bundle, text, taught.tokens)
    before = states(bundle, text, {})
    with attached(bundle, METHODS[kind]) as trainable:
        trained = set(map(id, trainable.parameters()))
        names = list(METHODS[kind].export(trainable, INFO).tensors)
        with with_known_words(bundle, trainable, [known]):
            assert torch.equal(states(bundle, text, trainable.all_tokens), expected)
            with trainable.multiplied(0.0):
                assert trainable.all_tokens == trainable.known_tokens and list(trainable.all_tokens) == ["zhat"]
                assert torch.equal(states(bundle, text, trainable.all_tokens), expected)
            assert set(map(id, trainable.parameters())) == trained
            assert list(METHODS[kind].export(trainable, INFO).tensors) == names
            taken = [token for ids in trainable.all_tokens.values() for token in ids]
            assert len(taken) == len(set(taken)) and min(taken) == bundle.tokenizer.num_vocabulary
        assert not trainable.known_tokens
    assert torch.equal(states(bundle, text, {}), before)


def test_an_embedding_of_another_width(bundle: ModelBundle, tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "wide.safetensors", {"emb_params": torch.ones(1, 7)}, {})
    with (
        attached(bundle, METHODS["lora"]) as trainable,
        pytest.raises(KeyMismatchError, match="have width 7"),
        with_known_words(bundle, trainable, [KnownEmbedding(path=str(path))]),
    ):
        pass


def job(base: Path, folder: Path, embeddings: list[str], **changes: Any) -> dict[str, Any]:
    return {
        "name": "badge",
        "base_model": str(base),
        "dataset": {"folder": str(folder), "resolution_px": 64, "trigger_word": "zhat", "embeddings": embeddings},
        "method": {"kind": "lora", "rank": 2},
        "training": {"max_train_steps": 2, "mixed_precision": "fp32", "num_threads": 1, "validation_every_steps": 0},
        "preview": {"enabled": False},
        "output": {"folder": str(folder / "out"), "runs_folder": str(folder / "runs")},
        **changes,
    }


def test_a_run_its_resumption_and_its_pictures(family_models: FamilyModels, pictures: Path, tmp_path: Path) -> None:
    base = family_models["sd1"]
    known = embedding(load_bundle(base), tmp_path)
    table = job(base, pictures, [known.path])
    outcome = start(load(table), JobControl())
    without = start(load({**table, "name": "plain", "dataset": {**table["dataset"], "embeddings": []}}), JobControl())
    assert outcome.path.read_bytes() != without.path.read_bytes()
    again = resume(RunFolder(outcome.run_folder), JobControl(), max_train_steps=3)
    assert again.step == 3
    assert draw_previews(RunFolder(outcome.run_folder), ["a zhat"], 1, tmp_path / "grid.png") == 3


def test_mistakes_are_told_before_the_start(family_models: FamilyModels, pictures: Path, tmp_path: Path) -> None:
    base, missing = family_models["sd1"], str(tmp_path / "none.safetensors")
    with pytest.raises(ModelError, match=r"none\.safetensors"):
        start(load(job(base, pictures, [missing])), JobControl())
    (tmp_path / "bad.safetensors").write_bytes(b"no header")
    with pytest.raises(FormatError, match=r"bad\.safetensors"):
        start(load(job(base, pictures, [str(tmp_path / "bad.safetensors")])), JobControl())
    assert not (pictures / "runs").exists()
    for embeddings, wrong in ((["a/zhat.pt", "b/ZHAT.pt"], 1), (["a/zhat.pt", "b/zcap.pt", ""], 2)):
        with pytest.raises(ConfigError) as caught:
            load(job(base, pictures, embeddings))
        assert [each.path for each in caught.value.problems] == [f"dataset.embeddings[{wrong}].path"]
    words = {"kind": "textual_inversion", "further_words": ["zcap"]}
    table = job(base, pictures, ["zcap.pt"], method=words)
    table["dataset"].pop("trigger_word")
    with pytest.raises(ConfigError, match="another word of this job"):
        load(table)
