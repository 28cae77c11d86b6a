"""The example of images: every pixel as Pillow has it, or an error with a place."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dask_loader import ParquetDataset, TransformError

SCRIPT = Path(__file__).parents[2] / "examples" / "images.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("images_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pixel_is_what_pillow_decodes(
    example: ModuleType, tmp_path: Path
) -> None:
    example.write(tmp_path / "set", 150)
    with ParquetDataset(
        tmp_path / "set",
        client="threads",
        transform=example.decode,
        batch_size=32,
        shuffle=True,
        shuffle_window=40,
    ) as dataset:
        seen = []
        for batch in dataset:
            seen += batch["id"].tolist()
            for number, pixels in zip(
                batch["id"].tolist(), batch["image"], strict=True
            ):
                file, label = example.draw(number)
                wanted = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
                assert np.array_equal(pixels.numpy(), wanted)
                assert label == number % 3
    assert sorted(seen) == list(range(150))


def test_a_broken_image_is_told_with_its_row(
    example: ModuleType, tmp_path: Path
) -> None:
    example.write(tmp_path / "set", 90)
    path = tmp_path / "set" / "part-1.parquet"
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[23] = images[23][:60]
    broken = table.set_column(1, "image", pa.array(images))
    pq.write_table(broken, path, row_group_size=10)
    text = r"(?s)row group 2 of '.*part-1\.parquet'.* failed on row 3: .*images\.py"
    with ParquetDataset(
        tmp_path / "set", client="threads", transform=example.decode
    ) as dataset:
        with pytest.raises(TransformError, match=text):
            list(dataset)


@pytest.mark.slow
@pytest.mark.cluster
def test_it_learns_from_what_dask_workers_decode(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "set"), "--images", "3000"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    shares = [float(share) for share in re.findall(r"([\d.]+) right", done.stdout)]
    assert len(shares) == 3
    assert shares[-1] > 0.9
    assert "transform=decode makes image" in done.stdout
