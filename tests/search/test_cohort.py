"""Batches of a cohort: what a client sees, and that nobody else changes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from metadnas_ext.data import ClientSplit, ImageStore, MemoryStore, epoch_batches, prepare
from metadnas_ext.search.cohort import Batch, TrainBatches, ordered, passes, steps_per_epoch
from metadnas_ext.seeding import generator

from .._pretend_gpu import GPU, PretendGPU
from ..federated._tiny import tiny_federation

SIZE = 5
TRAIN = [11, 3, 5, 20]
"""Training images of each client: 3, 1, 1 and 4 batches."""


def numbered_store() -> ImageStore:
    """64 images of 8x8; every pixel of image i is i, so a batch tells which images it holds."""
    pixels = torch.arange(64, dtype=torch.uint8).view(64, 1, 1, 1).expand(64, 8, 8, 1)
    return MemoryStore(
        name="numbered",
        labels=torch.arange(64) % 3,
        classes=("a", "b", "c"),
        image_size=8,
        mean=(0.5,),
        std=(0.25,),
        augmentation="none",
        pixels=pixels.contiguous(),
    )


def splits() -> list[ClientSplit]:
    """Disjoint parts; validation of 2 and test of 1 image each."""
    result, at = [], 0
    for client, count in enumerate(TRAIN):
        parts = torch.arange(at, at + count + 3).split([count, 2, 1])
        result.append(ClientSplit(client, *parts))
        at += count + 3
    return result


def train_batches(clients: list[ClientSplit], epochs: int = 1, seed: int = 0) -> TrainBatches:
    return TrainBatches(numbered_store(), clients, SIZE, epochs, True, seed, "key")


def images_of(batch: Batch, row: int) -> list[int]:
    """The numbers of the images in a client's row, checking labels and padding on the way."""
    size = int(batch.sizes[row])
    numbers = ((batch.x[row, :size] * 0.25 + 0.5) * 255).round().to(torch.int64)
    first = numbers[:, 0, 0, 0]
    assert (numbers == first[:, None, None, None]).all()
    assert torch.equal(batch.labels[row, :size], first % 3)
    assert not batch.x[row, size:].any()
    assert not batch.labels[row, size:].any()
    return first.tolist()


def seen_by(batches: TrainBatches, row: int) -> list[Tensor]:
    """All training batches of the client in `row`, in order."""
    rows = []
    for step in range(len(batches)):
        batch = batches.train(batches.active(step))
        if row < batches.active(step):
            rows.append(batch.x[row, : batch.sizes[row]])
    return rows


def test_ordered_by_steps_then_client() -> None:
    assert [steps_per_epoch(split, SIZE) for split in splits()] == [3, 1, 1, 4]
    assert [split.client for split in ordered(splits(), SIZE)] == [3, 0, 1, 2]
    assert [split.client for split in ordered(splits()[::-1], SIZE)] == [3, 0, 1, 2]


def test_unordered_clients_are_refused() -> None:
    with pytest.raises(ValueError, match="ordered by steps"):
        train_batches(splits())


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_train_image_once_an_epoch(epochs: int) -> None:
    clients = ordered(splits(), SIZE)
    batches = train_batches(clients, epochs)
    assert batches.steps == [4 * epochs, 3 * epochs, epochs, epochs]
    assert len(batches) == 4 * epochs
    drawn: list[list[int]] = [[] for _ in clients]
    for step in range(len(batches)):
        active = batches.active(step)
        assert active == sum(total > step for total in batches.steps)
        batch = batches.train(active)
        assert len(batch.x) == active
        for row in range(active):
            drawn[row] += images_of(batch, row)
    for split, numbers in zip(clients, drawn, strict=True):
        per_epoch = torch.tensor(numbers).view(epochs, -1)
        assert torch.equal(per_epoch.sort(1).values, split.train.expand(epochs, -1))
    if epochs > 1:
        first, second = torch.tensor(drawn[0]).view(epochs, -1)[:2]
        assert not torch.equal(first, second)


def test_batches_are_the_clients_own_shuffle() -> None:
    """Client 3's batches, drawn again by hand from a generator keyed by the client."""
    batches = train_batches(ordered(splits(), SIZE))
    own = generator(0, "key", "train", 3)
    for chosen in epoch_batches(splits()[3].train, SIZE, own):
        assert images_of(batches.train(1), 0) == chosen.tolist()


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_clients_batches_do_not_depend_on_its_cohort(part: str) -> None:
    """In four cohorts: alone, with others before or behind it, and with all. With augmentation."""

    def drawn(cohort: list[int], client: int) -> list[Batch]:
        clients = ordered([splits()[c] for c in cohort], SIZE)
        batches = TrainBatches(digits(), clients, SIZE, 2, True, 7, "round", 1)
        row = [split.client for split in clients].index(client)
        rows = []
        for step in range(batches.steps[row]):
            batch = getattr(batches, part)(batches.active(step))
            size = int(batch.sizes[row])
            rows.append(
                Batch(batch.x[row, :size], batch.labels[row, :size], batch.sizes[row], (size,))
            )
        return rows

    for cohort in ([0, 1], [3, 0], [0, 1, 2, 3]):
        for a, b in zip(drawn([0], 0), drawn(cohort, 0), strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.labels, b.labels)


def digits() -> MemoryStore:
    store = tiny_federation().store
    assert isinstance(store, MemoryStore)
    return store


def test_seed_and_key_decide_the_order() -> None:
    def order(seed: int, *key: str | int) -> list[int]:
        batches = TrainBatches(numbered_store(), splits()[3:], SIZE, 1, False, seed, *key)
        return [number for _ in range(4) for number in images_of(batches.train(1), 0)]

    assert order(0, "a") == order(0, "a")
    assert order(0, "a") != order(1, "a")
    assert order(0, "a") != order(0, "b")


def test_width_and_counts() -> None:
    """Padded to the batch size whoever is in the cohort; counts only where they are needed."""
    batches = train_batches(ordered(splits(), SIZE))
    batch = batches.train(4)
    assert batch.x.shape == (4, SIZE, 8, 8, 1)
    assert batch.sizes.tolist() == [5, 4, 3, 5]  # 20 = 4 * 5, 11 = 4 + 4 + 3, 3, 5
    assert batch.counts is not None
    assert batches.train(1).counts is None
    assert batches.val(4).sizes.tolist() == [2, 2, 2, 2]
    assert batches.val(4).x.shape[1] == SIZE


def test_val_batches_cycle_over_all_val_images() -> None:
    batches = train_batches(ordered(splits(), SIZE))
    for _ in range(3):
        assert sorted(images_of(batches.val(1), 0)) == splits()[3].val.tolist()


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize("size", [1, 4, 5, 64])
def test_passes_cover_a_part_once_in_order(part: str, size: int) -> None:
    clients = splits()
    drawn: list[list[int]] = [[] for _ in clients]
    for batch in passes(numbered_store(), clients, part, size):
        assert batch.x.shape[1] == size
        for row in range(len(clients)):
            drawn[row] += images_of(batch, row)
    assert drawn == [getattr(split, part).tolist() for split in clients]


def test_passes_do_not_augment() -> None:
    store = digits()
    (batch,) = passes(store, splits()[1:2], "train", SIZE)
    chosen = splits()[1].train
    expected = prepare(store.gather(chosen), store, augment=False, generator=None)
    assert torch.equal(batch.x[0, : len(chosen)], expected)


def test_double_precision_on_request() -> None:
    clients = splits()[3:]
    batches = TrainBatches(digits(), clients, SIZE, 1, False, 0, dtype=torch.float64)
    single = TrainBatches(digits(), clients, SIZE, 1, False, 0)
    double, x = batches.train(1).x, single.train(1).x
    assert (double.dtype, x.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(double.float(), x, rtol=1e-6, atol=1e-6)
    assert not torch.equal(double, x.double())  # computed, not cast
    (batch,) = passes(digits(), clients, "val", SIZE, torch.float64)
    assert batch.x.dtype == torch.float64


def test_clients_with_short_epochs_are_past_their_first_ones_before_others() -> None:
    """4, 3, 1 and 1 steps an epoch: who is within the first two epochs is always a prefix."""
    batches = train_batches(ordered(splits(), SIZE), epochs=3)
    assert [batches.within(step, 2) for step in range(9)] == [4, 4, 2, 2, 2, 2, 1, 1, 0]
    assert [batches.within(step, 3) for step in range(13)] == [batches.active(s) for s in range(13)]
    assert batches.within(0, 0) == 0
    assert batches.progress(0).tolist() == [0, 0, 0, 0]
    assert batches.progress(3).tolist() == pytest.approx([3 / 12, 3 / 9])


def test_validation_batches_of_later_clients_alone() -> None:
    """As if the first ones were not there."""
    clients = ordered(splits(), SIZE)
    whole, part = train_batches(clients), train_batches(clients)
    for _ in range(3):
        everyone, some = whole.val(4), part.val(4, 2)
        assert torch.equal(everyone.rows(slice(2, 4)).x, some.x)
        assert torch.equal(everyone.labels[2:], some.labels)
        assert torch.equal(everyone.sizes[2:], some.sizes)


def test_generators_are_keyed_by_step_purpose_and_client() -> None:
    """Fresh ones at every call, in any cohort."""
    clients = ordered(splits(), SIZE)
    batches, alone = train_batches(clients), train_batches(clients[2:3])

    def drawn(rngs: list[torch.Generator]) -> list[int]:
        return [int(torch.randint(2**62, (), generator=rng)) for rng in rngs]

    first = drawn(batches.generators(5, "a", slice(0, 4)))
    assert drawn(batches.generators(5, "a", slice(0, 4))) == first
    assert drawn(alone.generators(5, "a", slice(0, 1))) == first[2:3]
    assert drawn(batches.generators(5, "a", slice(1, 3))) == first[1:3]
    others = drawn(batches.generators(6, "a", slice(0, 4)))
    others += drawn(batches.generators(5, "b", slice(0, 4)))
    assert len({*first, *others}) == 12


@pytest.mark.parametrize("images_there", [True, False])
def test_batches_on_a_gpu_are_those_of_the_cpu(images_there: bool) -> None:
    """Images that do not fit there follow batch by batch. Nothing waits for the device."""
    clients = ordered(splits(), SIZE)
    expected = TrainBatches(digits(), clients, SIZE, 2, True, 7, "round")
    with PretendGPU() as gpu:
        store = digits().to(GPU) if images_there else digits()
        gpu.waits.clear()
        batches = TrainBatches(store, clients, SIZE, 2, True, 7, "round", device=GPU)
        for step in range(len(batches)):
            active = batches.active(step)
            drawn = [(b.train(active), b.val(active)) for b in (batches, expected)]
            assert batches.progress(step).device == GPU
            for there, here in zip(*drawn, strict=True):
                tensors = zip(there[:3], here[:3], strict=True)
                assert all(a.device == GPU and torch.equal(_values(a), b) for a, b in tensors)
                assert there.numbers == here.numbers
        assert not gpu.waits


def _values(tensor: Tensor) -> Tensor:
    """Read without its being noticed."""
    with _disable_current_modes():
        return tensor.clone()
