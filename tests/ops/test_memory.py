"""Memory of results that are gone: used again, bounded, given back."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metadnas_ext import release_memory
from metadnas_ext._native import _C, REFERENCE
from metadnas_ext.ops import mixed_op

from ._cases import assert_same, make_case, run

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(REFERENCE, reason="only native code keeps memory"),
]

PAGE = 2 << 20  # blocks are whole huge pages
SMALLEST = 1 << 20  # smaller results are in torch's own memory


def idle() -> int:
    return int(_C.pool_idle_bytes())


@pytest.fixture(autouse=True)
def nothing_idle() -> Iterator[None]:
    gc.collect()
    release_memory()
    assert idle() == 0
    yield
    release_memory()


def result(megabytes: float) -> Tensor:
    """One large result: a skip connection keeps nothing beside it."""
    images = round(megabytes * SMALLEST) // (8 * 8 * 16 * 4)
    case = make_case((1, images, 8, 8, 16), ["skip_connect"], dtype=torch.float32)
    out, _ = mixed_op(case.x, case.weights, case.params, case.candidates)
    assert out.nbytes == images * 8 * 8 * 16 * 4
    return out


def block(megabytes: float) -> int:
    """Bytes of the pool that a result of this size takes."""
    return -(-round(megabytes * SMALLEST) // PAGE) * PAGE


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_idle_once_freed_and_used_by_the_next():
    results = [result(5) for _ in range(5)]  # the pool may hold a sixth
    assert idle() == 0
    del results
    assert idle() == 5 * block(5)
    one = result(5.5)  # fits into one of the same blocks
    assert idle() == 4 * block(5)
    del one
    assert idle() == 5 * block(5)


def test_autograd_frees_what_it_kept():
    case = make_case((1, 64, 8, 8, 16), dtype=torch.float32)
    first = run(case)
    assert idle() >= 6 * case.x.nbytes
    before = idle()
    assert_same(run(case), first, tolerance=0)
    assert idle() == before


def test_release_gives_back_what_is_idle():
    sizes = (3, 5, 9)
    results = [result(size) for size in sizes]
    del results
    total = sum(map(block, sizes))
    assert idle() == total
    assert release_memory() == total
    assert idle() == 0
    assert release_memory() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("megabytes", [4, 32])
def test_the_system_has_it_back(megabytes):
    """Also sizes that malloc would keep for later."""
    results = [result(megabytes) for _ in range(64 // megabytes)]
    before = resident()
    del results
    released = release_memory()
    assert released == 64 << 20
    assert before - resident() > 0.8 * released


def test_small_results_are_not_pooled():
    one = result(0.99)
    assert one.nbytes < SMALLEST
    del one
    assert idle() == 0
    one = result(1)
    assert one.nbytes == SMALLEST
    del one
    assert idle() == PAGE


def test_tensors_in_use_outlive_a_release():
    case = make_case((1, 64, 8, 8, 16), dtype=torch.float32)
    expected = run(case)
    one = result(5)
    copy = one.clone()
    leaves = [t.detach().requires_grad_() for t in (case.x, case.weights, case.params)]
    out, _ = mixed_op(*leaves)
    release_memory()
    other = result(5).fill_(torch.nan)  # would be written over what was freed
    assert torch.equal(one, copy)
    grads = torch.autograd.grad(out, leaves, case.grad_out)
    for grad, name in zip(grads, ("grad_x", "grad_weights", "grad_params"), strict=True):
        assert torch.equal(grad, getattr(expected, name))
    del one, other, out
    assert idle() >= 2 * block(5)


@pytest.mark.parametrize("sizes", [(2, 4, 7, 13, 25), (25, 13, 7, 4, 2), (20, 9, 20, 3, 15, 6)])
def test_a_quarter_more_than_was_in_use_at_most(sizes):
    most = 0
    for _ in range(3):
        for size in sizes:
            most = max(most, block(size))
            result(size)
            assert idle() <= 1.25 * most
    assert idle() >= block(sizes[-1])


def test_release_forgets_how_much_was_in_use():
    result(40)
    release_memory()
    for size in (4, 6, 9):
        result(size)
    assert idle() <= 1.25 * block(9)


def test_threads_that_compute_and_release():
    case = make_case((1, 64, 8, 8, 16), dtype=torch.float32)
    expected = run(case)
    computing = threading.Event()
    computing.set()
    failures: list[BaseException] = []
    released = [0, 0]

    def compute() -> None:
        try:
            for _ in range(15):
                assert_same(run(case), expected, tolerance=0)
        except BaseException as error:
            failures.append(error)

    def release(index: int) -> None:
        while computing.is_set():
            released[index] += release_memory()

    workers = [threading.Thread(target=compute) for _ in range(3)]
    releasers = [threading.Thread(target=release, args=(i,)) for i in range(2)]
    for thread in workers + releasers:
        thread.start()
    for thread in workers:
        thread.join()
    computing.clear()
    for thread in releasers:
        thread.join()
    assert not failures
    assert sum(released) > 0
    gc.collect()
    release_memory()
    assert idle() == 0
    result(5)
    assert idle() == block(5)
