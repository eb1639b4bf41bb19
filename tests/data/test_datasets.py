import hashlib
import pickle
from collections import Counter
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from metadnas_ext.data import DATASETS, FolderStore, MemoryStore, load_dataset
from metadnas_ext.data._torchvision import torchvision_datasets
from metadnas_ext.errors import DataError


def fails(*words):
    """A context that expects a one-line DataError holding every word."""

    class Expect:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, trace):
            assert kind is DataError, f"expected a DataError, got {error!r}"
            assert "\n" not in str(error)
            for word in words:
                assert str(word) in str(error)
            return True

    return Expect()


def test_digits_are_small_grey_images():
    store = load_dataset("digits")
    assert isinstance(store, MemoryStore)
    assert store.pixels.shape == (1797, 8, 8, 1)
    assert store.classes == tuple("0123456789")
    assert store.augmentation == "crop"
    assert (store.channels, store.image_size) == (1, 8)
    assert (int(store.pixels.min()), int(store.pixels.max())) == (0, 255)
    scaled = store.pixels.double() / 255
    assert store.mean[0] == pytest.approx(float(scaled.mean()), abs=0.01)
    assert store.std[0] == pytest.approx(float(scaled.std()), abs=0.01)


@pytest.mark.parametrize("size", [4, 16, 21])
def test_digits_are_resized_as_pillow_does(size):
    original, resized = load_dataset("digits"), load_dataset("digits", image_size=size)
    assert resized.gather(torch.arange(5)).shape == (5, size, size, 1)
    for ours, source in zip(resized.pixels[:20], original.pixels[:20], strict=True):
        image = Image.fromarray(source[..., 0].numpy())
        expected = np.array(image.resize((size, size), Image.Resampling.BILINEAR))
        assert (ours[..., 0].int() - torch.from_numpy(expected).int()).abs().max() <= 1
    assert resized.mean == original.mean


def test_max_images_takes_a_seeded_stratified_subset():
    store = load_dataset("digits", max_images=100)
    assert len(store) == 100
    assert set(Counter(store.labels.tolist()).values()) <= {9, 10, 11}
    again = load_dataset("digits", max_images=100)
    other = load_dataset("digits", max_images=100, seed=1)
    indices = torch.arange(100)
    assert torch.equal(store.gather(indices), again.gather(indices))
    assert not torch.equal(store.gather(indices), other.gather(indices))
    assert len(load_dataset("digits", max_images=10**6)) == 1797


def test_unknown_dataset_lists_the_known_and_the_closest():
    with fails("'cifra10'", ", ".join(DATASETS), "did you mean cifar10?"):
        load_dataset("cifra10")
    with pytest.raises(DataError) as caught:
        load_dataset("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("parameter", ["max_images", "image_size"])
def test_numbers_below_one_are_errors(parameter):
    with fails(f"{parameter} is 0", "at least 1"):
        load_dataset("digits", **{parameter: 0})


def test_negative_seed_is_an_error():
    with fails("seed is -3", "at least 0"):
        load_dataset("digits", max_images=5, seed=-3)


def test_memory_limit_holds_for_resized_images():
    with fails("1797 images of digits", "image_size 64", 1797 * 64 * 64, "is 1000"):
        load_dataset("digits", image_size=64, memory_limit_bytes=1000)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_data_dir_is_needed_and_must_exist(name, tmp_path):
    with fails(f"{name} needs data_dir"):
        load_dataset(name)
    with fails(tmp_path / "absent"):
        load_dataset(name, tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")],
)
def test_missing_cifar_says_what_was_expected_where(name, folder, tmp_path):
    with fails(f"{name} not found in {tmp_path}", tmp_path / folder, "--download", "data_dir"):
        load_dataset(name, tmp_path)


def test_failed_download_is_a_data_error(tmp_path, monkeypatch):
    def download(self):
        raise URLError("no route")

    monkeypatch.setattr(torchvision_datasets().CIFAR10, "download", download)
    with fails("cifar10 not found", "the download failed", "no route"):
        load_dataset("cifar10", tmp_path, download=True)


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """Tiny batches in CIFAR-10's own format, with torchvision's list of sums set to theirs."""
    source = torchvision_datasets().CIFAR10
    folder = tmp_path / source.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(name):
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        return write(name, {"data": pixels, "labels": [i % 10 for i in range(20)]})

    train = [batch(f"data_batch_{i}") for i in range(1, 6)]
    test = [batch("test_batch")]
    names = write("batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    meta = {"filename": names[0], "key": "label_names", "md5": names[1]}
    monkeypatch.setattr(source, "train_list", train)
    monkeypatch.setattr(source, "test_list", test)
    monkeypatch.setattr(source, "meta", meta)
    return tmp_path


def test_cifar_pools_train_and_test(cifar_folder):
    store = load_dataset("cifar10", cifar_folder)
    assert len(store) == 120
    assert store.labels.tolist() == [i % 10 for i in range(20)] * 6
    assert store.classes == tuple(f"class{i}" for i in range(10))
    assert store.augmentation == "crop_flip"
    assert store.mean == (0.4914, 0.4822, 0.4465)
    stored = pickle.loads((cifar_folder / "cifar-10-batches-py" / "test_batch").read_bytes())
    first = torch.from_numpy(stored["data"][0].reshape(3, 32, 32)).permute(1, 2, 0)
    assert torch.equal(store.gather(torch.tensor([100]))[0], first)
    assert load_dataset("cifar10", cifar_folder, image_size=16).image_size == 16


def test_damaged_cifar_is_refused_unread(cifar_folder):
    damaged = cifar_folder / "cifar-10-batches-py" / "test_batch"
    damaged.write_bytes(damaged.read_bytes() + b"x")
    with fails("cifar10 not found", "intact"):
        load_dataset("cifar10", cifar_folder)


def test_image_folder_is_read_with_the_first_images_size(tmp_path, make_images):
    cats = make_images(tmp_path / "cat", 3, (10, 8))
    make_images(tmp_path / "dog", 2, (16, 16))
    make_images(tmp_path / ".hidden", 1)
    (tmp_path / "cat" / "notes.txt").write_text("ignored")
    store = load_dataset("imagefolder", str(tmp_path))
    assert isinstance(store, MemoryStore)
    assert store.classes == ("cat", "dog")
    assert store.labels.tolist() == [0, 0, 0, 1, 1]
    assert (store.image_size, store.channels, store.augmentation) == (8, 3, "crop_flip")
    centre = np.array(Image.open(cats[0]))[:, 1:9]
    assert np.array_equal(store.gather(torch.tensor([0]))[0].numpy(), centre)


@pytest.mark.parametrize("size", [None, 6])
def test_memory_and_folder_stores_hold_the_same(tmp_path, make_images, size):
    make_images(tmp_path / "a", 5)
    make_images(tmp_path / "b", 6)
    options = {"image_size": size, "max_images": 8}
    memory = load_dataset("imagefolder", tmp_path, **options)
    folder = load_dataset("imagefolder", tmp_path, memory_limit_bytes=100, **options)
    assert isinstance(memory, MemoryStore)
    assert isinstance(folder, FolderStore)
    indices = torch.arange(8)
    assert torch.equal(memory.gather(indices), folder.gather(indices))
    assert torch.equal(memory.labels, folder.labels)
    assert (memory.mean, memory.std) == (folder.mean, folder.std)


def test_splits_of_an_image_folder_are_pooled(tmp_path, make_images):
    make_images(tmp_path / "train" / "a", 3)
    make_images(tmp_path / "train" / "b", 2)
    make_images(tmp_path / "test" / "b", 4)
    make_images(tmp_path / "val", 5)  # unlabelled images, no class folders
    store = load_dataset("imagefolder", tmp_path)
    assert store.classes == ("a", "b")
    assert Counter(store.labels.tolist()) == {0: 3, 1: 6}


def test_a_class_may_be_called_train(tmp_path, make_images):
    make_images(tmp_path / "train", 2)
    make_images(tmp_path / "bus", 3)
    assert load_dataset("imagefolder", tmp_path).classes == ("bus", "train")


def test_splits_beside_other_folders_are_ambiguous(tmp_path, make_images):
    make_images(tmp_path / "train" / "a", 2)
    make_images(tmp_path / "bus", 2)
    with fails(tmp_path, "splits (train)", "(bus)", "expected class folders only"):
        load_dataset("imagefolder", tmp_path)


def test_folders_without_enough_classes_are_errors(tmp_path, make_images):
    with fails(tmp_path, "at least two class folders", "found none"):
        load_dataset("imagefolder", tmp_path)
    (image,) = make_images(tmp_path / "only", 1)
    with fails(tmp_path, "at least two class folders", "only one, 'only'"):
        load_dataset("imagefolder", tmp_path)
    with fails(image, "is not a folder"):
        load_dataset("imagefolder", image)


def test_class_folders_without_images_are_named(tmp_path, make_images):
    make_images(tmp_path / "a", 1)
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "readme.txt").write_text("no image")
    with fails(tmp_path, "without images: b, c;", ".jpg", ".png"):
        load_dataset("imagefolder", tmp_path)


def test_max_images_is_taken_before_decoding(tmp_path, make_images):
    good = make_images(tmp_path / "a", 4) + make_images(tmp_path / "b", 4)
    kept = load_dataset("imagefolder", tmp_path, max_images=4, memory_limit_bytes=0).paths
    assert Counter(path.split("/")[-2] for path in kept) == {"a": 2, "b": 2}
    for path in good[1:]:  # the first image gives the size
        if str(path) not in kept:
            path.write_text("not an image")
    assert len(load_dataset("imagefolder", tmp_path, max_images=4)) == 4
    with fails("cannot read the image", ".png"):
        load_dataset("imagefolder", tmp_path)


def test_imagenet_pools_train_and_val_on_demand(tmp_path, make_images):
    make_images(tmp_path / "train" / "n01", 2, (40, 30))
    make_images(tmp_path / "train" / "n02", 2)
    make_images(tmp_path / "val" / "n01", 1)
    make_images(tmp_path / "devkit" / "x", 1)
    store = load_dataset("imagenet", tmp_path)
    assert isinstance(store, FolderStore)
    assert store.labels.tolist() == [0, 0, 1, 1, 0]
    assert store.mean == (0.485, 0.456, 0.406)
    assert store.gather(torch.tensor([4, 1])).shape == (2, 224, 224, 3)
    assert load_dataset("imagenet", tmp_path, image_size=32).image_size == 32


def test_imagenet_elsewhere_or_unsorted_is_an_error(tmp_path, make_images):
    with fails(f"imagenet not found in {tmp_path}", tmp_path / "train" / "<class>"):
        load_dataset("imagenet", tmp_path)
    make_images(tmp_path / "train" / "n01", 1)
    make_images(tmp_path / "val", 1)
    with fails(f"imagenet not found in {tmp_path}", tmp_path / "val" / "<class>"):
        load_dataset("imagenet", tmp_path)
