"""Methods that score images together, on draws of synthetic images, against plain programs of their formulas.

*Ours* is the trainer's own code with its settings on the icons, *plain* is `plain_transduction.py`; both score the same
draws, one after the other, and times are those of one draw. The last case scores many draws of a run's task `batch`:
ours solves InMaP's problems together, and the plain program, one draw after the other, is run on some of them. Shares
are compared; of OnZeta those of the first 30 images, since rounding decides the later ones. Those of InMaP and IOTA
differ by what the gradient steps of the plain program leave undone: they halve themselves before the minimum.

example: python benchmarks/transduction.py --threads 1 --only "StatA, 64 images"
"""

import argparse
from collections.abc import Callable, Iterable

import plain_transduction
import torch
from common import Part, Results, Work, make_parser, run_cases
from mixtures import Mixture, draw, joint_method
from reporting import batches_table
from torch import Tensor

from dassl_clip.engine.scenarios import batch_draws
from dassl_clip.engine.transductive import Images

PLAIN: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "InMaP": plain_transduction.inmap,
    "InMaP:paper": plain_transduction.inmap_uniform,
    "TransCLIP": plain_transduction.transclip,
    "StatA": plain_transduction.stata,
    "ZLaP": plain_transduction.zlap,
    "TDA": plain_transduction.tda,
    "OnZeta": plain_transduction.onzeta,
    "IOTA": plain_transduction.iota,
}
SIZES = {"classes": 45, "dimensions": 256}
BATCHES = (64, 256)
SAME_FIRST = {"OnZeta": 30}  # images before the course of a method is decided by rounding


class Batches(Work):
    """Scores of draws of all classes.

    Args:
        word: The method, as on a command line.
        size: Images of a draw.
        options: The command line.
        at_once: Draws that the method is given together; None: `--draws`, one after the other.
    """

    alone = False
    uses_architecture = False

    def __init__(self, word: str, size: int, options: argparse.Namespace, at_once: int | None = None):
        self.title = f"{word}, {size} images" if at_once is None else f"{word}, {at_once} draws of {size} images"
        self.word, self.size, self.at_once = word, size, at_once
        features, proxies, labels, scale = draw(Mixture(options.classes, options.dimensions, scale=options.scale))
        features, proxies = features.to(options.device), proxies.to(options.device)
        self.images = Images(features, scale * features @ proxies.T, proxies, scale)
        count = options.draws if at_once is None else at_once
        self.run_plainly = min(options.draws, count)
        lists = batch_draws(labels.numpy(), size, None, count, seed=1)
        self.draws = [torch.from_numpy(index).to(options.device) for index in lists]
        self.method = joint_method(word, scale)
        if self.run_plainly < count:
            self.extrapolated = f"the plain program was run on {self.run_plainly} of the {count} draws"

    def ours(self) -> list[Part]:
        """The trainer's own path."""
        return [Part(self._ours, times=1 / len(self.draws) if self.at_once is None else 1)]

    def plain(self) -> list[Part]:
        """The plain program."""
        return [Part(self._plain, times=(self.at_once or 1) / self.run_plainly)]

    def facts(self) -> dict[str, object]:
        """How many images the times are for."""
        return {"images": self.size * (self.at_once or 1)}

    @torch.no_grad()
    def _ours(self) -> Results:
        if self.at_once is not None:
            return self._shares(list(self.method.logits_of_draws(self.images, self.draws)))
        return self._shares(next(self.method.logits_of_draws(self.images, [index])) for index in self.draws)

    @torch.no_grad()
    def _plain(self) -> Results:
        some = (self.images[index] for index in self.draws[: self.run_plainly])
        program = PLAIN[self.word]
        shares = [program(own.features, own.logits, own.proxies, own.scale) for own in some]
        return {"shares": torch.cat([rows[: SAME_FIRST.get(self.word)] for rows in shares])}

    def _shares(self, logits: Iterable[Tensor]) -> Results:
        """The shares to compare, of the draws that the plain program is run on."""
        first = SAME_FIRST.get(self.word)
        return {"shares": torch.cat([rows.softmax(dim=1)[:first] for rows in logits][: self.run_plainly])}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, budget=5)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of the mixture ({value})")
    parser.add_argument("--scale", type=float, default=0.0, help="logit scale; 0: the calibrated one")
    parser.add_argument("--draws", type=int, default=4, help="that each side scores in a measurement (4)")
    parser.add_argument("--many", type=int, default=1000, help="draws of the last case (1000)")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    options = parse()
    cases = {
        f"{word}, {size} images": lambda o, word=word, size=size: Batches(word, size, o)
        for word in PLAIN
        for size in BATCHES
    }
    cases["many draws"] = lambda o: Batches("InMaP", BATCHES[0], o, at_once=o.many)
    run_cases(options, "transduction", cases, batches_table)


if __name__ == "__main__":
    main()
