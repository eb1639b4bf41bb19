import os
from collections.abc import Iterator

import pytest
import torch

# Python processes that tests start import the installed package too, never half of the source tree
# in the current folder.
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of tests are tiny: a second thread costs more than it brings, far more on a busy
    machine. Tests of threading set their own number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
