"""Reading images as files, as rows of a parquet file and as rows of an arrow file: images per second.

The icons are read in the order of a test and in a random one, as in training, without decoding; their data sets are
listed by the loader. Every figure is the median of the repeats, in turns. `--bytes` makes each image that long, as
photographs are, so that row groups do not all stay in memory.

    python benchmarks/rows.py --bytes 100000 --images 6000
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from dassl_clip.embedded import ICONS_FOLDER
from dassl_clip.results import image_rows

GROUP = 100  # rows in a row group, as the hub writes them


def make(folder: Path, count: int, size: int) -> dict[str, list[str]]:
    """The same images in each form: form -> their paths, in order."""
    icons = sorted(ICONS_FOLDER.glob("*/*/*.png"))
    content = [icons[number % len(icons)].read_bytes() for number in range(count)]
    draw = random.Random(0)
    content = [one + draw.randbytes(max(0, size - len(one))) for one in content]
    images = [{"bytes": one, "path": f"{number}.png"} for number, one in enumerate(content)]
    table = pa.table({"image": images, "label": [0] * count})
    pq.write_table(table, folder / "rows.parquet", row_group_size=GROUP)
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=1000)
    files = [folder / f"{number:06d}.png" for number in range(count)]
    for path, one in zip(files, content):
        path.write_bytes(one)
    forms = {"files": [*map(str, files)]}
    for ending in ("parquet", "arrow"):
        rows = image_rows.open_table(folder / f"rows.{ending}")
        forms[ending] = [rows.address(row) for row in range(rows.rows)]
    return forms


def rate(paths: list[str]) -> float:
    """Images read a second."""
    image_rows.forget()
    start = time.perf_counter()
    for path in paths:
        with image_rows.open_image(path) as file:
            file.read()
    return len(paths) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--bytes", type=int, default=0, help="least length of an image (default: as the icons are)")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        forms = make(Path(folder), args.images, args.bytes)
        rates: dict[tuple[str, str], list[float]] = {}
        for repeat in range(args.repeats):
            for form, paths in forms.items():
                shuffled = random.Random(repeat).sample(paths, min(len(paths), 1000))
                rates.setdefault((form, "in order"), []).append(rate(paths))
                rates.setdefault((form, "at random"), []).append(rate(shuffled))
        sizes = {form: sum(Path(p).stat().st_size for p in {*map(image_rows.file_of, forms[form])}) for form in forms}
    rows = [
        [
            form,
            f"{sizes[form] / 1e6:,.0f}",
            *(f"{statistics.median(rates[form, how]):,.0f}" for how in ("in order", "at random")),
        ]
        for form in forms
    ]
    print(tabulate(rows, ["form", "MB", "images/s in order", "images/s at random"], disable_numparse=True))


if __name__ == "__main__":
    main()
