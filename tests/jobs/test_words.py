"""Jobs with new words, from settings to files: several of them, negative ones, and with a LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from extensions_lib.config.codec import load
from extensions_lib.config.preview import PreviewPrompt, caption_of
from extensions_lib.control import JobControl
from extensions_lib.errors import OutputError
from extensions_lib.events import CheckpointSaved, Event, StepCompleted, Warned
from extensions_lib.formats.embedding import bundled_names, read_embedding
from extensions_lib.formats.safetensors_io import read_header
from extensions_lib.jobs.run import Outcome, start
from extensions_lib.jobs.store import RunFolder
from extensions_lib.preview.record import read_prompts
from extensions_lib.training.run_state import load_newest

EMBEDDING = {"kind": "textual_inversion", "vectors_per_token": 2, "initializer_text": "red"}
FAST = {"learning_rate": 0.05, "lr_scheduler": "constant", "lr_warmup_ratio": 0.0}

MakeJob = Callable[..., dict[str, Any]]


def run(table: dict[str, Any]) -> tuple[Outcome, list[Event]]:
    events: list[Event] = []
    return start(load(table), JobControl(), (events.append,)), events


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_every_word_of_a_run_becomes_a_file(job: MakeJob, pictures: Path, tmp_path: Path) -> None:
    (pictures / "1.txt").write_text("a zhat", encoding="utf-8")
    method = {**EMBEDDING, "further_words": ["zhat: 3, blue"]}
    training = {"max_train_steps": 4, "save_every_steps": 2}
    outcome, events = run(job(method=method, training=training, optimizer=FAST))
    out = tmp_path / "out"
    assert {path.name for path in out.glob("*.safetensors")} == {
        "zbadge.safetensors", "zhat.safetensors", "zbadge-000002.safetensors", "zhat-000002.safetensors",
    }  # fmt: skip
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    assert [event.beside for event in saved] == [
        (str(out / "zhat-000002.safetensors"),), (str(out / "zhat.safetensors"),),
    ]  # fmt: skip
    assert [read_embedding(out / f"{name}.safetensors").vectors[""].shape[0] for name in ("zbadge", "zhat")] == [2, 3]
    state = load_newest(outcome.run_folder / "state")
    rows = torch.cat([read_embedding(out / f"{name}.safetensors").vectors[""] for name in ("zbadge", "zhat")])
    assert torch.equal(rows, state.tensors["trainable"]["rows.text_encoder"])
    for name in ("zbadge", "zhat", "zbadge-000002", "zhat-000002"):
        card = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        assert card["description"].endswith(f"; call it with '{name}'.")


def test_a_negative_embedding_is_drawn_and_described_as_one(job: MakeJob, pictures: Path, tmp_path: Path) -> None:
    (pictures / "0.txt").write_text("a house, [name], Zbadge in the rain", encoding="utf-8")
    method = {**EMBEDDING, "is_negative": True}
    preview = {"enabled": True, "every_steps": 2}
    outcome, _ = run(job(method=method, training={"max_train_steps": 2}, preview=preview, optimizer=FAST))
    previews = outcome.run_folder / "previews"
    text = "a house, in the rain"
    prompts = (PreviewPrompt(prompt=text, negative_prompt="[name]"), PreviewPrompt(prompt=text))
    assert read_prompts(previews) == prompts
    assert [caption_of(prompt) for prompt in prompts] == [f"{text}, without [name]", text]
    with_word, without = (
        [pixels(previews / f"{step}-{index}.png") for step in ("000000", "000002")] for index in (0, 1)
    )
    assert with_word[0] != with_word[1]
    assert without[0] == without[1] == pixels(previews / "base-1.png")
    assert with_word[1] != without[1]
    card = json.loads((tmp_path / "out" / "zbadge.json").read_text(encoding="utf-8"))
    assert card["description"].endswith("; put 'zbadge' into the negative prompt.")
    assert read_header(outcome.path)[1]["modelspec.is_negative_embedding"] == "true"


@pytest.mark.parametrize(("caption", "prompt"), [("[name]", "a photo"), ("", "a photo"), ("big [name]", "big")])
def test_what_is_left_of_a_caption_without_the_word(job: MakeJob, pictures: Path, caption: str, prompt: str) -> None:
    (pictures / "0.txt").write_text(caption, encoding="utf-8")
    preview = {"enabled": True, "at_start": False}
    method = {**EMBEDDING, "is_negative": True}
    outcome, _ = run(job(method=method, training={"max_train_steps": 1}, preview=preview))
    assert {found.prompt for found in read_prompts(outcome.run_folder / "previews")} == {prompt}


def test_a_lora_with_its_word_is_one_file_and_the_word_rests_when_told(job: MakeJob, tmp_path: Path) -> None:
    method = {"kind": "pivotal", "rank": 2, "alpha": 2.0, "layer_filter": "attn2", "vectors_per_token": 2,
              "initializer_text": "red", "embedding_learning_rate": 0.05, "embedding_until": 0.5}  # fmt: skip
    training = {"max_train_steps": 4, "save_every_steps": 1, "state_every_steps": 1}
    outcome, events = run(job(method=method, training=training, optimizer=FAST))
    out = tmp_path / "out"
    names = ["zbadge-000001", "zbadge-000002", "zbadge-000003", "zbadge"]
    vectors = [read_embedding(out / f"{name}.safetensors").vectors[""] for name in names]
    assert not torch.equal(vectors[0], vectors[1])
    assert torch.equal(vectors[1], vectors[2]) and torch.equal(vectors[2], vectors[3])
    assert {path.suffix for path in out.iterdir()} == {".safetensors", ".json"}
    assert bundled_names(outcome.path) == ("zbadge",)
    metadata = read_header(outcome.path)[1]
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2.0")
    card = json.loads((out / "zbadge.json").read_text(encoding="utf-8"))
    assert card["activation text"] == "zbadge"
    steps = [event for event in RunFolder(outcome.run_folder).events() if isinstance(event, StepCompleted)]
    assert {event.learning_rate for event in steps} == {0.05}
    assert [event.num_modules for event in events if isinstance(event, CheckpointSaved)] == [64] * 4


def test_the_words_beside_a_lora_go_to_their_own_folder(job: MakeJob, tmp_path: Path) -> None:
    method = {"kind": "pivotal", "rank": 2, "layer_filter": "attn2", "embedding_files": "both",
              "initializer_text": "red", "further_words": ["zhat: 1, blue"]}  # fmt: skip
    dataset = {"trigger_word": "zword"}
    output = {"embedding_folder": str(tmp_path / "embeddings")}
    outcome, _ = run(job(method=method, training={"max_train_steps": 1}, output=output, dataset=dataset))
    assert bundled_names(outcome.path) == ("zhat", "zword")
    assert {path.name for path in (tmp_path / "embeddings").glob("*.safetensors")} == {
        "zword.safetensors", "zhat.safetensors",
    }  # fmt: skip
    inside = read_embedding(outcome.path, "zword").vectors[""]
    assert torch.equal(inside, read_embedding(tmp_path / "embeddings" / "zword.safetensors").vectors[""])


def test_no_file_of_another_run_is_replaced_unasked(job: MakeJob, tmp_path: Path) -> None:
    """Neither the one of a further word, nor the ones of its earlier steps."""
    method = {**EMBEDDING, "further_words": ["zhat: 1, blue"]}
    out = tmp_path / "out"
    out.mkdir()
    for name in ("zhat.safetensors", "zhat-000002.safetensors"):
        (out / name).write_bytes(b"theirs")
        with pytest.raises(OutputError, match=f"{name} exists already"):
            run(job(method=method))
        (out / name).unlink()
    (out / "zhatter-000002.safetensors").write_bytes(b"theirs")
    assert run(job(method=method, training={"max_train_steps": 1}))[0].reason == "completed"


@pytest.mark.parametrize("kind", ["textual_inversion", "pivotal"])
def test_a_word_that_no_caption_has_is_warned_of_and_spoils_nothing(job: MakeJob, tmp_path: Path, kind: str) -> None:
    """It starts from zeros here and stays there; the other word is kept all the same."""
    method = {"kind": kind, "vectors_per_token": 2, "initializer_text": "red", "further_words": ["zhat: 1"]}
    outcome, events = run(job(method=method, training={"max_train_steps": 1}))
    assert [event.text for event in events if isinstance(event, Warned)] == [
        "No caption has the word 'zhat', so that its vectors learn nothing."
    ]
    assert outcome.reason == "completed"
    file = tmp_path / "out" / ("zhat.safetensors" if kind == "textual_inversion" else "zbadge.safetensors")
    assert not read_embedding(file, "zhat").vectors[""].any()
