import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Python processes that tests start import the installed package too, never half of the source tree
# in the current folder.
os.environ["PYTHONSAFEPATH"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=("cpu", "shim", "cuda"),
        default="cpu",
        help="where operators run: cpu; shim: CUDA's kernels on the host; cuda",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu: about the CPU's own kernels, left out elsewhere")
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
    if config.getoption("--device") == "cpu":
        return
    skip = pytest.mark.skip(reason="about the CPU's own kernels")
    for item in items:
        if item.get_closest_marker("cpu") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of tests are tiny: a second thread costs more than it brings, far more on a busy
    machine. Tests of threading set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
