"""Loading the native library, doing without it, and saying so when it is missing."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

import metadnas_ext
from metadnas_ext import _native, build_info
from metadnas_ext.ops import mixed_op, packed_shapes, weighted_mean
from metadnas_ext.space.primitives import PRIMITIVES

REFERENCE_RUN = """
import sys, torch
from metadnas_ext import build_info, release_memory
from metadnas_ext.ops import mixed_op, weighted_mean

x, weights, params, shares = torch.load(sys.argv[1])
x.requires_grad_()
out, stats = mixed_op(x, weights, params, stride=2)
out.square().sum().backward()
assert not stats.requires_grad
assert "metadnas_ext._C" not in sys.modules
assert build_info()["native"] is False
assert release_memory() == 0
torch.save((out.detach(), stats, x.grad, weighted_mean(x.detach(), shares)), sys.argv[1])
"""


def run_python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_build_info():
    info = build_info()
    assert info["native"] is True
    assert info["cuda"] is ("no_cuda" not in info)
    if torch.version.cuda is None:
        assert info["no_cuda"] == f"torch {torch.__version__} is built without CUDA"
    assert info["compiler"]
    assert info["torch"] == torch.__version__


def test_cpu_isa_obeys_the_environment():
    isa = build_info()["cpu_isa"]
    assert isa in ("avx512", "avx2", "baseline")
    assert isa == os.environ.get("METADNAS_EXT_ISA", isa)


def test_unknown_isa_names_the_known():
    code = "import metadnas_ext; metadnas_ext.build_info()"
    result = run_python(code, METADNAS_EXT_ISA="mmx")
    assert result.returncode != 0
    assert "METADNAS_EXT_ISA is 'mmx'; this processor has " in result.stderr
    assert "baseline" in result.stderr


def test_reference_path_needs_no_library_and_gives_the_same(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 5, 4, dtype=torch.float64)
    weights = torch.randn(2, 8, dtype=torch.float64)
    shapes = packed_shapes(PRIMITIVES, channels=4, stride=2).values()
    params = torch.randn(2, sum(map(math.prod, shapes)), dtype=torch.float64)
    shares = torch.tensor([3.0, 1.0], dtype=torch.float64)
    file = tmp_path / "tensors.pt"
    torch.save((x, weights, params, shares), file)
    result = run_python(REFERENCE_RUN, str(file), METADNAS_EXT_REFERENCE="1")
    assert result.returncode == 0, result.stderr
    x.requires_grad_()
    out, stats = mixed_op(x, weights, params, stride=2)
    out.square().sum().backward()
    native = (out.detach(), stats, x.grad, weighted_mean(x.detach(), shares))
    torch.testing.assert_close(torch.load(file), native)


def test_missing_library_says_what_to_do(monkeypatch):
    monkeypatch.delattr(metadnas_ext, "_C")
    monkeypatch.setitem(sys.modules, "metadnas_ext._C", None)
    with pytest.raises(ImportError, match="cannot be loaded") as error:
        fresh_native()
    assert "pip install ." in str(error.value)
    assert "METADNAS_EXT_REFERENCE=1" in str(error.value)


def fresh_native():
    spec = importlib.util.spec_from_file_location("fresh_native", _native.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_broken_cuda_library_is_said_aloud_once(monkeypatch, tmp_path):
    """The package works on without it: clients on the CPU are none the worse."""
    native = fresh_native()
    (tmp_path / "_C_cuda.so").write_text("not a library")
    monkeypatch.setattr(native, "__file__", str(tmp_path / "_native.py"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.warns(UserWarning, match="no CUDA kernels: _C_cuda.so cannot be loaded: ") as seen:
        reason = native._load_cuda()
    assert len(seen) == 1
    assert "_C_cuda.so" in reason


def test_a_cuda_torch_without_cuda_kernels(monkeypatch, tmp_path):
    native = fresh_native()
    monkeypatch.setattr(native, "__file__", str(tmp_path / "_native.py"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert native._load_cuda() == "this installation was built without CUDA kernels"
