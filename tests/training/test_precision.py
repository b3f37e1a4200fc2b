"""Which number format a device gets."""

from types import SimpleNamespace

import pytest
import torch

from extensions_lib.errors import ConfigError
from extensions_lib.training.precision import (
    BF16,
    FP16,
    FP32,
    PRECISIONS,
    choose_precision,
    cpu_has_bf16,
    has_fast_bf16,
    make_grad_scaler,
    precision_for,
)

INTEL = "processor\t: 0\nmodel name\t: Intel\nflags\t\t: fpu vme de pse avx512f {extra} sse\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {extra} sve\n"


@pytest.mark.parametrize(
    ("request_", "device_type", "has_bf16", "expected"),
    [
        ("auto", "cpu", True, BF16),
        ("auto", "cpu", False, FP32),
        ("auto", "cuda", True, BF16),
        ("auto", "cuda", False, FP16),
        ("auto", "mps", False, FP32),
        ("fp32", "cpu", True, FP32),
        ("fp32", "cuda", True, FP32),
        ("bf16", "cpu", True, BF16),
        ("bf16", "cuda", True, BF16),
        ("fp16", "cuda", True, FP16),
        ("fp16", "cuda", False, FP16),
    ],
)
def test_the_format_for_a_device(request_, device_type, has_bf16, expected):
    assert precision_for(request_, device_type, has_bf16=has_bf16) == expected


@pytest.mark.parametrize(
    ("request_", "device_type", "text", "hint"),
    [
        ("bf16", "cpu", "bf16 is not supported by this device (cpu)", "Choose auto or fp32."),
        ("bf16", "cuda", "bf16 is not supported by this device (cuda)", "Choose auto, fp16 or fp32."),
        ("fp16", "cpu", "fp16 needs a CUDA device, this one is cpu", "Choose auto"),
        ("half", "cpu", "unknown precision 'half', expected one of auto, fp32, bf16, fp16", ""),
    ],
)
def test_a_format_the_device_lacks_is_refused(request_, device_type, text, hint):
    with pytest.raises(ConfigError) as raised:
        precision_for(request_, device_type, has_bf16=False)
    assert raised.value.problems[0].path == "training.mixed_precision"
    assert raised.value.problems[0].text == text
    assert hint in raised.value.hint


def test_this_machine():
    expected = BF16 if cpu_has_bf16() else FP32
    assert choose_precision("auto", "cpu") == expected
    assert choose_precision("fp32", torch.device("cpu")) == FP32


def test_only_fp16_needs_scaling():
    assert [precision.needs_scaler for precision in (FP32, BF16, FP16)] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (INTEL.format(extra=""), False),
        (INTEL.format(extra="avx512_bf16"), True),
        (INTEL.format(extra="amx_bf16"), True),
        (INTEL.format(extra="avx512_bf16_like"), False),
        (ARM.format(extra=""), False),
        (ARM.format(extra="bf16"), True),
        ("model name\t: A cpu with bf16\nflags\t: fpu\n", False),
        ("", False),
    ],
)
def test_instructions_are_read_from_cpuinfo(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bf16(tmp_path / "cpuinfo") is expected


def test_without_cpuinfo_torch_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "cpu", SimpleNamespace(_is_avx512_bf16_supported=lambda: True))
    assert cpu_has_bf16(tmp_path / "none")
    monkeypatch.setattr(torch, "cpu", SimpleNamespace())
    assert not cpu_has_bf16(tmp_path / "none")


def test_emulated_bf16_of_old_cuda_devices_does_not_count(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for capability, expected in (((7, 5), False), ((8, 6), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, value=capability: value)
        assert has_fast_bf16("cuda:0") is expected
    monkeypatch.setattr(torch.version, "hip", "6.0", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert has_fast_bf16("cuda:0") is True


def test_other_devices_have_no_fast_bf16():
    assert has_fast_bf16("mps") is False


def test_a_scaler_for_fp16_alone(monkeypatch):
    assert make_grad_scaler(FP32, "cpu") is None
    assert make_grad_scaler(BF16, "cuda") is None
    made = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: made.append(device) or "scaler", raising=False)
    assert make_grad_scaler(FP16, "cuda:1") == "scaler"
    assert made == ["cuda"]


def test_the_list_of_names_is_that_of_the_settings():
    from extensions_lib.config.field import settings_of
    from extensions_lib.config.training import TrainingConfig

    choices = {setting.name: setting.option.choices for setting in settings_of(TrainingConfig)}["mixed_precision"]
    assert tuple(choices) == PRECISIONS
