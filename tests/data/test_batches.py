from collections import Counter

import pytest
import torch

from metadnas_ext.data import Cycle, MemoryStore, epoch_batches, prepare
from metadnas_ext.errors import ConfigError, DataError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_store(augmentation="crop_flip", count=24, size=16, channels=3):
    pixels = torch.randint(
        0, 256, (count, size, size, channels), dtype=torch.uint8, generator=generator(9)
    )
    return MemoryStore(
        name="random",
        labels=torch.arange(count) % 2,
        classes=("a", "b"),
        image_size=size,
        mean=(0.5, 0.4, 0.3)[:channels],
        std=(0.2, 0.25, 0.3)[:channels],
        augmentation=augmentation,
        pixels=pixels,
    )


def normalise_slowly(image, store):
    """uint8 [H, W, C] to float64 [H, W, C], channel by channel."""
    columns = [
        (image[..., c].double() / 255 - store.mean[c]) / store.std[c] for c in range(store.channels)
    ]
    return torch.stack(columns, dim=-1)


def augment_slowly(image, top, left, mirrored):
    """The part of the zero-padded image [H, W, C] from (top, left) on, mirrored if asked."""
    height, width, _ = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y, source_x = y + top - height // 8, x + left - width // 8
            if 0 <= source_y < height and 0 <= source_x < width:
                result[y, x] = image[source_y, source_x]
    return result.flip(1) if mirrored else result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip"])
def test_prepare_agrees_with_a_loop_over_images(augmentation, channels):
    store = make_store(augmentation, channels=channels)
    images = store.gather(torch.arange(len(store)))
    batch = prepare(images, store, augment=True, generator=generator(3), dtype=torch.float64)
    draws = generator(3)
    count = len(images)
    if augmentation == "none":
        tops, lefts, mirrors = [2] * count, [2] * count, [0] * count
    else:
        tops = torch.randint(0, 5, (count, 1), generator=draws).flatten().tolist()
        lefts = torch.randint(0, 5, (count, 1), generator=draws).flatten().tolist()
        mirrors = [0] * count
    if augmentation == "crop_flip":
        mirrors = torch.randint(0, 2, (count, 1), generator=draws).flatten().tolist()
        assert 0 < sum(mirrors) < count
    expected = torch.stack(
        [
            normalise_slowly(augment_slowly(image, top, left, mirror), store)
            for image, top, left, mirror in zip(images, tops, lefts, mirrors, strict=True)
        ]
    )
    torch.testing.assert_close(batch, expected)
    assert batch.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_prepare_without_augmentation_only_normalises(dtype):
    store = make_store()
    images = store.gather(torch.arange(4))
    before = images.clone()
    batch = prepare(images, store, augment=False, generator=None, dtype=dtype)
    assert batch.dtype == dtype
    expected = torch.stack([normalise_slowly(image, store) for image in images])
    torch.testing.assert_close(batch, expected.to(dtype))
    assert torch.equal(images, before)


def test_padding_is_black_before_normalisation():
    store = make_store("crop", count=64)
    white = torch.full_like(store.pixels, 255)
    batch = prepare(white, store, augment=True, generator=generator())
    padded = batch[:, 0, 0, 0]
    assert set(padded.round(decimals=3).tolist()) == {-2.5, 2.5}


def test_shifts_reach_an_eighth_of_the_side_and_no_more():
    store = make_store("crop", count=200)
    image = torch.zeros(200, 16, 16, 3, dtype=torch.uint8)
    image[:, 8, 8] = 255
    batch = prepare(image, store, augment=True, generator=generator())
    places = (batch[..., 0] > 0).nonzero()
    assert len(places) == 200
    assert set(places[:, 1].tolist()) == set(places[:, 2].tolist()) == {6, 7, 8, 9, 10}


def test_augmentation_draws_only_from_its_generator():
    store = make_store()
    images = store.gather(torch.arange(8))
    torch.manual_seed(0)
    first = prepare(images, store, augment=True, generator=generator(5))
    state = torch.get_rng_state()
    torch.rand(100)
    second = prepare(images, store, augment=True, generator=generator(5))
    assert torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, prepare(images, store, augment=True, generator=generator(6)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_prepare_gives_the_same_on_the_device_of_the_images():
    store = make_store()
    moved = store.to("cuda")
    ours, expected = (
        prepare(one.gather(torch.arange(5)), one, augment=True, generator=generator())
        for one in (moved, store)
    )
    assert ours.device.type == "cuda"
    torch.testing.assert_close(ours.cpu(), expected)


def test_prepare_refuses_what_it_cannot_use():
    store = make_store()
    images = store.gather(torch.arange(2))
    with pytest.raises(ConfigError, match="generator; got None"):
        prepare(images, store, augment=True, generator=None)
    with pytest.raises(ValueError, match=r"torch.float32 \[2, 16, 16, 3\]; expected uint8"):
        prepare(images.float(), store, augment=False, generator=None)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 10), (10, 64), (1, 1), (97, 32), (0, 4)])
def test_epoch_batches_cover_everything_once_in_even_parts(count, size):
    indices = torch.arange(count) * 3
    batches = epoch_batches(indices, size, generator())
    assert len(batches) == -(-count // size)
    assert sorted(i for batch in batches for i in batch.tolist()) == indices.tolist()
    sizes = [len(batch) for batch in batches]
    assert max(sizes, default=0) <= size
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


def test_epoch_batches_shuffle_by_the_generator():
    indices = torch.arange(50)
    rng = generator()
    first, second = (torch.cat(epoch_batches(indices, 8, rng)) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat(epoch_batches(indices, 8, generator())))


@pytest.mark.parametrize(("count", "size"), [(10, 4), (10, 10), (10, 99), (7, 6), (1, 3), (12, 4)])
def test_cycle_gives_equal_batches_and_even_passes(count, size):
    cycle = Cycle(torch.arange(count) + 100, size, generator())
    stream = []
    for _ in range(60):
        batch = cycle.next()
        assert len(batch) == min(size, count)
        assert len(batch.unique()) == len(batch)
        stream += batch.tolist()
    passes = [stream[i : i + count] for i in range(0, len(stream) - count + 1, count)]
    assert all(sorted(one) == list(range(100, 100 + count)) for one in passes)
    assert count == 1 or any(one != passes[0] for one in passes)


def test_cycle_favours_no_entry_at_the_seam_of_two_passes():
    cycle = Cycle(torch.arange(5), 3, generator())
    firsts = Counter(int(cycle.next()[0]) for _ in range(5000))
    assert min(firsts.values()) > 850


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_must_be_positive(size):
    with pytest.raises(ConfigError, match=f"batch_size is {size}; expected at least 1"):
        epoch_batches(torch.arange(3), size, generator())
    with pytest.raises(ConfigError, match=f"batch_size is {size}; expected at least 1"):
        Cycle(torch.arange(3), size, generator())


def test_cycle_over_nothing_is_an_error():
    with pytest.raises(DataError, match="0 samples; expected at least 1"):
        Cycle(torch.arange(0), 2, generator())
