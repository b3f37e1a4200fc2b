"""The WebUI's own classes over our embeddings of every family, and over LoRAs that carry their words.

No server is started: the host's classes run in its own Python (`words_process.py`) on a model as it loads it: the
practice model, and small ones of the other families with random weights. The vectors that it reads must be ours to the
last bit, and what a prompt with them tells the UNet must be that of our training.
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
from extensions_lib.methods.new_words import NewWord, token_table  # noqa: E402
from extensions_lib.methods.pivotal import Pivotal  # noqa: E402
from extensions_lib.methods.textual_inversion import TextualInversion, vectors_of  # noqa: E402
from extensions_lib.models.bundle import ModelBundle  # noqa: E402
from extensions_lib.models.load import load_bundle  # noqa: E402
from extensions_lib.models.text import batch_chunks, encode_prompts  # noqa: E402

from .conftest import PRACTICE_MODEL  # noqa: E402
from .test_network_arithmetic import BASES, apart, copied_model, moved  # noqa: E402

Record = Callable[[str, object], None]
Vectors = dict[str, torch.Tensor]
SCRIPT = Path(__file__).with_name("words_process.py")
PROMPT = "a photo of a zbadge on a zhat, and a zinside"
WORDS = TextualInversion(vectors_per_token=3, initializer_text="red", further=(NewWord("zhat", 2, "blue"),))
INSIDE = Pivotal(Lora(rank=2, layer_filter="attn2"), TextualInversion(vectors_per_token=4, initializer_text="green"))
TAKEN = "zbadge"  # a word inside a LoRA that is an embedding file too


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# Of the real widths, which none of the models here has: the host skips them, but reads them first.
REAL: dict[str, Vectors] = {
    "real-sd1": {"": random(2, 768)},
    "real-sd2": {"": random(3, 1024)},
    "real-sdxl": {"clip_l": random(4, 768), "clip_g": random(4, 1280)},
}


@dataclass(frozen=True)
class Answers:
    """What the host read and computed, what it says of it, and what we wrote and computed.

    `files` are the vectors of each embedding file, `inside` those of the words in LoRAs; `told` what a prompt tells.
    """

    tensors: Vectors
    facts: dict
    width: int
    files: dict[str, Vectors]
    inside: dict[str, Vectors]
    told: Vectors


@pytest.fixture(scope="module", params=BASES)
def answers(
    request: pytest.FixtureRequest, webui_root: Path, family_models, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    folder = tmp_path_factory.mktemp("words")
    for name in ("embeddings", "loras"):
        (folder / name).mkdir()
    base = PRACTICE_MODEL / "practice.safetensors" if request.param == "practice" else family_models[request.param]
    model = copied_model(base, folder)
    bundle = load_bundle(model)
    bundle.freeze()
    files, told = write_embeddings(bundle, folder / "embeddings")
    inside, with_lora = write_loras(bundle, folder / "loras", files)
    ask(webui_root, model, folder)
    facts = json.loads((folder / "host.json").read_text(encoding="utf-8"))
    width = sum(token_table(encoder).shape[1] for encoder in bundle.text_encoders.values())
    return Answers(read_tensors(folder / "host.safetensors"), facts, width, files, inside, {**told, **with_lora})


@torch.no_grad()
def conditioning(bundle: ModelBundle, tokens: dict[str, list[int]], prefix: str = "") -> Vectors:
    ids = batch_chunks([bundle.tokenizer.chunks(PROMPT, tokens)], bundle.tokenizer)
    told = encode_prompts(bundle, ids)
    pooled = {} if told.pooled is None else {f"{prefix}pooled": told.pooled[0]}
    return {f"{prefix}states": told.hidden_states[0], **pooled}


def write_embeddings(bundle: ModelBundle, folder: Path) -> tuple[dict[str, Vectors], Vectors]:
    """The files of a run of two words, one in the host's own form where there is one, and those of real widths."""
    with WORDS.attach(bundle, "zbadge", torch.Generator().manual_seed(0)) as trainable:
        exported = WORDS.export(moved(trainable), ArtefactInfo(output_name="zbadge"))
        files, told = vectors_of(trainable), conditioning(bundle, trainable.tokens)
    write_atomic(folder / "zbadge.safetensors", exported.tensors, exported.metadata)
    for file in exported.beside:
        write_atomic(folder / file.name, file.tensors, file.metadata)
    if len(bundle.text_encoders) == 1:
        old = random(2, files["zhat"][""].shape[1])
        write_bytes_atomic(folder / "old-form.pt", pt_embedding_bytes("old-form", old, 5, None, None))
        files["old-form"] = {"": old}
    for name, vectors in REAL.items():
        write_atomic(folder / f"{name}.safetensors", file_tensors(name, vectors), {"modelspec.title": name})
    return {**files, **REAL}, told


def write_loras(bundle: ModelBundle, folder: Path, files: dict[str, Vectors]) -> tuple[dict[str, Vectors], Vectors]:
    """A LoRA with a word in it, one with a word of SDXL's real widths, and one with a word that is a file too."""
    info = ArtefactInfo(output_name="with-word", family=bundle.family.name)
    with INSIDE.attach(bundle, "zinside", torch.Generator().manual_seed(0)) as trainable:
        exported = INSIDE.export(moved(trainable), info)
        word = vectors_of(trainable.vectors)["zinside"]
    write_atomic(folder / "with-word.safetensors", exported.tensors, exported.metadata)
    lora = {name: tensor for name, tensor in exported.tensors.items() if not name.startswith("bundle_emb.")}
    taken = {key: vectors + 1 for key, vectors in word.items()}
    for name, inside in (("with-xl-word", ("zxl", REAL["real-sdxl"])), ("with-taken-word", (TAKEN, taken))):
        write_atomic(folder / f"{name}.safetensors", {**lora, **bundled_tensors(*inside)}, exported.metadata)
    every_word = {"zbadge": files["zbadge"], "zhat": files["zhat"], "zinside": word}
    further = tuple(NewWord(name, len(next(iter(each.values())))) for name, each in every_word.items())[1:]
    with replace(WORDS, further=further).attach(bundle, "zbadge", torch.Generator().manual_seed(0)) as trainable:
        for name, key in trainable.module.keys.items():
            with torch.no_grad():
                trainable.module.rows[name].copy_(torch.cat([vectors[key] for vectors in every_word.values()]))
        told = conditioning(bundle, trainable.tokens, "with-word/")
    return {"zinside": word, "zxl": REAL["real-sdxl"], TAKEN: taken}, told


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
        for name, vectors in answers.files.items()
    }
    assert {**facts["listed"], **facts["skipped"]} == sizes
    assert set(facts["skipped"]) == set(REAL)
    for name, vectors in answers.files.items():
        for key, expected in vectors.items():
            assert torch.equal(answers.tensors[f"embedding/{name}/{key}"], expected)


def test_the_hosts_layer_puts_each_encoders_vectors_in_its_place(answers: Answers) -> None:
    """Behind the second of nine words, which are zeros, as many as there are."""
    for name, vectors in answers.files.items():
        for key, expected in vectors.items():
            rows = answers.tensors[f"placed/{name}/{key}"]
            assert torch.equal(rows[2 : 2 + len(expected)], expected)
            assert not rows[:2].any() and not rows[2 + len(expected) :].any()


def test_a_prompt_tells_the_unet_what_it_was_told_in_training(answers: Answers, record_property: Record) -> None:
    for name, expected in answers.told.items():
        difference = apart(answers.tensors[name][: len(expected)], expected)
        record_property(f"difference of {name.replace('/', ' ')}", difference)
        assert difference < 2e-5


def test_a_lora_brings_its_word_along_and_takes_it_away(answers: Answers) -> None:
    facts = answers.facts["loras"]
    assert facts["with-word"]["words"] == {"zinside": [4, answers.width]}
    assert (facts["with-word"]["called"], facts["with-word"]["left"]) == (["zinside"], [])
    assert facts["with-word"]["modules"] > 0
    assert facts["with-xl-word"]["words"] == {"zxl": [4, 768 + 1280]}
    assert facts["with-xl-word"]["called"] == []
    for lora, word in (("with-word", "zinside"), ("with-xl-word", "zxl")):
        for key, expected in answers.inside[word].items():
            assert torch.equal(answers.tensors[f"lora/{lora}/{word}/{key}"], expected)
    assert torch.equal(answers.tensors["after/states"], answers.tensors["states"])


def test_a_file_of_the_name_wins_over_the_word_inside(answers: Answers) -> None:
    facts = answers.facts["loras"]["with-taken-word"]
    assert (list(facts["words"]), facts["called"]) == ([TAKEN], [])
    assert torch.equal(answers.tensors["with-taken-word/states"], answers.tensors["states"])
    assert not torch.equal(answers.tensors["with-word/states"], answers.tensors["states"])
