"""The WebUI's own classes over our embeddings of every family, and over LoRAs that carry their words.

No server is started: the host's classes run in its own Python (`words_process.py`) on the practice model as it loads
it. The vectors that it reads must be ours to the last bit, and the text states with them those of our training.
"""

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from extensions_lib.formats.atomic import write_bytes_atomic  # noqa: E402
from extensions_lib.formats.embedding import bundled_tensors, file_tensors, pt_embedding_bytes  # noqa: E402
from extensions_lib.formats.metadata import ArtefactInfo  # noqa: E402
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402
from extensions_lib.methods.lora import Lora  # noqa: E402
from extensions_lib.methods.new_words import NewWord  # noqa: E402
from extensions_lib.methods.pivotal import Pivotal  # noqa: E402
from extensions_lib.methods.textual_inversion import TextualInversion, vectors_of  # noqa: E402
from extensions_lib.models.load import load_bundle  # noqa: E402
from extensions_lib.models.text import batch_chunks, encode_prompts  # noqa: E402

from .conftest import PRACTICE_MODEL  # noqa: E402
from .test_network_arithmetic import apart, copied_model, moved  # noqa: E402

Record = Callable[[str, object], None]
Vectors = dict[str, torch.Tensor]
SCRIPT = Path(__file__).with_name("words_process.py")
PROMPT = "a photo of a zbadge on a zhat, and a zinside"
WORDS = TextualInversion(vectors_per_token=3, initializer_text="red", further=(NewWord("zhat", 2, "blue"),))
INSIDE = Pivotal(Lora(rank=2, layer_filter="attn2"), TextualInversion(vectors_per_token=4, initializer_text="green"))
HIDDEN = "zbadge"  # a word inside a LoRA that is an embedding file too


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


WIDTH = 32  # of the practice model's words

# Of real widths, besides those of the practice model: what the host lists or skips, but always reads.
OTHERS: dict[str, Vectors] = {
    "real-sd1": {"": random(2, 768)},
    "real-sd2": {"": random(3, 1024)},
    "real-sdxl": {"clip_l": random(4, 768), "clip_g": random(4, 1280)},
}


@dataclass(frozen=True)
class Answers:
    """What the host read and computed, what it says of it, and what we wrote and computed."""

    tensors: Vectors
    facts: dict
    vectors: dict[str, Vectors]
    inside: dict[str, Vectors]
    states: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def answers(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    folder = tmp_path_factory.mktemp("words")
    for name in ("embeddings", "loras"):
        (folder / name).mkdir()
    vectors, states = write_embeddings(folder / "embeddings")
    inside, with_lora = write_loras(folder / "loras", vectors)
    ask(webui_root, copied_model(folder), folder)
    facts = json.loads((folder / "host.json").read_text(encoding="utf-8"))
    return Answers(read_tensors(folder / "host.safetensors"), facts, vectors, inside, {**states, **with_lora})


def bundle():
    loaded = load_bundle(PRACTICE_MODEL / "practice.safetensors")
    loaded.freeze()
    return loaded


@torch.no_grad()
def told(model, tokens: dict[str, list[int]]) -> torch.Tensor:
    ids = batch_chunks([model.tokenizer.chunks(PROMPT, tokens)], model.tokenizer)
    return encode_prompts(model, ids).hidden_states[0]


def write_embeddings(folder: Path) -> tuple[dict[str, Vectors], dict[str, torch.Tensor]]:
    """A run of two words, the host's own format, and vectors of real widths."""
    model = bundle()
    with WORDS.attach(model, "zbadge", torch.Generator().manual_seed(0)) as trainable:
        exported = WORDS.export(moved(trainable), ArtefactInfo(output_name="zbadge"))
        vectors, states = vectors_of(trainable), {"states": told(model, trainable.tokens)}
    write_atomic(folder / "zbadge.safetensors", exported.tensors, exported.metadata)
    for file in exported.beside:
        write_atomic(folder / file.name, file.tensors, file.metadata)
    old = random(2, WIDTH)
    write_bytes_atomic(folder / "old-form.pt", pt_embedding_bytes("old-form", old, 5, None, None))
    for name, each in OTHERS.items():
        write_atomic(folder / f"{name}.safetensors", file_tensors(name, each), {"modelspec.title": name})
    return {**vectors, "old-form": {"": old}, **OTHERS}, states


def write_loras(folder: Path, beside: dict[str, Vectors]) -> tuple[dict[str, Vectors], dict[str, torch.Tensor]]:
    """A LoRA with a word in it, one with SDXL's, and one with a word that is a file too."""
    model = bundle()
    with INSIDE.attach(model, "zinside", torch.Generator().manual_seed(0)) as trainable:
        exported = INSIDE.export(moved(trainable), ArtefactInfo(output_name="with-word"))
        word = vectors_of(trainable.vectors)
        rows = trainable.vectors.module.rows["text_encoder"].detach()
    write_atomic(folder / "with-word.safetensors", exported.tensors, exported.metadata)
    lora = {name: tensor for name, tensor in exported.tensors.items() if not name.startswith("bundle_emb.")}
    xl = {**lora, **bundled_tensors("zxl", OTHERS["real-sdxl"])}
    write_atomic(folder / "with-xl-word.safetensors", xl, exported.metadata)
    hidden = {**lora, **bundled_tensors(HIDDEN, {"": rows + 1})}
    write_atomic(folder / "with-taken-word.safetensors", hidden, exported.metadata)
    all_words = replace(WORDS, further=(*WORDS.further, NewWord("zinside", 4)))
    with all_words.attach(model, "zbadge", torch.Generator().manual_seed(0)) as trainable:
        with torch.no_grad():
            together = torch.cat([beside["zbadge"][""], beside["zhat"][""], rows])
            trainable.module.rows["text_encoder"].copy_(together)
        states = told(model, trainable.tokens)
    return {**word, "zxl": OTHERS["real-sdxl"], HIDDEN: {"": rows + 1}}, {"states/with-word": states}


def ask(root: Path, model: Path, folder: Path) -> None:
    python = os.environ.get("WEBUI_PYTHON", str(root / "venv" / "bin" / "python"))
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("PYTHONPATH", None)
    output = folder / "host.safetensors"
    command = [python, SCRIPT, root, model, output, folder / "embeddings", folder / "loras", PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_host_reads_every_embedding_as_it_was_written(answers: Answers) -> None:
    facts = answers.facts
    sizes = {
        name: [len(next(iter(vectors.values()))), sum(each.shape[1] for each in vectors.values())]
        for name, vectors in answers.vectors.items()
    }
    assert {**facts["listed"], **facts["skipped"]} == sizes
    assert set(facts["skipped"]) == set(OTHERS)  # none of them fits the practice model
    for name, vectors in answers.vectors.items():
        for key, expected in vectors.items():
            assert torch.equal(answers.tensors[f"embedding/{name}/{key}"], expected)


def test_the_hosts_layer_puts_each_encoders_vectors_in_its_place(answers: Answers) -> None:
    """The second of nine words is the first of the vectors, as many of them as there are."""
    for name, vectors in answers.vectors.items():
        for key, expected in vectors.items():
            rows = answers.tensors[f"placed/{name}/{key}"]
            assert torch.equal(rows[2 : 2 + len(expected)], expected)
            assert not rows[:2].any() and not rows[2 + len(expected) :].any()


def test_the_text_states_are_those_of_the_training(answers: Answers, record_property: Record) -> None:
    for name, expected in answers.states.items():
        difference = apart(answers.tensors[name], expected)
        record_property(f"difference of {name}", difference)
        assert difference < 2e-5


def test_a_lora_brings_its_word_along_and_takes_it_away(answers: Answers) -> None:
    facts = answers.facts["loras"]
    assert facts["with-word"]["words"] == {"zinside": [4, WIDTH]}
    assert (facts["with-word"]["called"], facts["with-word"]["left"]) == (["zinside"], [])
    assert facts["with-word"]["modules"] == 64
    assert facts["with-xl-word"]["words"] == {"zxl": [4, 768 + 1280]}
    assert facts["with-xl-word"]["called"] == []
    for lora, word in (("with-word", "zinside"), ("with-xl-word", "zxl")):
        for key, expected in answers.inside[word].items():
            assert torch.equal(answers.tensors[f"lora/{lora}/{word}/{key}"], expected)
    assert torch.equal(answers.tensors["states/after"], answers.tensors["states"])


def test_a_file_of_the_name_wins_over_the_word_inside(answers: Answers) -> None:
    facts = answers.facts["loras"]["with-taken-word"]
    assert (list(facts["words"]), facts["called"]) == ([HIDDEN], [])
    assert torch.equal(answers.tensors["states/with-taken-word"], answers.tensors["states"])
    assert not torch.equal(answers.tensors["states/with-word"], answers.tensors["states"])
