from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_images() -> Callable[..., list[Path]]:
    """Write `count` random PNGs of `size` (width, height) into a folder, whose name seeds them."""

    def make(folder: Path, count: int, size: tuple[int, int] = (12, 12)) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(list(str(folder.name).encode()))
        paths = []
        for number in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            paths.append(folder / f"{number:03d}.png")
            Image.fromarray(pixels).save(paths[-1])
        return paths

    return make
