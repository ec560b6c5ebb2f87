"""InMaP on features that lie on disk: Sinkhorn's iterations and the solver's passes, with the peak of the memory.

`disk.py FILE` reads a file of float16 rows that `rows_on_disk` wrote, block by block, and never holds more of it than a
block (and the solver's sample of 8,192 rows). `scaling.py --only disk` writes such a file, runs this, and removes it.

example: python benchmarks/scaling.py --only disk --disk-images 10000000 --threads 2
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import peak, start_peak, timed
from reporting import rounded
from torch import Tensor

from dassl_clip.clip.rows import Cosines
from dassl_clip.trainers.inmap.labels import PseudoLabels, sinkhorn_potentials, solve_vision_proxy
from dassl_clip.trainers.inmap.objective import BLOCK_ELEMENTS, ProxyObjective

CLASSES, DIMENSIONS = 1000, 512
TAU = 0.01
AT_ONCE = 65_536  # rows that are generated together


class RowsOnDisk:
    """Rows `[N, E]` of a float16 file, read when they are asked for.

    Blocks are read into memory of their own, so that nothing of the file is mapped. Slices with a step read row by row.

    Args:
        path: The file.
        columns: `E`.
        device: Where rows arrive.
    """

    dtype = torch.float16

    def __init__(self, path: Path, columns: int, device: str = "cpu"):
        self.path, self.device = path, torch.device(device)
        self.row_bytes = 2 * columns
        self.shape = torch.Size((path.stat().st_size // self.row_bytes, columns))

    def __getitem__(self, rows: slice) -> Tensor:
        first, last, step = rows.indices(self.shape[0])
        pieces = [(first, last - first)] if step == 1 else [(row, 1) for row in range(first, last, step)]
        pieces = [(start, count) for start, count in pieces if count > 0]
        found = np.empty((sum(count for _, count in pieces), self.shape[1]), dtype=np.float16)
        filled = 0
        with self.path.open("rb") as file:
            for start, count in pieces:
                file.seek(start * self.row_bytes)
                file.readinto(memoryview(found[filled : filled + count]).cast("B"))
                filled += count
        return torch.from_numpy(found).to(self.device, non_blocking=True)


def centres(columns: int) -> Tensor:
    """Class centres `[C, E]` of length 1."""
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(CLASSES, columns, generator=generator), dim=1)


def rows_on_disk(path: Path, count: int, columns: int = DIMENSIONS) -> None:
    """Write features of length 1 around `CLASSES` centres."""
    generator, own = torch.Generator().manual_seed(1), centres(columns)
    with path.open("wb") as file:
        for start in range(0, count, AT_ONCE):
            size = min(AT_ONCE, count - start)
            noise = torch.randn(size, columns, generator=generator).mul_(2 / columns**0.5)
            rows = own[torch.randint(CLASSES, (size,), generator=generator)].add_(noise)
            F.normalize(rows, dim=1).half().numpy().tofile(file)


def measure(path: Path, images: int, device: str, columns: int = DIMENSIONS, step: bool = True) -> dict[str, object]:
    """Seconds of an iteration of Sinkhorn, of a pass of the solver and of its first step; the peak of the memory."""
    features = RowsOnDisk(path, columns, device)
    generator = torch.Generator().manual_seed(2)
    text = centres(columns) + 0.5 / columns**0.5 * torch.randn(CLASSES, columns, generator=generator)
    text = F.normalize(text, dim=1).T.contiguous().to(device)
    scores = Cosines(features, text)
    block = BLOCK_ELEMENTS[features.device.type] // CLASSES  # a number, so that no scores or labels are kept
    start_peak(device)
    potentials, iteration = timed(lambda: sinkhorn_potentials(scores, TAU, iterations=1, block_rows=block), device)
    labels = PseudoLabels(scores, TAU, potentials)
    objective = ProxyObjective(features, labels, 4 * TAU, block)
    passing = timed(lambda: objective(text), device)[1]
    figures = {"Sinkhorn, its check and an iteration, s": iteration, "a pass of the solver, s": passing}
    if step:
        options = {"steps": 1, "block_rows": block}
        solving = timed(lambda: solve_vision_proxy(features, text, labels, 4 * TAU, **options), device)[1]
        figures["the solver's checks, curvature and first step, s"] = solving
    figures |= {
        "peak memory, MB": peak(device) / 2**20,
        "peak resident, MB": peak("cpu") / 2**20,
    }
    sizes = {"images": images, "dimensions": columns, "classes": CLASSES}
    return sizes | {name: rounded(value, 4) for name, value in figures.items()}


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="written by rows_on_disk")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--passes-alone", action="store_true", help="leave out the solver's first step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps(measure(options.file, options.images, options.device, step=not options.passes_alone)))


if __name__ == "__main__":
    main()
