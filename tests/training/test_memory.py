"""Peak memory, and what is said when there is too little."""

import gc
import mmap
import sys
import weakref
from pathlib import Path

import pytest
import torch

from extensions_lib.errors import OutOfMemoryError, is_out_of_memory
from extensions_lib.training import memory
from extensions_lib.training.memory import (
    memory_hint,
    out_of_memory_explained,
    peak_memory_gib,
    peak_resident_gib,
    reset_peak_memory,
    total_memory_gib,
)

MIB_128 = 128 * 2**20
ON_LINUX = Path("/proc/self/clear_refs").exists()


def use_128_mib():
    """Fresh from the system and given back: what earlier tests freed may still be this process's, and would serve."""
    with mmap.mmap(-1, MIB_128) as memory:
        for page in range(0, MIB_128, mmap.PAGESIZE):
            memory[page] = 1


@pytest.mark.skipif(not ON_LINUX, reason="needs Linux")
def test_the_peak_is_measured_and_can_begin_anew():
    reset_peak_memory("cpu")
    start = peak_memory_gib("cpu")
    use_128_mib()
    peak = peak_memory_gib("cpu")
    assert 0.11 < peak - start < 0.25
    reset_peak_memory(torch.device("cpu"))
    assert peak_memory_gib("cpu") < peak - 0.1


def test_the_peak_is_read_in_gib(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmPeak:\t 9000000 kB\nVmHWM:\t 3145728 kB\nVmRSS:\t 1 kB\n")
    assert peak_resident_gib(tmp_path / "status") == 3.0


@pytest.mark.skipif(sys.platform == "win32", reason="has no resource module")
def test_without_proc_the_resource_module_is_asked(tmp_path, monkeypatch):
    import resource

    from_resource = peak_resident_gib(tmp_path / "none")
    assert 0.01 < from_resource < 1000
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert peak_resident_gib(tmp_path / "status") >= from_resource
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    bytes_used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_resident_gib(tmp_path / "none") == pytest.approx(bytes_used / 2**30, rel=0.1)


def test_where_nothing_tells_the_peak_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_resident_gib(tmp_path / "none") is None


def test_on_cuda_the_allocator_of_the_device_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(device))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**31)
    reset_peak_memory("cuda:1")
    assert peak_memory_gib("cuda:1") == 2.0
    assert asked == ["cuda:1"]


def test_a_real_failure_of_the_cpu_allocator_is_translated():
    with pytest.raises(OutOfMemoryError) as raised, out_of_memory_explained("encoding pictures", batch_size=4):
        torch.empty(2**60)
    assert raised.value.message.startswith("Out of memory while encoding pictures: ")
    assert "DefaultCPUAllocator" in raised.value.message and "\n" not in raised.value.message
    assert "now 4" in raised.value.hint
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_errors_of_every_allocator_are_known(error):
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemoryError, match="^Out of memory while training[.:]"), out_of_memory_explained():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), KeyError("x")])
def test_other_errors_pass_unchanged(error):
    with pytest.raises(type(error)) as raised, out_of_memory_explained():
        raise error
    assert raised.value is error


def test_tensors_of_the_failed_computation_are_released():
    kept = []

    def compute():
        activations = torch.zeros(8)
        kept.append(weakref.ref(activations))
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError) as raised, out_of_memory_explained():
        compute()
    gc.collect()
    assert raised.value is not None and kept[0]() is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((None, None, None), "Lower the batch size; switch gradient checkpointing on; lower the resolution."),
        ((1, True, 512), "Lower the resolution (now 512 px)."),
        ((1, False, None), "Switch gradient checkpointing on; lower the resolution."),
        (
            (2, True, 768),
            "Lower the batch size (now 2; more accumulation steps make up for it); lower the resolution (now 768 px).",
        ),
    ],
)
def test_the_hint_names_what_can_still_be_changed(settings, expected):
    assert memory_hint(*settings) == expected


@pytest.mark.skipif(not ON_LINUX, reason="needs Linux")
def test_all_the_memory_of_the_machine():
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:"))
    assert total_memory_gib("cpu") == pytest.approx(kibibytes / 2**20)


def test_the_memory_of_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.delattr("os.sysconf")
    assert total_memory_gib("cpu") is None
