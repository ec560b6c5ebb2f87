"""InMaP's solvers on a synthetic problem of ImageNet's size: 50,000 images, 768 dimensions, 1000 classes.

Features have CLIP's traits: a gap between images and texts, classes in groups, a decaying spectrum, noise. Labels are
Sinkhorn's, hardened, and there before the clock starts (with `--lazy` they are formed in each step). Both solvers start
from the text proxies: ours runs until a lower bound certifies its objective to 1e-6, the authors' takes 2000 steps.
These take an hour on a CPU: by default `--authors-steps` of them are timed and the rest is extrapolated; `--full`
takes them all and compares objectives.

example: python benchmarks/inmap.py --threads 2 --images 5000 --full
"""

import argparse

import torch
import torch.nn.functional as F
from common import Part, Results, Work, make_parser, operations, run_cases, timed
from plain import vision_proxy
from torch import Tensor

from dassl_clip.trainers.inmap.labels import (
    Cosines,
    PseudoLabels,
    proxy_objective,
    sinkhorn_potentials,
    solve_vision_proxy,
)

AUTHORS_STEPS = 2000
SIZES = {"images": 50_000, "dimensions": 768, "classes": 1000}


class Proxies(Work):
    """The vision proxies of a problem.

    Args:
        options: The command line.
    """

    target = 10.0

    def __init__(self, options: argparse.Namespace):
        n, e, c = options.images, options.dimensions, options.classes
        self.title = f"InMaP, {n:,} x {e} x {c}, to the authors' objective"
        self.options, self.temperature = options, 1 / options.scale
        self.features, self.text, self.truth = (x.to(options.device) for x in clip_like(options))
        scores = Cosines(self.features, self.text)
        if not options.lazy:
            scores = scores[:]
        potentials, self.sinkhorn_seconds = timed(
            lambda: sinkhorn_potentials(scores, self.temperature, options.gamma, block_rows=options.block_rows),
            options.device,
        )
        labels = PseudoLabels(scores, self.temperature, potentials)
        self.labels = labels if options.lazy else labels[:]
        self.taken = AUTHORS_STEPS if options.full else min(options.authors_steps, AUTHORS_STEPS)
        if self.taken < AUTHORS_STEPS:
            self.extrapolated = f"{self.taken} of the authors' {AUTHORS_STEPS} steps were run"
        self.fast, self.steps_proxy = None, None

    def ours(self) -> list[Part]:
        """To a certified optimum."""
        return [Part(self._solve)]

    def plain(self) -> list[Part]:
        """The authors' steps, as a plain program takes them."""
        return [Part(self._take_steps, times=AUTHORS_STEPS / self.taken)]

    def difference(self, ours: Results, plain: Results) -> dict[str, float]:
        """How far above the lower bound ours is, and above the authors' result where that was run to its end."""
        best = ours["objective"]
        above = {"above the lower bound": float((best - ours["lower bound"]) / best)}
        if self.taken == AUTHORS_STEPS:
            theirs = self._objective(plain["proxy"])
            above["above the authors' objective"] = max(0.0, float((best - theirs) / theirs))
        return above

    def counted(self) -> dict[str, float]:
        """From one evaluation of the objective; ours also has its curvature, which is small."""
        each = operations(lambda: self._objective(self.text))
        return {"ours": each * self.fast.steps, "plain": each * AUTHORS_STEPS}

    def facts(self) -> dict[str, object]:
        """Objectives, steps and accuracies."""
        text = top1(self.features, self.text, self.truth)
        fast = {key: value for key, value in self.fast._asdict().items() if key != "proxy"}
        authors = {"objective": float(self._objective(self.steps_proxy)), "steps": self.taken}
        return {
            "sinkhorn seconds": self.sinkhorn_seconds,
            "text top1": text,
            "fast": fast | {"top1": top1(self.features, self.fast.proxy, self.truth)},
            "authors": authors | {"top1": top1(self.features, self.steps_proxy, self.truth)},
        }

    def _solve(self) -> Results:
        tau, rows = 4 * self.temperature, self.options.block_rows
        self.fast = solve_vision_proxy(self.features, self.text, self.labels, tau, "fast", block_rows=rows)
        numbers = {"objective": self.fast.objective, "lower bound": self.fast.lower_bound}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}

    def _take_steps(self) -> Results:
        self.steps_proxy = vision_proxy(self.features, self.text, self.labels[:], 4 * self.temperature, self.taken)
        return {"proxy": self.steps_proxy}

    def _objective(self, proxy: Tensor) -> Tensor:
        """The objective of proxies `[E, C]`."""
        return proxy_objective(self.features, proxy, self.labels, 4 * self.temperature, self.options.block_rows)


def clip_like(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Image features `[N, E]`, text proxies `[E, C]` and true classes `[N]`."""
    n, e, c = options.images, options.dimensions, options.classes
    generator = torch.Generator().manual_seed(options.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spectrum = F.normalize((1 + torch.arange(e).float()) ** -0.4, dim=0)
    groups = normal(max(1, c // 10), e)[torch.arange(c) % max(1, c // 10)]
    centres = 0.7 * (groups + normal(c, e)) * spectrum  # [C, E]
    image_cone, text_cone = F.normalize(normal(2, e), dim=1)
    truth = torch.randint(c, (n,), generator=generator)
    features = normal(n, e).mul_(options.noise * spectrum).add_(centres[truth]).mul_(0.7).add_(0.8 * image_cone)
    texts = 0.8 * text_cone + 0.5 * (centres + options.text_error * normal(c, e) * spectrum)
    return F.normalize(features, dim=1), F.normalize(texts, dim=1).T.contiguous(), truth


def top1(features: Tensor, proxy: Tensor, truth: Tensor) -> float:
    """Per cent of images whose largest score is that of their class."""
    pairs = zip(features.split(4096), truth.split(4096))
    return 100 * sum(int(((x @ proxy).argmax(1) == y).sum()) for x, y in pairs) / len(truth)


def add_problem(parser: argparse.ArgumentParser) -> None:
    """The arguments that `clip_like` reads, sizes apart."""
    parser.add_argument("--scale", type=float, default=100.0, help="logit scale; labels at 1, proxies at 4 over it")
    parser.add_argument("--noise", type=float, default=1.6, help="spread of images around their class")
    parser.add_argument("--text-error", type=float, default=0.9, help="distance of texts from their class")
    parser.add_argument("--gamma", type=float, default=0.0, help="exponent of the class marginal; 0 is uniform")
    parser.add_argument("--seed", type=int, default=0)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=3, budget=100)
    for name, value in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{value:,}")
    add_problem(parser)
    parser.add_argument("--block-rows", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--lazy", action="store_true", help="form scores and labels anew in each step, and keep none")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--authors-steps", type=int, default=10, help="of the authors' 2000 steps, those that are taken")
    steps.add_argument("--full", action="store_true", help="take all 2000 of the authors' steps")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    options = parse()
    case = f"{options.images} x {options.dimensions} x {options.classes}"
    run_cases(options, "inmap", {case: Proxies})


if __name__ == "__main__":
    main()
