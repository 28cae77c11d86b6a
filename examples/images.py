"""Train on images that lie in Parquet as PNG and JPEG bytes, decoded by a Dask cluster.

    python examples/images.py demo-data/shapes

The first run draws 6,000 small images of circles, squares and triangles into a folder of
Parquet files: a column of bytes, and one of labels. Dask workers then decode them with
Pillow (`pip install ".[images]"`) into uint8 tensors of shape (rows, height, width, 3), in
the same tasks that read the rows, while this process trains a small network.

An image that cannot be decoded ends the run with its place: file, row group and row.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw
from torch import nn

import cluster
from dask_loader import DataLoader, ParquetDataset

SIDE = 24
SHAPES = ("circle", "square", "triangle")


def draw(number: int) -> tuple[bytes, int]:
    """Return image `number` as a file's bytes, and its label."""
    chance = random.Random(number)
    label = number % len(SHAPES)
    image = Image.new("RGB", (SIDE, SIDE), tuple(chance.choices(range(100), k=3)))
    size = chance.randint(9, 16)
    x, y = chance.randint(1, SIDE - size - 1), chance.randint(1, SIDE - size - 1)
    corners = {
        "circle": [(x, y), (x + size, y + size)],
        "square": [(x, y), (x + size, y + size)],
        "triangle": [(x, y + size), (x + size, y + size), (x + size // 2, y)],
    }[SHAPES[label]]
    pen = ImageDraw.Draw(image)
    paint = {"circle": pen.ellipse, "square": pen.rectangle, "triangle": pen.polygon}
    colour = tuple(chance.choices(range(140, 256), k=3))
    paint[SHAPES[label]](corners, fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG" if number % 2 else "JPEG", quality=90)
    return file.getvalue(), label


def write(folder: Path, num_images: int) -> None:
    """Write the images as a folder of Parquet files, which must be new."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True)
    for part, numbers in enumerate(np.array_split(np.arange(num_images), 3)):
        images, labels = zip(*(draw(int(n)) for n in numbers), strict=True)
        table = pa.table({"id": numbers, "image": images, "label": labels})
        pq.write_table(table, partial / f"part-{part}.parquet", row_group_size=500)
    partial.rename(folder)


def decode(table: pa.Table) -> pa.Table:
    """Return the table with pixels in place of files; runs on the Dask workers."""
    pixels = np.empty((len(table), SIDE, SIDE, 3), dtype=np.uint8)
    for row, file in enumerate(table["image"]):
        with Image.open(io.BytesIO(file.as_buffer())) as image:
            pixels[row] = np.asarray(image.convert("RGB"))
    column = pa.array(pixels.reshape(-1))
    for length in (3, SIDE, SIDE):  # the innermost first
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return table.set_column(table.schema.get_field_index("image"), "image", column)


def main(argv: list[str] | None = None) -> None:
    """Draw the images if there are none yet, then train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args(argv)
    if not args.folder.exists():
        write(args.folder, args.images)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()
    )
    model.append(nn.AdaptiveMaxPool2d(2)).append(nn.Flatten())
    model.append(nn.Linear(128, len(SHAPES)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with (
        cluster.launch("local", workers=2) as launched,
        ParquetDataset(
            args.folder,
            columns=["image", "label"],
            transform=decode,
            batch_size=64,
            shuffle=True,
            shuffle_window=1000,  # rows: bytes would count what is not decoded yet
            client=launched,
        ) as dataset,
    ):
        print(dataset.explain().splitlines()[-2])
        for epoch in range(args.epochs):
            dataset.set_epoch(epoch)
            right = 0
            for batch in DataLoader(dataset):
                pixels = batch["image"].permute(0, 3, 1, 2).float() / 255
                answer = model(pixels)
                loss = nn.functional.cross_entropy(answer, batch["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                right += int((answer.argmax(1) == batch["label"]).sum())
            print(f"epoch {epoch}: {right / dataset.num_rows:.3f} right")


if __name__ == "__main__":
    main()
