"""The seeds and hyper-parameters of DomainBed, to the digit, from hash functions and NumPy's generators alone.

Source: Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, and the program that its authors
released (facebookresearch/DomainBed @b93c22a). A set of hyper-parameters is named by its number: set 0 holds the
defaults, the others are drawn. A draw depends on the trial too, so set 7 of trial 0 is not set 7 of trial 1.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

SMALL_IMAGES = ("Debug28", "RotatedMNIST", "ColoredMNIST")  # of 28 x 28 pixels, with ranges of their own
ALGORITHM = "ERM"  # whose ranges these are


@dataclass(frozen=True)
class Hyperparameters:
    """What DomainBed searches for the algorithm "ERM".

    Attributes:
        lr: learning rate of Adam.
        weight_decay: added to the gradients as L2.
        batch_size: images of each source domain in a batch.
        dropout: before the head.
    """

    lr: float
    weight_decay: float
    batch_size: int
    dropout: float


def seed_hash(*arguments: object) -> int:
    """DomainBed's seed of some values: the MD5 hash of their tuple as Python prints it, as an integer below 2^31."""
    digest = hashlib.md5(str(arguments).encode("utf-8"), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31


def run_seed(dataset: str, test_domains: Sequence[int], number: int, trial: int, algorithm: str = ALGORITHM) -> int:
    """The seed of one run of a search.

    Args:
        dataset: DomainBed's name of the data set, such as `OfficeHome`.
        test_domains: places of the domains that are left out, among all domains in the order of their names.
        number: of the set of hyper-parameters.
        trial: the trial.
        algorithm: DomainBed's name of the algorithm.
    """
    return seed_hash(dataset, algorithm, list(test_domains), number, trial)


def hyperparameters(dataset: str, number: int, trial: int) -> Hyperparameters:
    """A set of hyper-parameters by its number: 0 holds the defaults, any other is drawn.

    Args:
        dataset: DomainBed's name of the data set; only `DomainNet` and data sets of small images differ from the rest.
        number: of the set.
        trial: the trial; it changes every set but the defaults.
    """
    return drawn(dataset, seed_hash(number, trial)) if number else defaults(dataset)


def defaults(dataset: str) -> Hyperparameters:
    """The hyper-parameters that are not drawn."""
    return Hyperparameters(1e-3, 0.0, 64, 0.0) if dataset in SMALL_IMAGES else Hyperparameters(5e-5, 0.0, 32, 0.0)


@functools.lru_cache(maxsize=1024)
def drawn(dataset: str, seed: int) -> Hyperparameters:
    """Hyper-parameters that are drawn; each has a generator of its own, seeded by `seed` and its name in DomainBed."""
    small = dataset in SMALL_IMAGES
    rates: tuple[float, float]
    sizes: tuple[float, float]
    if small:
        rates, sizes = (-4.5, -2.5), (3, 9)
    else:
        rates, sizes = (-5, -3.5), (3, 5) if dataset == "DomainNet" else (3, 5.5)

    def draw(name: str, of: Callable[[np.random.RandomState], float]) -> float:
        return of(np.random.RandomState(seed_hash(seed, name)))

    return Hyperparameters(
        lr=float(draw("lr", lambda random: 10 ** random.uniform(*rates))),
        weight_decay=0.0 if small else float(draw("weight_decay", lambda random: 10 ** random.uniform(-6, -2))),
        batch_size=int(draw("batch_size", lambda random: 2 ** random.uniform(*sizes))),
        dropout=float(draw("resnet_dropout", lambda random: random.choice([0.0, 0.1, 0.5]))),
    )
