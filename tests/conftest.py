import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# Python processes that tests start import the installed package too, never half of the source tree
# in the current folder.
os.environ["PYTHONSAFEPATH"] = "1"

REASONS = {"slow": "takes long; run with --slow"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "shim", "cuda"),
        default="cpu",
        help="where operators run: cpu; shim: CUDA's kernels on the host; cuda",
    )
    parser.addoption("--slow", action="store_true", help="also the tests that take long")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu: about the CPU's own kernels, left out elsewhere")
    config.addinivalue_line("markers", "host: values are looked at, which is done on the CPU only")
    config.addinivalue_line("markers", "long: takes seconds even on kernels, left out on the shim")
    config.addinivalue_line("markers", "slow: takes many seconds or minutes, run with --slow only")
    device = config.getoption("--device")
    if device == "shim":
        load_shim()
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device=cuda: torch sees no CUDA device")


def load_shim() -> None:
    """CUDA's kernels, compiled for the host, take the place of the CPU's."""
    import metadnas_ext  # noqa: F401

    sys.path.insert(0, str(Path(__file__).parent / "cuda_shim"))
    import build

    torch.ops.load_library(str(build.build("library")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {"cpu": [], "shim": ["cpu", "long"], "cuda": ["cpu", "host"]}[
        config.getoption("--device")
    ]
    if not config.getoption("--slow"):
        left_out = [*left_out, "slow"]
    for name in left_out:
        for item in items:
            if item.get_closest_marker(name) is not None:
                item.add_marker(pytest.mark.skip(reason=REASONS.get(name, f"a test of the {name}")))


MAKERS = ("arange", "empty", "eye", "from_numpy", "full", "linspace", "ones", "rand", "randint")
MAKERS += ("randn", "randperm", "tensor", "zeros")


def moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(*args: Any, **options: Any) -> Tensor:
        tensor = make(*args, **options)
        # The package chooses its devices itself.
        own = sys._getframe(1).f_globals.get("__name__", "").startswith("metadnas_ext")
        if own or options.get("device") is not None:
            return tensor
        return tensor.detach().to("cuda").requires_grad_(tensor.requires_grad)

    return made


@pytest.fixture(autouse=True)
def on_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests make is made on the CPU, so that seeds mean the same, and moved; numpy gets copies
    on the CPU. PyTorch's own convolutions, which tests compare with, keep all digits."""
    if request.config.getoption("--device") != "cuda":
        return
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for name in MAKERS:
        monkeypatch.setattr(torch, name, moved(getattr(torch, name)))
    for name in ("numpy", "__array__"):
        read = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda t, *a, read=read, **o: read(t.cpu(), *a, **o))


@pytest.fixture(autouse=True)
def python_handles_ctrl_c() -> Iterator[None]:
    """A command that was interrupted leaves it to the system, for all that follows."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of tests are tiny: a second thread costs more than it brings, far more on a busy
    machine. Tests of threading set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
