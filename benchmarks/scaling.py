"""Measured cost against size, with the exponent of a fitted power law, and a problem larger than memory.

- `N`, `C`: a pass of InMaP's solver and 20 iterations of Sinkhorn against images and classes.
- `classes`, `views`, `batch`: GOPro's training step against classes, views and images.
- `shots`: fitting the linear probe against images of a class.
- `texts`: encoding texts that share their beginnings, against their number.
- `disk`: Sinkhorn and the solver on features that lie on disk and never fit into memory: `--disk-images` rows of 512
  numbers in float16, 1000 classes. Iterations and passes are few and stated; each costs the same as the next one. The
  peak is that of a process of its own.

The exponent is the slope of a line through the logarithms, by least squares; the residual is the largest distance of
a logarithm from it, as a factor.

example: python benchmarks/scaling.py --threads 2 --only N C
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import ARCHITECTURE, make_parser, prepare, timed
from disk import rows_on_disk
from gopro_step import gopro_trainer
from inputs import backbone, class_names
from reporting import describe, rounded, scaling_table, write

from dassl_clip.clip.rows import Cosines
from dassl_clip.trainers.clap.texts import training_texts
from dassl_clip.trainers.inmap.labels import sinkhorn_potentials
from dassl_clip.trainers.inmap.objective import ProxyObjective
from dassl_clip.trainers.linear_probe import fit_probe

TAU, SCALE = 0.01, 100.0
DISK = {"dimensions": 512, "classes": 1000}


def fit(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """The exponent of a power law, and the largest factor between it and a measurement."""
    x, y = np.log(sizes), np.log(seconds)
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(np.exp(np.abs(y - slope * x - offset).max()))


def sweep(sizes: list[int], make: Callable[[int], Callable[[], object]], options: argparse.Namespace) -> dict:
    """Seconds at each size (median), exponent and residual."""
    seconds = []
    for size in sizes:
        run = make(size)
        taken = [timed(run, options.device)[1] for _ in range(options.repeats + 1)]
        seconds.append(statistics.median(taken[1:]))
    exponent, residual = fit(sizes, seconds)
    return {
        "sizes": sizes,
        "seconds": [rounded(value) for value in seconds],
        "exponent": rounded(exponent, 3),
        "residual": rounded(residual, 3),
    }


def problem(n: int, c: int, options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features `[N, E]` and text proxies `[E, C]`."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(n, options.dimensions, generator=generator), dim=1)
    text = F.normalize(torch.randn(options.dimensions, c, generator=generator), dim=0)
    return features.to(options.device), text.to(options.device)


def solver_pass(n: int, c: int, options: argparse.Namespace) -> Callable[[], object]:
    """A pass of the solver: the objective and its gradient, on labels that are there."""
    features, text = problem(n, c, options)
    objective = ProxyObjective(features, (features @ text / TAU).softmax(dim=1), 4 * TAU)
    return lambda: objective(text)


def sinkhorn_labels(n: int, c: int, options: argparse.Namespace) -> Callable[[], object]:
    """Sinkhorn's 20 iterations from features: scores are formed, checked and read."""
    features, text = problem(n, c, options)
    return lambda: sinkhorn_potentials(Cosines(features, text), TAU, iterations=20)


def step(classes: int, views: int, batch: int, options: argparse.Namespace) -> Callable[[], object]:
    """GOPro's training step."""
    names = class_names("imagenet")[:classes]
    trainer = gopro_trainer(names, argparse.Namespace(**{**vars(options), "batch": batch}))
    trainer.epoch = trainer.batch_idx = 0
    trainer.num_batches = 2
    data = next(iter(trainer.dm.train_loader_x))
    for number in range(views + 1, 4):
        data.pop(f"img{number}", None)
    if views == 1:  # the terms that compare views are left out
        trainer.cfg.defrost()
        trainer.node.CONSISTENCY_WEIGHT = trainer.node.CONTRASTIVE_WEIGHT = 0.0
    trainer.set_model_mode("train")
    return lambda: trainer.forward_backward(data)


def probe(shots: int, options: argparse.Namespace) -> Callable[[], object]:
    """The linear probe's fit on 100 classes, 100 steps at most."""
    classes = 100
    features, text = problem(shots * classes, classes, options)
    labels = torch.arange(shots * classes, device=features.device) % classes
    return lambda: fit_probe(features, labels, text.T.contiguous(), SCALE, 1.0, 100)


def texts(count: int, options: argparse.Namespace) -> Callable[[], object]:
    """CLAP's training texts through the text tower."""
    clip = backbone(options.architecture, options.device)
    every = [text for name in class_names("office_home") for text in training_texts(name)][:count]
    return lambda: clip.text.encode(every)


def sweeps(options: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """The sweeps by name."""
    few, gpu = options.quick, options.device.startswith("cuda")
    images = [4000 * (8 if gpu else 1) * k for k in ((1, 2, 4) if few else (1, 2, 4, 8))]
    classes = [125 * k for k in ((1, 2, 4) if few else (1, 2, 4, 8))]
    own = [8, 16, 32] if few or not gpu else [64, 128, 256, 512]
    return {
        "the solver, a pass, against images": lambda: sweep(images, lambda n: solver_pass(n, 250, options), options),
        "the solver, a pass, against classes": lambda: sweep(classes, lambda c: solver_pass(8000, c, options), options),
        "Sinkhorn, 20 iterations, against images": lambda: sweep(
            images, lambda n: sinkhorn_labels(n, 250, options), options
        ),
        "Sinkhorn, 20 iterations, against classes": lambda: sweep(
            classes, lambda c: sinkhorn_labels(8000, c, options), options
        ),
        "GOPro, a step, against classes": lambda: sweep(own, lambda c: step(c, 3, 2, options), options),
        "GOPro, a step, against views": lambda: sweep([1, 2, 3], lambda v: step(own[1], v, 2, options), options),
        "GOPro, a step, against images": lambda: sweep([2, 4, 8], lambda b: step(own[0], 3, b, options), options),
        "linear probe, a fit, against shots": lambda: sweep([2, 4, 8, 16], lambda s: probe(s, options), options),
        "text tower, against texts": lambda: sweep([120, 240, 480], lambda k: texts(k, options), options),
    }


def on_disk(options: argparse.Namespace) -> dict[str, object]:
    """Seconds and peak memory of `disk.py`, run in a process of its own on a file that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "features.f16"
        written = timed(lambda: rows_on_disk(path, options.disk_images, DISK["dimensions"]), "cpu")[1]
        script = Path(__file__).with_name("disk.py")
        words = ["--images", options.disk_images, "--threads", options.threads, "--device", options.device]
        words += ["--passes-alone"] * options.passes_alone
        command = [sys.executable, str(script), str(path), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds to write": rounded(written, 3)}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="a ViT of CLIP with random weights")
    parser.add_argument("--dimensions", type=int, default=512, help="of the features (512)")
    parser.add_argument("--disk-images", type=int, help="rows on disk (1,000,000; 10,000,000 are 10 GB)")
    parser.add_argument("--passes-alone", action="store_true", help="on disk: leave out the solver's first step")
    parser.add_argument("--folder", type=Path, help="where the rows are written (the folder for temporary files)")
    options = parser.parse_args(argv)
    options.disk_images = options.disk_images or (100_000 if options.quick else 1_000_000)
    return options


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    options = parse()
    prepare(options)
    known = sweeps(options) | {"disk": lambda: on_disk(options)}
    chosen = [name for name in known if not options.only or any(word in name for word in options.only)]
    if not chosen:
        raise ValueError(f"--only: no sweep has {' or '.join(options.only)} in its name; there are {', '.join(known)}")
    for name in chosen:
        entry = describe(options) | known[name]()
        print(scaling_table({name: entry}), flush=True)
        if options.write:
            write(options, "scaling", name if name != "disk" else f"disk, {options.disk_images:,} rows", entry)


if __name__ == "__main__":
    main()
