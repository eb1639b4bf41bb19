"""Which device a run gets, and what it is told when there is none."""

from __future__ import annotations

import pytest
import torch

from metadnas_ext import placement
from metadnas_ext.config import Config
from metadnas_ext.errors import ConfigError
from metadnas_ext.placement import device_of, fits, index_on, settled_name, to_device

from ._pretend_gpu import GPU, PretendGPU


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the second is the current one, and the operators are loaded."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(placement, "build_info", lambda: {"native": True, "cuda": True})


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu(without_gpu: None) -> None:
    assert device_of("cpu") == device_of("auto") == torch.device("cpu")
    assert settled_name("auto") == "cpu"
    with pytest.raises(ConfigError, match=r"run.device is 'cuda', but torch .* finds no GPU"):
        device_of("cuda")


def test_with_gpus(two_gpus: None) -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("cuda") == torch.device("cuda", 1)
    assert device_of("cuda:0") == device_of("auto") == torch.device("cuda", 0)
    assert settled_name("auto") == "cuda:0"
    assert settled_name("cuda") == "cuda"
    with pytest.raises(ConfigError, match=r"run.device is 'cuda:2', expected cuda:0 to cuda:1"):
        device_of("cuda:2")


def test_a_gpu_without_operators_is_none(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        placement, "build_info", lambda: {"native": True, "cuda": False, "no_cuda": "why not"}
    )
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"CUDA operators are not loaded \(why not\)"):
        device_of("cuda")


def test_the_twins_run_on_a_gpu_if_asked_to(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "build_info", lambda: {"native": False, "cuda": False})
    assert device_of("cuda:1") == torch.device("cuda", 1)
    assert device_of("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "mps", ""])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(ConfigError, match=r"run.device is .*expected cpu, cuda, cuda:<n> or auto"):
        Config().updated({"run.device": name})


def test_copies_to_a_device_wait_for_nothing() -> None:
    with PretendGPU() as gpu:
        there = to_device(torch.arange(3), GPU)
        assert there.device == index_on(GPU, [2, 0]).device == GPU
        assert to_device(there, GPU) is there
        assert not gpu.waits


def test_images_fit_into_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    assert fits(50, GPU)
    assert not fits(51, GPU)
    assert fits(10**15, torch.device("cpu"))
