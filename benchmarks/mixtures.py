"""Synthetic unlabelled images for transductive methods: Gaussian classes, texts that are off, sizes as asked for.

Images of class `c` lie around the image tower's offset plus the class's direction; its text lies around the text
tower's offset plus a twisted copy of that direction. `bias` leans texts of some classes towards the offset of all
images, so that these classes take images of others: in logits, a normal deviation per class of that size.

As a command: what methods gain over zero-shot labels on mixtures that no setting was chosen on, in the cases of the
tasks `zeroshot` and `batch`, with the settings that the methods have on the icons.

Shapes: `N` images, `C` classes, `E` dimensions, `M` images of a draw.

example: python benchmarks/mixtures.py --only "C 25" "long tail" --methods InMaP StatA OnZeta:alpha0 --draws 10
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.engine import registry
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.engine.scenario_cases import parse_batch
from dassl_clip.engine.scenarios import batch_draws
from dassl_clip.engine.transductive import Images, TransductiveTrainer
from dassl_clip.experiments.methods import method_of
from dassl_clip.results.errors import UserError
from dassl_clip.results.rendering import framed, tabulated
from dassl_clip.trainers.inmap.trainer import InMaP

METHODS = ("InMaP", "InMaP:paper", "StatA", "TransCLIP")
BATCHES = ("64", "64:1-4", "64:5-25")
Gains = Mapping[str, Sequence[float]]  # by case: of each draw, in points


@dataclass(frozen=True)
class Mixture:
    """What is drawn.

    Attributes:
        classes: `C`.
        dimensions: `E`.
        sizes: images per class: `even` (20 each), `uneven` (8 to 40), `long tail` (60 down to 2).
        bias: standard deviation of the classes' bias, in logits.
        scale: logit scale; 0: the calibrated one, at which the likelihood of the labels is largest.
        noise: length of an image's own part relative to the class's, in 64 dimensions; it grows with their root, so
            that classes are confused as often in any.
        twist: length of a text's own part relative to the class's.
    """

    classes: int = 50
    dimensions: int = 64
    sizes: str = "uneven"
    bias: float = 0.0
    scale: float = 0.0
    noise: float = 1.6
    twist: float = 0.9

    @property
    def name(self) -> str:
        """In a table: `C 50, E 64, even, calibrated, bias 2`."""
        scale = f"scale {self.scale:g}" if self.scale else "calibrated"
        name = f"C {self.classes}, E {self.dimensions}, {self.sizes}, {scale}"
        return name + (f", bias {self.bias:g}" if self.bias else "")


MIXTURES = (
    Mixture(25),
    Mixture(50),
    Mixture(100),
    Mixture(200),
    Mixture(50, sizes="long tail"),
    Mixture(50, sizes="even"),
    Mixture(50, sizes="even", bias=2.0),
    Mixture(50, bias=1.0),
    Mixture(50, scale=20.0),
    Mixture(50, dimensions=256),
    Mixture(100, dimensions=512, scale=200.0),
)


def draw(mixture: Mixture, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, float]:
    """Features `[N, E]` and text proxies `[C, E]` of length 1, labels `[N]`, and the logit scale."""
    generator = np.random.default_rng([seed, mixture.classes, mixture.dimensions])
    c, e = mixture.classes, mixture.dimensions

    def directions(count: int) -> np.ndarray:
        rows = generator.normal(size=(count, e))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    counts = {
        "even": np.full(c, 20),
        "uneven": generator.integers(8, 41, c),
        "long tail": np.round(60 * (2 / 60) ** (np.arange(c) / (c - 1))).astype(int),
    }[mixture.sizes]
    labels = np.repeat(np.arange(c), counts)
    classes, image_offset, text_offset = directions(c), directions(1), directions(1)
    root = (e / 64) ** 0.5
    images = image_offset + classes[labels] + mixture.noise * root * directions(len(labels))
    texts = text_offset + classes + mixture.twist * directions(c)
    features, proxies = (F.normalize(torch.from_numpy(rows).float(), dim=1) for rows in (images, texts))
    truth = torch.from_numpy(labels)
    scale = mixture.scale or calibrated(features @ proxies.T, truth)
    if mixture.bias:
        lean = torch.from_numpy(generator.normal(size=(c, 1))).float() * mixture.bias / scale
        centre = F.normalize(features.mean(0), dim=0)
        proxies = F.normalize(proxies + lean * centre / (features @ centre).mean(), dim=1)
    return features, proxies, truth, scale


def calibrated(cosines: Tensor, labels: Tensor) -> float:
    """The logit scale with the largest likelihood of the labels, of 5 to 500 in steps of 5 %."""
    scales = [5 * 1.05**k for k in range(95)]
    return min(scales, key=lambda scale: float(F.cross_entropy(scale * cosines, labels)))


# -------------------------------------------------------------------------------------------------------- the table


def joint_method(word: str, scale: float) -> TransductiveTrainer:
    """A method that scores images together, with its settings on the icons and nothing else of a run.

    Args:
        word: As on a command line: `StatA`, `InMaP:paper`.
        scale: The logit scale of the images that it is given.

    Raises:
        UserError: There is no such method, or it scores each image by itself.
    """
    named = method_of(word)
    config = resolve_config(named.overrides("icons"))
    kind = registry.trainer_class(named.trainer)
    if named.base or not issubclass(kind, TransductiveTrainer):
        raise UserError(f"{word} is not a method that scores images together, such as {', '.join(METHODS)}")
    method = kind.__new__(kind)
    method.cfg = config
    if isinstance(method, InMaP):
        method.read_settings(scale)
    return method


def draws_of(labels: Tensor, draws: int, seed: int) -> dict[str, list[Tensor]]:
    """The draws of each case, indexes `[M]` into images with labels `[N]`: all images once, and batches."""
    cases = {"full": [torch.arange(len(labels))]}
    for batch in map(parse_batch, BATCHES):
        classes = (batch.least, batch.most) if batch.least else None
        lists = batch_draws(labels.numpy(), batch.size, classes, draws, seed)
        cases[batch.name] = [torch.from_numpy(index) for index in lists]
    return cases


@torch.no_grad()
def measure(mixture: Mixture, methods: Sequence[str], draws: int, seed: int) -> tuple[Gains, dict[str, Gains]]:
    """Accuracies of zero-shot labels, and what each method adds to them; both of every draw, by case."""
    features, proxies, labels, scale = draw(mixture)
    images = Images(features, scale * features @ proxies.T, proxies, scale)
    cases = draws_of(labels, draws, seed)

    def accuracies(name: str, scores: Sequence[Tensor]) -> list[float]:
        hits = (rows.argmax(dim=1) == labels[index] for rows, index in zip(scores, cases[name]))
        return [100 * float(hit.float().mean()) for hit in hits]

    zeroshot = {name: accuracies(name, [images.logits[index] for index in own]) for name, own in cases.items()}
    gains = {}
    for word in methods:
        method = joint_method(word, scale)
        found = {name: accuracies(name, list(method.logits_of_draws(images, own))) for name, own in cases.items()}
        gains[word] = {name: [a - b for a, b in zip(found[name], zeroshot[name])] for name in cases}
    return zeroshot, gains


def gain_text(values: Sequence[float]) -> str:
    """A mean, and its standard error over draws: `+0.6 +/- 0.2`."""
    error = f" +/- {statistics.stdev(values) / math.sqrt(len(values)):.1f}" if len(values) > 1 else ""
    return f"{round(statistics.fmean(values), 1) + 0.0:+.1f}{error}"


def summary(word: str, gains: Mapping[str, Gains]) -> str:
    """The worst cell of a method, and the share of draws that lose, from its gains by mixture and case."""
    cells = {(mixture, case): values for mixture, by_case in gains.items() for case, values in by_case.items()}
    mixture, case = min(cells, key=lambda cell: statistics.fmean(cells[cell]))

    def losing(values: Sequence[float]) -> str:
        return f"{100 * sum(value < 0 for value in values) / len(values):.0f} %"

    every = {name: [v for (_, own), values in cells.items() if own == name for v in values] for _, name in cells}
    shares = ", ".join(f"{name} {losing(values)}" for name, values in every.items())
    return (
        f"{word}: worst cell {gain_text(cells[mixture, case])} ({case} of {mixture}); below zero-shot in "
        f"{losing([v for values in cells.values() for v in values])} of the draws ({shares})"
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="METHOD", help=f"({' '.join(METHODS)})")
    parser.add_argument("--draws", type=int, default=30, help="of each case of batches (30)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mixtures with one of these texts in their names")
    parser.add_argument("--seed", type=int, default=1, help="of the draws (1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(argv)


def table(options: argparse.Namespace) -> str:
    """The table, and below it a line for each method; rows are also written to stderr when they are there.

    Raises:
        UserError: No mixture is named so, or a method is not one that scores images together.
    """
    chosen = [mixture for mixture in MIXTURES if any(word in mixture.name for word in options.only or [""])]
    if not chosen:
        names = "; ".join(mixture.name for mixture in MIXTURES)
        raise UserError(f"--only: no mixture has {' or '.join(options.only)} in its name; there are {names}")
    rows, gains = [], {word: {} for word in options.methods}
    for mixture in chosen:
        zeroshot, found = measure(mixture, options.methods, options.draws, options.seed)
        rows.append([f"{mixture.name}: zero-shot", *(f"{statistics.fmean(each):.1f}" for each in zeroshot.values())])
        for word, own in found.items():
            rows.append([f"gain of {word}", *map(gain_text, own.values())])
            gains[word][mixture.name] = own
        for row in rows[-1 - len(found) :]:  # the table may take an hour
            print(" | ".join(row), file=sys.stderr, flush=True)
    above = [f"accuracy (%) and gains in points, with the standard error over {options.draws} draws of a case"]
    body = tabulated(["mixture", *zeroshot], rows, "text")
    return framed("Synthetic mixtures", above, body, [summary(word, own) for word, own in gains.items()], "text")


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    print(table(options))


if __name__ == "__main__":
    main()
