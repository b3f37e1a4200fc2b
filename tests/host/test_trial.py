"""A merge tried in the running WebUI without saving it: its pictures are those of the saved merge, and after the undo
the model is the user's own again, whatever happened in between.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from extensions_lib.config.tools import load_tool  # noqa: E402
from extensions_lib.control import JobControl  # noqa: E402
from extensions_lib.formats.metadata import ArtefactInfo  # noqa: E402
from extensions_lib.formats.safetensors_io import read_tensors, write_atomic  # noqa: E402
from extensions_lib.merge.tools import run_tool  # noqa: E402
from extensions_lib.methods.lora import Lora  # noqa: E402
from extensions_lib.models.load import load_bundle  # noqa: E402

from .client import Picture  # noqa: E402
from .conftest import PRACTICE_MODEL  # noqa: E402
from .server import HostServer, Place, complaints  # noqa: E402

PROMPT = "a red circle on a blue background"
LORA = " <lora:ztrial:1>"
VISIBLE = 2.0
PARTS = ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")
TRIAL = "/train-studio/v1/trial"
OPTIONS = {"randn_source": "CPU", "live_previews_enable": False, "sd_vae": "Automatic"}


def changed_model(source: Path, target: Path, seed: int) -> Path:
    """A copy with other weights in every part, and its description."""
    tensors = read_tensors(source)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if name.startswith(PARTS) and tensor.is_floating_point() and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std().nan_to_num()
            tensors[name] = (tensor.float() + 0.2 * noise).to(tensor.dtype)
    shutil.copyfile(source.with_suffix(".yaml"), target.with_suffix(".yaml"))
    return write_atomic(target, tensors, {})


def lora_file(target: Path) -> Path:
    """A LoRA of UNet and text encoder, norms and biases too, that shows."""
    bundle = load_bundle(PRACTICE_MODEL / "practice.safetensors")
    bundle.freeze()
    method = Lora(rank=4, alpha=4.0, layers="full", train_text_encoder=True)
    with method.attach(bundle, "x", torch.Generator().manual_seed(0)) as trainable:
        with torch.no_grad():
            for index, parameter in enumerate(trainable.parameters()):
                generator = torch.Generator().manual_seed(index)
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        exported = method.export(trainable, ArtefactInfo(output_name=target.stem))
    return write_atomic(target, exported.tensors, exported.metadata)


@dataclass
class Trial:
    """The host, and what is asked of it."""

    server: HostServer

    @property
    def table(self) -> dict[str, Any]:
        folder = self.server.place.checkpoints
        models = [{"path": str(folder / f"{name}.safetensors")} for name in ("practice", "other")]
        return {"tool": "merge", "models": models, "alpha": "0.4, TE=0.6, IN04-IN08=0.8"}

    def ask(self, path: str, body: Any, until: str) -> dict[str, Any]:
        status, answer, seconds = self.server.status_of(path, body)
        assert status == 202, answer
        assert seconds < 2
        end = time.monotonic() + 60
        while (answer := self.server.status_of(TRIAL)[1])["state"] in ("applying", "undoing"):
            assert time.monotonic() < end, answer
            time.sleep(0.05)
        assert answer["state"] == until, answer
        return answer

    def on(self, **changes: Any) -> dict[str, Any]:
        return self.ask(TRIAL, self.table | changes, "on")

    def off(self) -> dict[str, Any]:
        return self.ask(f"{TRIAL}/undo", {}, "none")

    def draw(self, more: str = "") -> Picture:
        return self.server.webui.draw(PROMPT + more)

    def options(self, **options: Any) -> None:
        self.server.webui.post("/sdapi/v1/options", options)

    def select(self, name: str) -> None:
        self.options(sd_model_checkpoint=name)

    def state(self) -> dict[str, Any]:
        return self.server.status_of(TRIAL)[1]


@dataclass(frozen=True)
class Known:
    """Pictures that do not need a trial: of each checkpoint, without and with the LoRA."""

    practice: Picture
    practice_lora: Picture
    other: Picture
    saved: Picture
    saved_lora: Picture


@pytest.fixture(scope="module")
def trial(webui_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    place = Place.make(tmp_path_factory.mktemp("trial"))
    changed_model(place.checkpoints / "practice.safetensors", place.checkpoints / "other.safetensors", 1)
    place.loras.mkdir(parents=True, exist_ok=True)
    lora_file(place.loras / "ztrial.safetensors")
    vaes = place.folder / "models" / "VAE"
    vaes.mkdir(parents=True, exist_ok=True)
    own = read_tensors(place.checkpoints / "other.safetensors")
    vae = {name.removeprefix(PARTS[2]): tensor for name, tensor in own.items() if name.startswith(PARTS[2])}
    write_atomic(vaes / "chosen.safetensors", vae, {})
    made = Trial(HostServer(webui_root, place))
    config = load_tool("merge", {
        **{key: value for key, value in made.table.items() if key != "tool"},
        "name": "saved", "folder": str(place.checkpoints),
    })  # fmt: skip
    run_tool(config, JobControl(), lambda event: None)
    made.server.start("--api", "--skip-install", options=OPTIONS)
    yield made
    made.server.stop()
    assert "Traceback" not in complaints(made.server.log)


@pytest.fixture(scope="module")
def known(trial: Trial) -> Known:
    found = {}
    for name in ("other", "saved", "practice"):
        trial.select(name)
        found[name] = trial.draw()
        if name != "other":
            found[f"{name}_lora"] = trial.draw(LORA)
    return Known(**found)


def test_the_trial_draws_what_the_saved_merge_draws_and_the_undo_what_was_drawn_before(
    trial: Trial, known: Known
) -> None:
    answer = trial.on()
    assert (answer["title"], answer["model"].split(" ")[0]) == (
        "weighted_sum of practice + other; alpha 0.4, TE=0.6, IN04-IN08=0.8", "practice.safetensors",
    )  # fmt: skip
    during = trial.draw()
    assert during.distance(known.practice) > VISIBLE
    assert during.same_as(known.saved)
    assert 'Train Studio trial: "weighted_sum of practice + other; alpha 0.4' in during.infotext
    trial.off()
    after = trial.draw()
    assert after.same_as(known.practice) and "Train Studio" not in after.infotext


def test_with_a_lora_before_during_and_after(trial: Trial, known: Known) -> None:
    assert trial.draw(LORA).same_as(known.practice_lora)
    trial.on()
    assert trial.draw(LORA).same_as(known.saved_lora)
    assert trial.draw().same_as(known.saved)
    assert trial.draw(LORA).same_as(known.saved_lora)
    trial.off()
    assert trial.draw().same_as(known.practice)
    assert trial.draw(LORA).same_as(known.practice_lora)


def test_with_loras_computed_beside_the_layers(trial: Trial, known: Known) -> None:
    """'Lora: use old method'; pictures of the two ways differ by rounding."""
    trial.options(lora_functional=True)
    before = trial.draw(LORA)
    trial.on()
    during = trial.draw(LORA)
    assert during.distance(known.saved_lora) < 1.0
    trial.off()
    assert trial.draw(LORA).same_as(before)
    trial.options(lora_functional=False)
    assert trial.draw(LORA).same_as(known.practice_lora)


def test_a_second_trial_and_then_the_original(trial: Trial, known: Known) -> None:
    trial.on(alpha="0.9")
    first = trial.draw()
    trial.on()
    assert trial.draw().same_as(known.saved) and not first.same_as(known.saved)
    trial.off()
    assert trial.draw().same_as(known.practice)


def test_a_checkpoint_chosen_in_between_ends_it(trial: Trial, known: Known) -> None:
    trial.on()
    trial.draw(LORA)
    trial.select("other")
    assert trial.draw().same_as(known.other)
    assert trial.state()["text"] == "The trial ended: the WebUI loaded a checkpoint."
    trial.off()
    assert trial.draw().same_as(known.other)
    trial.select("practice")
    assert trial.draw().same_as(known.practice)


def test_the_saved_merge_chosen_after_its_trial_stays(trial: Trial, known: Known) -> None:
    trial.on()
    trial.select("saved")
    trial.off()
    assert trial.draw().same_as(known.saved)
    trial.select("practice")
    assert trial.draw().same_as(known.practice)


def test_with_two_checkpoints_in_memory_the_one_on_trial_is_itself_again(trial: Trial, known: Known) -> None:
    trial.options(sd_checkpoints_limit=2)
    try:
        trial.on()
        trial.select("other")
        assert trial.draw().same_as(known.other)
        trial.select("practice")
        assert trial.draw().same_as(known.practice)
        trial.on()
        trial.select("other")  # loaded already: the host says nothing
        assert trial.draw().same_as(known.other)
        assert trial.state()["text"] == "The trial ended: another checkpoint was chosen."
        trial.select("practice")
        assert trial.draw(LORA).same_as(known.practice_lora)
    finally:
        trial.options(sd_checkpoints_limit=1)


def test_a_picture_that_asks_for_another_checkpoint_is_not_called_a_trial(trial: Trial, known: Known) -> None:
    trial.on()
    answer = trial.server.webui.post("/sdapi/v1/txt2img", {
        "prompt": PROMPT, "seed": 1234, "steps": 2, "width": 64, "height": 64, "save_images": False,
        "override_settings": {"sd_model_checkpoint": "other"},
    })  # fmt: skip
    assert "Train Studio" not in answer["info"]
    assert trial.state()["state"] == "none"
    assert trial.draw().same_as(known.practice)


def test_a_refiner_ends_it(trial: Trial, known: Known) -> None:
    """The host loads it into the same model in the middle of a picture, whose first half is the trial's."""
    trial.on()
    answer = trial.server.webui.post("/sdapi/v1/txt2img", {
        "prompt": PROMPT, "seed": 1234, "steps": 4, "width": 64, "height": 64, "save_images": False,
        "refiner_checkpoint": "other", "refiner_switch_at": 0.5,
    })  # fmt: skip
    assert "Train Studio trial" in answer["info"] and "Refiner: other" in answer["info"]
    assert trial.state()["state"] == "none"
    assert trial.draw().same_as(known.practice)


def test_a_vae_chosen_in_the_host_stays_and_the_checkpoints_own_comes_back(trial: Trial, known: Known) -> None:
    trial.options(sd_vae="chosen.safetensors")
    chosen = trial.draw()
    trial.on()
    with_chosen = trial.draw()
    assert not with_chosen.same_as(known.saved) and not with_chosen.same_as(chosen)
    trial.options(sd_vae="Automatic")
    assert trial.draw().same_as(known.saved)
    trial.options(sd_vae="chosen.safetensors")
    assert trial.draw().same_as(with_chosen)
    trial.off()
    assert trial.draw().same_as(chosen)
    trial.options(sd_vae="Automatic")
    assert trial.draw().same_as(known.practice)


def test_reload_ui_leaves_it_on_and_it_can_be_undone(trial: Trial, known: Known) -> None:
    trial.on()
    server = trial.server
    starts = server.text().count("Startup time:")
    page = server.webui.get("/config")
    names = {part["id"]: part["props"].get("elem_id") for part in page["components"]}
    button = next(
        index for index, dependency in enumerate(page["dependencies"]) if dependency["backend_fn"]
        and "settings_restart_gradio" in [names.get(target) for target in map(_number, dependency["targets"])]
    )  # fmt: skip
    server.status_of("/run/predict", {"fn_index": button, "data": [], "session_hash": "trial"})
    end = time.monotonic() + 60
    while server.text().count("Startup time:") == starts:
        assert time.monotonic() < end
        time.sleep(0.2)
    server._wait_for_port()
    assert trial.state()["state"] == "on"
    assert trial.draw().same_as(known.saved)
    trial.off()
    assert trial.draw().same_as(known.practice)
    trial.on()
    trial.select("other")
    assert trial.draw().same_as(known.other)
    trial.select("practice")


def _number(target: Any) -> Any:
    return target[0] if isinstance(target, list) else target


def test_what_fails_leaves_the_model_as_it_was(trial: Trial, known: Known) -> None:
    """The last tensor of a model holds NaN; nothing else shows it beforehand."""
    folder = trial.server.place.folder / "broken"
    folder.mkdir(exist_ok=True)
    tensors = read_tensors(trial.server.place.checkpoints / "other.safetensors")
    last = sorted(name for name in tensors if name.startswith(PARTS[0]))[-1]
    tensors[last] = torch.full_like(tensors[last], float("nan"))
    broken = write_atomic(folder / "broken.safetensors", tensors, {})
    shutil.copyfile(trial.server.place.checkpoints / "other.yaml", folder / "broken.yaml")
    models = [trial.table["models"][0], {"path": str(broken)}]
    answer = trial.ask(TRIAL, trial.table | {"models": models}, "none")
    assert "NaN" in answer["text"]
    assert trial.draw().same_as(known.practice)


def test_with_weights_in_8_bits(trial: Trial) -> None:
    """'FP8 weight', with the half precision copies that LoRAs are computed with.

    After it was on and off again the host samples with a schedule that went through half precision, trial or not.
    """
    trial.options(cache_fp16_weight=True)
    trial.options(fp8_storage="Enable")
    trial.options(fp8_storage="Disable")
    without_trial = trial.draw()
    trial.options(fp8_storage="Enable")
    try:
        trial.select("saved")
        saved, saved_lora = trial.draw(), trial.draw(LORA)
        trial.select("practice")
        before, before_lora = trial.draw(), trial.draw(LORA)
        trial.on()
        assert trial.draw().same_as(saved) and trial.draw(LORA).same_as(saved_lora)
        trial.off()
        assert trial.draw().same_as(before) and trial.draw(LORA).same_as(before_lora)
        assert not before.same_as(saved) and not before_lora.same_as(saved_lora)
        trial.on()
    finally:
        trial.options(fp8_storage="Disable")  # loads the same checkpoint into the same model again
        trial.options(cache_fp16_weight=False)
    assert trial.state()["text"] == "The trial ended: the WebUI loaded a checkpoint."
    assert trial.draw().same_as(without_trial)


@pytest.mark.parametrize("flag", ["--medvram", "--lowvram"])
def test_with_parts_of_the_model_off_the_device(trial: Trial, known: Known, flag: str) -> None:
    """The host hooks its model's parts to be moved when they are called."""
    trial.server.start("--api", "--skip-install", flag, options=OPTIONS)
    assert trial.draw().same_as(known.practice)
    trial.on()
    assert trial.draw(LORA).same_as(known.saved_lora)
    trial.off()
    assert trial.draw().same_as(known.practice)


@pytest.mark.parametrize("family", ["sd2", "sd2-v", "sdxl", "sd1-v"])
def test_every_family(trial: Trial, family: str) -> None:
    """Its text encoders and their tables of words lie behind the host's own wrappers."""
    server, folder = trial.server, trial.server.place.checkpoints
    if not (folder / f"{family}.safetensors").exists():
        server.make_family_models()
    own = folder / f"{family}.safetensors"
    changed = changed_model(own, folder / f"{family}-changed.safetensors", 2)
    table = {"models": [{"path": str(own)}, {"path": str(changed)}], "alpha": "0.7", "dtype": "fp32"}
    run_tool(load_tool("merge", table | {"name": f"{family}-saved", "folder": str(folder)}), JobControl(), lambda e: e)
    server.webui.post("/sdapi/v1/refresh-checkpoints", {})
    trial.select(f"{family}-saved")
    saved = trial.draw()
    trial.select(family)
    before = trial.draw()
    trial.on(**table)
    during = trial.draw()
    trial.off()
    assert during.same_as(saved) and during.distance(before) > VISIBLE
    assert trial.draw().same_as(before)
    status, answer, _ = server.status_of(TRIAL, trial.table)
    assert status == 400 and ("is sd1" in answer["message"] or "predicts" in answer["message"])
    assert trial.draw().same_as(before)
