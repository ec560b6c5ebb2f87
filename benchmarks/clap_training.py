"""CLAP's training to its stopping rule against the plain program: every text encoded at every step, in full length.

The texts are finite, so ours encodes each distinct one once; a step is then a small MLP. Cases: the class lists and
settings of OfficeHome and DomainNet. Of ours, the texts of `--encode-classes` classes are encoded (the cost is in
proportion to the classes) and `--head-steps` steps of the head are taken; the plain program takes `--plain-steps`
steps, each of which encodes prompts, augmented prompts and class names of the batch. All of these are extrapolated to
the whole training. `--steps` says how many steps that has; without it, the fewest that the stopping rule allows: more
make the ratio larger. `--full` trains on all texts and takes the number of steps from that.

The losses of the first steps are compared: the plain program's own, and ours from texts that were encoded once.

example: python benchmarks/clap_training.py --threads 2 --only office_home
"""

import argparse
import copy

import torch
import torch.nn.functional as F
import yaml
from common import ARCHITECTURE, Part, Results, Work, make_parser, operations, run_cases
from inputs import ROOT, backbone, class_names
from plain import text_features
from torch import Tensor

from dassl_clip.clip.backbone import FrozenCLIP
from dassl_clip.trainers.clap.head import ContentHead
from dassl_clip.trainers.clap.texts import TextTables, template_tables
from dassl_clip.trainers.clap.training import TextPairs, content_loss, fit_content_head

TARGETS = {"office_home": 20.0, "domainnet": 50.0}
MAX_STEPS, CHECK_EVERY, PATIENCE = 8000, 480, 5
FEWEST_STEPS = CHECK_EVERY * (1 + PATIENCE)  # the first check sets the mark, the next five do not go below it
RATE = 1e-4


class Training(Work):
    """Training the content head.

    Args:
        clip: The frozen CLIP.
        file: The class list, which names the settings as well.
        options: The command line.
    """

    def __init__(self, clip: FrozenCLIP, file: str, options: argparse.Namespace):
        self.clip, self.options, self.target = clip, options, TARGETS.get(file)
        self.names = class_names(file)[: options.classes]
        self.node = settings(file)
        if options.batch:
            self.node["BATCH_SIZE"] = options.batch
        self.tables = template_tables(self.names)
        self.run_classes = min(options.encode_classes, len(self.names))
        self.steps = options.steps or FEWEST_STEPS
        self.title = f"CLAP training, {len(self.names)} classes, batches of {self.node['BATCH_SIZE']}"
        torch.manual_seed(0)
        self.head = ContentHead(clip.embed_dim, self.node["LATENT_DIM"]).to(options.device)
        self.pairs = TextPairs(self.tables, placeholders(self.tables, clip), self.node["BATCH_SIZE"], seed=1)
        self.kept = {"ours": self.pairs.features.nbytes, "plain": 0}  # of all texts
        self.first = first_texts(self.pairs, options.plain_steps)
        self.report = None
        self.extrapolated = (
            f"ours encoded the texts of {self.run_classes} of {len(self.names)} classes and took {options.head_steps} "
            f"steps, the plain program {options.plain_steps}; extrapolated for {self.steps} steps"
            + (", the fewest that the stopping rule allows" if not options.steps else "")
        )
        if options.full:
            self.extrapolated = f"of the plain program {options.plain_steps} steps were run"

    def ours(self) -> list[Part]:
        """Each text once, then the head."""
        if self.options.full:
            return [Part(self._train)]
        share = len(self.names) / self.run_classes
        encode = Part(lambda: self._encode(self.run_classes), times=share)
        return [encode, Part(self._steps, times=self.steps / self.options.head_steps)]

    def plain(self) -> list[Part]:
        """All texts of a batch at every step."""
        return [Part(self._plain_steps, times=lambda: self.steps / self.options.plain_steps)]

    def difference(self, ours: Results, plain: Results) -> dict[str, float]:
        """Of the losses of the first steps, ours taken from texts that are encoded once."""
        pairs = self._pairs_of(self.first.unique())
        losses = descend(copy.deepcopy(self.head), pairs.batch, self.node, self.options.plain_steps)
        return super().difference({"losses": losses}, plain)

    def facts(self) -> dict[str, object]:
        """How much there is to encode."""
        return {
            "distinct texts": len(self.tables.texts),
            "texts a step": 3 * self.node["BATCH_SIZE"],
            "steps": self.steps,
        }

    def counted(self) -> dict[str, float]:
        """From the texts of one class, and from a few of the plain program's."""
        some = list(self.tables.texts[-64:])
        each = operations(lambda: text_features(self.clip, some)) / len(some)
        own = operations(lambda: self._encode(1)) * len(self.names)
        head = operations(lambda: descend(copy.deepcopy(self.head), self.pairs.batch, self.node, 1)) * self.steps
        return {"ours": own + head, "plain": 3 * self.node["BATCH_SIZE"] * self.steps * each + head}

    def _train(self) -> Results:
        """The whole training, to its stopping rule."""
        pairs = self._pairs_of(torch.arange(len(self.tables.texts)))
        head, node = copy.deepcopy(self.head), self.node
        self.report = fit_content_head(
            head, pairs, tau=node["TAU"], weight=node["LAMBDA"], learning_rate=RATE, max_steps=MAX_STEPS,
            check_every=CHECK_EVERY, patience=PATIENCE,
        )  # fmt: skip
        self.steps = self.report.steps
        return {}

    def _encode(self, classes: int) -> Results:
        """The texts of the first classes."""
        own = self.tables.counts[:classes].sum()
        used = torch.cat([self.tables.prompts[:own], self.tables.augmented[:own].flatten()]).unique()
        names = self.tables.names[:classes]
        self.clip.text.encode([self.tables.texts[k] for k in torch.cat([used, names]).unique().tolist()])
        return {}

    def _steps(self) -> Results:
        """Steps of the head on features that are there."""
        descend(copy.deepcopy(self.head), self.pairs.batch, self.node, self.options.head_steps)
        return {}

    def _plain_steps(self) -> Results:
        """Steps that encode their texts: prompts, augmented prompts and class names."""

        def batch(step: int) -> tuple[Tensor, ...]:
            return tuple(
                text_features(self.clip, [self.tables.texts[k] for k in part]) for part in self.first[step].tolist()
            )

        return {"losses": descend(copy.deepcopy(self.head), batch, self.node, self.options.plain_steps, nt_xent_rows)}

    def _pairs_of(self, used: Tensor) -> TextPairs:
        """The batches, with features of these texts alone."""
        features = placeholders(self.tables, self.clip)
        features[used.to(features.device)] = self.clip.text.encode([self.tables.texts[k] for k in used.tolist()])
        return TextPairs(self.tables, features, self.node["BATCH_SIZE"], seed=1)


def settings(file: str) -> dict:
    """The settings of a list, from the project's configuration."""
    path = ROOT / "configs" / "trainers" / "CLAP" / f"{file}.yaml"
    return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["TRAINER"]["CLAP"])


def placeholders(tables: TextTables, clip: FrozenCLIP) -> Tensor:
    """Random features `[K, E]` in the place of those of all texts."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(tables.texts), clip.embed_dim, generator=generator).to(clip.text.device)


def first_texts(pairs: TextPairs, steps: int) -> Tensor:
    """Texts of the first steps, `[steps, 3, B]`: prompts, augmented prompts, class names.

    They are read off a run of the batches on features that are the numbers of the texts.
    """
    count = len(pairs.tables.texts)
    numbers = torch.arange(count, dtype=torch.float64)[:, None]
    marked = TextPairs(pairs.tables, numbers, pairs.batch_size, pairs.seed)
    return torch.stack([torch.stack([part[:, 0] for part in marked.batch(step)]) for step in range(steps)]).long()


def descend(head: ContentHead, batch, node: dict, steps: int, loss=None) -> Tensor:
    """Losses of Adam's first steps."""
    optimizer, losses = torch.optim.Adam(head.parameters(), lr=RATE), []
    for step in range(steps):
        value = (loss or content_loss)(head, batch(step), node["TAU"], node["LAMBDA"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses)


def nt_xent_rows(head: ContentHead, batch: tuple[Tensor, ...], tau: float, weight: float) -> Tensor:
    """CLAP's loss as its program writes it: both halves of a similarity matrix without its diagonal."""
    prompts, augmented, names = (head(part, 1.0) for part in batch)

    def contrast(a: Tensor, b: Tensor, temperature: float) -> Tensor:
        z = F.normalize(torch.cat([a, b]), dim=1)
        similarity = torch.exp(z @ z.T / temperature)
        others = similarity.sum(1) - similarity.diagonal()
        pairs = torch.exp((z[: len(a)] * z[len(a) :]).sum(1) / temperature)
        return -torch.log(torch.cat([pairs, pairs]) / others).mean()

    return contrast(prompts, augmented, tau) + weight * contrast(augmented, names, 1.0)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="a causal CLIP backbone with random weights")
    parser.add_argument("--classes", type=int, help="only the first classes of a list")
    parser.add_argument("--batch", type=int, help="pairs of a step, in the place of the configuration's")
    parser.add_argument("--steps", type=int, help=f"steps of the whole training (at least {FEWEST_STEPS})")
    parser.add_argument("--encode-classes", type=int, default=2, help="classes whose texts ours encodes (2)")
    parser.add_argument("--head-steps", type=int, default=64, help="steps of the head that ours takes (64)")
    parser.add_argument("--plain-steps", type=int, default=1, help="steps that the plain program takes (1)")
    parser.add_argument("--full", action="store_true", help="train ours on all texts, to the stopping rule")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    cases = {file: lambda o, f=file: Training(backbone(o.architecture, o.device), f, o) for file in TARGETS}
    run_cases(parse(), "clap_training", cases)


if __name__ == "__main__":
    main()
