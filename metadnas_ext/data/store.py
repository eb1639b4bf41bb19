"""Where a dataset's images live: all in memory, or in files that are decoded when asked for."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor

from metadnas_ext.errors import ConfigError, DataError

AUGMENTATIONS = ("none", "crop_flip", "crop")


class ImageStore(Protocol):
    """Square images of one size with their labels; images are fetched by index.

    name: the dataset's name. labels: int64 [n], on the CPU. classes: a name for each label.
    image_size: height and width in pixels. channels: 1 or 3. mean, std: per channel, of pixels
    scaled to [0, 1]. augmentation: "none", "crop" (small shifts) or "crop_flip" (shifts and
    horizontal flips).
    """

    @property
    def name(self) -> str: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def image_size(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def augmentation(self) -> str: ...
    @property
    def device(self) -> torch.device:
        """Where `gather` leaves images, and best gets indices."""
        ...

    def gather(self, indices: Tensor) -> Tensor:
        """The images at `indices` (int64 [k]) as uint8 [k, H, W, C], in the order asked."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class _Described:
    """What both stores know about their images besides the pixels; see `ImageStore`."""

    name: str
    labels: Tensor = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str

    def __post_init__(self) -> None:
        if self.augmentation not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise ConfigError(f"augmentation {self.augmentation!r} is unknown; expected {known}")
        labels, classes = self.labels, len(self.classes)
        if labels.dtype != torch.int64 or labels.ndim != 1:
            got = f"{labels.dtype} {list(labels.shape)}"
            raise DataError(f"labels of {self.name} are {got}; expected int64 [n]")
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            span = f"{int(labels.min())}..{int(labels.max())}"
            raise DataError(f"labels of {self.name} span {span}; expected 0..{classes - 1}")
        if not 0 < len(self.mean) == len(self.std) or min(self.std) <= 0:
            raise DataError(
                f"{self.name} has mean {self.mean} and std {self.std}; expected one value per "
                "channel each, std above 0"
            )

    @property
    def channels(self) -> int:
        return len(self.mean)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class MemoryStore(_Described):
    """Every image in memory. pixels: uint8 [n, image_size, image_size, channels], any device.

    Raises DataError where pixels, labels, classes and statistics contradict each other.
    """

    pixels: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = [len(self), self.image_size, self.image_size, self.channels]
        if self.pixels.dtype != torch.uint8 or list(self.pixels.shape) != expected:
            got = f"{self.pixels.dtype} {list(self.pixels.shape)}"
            raise DataError(f"pixels of {self.name} are {got}; expected torch.uint8 {expected}")

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def gather(self, indices: Tensor) -> Tensor:
        """The images at `indices` (int64 [k]) as uint8 [k, H, W, C] on the pixels' device."""
        return self.pixels.index_select(0, indices.to(self.pixels.device))

    def to(self, device: torch.device | str) -> "MemoryStore":
        """The same store with its pixels on `device`; labels stay on the CPU."""
        return replace(self, pixels=self.pixels.to(device))


@dataclass(frozen=True, eq=False, kw_only=True)
class FolderStore(_Described):
    """Image files decoded on demand. paths: one file per label; workers: decoding threads."""

    paths: tuple[str, ...] = field(repr=False)
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.paths) != len(self):
            raise DataError(f"{self.name} has {len(self.paths)} files but {len(self)} labels")
        if self.channels != 3:
            raise DataError(f"{self.name} has {self.channels} channels; files are decoded to 3")

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def gather(self, indices: Tensor) -> Tensor:
        """The images at `indices` (int64 [k]) as uint8 [k, H, W, 3] on the CPU.

        Raises DataError naming a file that cannot be read.
        """
        chosen = [self.paths[i] for i in indices.tolist()]
        return decode_files(chosen, self.image_size, self.workers)


def decode_files(paths: Sequence[str], image_size: int, workers: int | None = None) -> Tensor:
    """Decode image files into uint8 [len(paths), image_size, image_size, 3].

    Each image becomes RGB, its shorter side is resized to image_size and its centre is kept.
    workers: threads, by default one per processor. Raises DataError naming an unreadable file.
    """
    images = torch.empty((len(paths), image_size, image_size, 3), dtype=torch.uint8)
    view = images.numpy()

    threads = max(1, min(workers or os.cpu_count() or 1, len(paths)))
    # Several images a task, as handing one over costs a third of decoding a small image.
    step = max(1, len(paths) // (8 * threads))

    def decode(start: int) -> None:
        for slot in range(start, min(start + step, len(paths))):
            view[slot] = _decode(paths[slot], image_size)

    # A pool per call costs microseconds and, unlike a kept one, survives fork and pickling.
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(decode, range(0, len(paths), step)):
            pass
    return images


def shorter_side(path: str) -> int:
    """The smaller of an image file's width and height in pixels; DataError if unreadable."""
    with _opened(path) as image:
        return min(image.size)


def _decode(path: str, image_size: int) -> Image.Image:
    with _opened(path) as image:
        # Pillow clips 16- and 32-bit pixels at 255 on conversion, which turns an image white.
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{path} has {image.mode} pixels; expected 8 bits per channel")
        # A JPEG decoder halves a large photo for free; twice the target keeps it sharp.
        image.draft(None, (2 * image_size, 2 * image_size))
        size = (image_size, image_size)
        return ImageOps.fit(image.convert("RGB"), size, Image.Resampling.BILINEAR)


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """An open image file; whatever goes wrong while it is read becomes a DataError."""
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise far more than OSError
        raise DataError(f"cannot read the image {path}: {error or type(error).__name__}") from error


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 [n, H, W, C], pixels scaled to [0, 1].

    A channel that never changes gets a standard deviation of one grey level, not zero.
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(-1):
        # A histogram is exact and needs no float copy of the images.
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float(share @ levels)
        means.append(mean)
        stds.append(max(float(share @ (levels - mean).square()) ** 0.5, 1 / 255))
    return tuple(means), tuple(stds)
