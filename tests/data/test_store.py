import numpy as np
import pytest
import torch
from PIL import Image

from metadnas_ext.data import FolderStore, ImageStore, MemoryStore
from metadnas_ext.data.store import channel_statistics, decode_files, shorter_side
from metadnas_ext.errors import ConfigError, DataError


def described(count=3, **changes):
    fields = {
        "name": "tiny",
        "labels": torch.arange(count) % 2,
        "classes": ("a", "b"),
        "image_size": 12,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "augmentation": "none",
    }
    return fields | changes


def test_both_stores_give_the_files_pixels(tmp_path, make_images):
    paths = [str(path) for path in make_images(tmp_path, 7)]
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
    stores: list[ImageStore] = [
        FolderStore(paths=tuple(paths), workers=2, **described(7)),
        MemoryStore(pixels=pixels, **described(7)),
    ]
    for store in stores:
        indices = torch.tensor([5, 0, 5, 6])
        images = store.gather(indices)
        assert images.dtype == torch.uint8
        assert torch.equal(images, pixels[indices])
        assert store.gather(indices[:0]).shape == (0, 12, 12, 3)
        assert len(store) == 7
        assert store.channels == 3


@pytest.mark.parametrize("workers", [1, 3])
def test_decoding_keeps_the_order_whatever_the_number_of_threads(tmp_path, make_images, workers):
    paths = [str(path) for path in make_images(tmp_path, 50, (6, 6))]
    pixels = np.stack([np.array(Image.open(path)) for path in paths])
    assert np.array_equal(decode_files(paths, 6, workers).numpy(), pixels)


@pytest.mark.parametrize("size", [(40, 16), (16, 40)])
def test_the_centre_of_the_longer_side_is_kept(tmp_path, size):
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    middle = (slice(12, 28), slice(None)) if size[1] == 40 else (slice(None), slice(12, 28))
    pixels[middle] = 200
    path = tmp_path / "wide.png"
    Image.fromarray(pixels).save(path)
    assert (decode_files([str(path)], 16) == 200).all()
    assert (decode_files([str(path)], 8)[:, 1:-1, 1:-1] == 200).all()
    assert shorter_side(str(path)) == 16


def test_a_large_jpeg_keeps_the_detail_its_size_allows(tmp_path):
    stripes = np.where(np.arange(512) // 8 % 2 == 0, 30, 220).astype(np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(stripes[None, :, None], (512, 512, 3)))
    path = tmp_path / "stripes.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    row = decode_files([str(path)], 128)[0, 64, 8:120, 0].view(-1, 2).double()
    assert (row[::2] < 66).all()
    assert (row[1::2] > 184).all()


def test_a_large_jpeg_is_shrunk_closely(tmp_path):
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (256, 256, 3))
    path = tmp_path / "ramp.jpg"
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=95)
    row = decode_files([str(path)], 16)[0, 8, :, 0].double()
    assert (row - (torch.arange(16) * 16 + 7.5)).abs().max() < 3


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    path = tmp_path / "image.tif"
    Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode).save(path)
    assert torch.equal(decode_files([str(path)], 4), torch.full((1, 4, 4, 3), 255).byte())


def test_deep_pixels_are_refused_rather_than_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(path)
    with pytest.raises(DataError) as caught:
        decode_files([str(path)], 4)
    assert str(caught.value) == f"{path} has I;16 pixels; expected 8 bits per channel"


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "absent"])
def test_an_unreadable_file_is_named(tmp_path, make_images, damage):
    paths = make_images(tmp_path, 4, (64, 64))
    broken = paths[2]
    if damage == "text":
        broken.write_text("not an image")
    elif damage == "truncated":
        broken.write_bytes(broken.read_bytes()[:400])
    elif damage == "empty":
        broken.write_bytes(b"")
    else:
        broken.unlink()
    store = FolderStore(paths=tuple(map(str, paths)), **described(4))
    assert store.gather(torch.tensor([0, 1, 3])).shape == (3, 12, 12, 3)
    with pytest.raises(DataError, match=r"cannot read the image .*002\.png: ."):
        store.gather(torch.arange(4))


def test_shorter_side_names_an_unreadable_file(tmp_path):
    path = tmp_path / "bad.jpg"
    path.write_text("no")
    with pytest.raises(DataError, match=r"cannot read the image .*bad\.jpg"):
        shorter_side(str(path))


def test_statistics_agree_with_the_definition():
    images = torch.randint(0, 256, (5, 6, 6, 3), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    scaled = images.double().flatten(0, 2) / 255
    assert mean == pytest.approx(scaled.mean(0).tolist())
    assert std == pytest.approx(scaled.std(0, correction=0).tolist())
    assert channel_statistics(torch.full((2, 4, 4, 1), 51).byte()) == (
        pytest.approx((0.2,)),
        (1 / 255,),
    )


def test_to_moves_the_pixels_and_keeps_the_rest():
    store = MemoryStore(pixels=torch.zeros(3, 12, 12, 3, dtype=torch.uint8), **described())
    moved = store.to("meta")
    assert moved.pixels.device.type == "meta"
    assert moved.labels is store.labels
    assert moved.gather(torch.arange(2)).shape == (2, 12, 12, 3)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"augmentation": "flip"}, ConfigError, ["'flip'", "none, crop_flip, crop"]),
        ({"labels": torch.zeros(3)}, DataError, ["torch.float32 [3]", "int64"]),
        ({"labels": torch.tensor([0, 2, 1])}, DataError, ["0..2", "expected 0..1"]),
        ({"labels": torch.tensor([0, -1, 1])}, DataError, ["-1..1", "expected 0..1"]),
        ({"labels": torch.tensor([0, 1])}, DataError, ["[3, 12, 12, 3]", "[2, 12, 12, 3]"]),
        ({"image_size": 8}, DataError, ["[3, 12, 12, 3]", "[3, 8, 8, 3]"]),
        ({"std": (0.2, 0.2, 0.0)}, DataError, ["(0.2, 0.2, 0.0)", "above 0"]),
        ({"mean": (), "std": ()}, DataError, ["mean ()", "one value per channel"]),
    ],
)
def test_contradictory_descriptions_are_errors(changes, error, words):
    pixels = torch.zeros(3, 12, 12, 3, dtype=torch.uint8)
    with pytest.raises(error) as caught:
        MemoryStore(pixels=pixels, **described(**changes))
    assert all(word in str(caught.value) for word in words)


def test_folder_store_needs_one_file_per_label_and_three_channels():
    with pytest.raises(DataError, match="1 files but 3 labels"):
        FolderStore(paths=("a.png",), **described())
    with pytest.raises(DataError, match="1 channels; files are decoded to 3"):
        FolderStore(paths=("a.png",) * 3, **described(mean=(0.5,), std=(0.2,)))
