"""A candidate in the host's model: what is changed, what comes back, and when it ends by itself."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extensions_lib.control import JobControl
from extensions_lib.errors import HostError, JobStateError, JobStopped, MergeError
from extensions_lib.events import PhaseProgress
from extensions_lib.host.a1111 import WebuiHost
from extensions_lib.host.generation import before_generation, mark_trial
from extensions_lib.host.trial import INFOTEXT, WebuiTrials
from extensions_lib.host.trial_values import TrialValues
from extensions_lib.ports import Candidate, NoTrials, TrialStatus

from .webui import Webui, checkpoint

TITLE = "weighted_sum of a + b; alpha 0.3"
UNET, TEXT, VAE = (
    "model.diffusion_model.layer.weight", "cond_stage_model.transformer.layer.weight",
    "first_stage_model.decoder.weight",
)  # fmt: skip


class Wrapper(nn.Module):
    """What the host puts around the text encoder."""

    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped


class Model(nn.Module):
    """The host's model: its names with the host's wrappers, a noise schedule, a half precision text encoder."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.ModuleDict({"diffusion_model": nn.ModuleDict({"layer": nn.Linear(3, 3, bias=False)})})
        text = nn.ModuleDict({"layer": nn.Linear(2, 2, bias=False)})
        self.cond_stage_model = Wrapper(nn.ModuleDict({"transformer": text})).half()
        self.first_stage_model = nn.ModuleDict({"decoder": nn.Linear(2, 2, bias=False)})
        self.register_buffer("alphas_cumprod", torch.tensor([0.9, 0.5]))
        self.alphas_cumprod_original = self.alphas_cumprod
        self.is_sd1, self.is_sd2, self.is_sdxl, self.parameterization = True, False, False, "eps"
        self.cond_stage_model_empty_prompt = "words by the model's own encoder"
        self.sd_checkpoint_info: Any = None
        self.network_layer_mapping = {"unet": self.unet}
        self.model.to(dtype)

    @property
    def unet(self) -> nn.Linear:
        return self.model["diffusion_model"]["layer"]


def values(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(model: Model, expected: Mapping[str, Tensor]) -> bool:
    return all(
        tensor.dtype == expected[name].dtype and torch.equal(tensor.float(), expected[name].float())
        for name, tensor in model.state_dict().items()
    )


def tensors_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "alphas_cumprod": torch.tensor([0.9, 0.4]),
        UNET: torch.randn(3, 3, generator=generator),
        TEXT: torch.randn(2, 2, generator=generator),
        VAE: torch.randn(2, 2, generator=generator),
        "cond_stage_model.logit_scale": torch.ones(()),
    }


def candidate(
    tensors: Mapping[str, Tensor], on_tensor: Callable[[str], None] = lambda name: None, **changes: Any
) -> Any:
    def made(control: JobControl, emit: Callable[[Any], object]) -> Generator[tuple[str, Tensor], None, None]:
        for number, (name, tensor) in enumerate(tensors.items(), start=1):
            emit(PhaseProgress(phase="merge", done=number, total=len(tensors)))
            on_tensor(name)
            if control.stop_requested:
                raise JobStopped("stopped")
            yield name, tensor

    given = {
        "title": TITLE, "family": "sd1", "prediction_type": "epsilon", "tensors": made,
        "shapes": {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    }  # fmt: skip
    return Candidate(**(given | changes))


class Host:
    """The stand-in with a loaded model, and what else a trial asks the host for."""

    def __init__(self, webui: Webui) -> None:
        self.webui = webui
        self.held: list[bool] = []
        base = type("Picture", (), {"cached_c": [1], "cached_uc": [2]})
        self.processing = webui.module(
            "modules.processing", StableDiffusionProcessing=base,
            StableDiffusionProcessingTxt2Img=type("Txt2Img", (base,), {"cached_hr_c": [3], "cached_hr_uc": [4]}),
        )  # fmt: skip
        webui.sd_models.get_empty_cond = self._empty
        webui.sd_models.apply_alpha_schedule_override = self._schedule
        webui.sd_models.load_model_weights = self._load
        self.model = self.load(Model(0))
        self.host = WebuiHost()
        self.trials: WebuiTrials = self.host.trials

    def load(self, model: Model, name: str = "base.safetensors") -> Model:
        model.sd_checkpoint_info = checkpoint(self.webui.root / name)
        self.webui.model_data.sd_model = model
        self.webui.model_data.loaded_sd_models.insert(0, model)
        return model

    def try_on(self, tensors: Mapping[str, Tensor], **more: Any) -> TrialStatus:
        self.trials.try_on(candidate(tensors, **more))
        self.trials.wait()
        return self.trials.current()

    def undo(self) -> TrialStatus:
        self.trials.undo()
        self.trials.wait()
        return self.trials.current()

    def _empty(self, model: Model) -> str:
        self.held.append(self.webui.lock._lock.locked())
        return f"words by {model.cond_stage_model.wrapped['transformer']['layer'].weight.sum():.4f}"

    def _schedule(self, model: Model) -> None:
        model.alphas_cumprod = model.alphas_cumprod_original

    def _load(self, model: Model, info: Any, state: Mapping[str, Tensor], timer: Any = None) -> None:
        model.load_state_dict(state, strict=False)
        model.sd_checkpoint_info = info


@pytest.fixture
def host(webui: Webui) -> Host:
    return Host(webui)


def test_the_model_holds_the_candidate_and_then_itself_again(host: Host) -> None:
    before, tensors = values(host.model), tensors_of(1)
    pointers = [parameter.data_ptr() for parameter in host.model.parameters()]
    status = host.try_on(tensors)
    assert (status.state, status.title, status.model) == ("on", TITLE, "base.safetensors [0123456789]")
    assert torch.equal(host.model.unet.weight, tensors[UNET])
    text = host.model.cond_stage_model.wrapped["transformer"]["layer"].weight
    assert torch.equal(text, tensors[TEXT].half())
    assert torch.equal(host.model.alphas_cumprod, tensors["alphas_cumprod"])
    assert host.model.cond_stage_model_empty_prompt != "words by the model's own encoder" and host.held == [True]
    assert host.undo() == TrialStatus()
    assert same(host.model, before) and pointers == [parameter.data_ptr() for parameter in host.model.parameters()]
    assert host.model.alphas_cumprod_original is host.model.alphas_cumprod
    assert host.model.cond_stage_model_empty_prompt == "words by the model's own encoder"
    assert host.processing.StableDiffusionProcessing.cached_c == [None]


def test_only_what_differs_is_kept(host: Host) -> None:
    tensors = tensors_of(1) | {VAE: host.model.first_stage_model["decoder"].weight.detach().clone()}
    trial = TrialValues(host.model, lambda: None)
    assert [name for name, tensor in tensors.items() if trial.put(name, tensor)] == ["alphas_cumprod", UNET, TEXT]
    assert trial.changed == ["alphas_cumprod", UNET, TEXT]


def test_a_second_trial_replaces_the_first_and_the_model_stays_the_original(host: Host) -> None:
    before = values(host.model)
    host.try_on(tensors_of(1))
    second, states = tensors_of(2), set()
    host.try_on(second, on_tensor=lambda name: states.add(host.trials.current().state), title="another")
    assert states == {"applying"}
    assert torch.equal(host.model.unet.weight, second[UNET]) and host.trials.current().title == "another"
    host.undo()
    assert same(host.model, before)


@pytest.mark.parametrize("first", [False, True])
def test_what_fails_in_the_middle_leaves_the_model_as_it_was(host: Host, first: bool) -> None:
    before = values(host.model)
    if first:
        host.try_on(tensors_of(1))

    def fail(name: str) -> None:
        if name == VAE:
            raise MergeError("The tensor holds NaN.", "Use another copy.")

    status = host.try_on(tensors_of(2), on_tensor=fail)
    assert status == TrialStatus(text="The tensor holds NaN. Use another copy.")
    assert same(host.model, before)
    assert host.webui.lock.acquire(blocking=False)


def test_undo_stops_one_that_is_being_put_in(host: Host) -> None:
    before, reached, go_on = values(host.model), threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name == VAE:
            reached.set()
            assert go_on.wait(5)

    host.trials.try_on(candidate(tensors_of(1), hold))
    assert reached.wait(5)
    assert host.trials.current() == TrialStatus("applying", TITLE, "base.safetensors [0123456789]", 4, 5)
    with pytest.raises(JobStateError):
        host.trials.try_on(candidate(tensors_of(2)))
    host.trials.undo()
    go_on.set()
    host.trials.wait()
    assert host.trials.current() == TrialStatus(text="Stopped; the model is as it was.")
    assert same(host.model, before)


def test_undo_that_comes_after_the_last_tensor_is_not_lost(host: Host) -> None:
    before, empty = values(host.model), host.webui.sd_models.get_empty_cond

    def late(model: Model) -> str:
        host.trials.undo()
        return empty(model)

    host.webui.sd_models.get_empty_cond = late
    assert host.try_on(tensors_of(1)) == TrialStatus(text="Stopped; the model is as it was.")
    assert same(host.model, before)


def test_the_next_can_be_asked_for_as_soon_as_one_is_said_to_be_on(host: Host) -> None:
    for number in range(20):
        host.trials.try_on(candidate(tensors_of(number)))
        while host.trials.current().state != "on":
            pass


def test_one_that_does_not_fit_when_its_turn_comes_leaves_the_first_on(host: Host) -> None:
    host.try_on(tensors_of(1))
    host.webui.lock.acquire()
    host.trials.try_on(candidate(tensors_of(2), title="another"))
    host.model.parameterization = "v"
    host.webui.lock.release()
    host.trials.wait()
    status = host.trials.current()
    assert (status.state, status.title) == ("on", TITLE) and "predicts" in status.text


def test_it_waits_for_the_hosts_lock(host: Host) -> None:
    host.webui.lock.acquire()
    host.trials.try_on(candidate(tensors_of(1)))
    assert host.trials.current().state == "applying"
    host.webui.lock.release()
    host.trials.wait()
    assert host.trials.current().state == "on"


def with_lora(host: Host) -> Tensor:
    """A LoRA of the last picture in the layer's weights; gives the layer's own."""
    layer, own = host.model.unet, host.model.unet.weight.detach().clone()

    def restore(module: Any) -> None:
        module.weight.copy_(module.network_weights_backup)

    host.webui.module("networks", network_restore_weights_from_backup=restore)
    layer.network_weights_backup, layer.network_bias_backup = own.clone(), None
    layer.network_current_names = (("cat", 1.0, 1.0, None),)
    with torch.no_grad():
        layer.weight += 1
    return own


def test_loras_in_the_layers_are_taken_out_first_and_their_backups_dropped(host: Host) -> None:
    own = with_lora(host)
    tensors = tensors_of(1)
    host.try_on(tensors)
    layer = host.model.unet
    assert torch.equal(layer.weight, tensors[UNET])
    assert (layer.network_weights_backup, layer.network_current_names) == (None, ())
    with_lora(host)
    host.undo()
    assert torch.equal(layer.weight, own)
    assert (layer.network_weights_backup, layer.network_current_names) == (None, ())


def test_weights_in_8_bits_go_by_way_of_half_precision_and_come_back(host: Host) -> None:
    model = host.load(Model(0, torch.float8_e4m3fn))
    model.unet.fp16_weight = half = torch.full((3, 3), 0.25).half()
    before, tensors = values(model), tensors_of(1)
    host.try_on(tensors)
    expected = tensors[UNET].half().to(torch.float8_e4m3fn)
    assert torch.equal(model.unet.weight.float(), expected.float())
    assert torch.equal(model.unet.fp16_weight, tensors[UNET].half())
    host.undo()
    assert same(model, before) and model.unet.fp16_weight is half


def test_a_vae_chosen_in_the_host_stays_and_its_place_below_is_tried(host: Host) -> None:
    """The host keeps the checkpoint's own VAE aside meanwhile, and puts it back when none is chosen any more."""
    decoder, tensors = host.model.first_stage_model["decoder"], tensors_of(1)
    own = decoder.weight.detach().clone()
    host.model.base_vae, host.model.loaded_vae_file = {"decoder.weight": own.clone()}, "chosen.safetensors"
    with torch.no_grad():
        decoder.weight.fill_(7)
    host.try_on(tensors)
    assert torch.equal(decoder.weight, torch.full((2, 2), 7.0))
    with torch.no_grad():
        decoder.weight.copy_(host.model.base_vae["decoder.weight"])
    host.model.base_vae = host.model.loaded_vae_file = None
    assert torch.equal(decoder.weight, tensors[VAE])
    host.undo()
    assert torch.equal(decoder.weight, own)


def test_a_vae_chosen_during_the_trial_stays_when_it_is_undone(host: Host) -> None:
    decoder = host.model.first_stage_model["decoder"]
    own = decoder.weight.detach().clone()
    host.try_on(tensors_of(1))
    host.model.base_vae = {"decoder.weight": decoder.weight.detach().clone()}
    host.model.loaded_vae_file = "chosen.safetensors"
    with torch.no_grad():
        decoder.weight.fill_(7)
    host.undo()
    assert torch.equal(decoder.weight, torch.full((2, 2), 7.0))
    assert torch.equal(host.model.base_vae["decoder.weight"], own)


def test_modules_that_moved_meanwhile_get_their_values_back(host: Host) -> None:
    """Another device is another tensor in a buffer's place, and other numbers behind a parameter."""
    before = values(host.model)
    host.try_on(tensors_of(1))
    host.model.to(torch.float64).to(torch.float32)
    host.model.alphas_cumprod = host.model.alphas_cumprod.clone()
    host.model.cond_stage_model.half()
    host.undo()
    assert same(host.model, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "sdxl"}, "is sdxl, but base.safetensors [0123456789], which is loaded, is sd1"),
        ({"prediction_type": "v_prediction"}, "predicts 'v', but base.safetensors [0123456789], which is loaded"),
        ({"shapes": {UNET: (3, 4)}}, "1 tensors are not the same"),
        ({"shapes": {}}, "1 tensors are not the same"),
        ({"shapes": {UNET: (3, 3), "model.diffusion_model.more.weight": (1,)}}, "more.weight"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(host: Host, changes: Any, message: str) -> None:
    own = with_lora(host)
    with pytest.raises(MergeError, match=re.escape(TITLE)) as caught:
        host.trials.try_on(candidate(tensors_of(1), **changes))
    assert message in caught.value.message
    assert torch.equal(host.model.unet.weight, own + 1)
    assert host.trials.current() == TrialStatus()


def test_without_a_model_or_with_another_unet_it_is_refused(host: Host) -> None:
    host.webui.sd_unet.current_unet = "TensorRT"
    with pytest.raises(HostError, match="another UNet"):
        host.trials.try_on(candidate(tensors_of(1)))
    host.webui.sd_unet.current_unet = None
    host.webui.model_data.sd_model = None
    with pytest.raises(HostError, match="no checkpoint loaded"):
        host.trials.try_on(candidate(tensors_of(1)))


def test_a_checkpoint_loaded_into_the_same_module_finds_the_model_as_it_was(host: Host) -> None:
    """What the new file lacks stays as the host's model had it, and an undo afterwards writes nothing over it."""
    text = host.model.cond_stage_model.wrapped["transformer"]["layer"]
    own_text = text.weight.detach().clone()
    host.try_on(tensors_of(1))
    new = {"model.diffusion_model.layer.weight": torch.full((3, 3), 5.0)}
    host.webui.sd_models.load_model_weights(host.model, checkpoint(host.webui.root / "other.safetensors"), new)
    assert host.trials.current() == TrialStatus(text="The trial ended: the WebUI loaded a checkpoint.")
    assert torch.equal(text.weight, own_text) and torch.equal(host.model.unet.weight, torch.full((3, 3), 5.0))
    host.undo()
    assert torch.equal(host.model.unet.weight, torch.full((3, 3), 5.0))


def test_the_tried_merge_itself_loaded_from_a_file_stays(host: Host) -> None:
    tensors = tensors_of(1)
    host.try_on(tensors)
    host.webui.sd_models.load_model_weights(host.model, host.model.sd_checkpoint_info, {"model." + "x": tensors[UNET]})
    host.model.unet.load_state_dict({"weight": tensors[UNET]})
    host.undo()
    assert torch.equal(host.model.unet.weight, tensors[UNET])


def test_a_model_that_stays_in_memory_beside_a_new_one_is_undone(host: Host) -> None:
    before = values(host.model)
    host.try_on(tensors_of(1))
    host.webui.sd_models.load_model_weights(Model(3), checkpoint(host.webui.root / "other.safetensors"), {})
    assert same(host.model, before)


def test_a_model_chosen_that_is_loaded_already_ends_it_with_the_next_picture(host: Host) -> None:
    before = values(host.model)
    host.try_on(tensors_of(1))
    host.load(Model(3), "other.safetensors")
    assert "ends with the next picture" in host.trials.current().text
    picture = SimpleNamespace(extra_generation_params={})
    before_generation(host.host, picture)
    mark_trial(host.host, picture)
    assert picture.extra_generation_params == {}
    assert host.trials.current() == TrialStatus(text="The trial ended: another checkpoint was chosen.")
    assert same(host.model, before)


def test_a_model_the_host_threw_away_is_forgotten(host: Host) -> None:
    host.try_on(tensors_of(1))
    host.model.to("meta")
    host.webui.sd_models.load_model_weights(Model(3), checkpoint(host.webui.root / "other.safetensors"), {})
    assert host.trials.current().state == "none"


def test_pictures_say_that_a_trial_was_on(host: Host) -> None:
    picture = SimpleNamespace(extra_generation_params={})
    mark_trial(host.host, picture)
    assert picture.extra_generation_params == {}
    host.try_on(tensors_of(1))
    mark_trial(host.host, picture)
    assert picture.extra_generation_params == {INFOTEXT: TITLE}


@pytest.mark.parametrize("name", ["reForge", "Forge"])
def test_the_forks_answer_why_not(webui: Webui, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("extensions_lib.host.a1111.host_name", lambda: name)
    trials = WebuiHost().trials
    assert isinstance(trials, NoTrials) and trials.refusal.startswith(name)
    assert trials.current() == TrialStatus(text=trials.refusal)
    with pytest.raises(HostError, match=name):
        trials.try_on(candidate(tensors_of(1)))
