"""docs/methods.md: every method trains on every kind of model, and its file makes the very model that was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from extensions_lib.config.codec import load
from extensions_lib.control import JobControl
from extensions_lib.events import CheckpointSaved, Event
from extensions_lib.jobs.run import start
from extensions_lib.methods.catalogue import make_method
from extensions_lib.models.bundle import ModelBundle
from extensions_lib.models.load import load_bundle
from extensions_lib.models.predict import predict
from extensions_lib.models.text import batch_chunks, encode_prompts
from extensions_lib.training.run_state import load_newest

from ..host.cells import METHODS, NOT_APPLICABLE, WORD, is_writing, job_table, rewrite_section, section, table_text
from ..model_families import FAMILY_MODELS, FamilyModels
from .independent import model_with

FAMILIES = tuple(FAMILY_MODELS)
# Without the wish to write the tables, one kind of each family: plain SD 1 has the promises of every method.
ASKED = FAMILIES if is_writing() else ("sd1-inpaint", "sd2-v", "sdxl-v-ztsnr")
CELLS = [(method, family) for method in METHODS for family in ASKED if (method, family) not in NOT_APPLICABLE]
# Of the model's answer, which is about 1 in size: the same sums in another order.
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[tuple[str, str], str]]:
    """What the cells say; written into the document at the end when that is asked for."""
    cells: dict[tuple[str, str], str] = {}
    yield cells
    if is_writing():
        rewrite_section("reader", table_text(cells, FAMILIES))


@torch.no_grad()
def outcome(bundle: ModelBundle, tokens: Mapping[str, list[int]]) -> Tensor:
    """What the UNet predicts for a prompt with the new word: (1, 4, 8, 8)."""
    ids = batch_chunks([bundle.tokenizer.chunks(f"a {WORD} on a red background", tokens)], bundle.tokenizer)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    sizes = torch.tensor([[64, 64, 0, 0, 64, 64]])
    return predict(bundle, latents, torch.tensor([500]), encode_prompts(bundle, ids), sizes).float()


@pytest.mark.parametrize(("method", "family"), CELLS, ids=lambda name: name.replace(" ", "-"))
def test_the_written_file_makes_the_trained_model(
    method: str,
    family: str,
    family_models: FamilyModels,
    pictures: Path,
    tmp_path: Path,
    measured: dict[tuple[str, str], str],
) -> None:
    base, saved = family_models[family], []
    config = load(job_table(method, base, pictures, tmp_path))

    def note(event: Event) -> None:
        saved.append(event) if isinstance(event, CheckpointSaved) else None

    ended = start(config, JobControl(), (note,))
    trained_method, state = make_method(config.method, config.output), load_newest(ended.run_folder / "state")
    bundle = load_bundle(base)
    before = outcome(bundle, {})
    with trained_method.attach(bundle, WORD, torch.Generator().manual_seed(0)) as trainable:
        trainable.load_state(state.tensors["trainable"])
        trainable.module.eval()
        trained = outcome(bundle, trainable.tokens)
    again, tokens, num_matched = model_with(base, ended.path, trained_method.artefact_kind, WORD)
    difference = float((outcome(again, tokens) - trained).abs().max())
    assert difference < TOLERANCE * max(1.0, float(trained.abs().max()))
    assert float((trained - before).abs().max()) > 100 * difference
    (event,) = saved
    assert num_matched == event.num_modules
    measured[method, family] = f"{num_matched} of {event.num_modules}, {f'{difference:.0e}' if difference else '0'}"


def test_the_document_has_every_cell() -> None:
    text = section("reader")
    assert "not run" not in text
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ") and "---" not in line][
        1:
    ] == list(METHODS)
    assert text.splitlines()[0].split("|")[2:-1] == [f" {family} " for family in FAMILIES]
