"""New words on every family: both text encoders of SDXL, the OpenCLIP one of SD 2, with a LoRA and without."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.config.codec import load
from extensions_lib.control import JobControl
from extensions_lib.errors import ConfigError, KeyMismatchError
from extensions_lib.events import Event, StepCompleted, ValidationMeasured
from extensions_lib.formats.embedding import bundled_names
from extensions_lib.formats.inspect import describe_file
from extensions_lib.formats.metadata import ArtefactInfo
from extensions_lib.formats.safetensors_io import read_header, read_tensors, write_atomic
from extensions_lib.jobs.run import resume, start
from extensions_lib.jobs.store import RunFolder
from extensions_lib.methods.base import Exported, Trainable
from extensions_lib.methods.lora import Lora
from extensions_lib.methods.new_words import NewWord, root_mean_square, token_table
from extensions_lib.methods.pivotal import Pivotal
from extensions_lib.methods.textual_inversion import TextualInversion
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle, outline_bundle
from extensions_lib.models.predict import predict
from extensions_lib.models.text import Conditioning, batch_chunks, encode_prompts
from extensions_lib.models.tokenizer import PromptTokenizer
from extensions_lib.training.run_state import load_newest

from ..model_families import FamilyModels

FAMILIES = ("sd1", "sd2", "sdxl")
WORDS = TextualInversion(
    vectors_per_token=3,
    initializer_text="red circle",
    further=(NewWord("zhat", 2, "blue"),),
    relative_learning_rate=0.05,
)
BOTH = Pivotal(Lora(rank=2, alpha=1.0, dtype=torch.float32, train_text_encoder=True), WORDS)
PROMPT = "a zbadge and a zhat on a table"
SIZES = torch.tensor([[64, 64, 0, 0, 64, 64]])


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def bundle(family: str, family_models: FamilyModels) -> ModelBundle:
    loaded = load_bundle(family_models[family])
    loaded.freeze()
    return loaded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(trainable: Trainable) -> Trainable:
    with torch.no_grad():
        for index, parameter in enumerate(trainable.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator(index)) * 0.2)
    return trainable


def told(bundle: ModelBundle, prompt: str, tokens: dict[str, list[int]]) -> Conditioning:
    return encode_prompts(bundle, batch_chunks([bundle.tokenizer.chunks(prompt, tokens)], bundle.tokenizer))


def predicted(bundle: ModelBundle, prompt: str, tokens: dict[str, list[int]]) -> Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=generator(9))
    return predict(bundle, latents, torch.tensor([500]), told(bundle, prompt, tokens), SIZES)


def save(folder: Path, exported: Exported) -> Path:
    for file in exported.beside:
        file.verify(write_atomic(folder / file.name, file.tensors, file.metadata))
    return write_atomic(folder / "zbadge.safetensors", exported.tensors, exported.metadata)


def as_the_webui_reads(data: dict[str, Tensor]) -> tuple[int, int]:
    """(vectors, width): the rules of its `create_embedding_from_data` for what a .safetensors file holds."""
    if "string_to_param" in data:
        (vectors,) = data["string_to_param"].values()
        return vectors.shape[0], vectors.shape[-1]
    if "clip_g" in data and "clip_l" in data:
        assert len(data) == 2, "every tensor is taken as the vectors of an encoder"
        return data["clip_g"].shape[0], data["clip_g"].shape[-1] + data["clip_l"].shape[-1]
    (vectors,) = data.values()
    return vectors.shape[0], vectors.shape[-1]


def bundled_as_the_webui_reads(tensors: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """The embeddings in a LoRA by the rules of its `load_network`."""
    found: dict[str, dict] = {}
    for key, tensor in tensors.items():
        first, _, rest = key.partition(".")
        if first != "bundle_emb":
            continue
        name, part = rest.split(".", 1)
        if part.split(".")[0] == "string_to_param":
            found.setdefault(name, {})["string_to_param"] = {part.split(".", 1)[1]: tensor}
        else:
            found.setdefault(name, {})[part] = tensor
    return {name: as_the_webui_reads(data) for name, data in found.items()}


def widths(bundle: ModelBundle) -> list[int]:
    return [token_table(encoder).shape[1] for encoder in bundle.text_encoders.values()]


@torch.no_grad()
def test_a_word_with_the_vector_of_another_is_that_word_bit_for_bit(bundle: ModelBundle) -> None:
    """States, pooled state and prediction: the ids above the vocabulary disturb nothing, the pooled place least."""
    method = TextualInversion(vectors_per_token=1, initializer_text="red")
    with method.attach(bundle, "zbadge", generator()) as trainable:
        for prompt in ("a {}", "{}", "a photo of a {} in the rain, " * 14):
            expected = told(bundle, prompt.replace("{}", "red"), {})
            found = told(bundle, prompt.replace("{}", "zbadge"), trainable.tokens)
            assert torch.equal(found.hidden_states, expected.hidden_states)
            if expected.pooled is not None:
                assert torch.equal(found.pooled, expected.pooled)
        same = predicted(bundle, "a zbadge", trainable.tokens)
        assert torch.equal(same, predicted(bundle, "a red", {}))


def test_every_encoder_has_rows_at_a_rate_of_its_own(bundle: ModelBundle, family: str) -> None:
    tables = [token_table(encoder) for encoder in bundle.text_encoders.values()]
    with WORDS.attach(bundle, "zbadge", generator()) as trainable:
        facts = [(group.name, group.parameters[0].shape) for group in trainable.groups]
        names = ["embedding", "embedding_2"][: len(tables)]
        assert facts == [(name, (5, table.shape[1])) for name, table in zip(names, tables, strict=True)]
        rates = [group.learning_rate for group in trainable.groups]
        assert rates == [0.05 * root_mean_square(table) for table in tables]
        assert len(set(rates)) == len(tables)
        moved(trainable)
        predicted(bundle, PROMPT, trainable.tokens).square().mean().backward()
        for parameter in trainable.parameters():
            assert (parameter.grad.abs().sum(dim=1) > 0).all()
        number = sum(parameter.numel() for parameter in trainable.parameters())
    assert number == 5 * sum(widths(bundle)) == WORDS.count_parameters(bundle)
    assert len(tables) == (2 if family == "sdxl" else 1)


@torch.no_grad()
@pytest.mark.parametrize("method", [WORDS, BOTH], ids=["words", "with lora"])
def test_the_model_comes_back_and_the_file_starts_the_same(
    bundle: ModelBundle, family: str, family_models: FamilyModels, tmp_path: Path, method: TextualInversion | Pivotal
) -> None:
    base = predicted(bundle, PROMPT, {})
    with method.attach(bundle, "zbadge", generator()) as trainable:
        expected = predicted(bundle, PROMPT, moved(trainable).tokens)
        with trainable.multiplied(0.0):
            assert torch.equal(predicted(bundle, PROMPT, trainable.tokens), base)
        info = ArtefactInfo(output_name="zbadge", family=family, steps=3)
        path = save(tmp_path, method.export(trainable, info))
        assert method.verify(path, trainable, bundle).num_modules >= len(bundle.text_encoders)
        number = sum(parameter.numel() for parameter in trainable.parameters())
    assert torch.equal(predicted(bundle, PROMPT, {}), base)
    assert not torch.equal(expected, base)
    again = dataclasses.replace(method, start_from=path)
    if isinstance(again, TextualInversion):
        further = (dataclasses.replace(WORDS.further[0], start_from=tmp_path / "zhat.safetensors"),)
        again = dataclasses.replace(again, further=further)
    with again.attach(bundle, "zbadge", generator(7)) as trainable:
        assert torch.equal(predicted(bundle, PROMPT, trainable.tokens), expected)
    assert again.count_parameters(outline_bundle(family_models[family])) == number


def test_files_hold_what_the_webui_takes_and_nothing_else(bundle: ModelBundle, family: str, tmp_path: Path) -> None:
    with WORDS.attach(bundle, "zbadge", generator()) as trainable:
        save(tmp_path, WORDS.export(moved(trainable), ArtefactInfo(output_name="zbadge", family=family)))
    for word, count in (("zbadge", 3), ("zhat", 2)):
        path = tmp_path / f"{word}.safetensors"
        tensors = read_tensors(path)
        assert set(tensors) == ({"clip_l", "clip_g"} if family == "sdxl" else {word})
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        assert as_the_webui_reads(tensors) == (count, sum(widths(bundle)))
        assert describe_file(path)["kind"] == "embedding"
        family_word = {"sd1": "v1", "sd2": "v2-512", "sdxl": "xl-v1-base"}[family]
        assert read_header(path)[1]["modelspec.architecture"] == f"stable-diffusion-{family_word}/textual-inversion"


def test_a_lora_carries_the_words_as_the_webui_takes_them(bundle: ModelBundle, family: str, tmp_path: Path) -> None:
    with BOTH.attach(bundle, "zbadge", generator()) as trainable:
        path = save(tmp_path, BOTH.export(moved(trainable), ArtefactInfo(output_name="zbadge", family=family)))
    assert bundled_as_the_webui_reads(read_tensors(path)) == {
        "zbadge": (3, sum(widths(bundle))), "zhat": (2, sum(widths(bundle))),
    }  # fmt: skip
    facts = describe_file(path, with_hashes=False)
    assert facts["kind"] == "lora"
    assert facts["details"]["bundled_embeddings"] == ["zbadge", "zhat"]


def test_only_one_encoder_has_room_in_the_webuis_own_format(bundle: ModelBundle, family: str) -> None:
    method = dataclasses.replace(WORDS, file_format="pt")
    if family != "sdxl":
        with method.attach(bundle, "zbadge", generator()) as trainable:
            assert method.export(trainable, ArtefactInfo(output_name="zbadge")).payload
        return
    for ask in (lambda: method.count_parameters(bundle), lambda: method.attach(bundle, "x", generator()).__enter__()):
        with pytest.raises(ConfigError, match="has no room for the vectors of two text encoders"):
            ask()


def test_a_file_of_one_encoder_does_not_fit_two(bundle: ModelBundle, family: str, tmp_path: Path) -> None:
    shapes = widths(bundle)
    half = {"clip_l": torch.ones(1, shapes[0])} if family == "sdxl" else {"clip_l": torch.ones(1, *shapes)}
    path = write_atomic(tmp_path / "half.safetensors", half, {})
    attached = dataclasses.replace(WORDS, start_from=path).attach(bundle, "zbadge", generator())
    with pytest.raises(KeyMismatchError, match="this model needs"), attached:
        pass


METHODS = {
    "words": {"kind": "textual_inversion", "relative_learning_rate": 1.0},
    "with lora": {"kind": "pivotal", "rank": 2, "relative_learning_rate": 1.0, "embedding_until": 0.5},
}


@pytest.mark.parametrize(
    ("name", "model"), [("words", "sd2-v"), ("words", "sdxl"), ("with lora", "sdxl-v-ztsnr"), ("with lora", "sd2")]
)
def test_a_resumed_run_equals_a_straight_one_and_learns(
    family_models: FamilyModels, pictures: Path, tmp_path: Path, model: str, name: str
) -> None:
    words = {"vectors_per_token": 2, "initializer_text": "red", "further_words": ["zhat: 1, blue"]}

    def job(folder: str) -> dict:
        return {
            "name": "zbadge",
            "base_model": str(family_models[model]),
            "dataset": {"folder": str(pictures), "resolution_px": 64, "caption_template": "[filewords] with a zhat"},
            "method": {**METHODS[name], **words},
            "optimizer": {"learning_rate": 3e-3, "lr_scheduler": "constant", "lr_warmup_ratio": 0.0},
            "training": {
                "max_train_steps": 6, "train_batch_size": 2, "state_every_steps": 1, "num_threads": 1,
                "mixed_precision": "fp32", "validation_every_steps": 6,
            },
            "preview": {"enabled": False},
            "output": {"folder": str(tmp_path / folder), "runs_folder": str(tmp_path / f"runs-{folder}")},
        }  # fmt: skip

    events: list[Event] = []
    straight = start(load(job("straight")), JobControl(), (events.append,))
    control = JobControl()

    def stop(event: Event) -> None:
        if isinstance(event, StepCompleted) and event.step == 4:
            control.request_stop()

    stopped = start(load(job("resumed")), control, (stop,))
    assert (stopped.reason, stopped.step) == ("stopped", 4)
    ended = resume(RunFolder(stopped.run_folder), JobControl())
    left, right = (load_newest(outcome.run_folder / "state").tensors for outcome in (straight, ended))
    assert left.keys() == right.keys()
    for owner, tensors in left.items():
        assert all(torch.equal(tensor, right[owner][key]) for key, tensor in tensors.items())
    before, after = (event.loss for event in events if isinstance(event, ValidationMeasured))
    assert after < before
    names = {path.name for path in (tmp_path / "straight").glob("*.safetensors")}
    assert names == ({"zbadge.safetensors", "zhat.safetensors"} if name == "words" else {"zbadge.safetensors"})
    assert bundled_names(straight.path) == (() if name == "words" else ("zbadge", "zhat"))


def read_by_diffusers(bundle: ModelBundle, path: Path, word: str, prompt: str) -> list[Tensor]:
    """The last states of each text encoder for a prompt, with the word loaded by diffusers from our file.

    It takes SDXL's two parts one by one.
    """
    from diffusers.loaders import TextualInversionLoaderMixin

    class Reader(TextualInversionLoaderMixin):
        _load_textual_inversion_hooks = ()
        hf_device_map = None

        def __init__(self, text_encoder: torch.nn.Module) -> None:
            self.text_encoder, self.tokenizer = text_encoder, PromptTokenizer.from_open_clip()._tokenizer
            self.components = {"text_encoder": text_encoder}

    states = []
    for text_encoder, key in zip(bundle.text_encoders.values(), ("clip_l", "clip_g"), strict=False):
        mine, tensors = copy.deepcopy(text_encoder), read_tensors(path)
        reader = Reader(mine)
        found = {word: tensors[key]} if key in tensors and len(tensors) == 2 else tensors
        reader.load_textual_inversion(found, token=word, tokenizer=reader.tokenizer, text_encoder=mine)
        text = reader.maybe_convert_prompt(prompt, reader.tokenizer)
        ids = reader.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        states.append(mine(ids).last_hidden_state)
    return states


@torch.no_grad()
def test_diffusers_reads_the_files(bundle: ModelBundle, family: str, tmp_path: Path) -> None:
    with WORDS.attach(bundle, "zbadge", generator()) as trainable:
        save(tmp_path, WORDS.export(moved(trainable), ArtefactInfo(output_name="zbadge", family=family)))
        (chunk,) = bundle.tokenizer.chunks("a zhat on a table", trainable.tokens)
        expected = [encoder(torch.tensor([chunk])).last_hidden_state for encoder in bundle.text_encoders.values()]
    found = read_by_diffusers(bundle, tmp_path / "zhat.safetensors", "zhat", "a zhat on a table")
    assert len(found) == len(expected)
    for mine, theirs in zip(expected, found, strict=True):
        assert torch.equal(mine, theirs)
