"""All probes of one method: each is made once, when a check first asks for it, and the base run is shared by all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dassl_clip.engine import catalogue, registry
from dassl_clip.results.errors import UserError, did_you_mean

from .probe import Outcome, Plan, ProbeError, Scores, run_probe
from .world import OTHER, SOURCES, TARGET, Pool, World, make_pool

TASKS = {"lodo": (SOURCES, TARGET), "fewshot": ((TARGET,), TARGET)}  # task -> source domains, target domain
NOISE = 1e-2  # nats: two scores that differ by less differ by rounding, or by where a solver stopped
FAINT = 1e-3  # nats: of a method that scores each image by itself
EXACT = 1e-5  # nats: of runs that compute the same numbers in the same order
SEED = 1
EPOCHS, BATCH = 2, 12
Pairs = Sequence[tuple[str, str]]


class Session:
    """The probes of one method.

    Args:
        name: registry name of the trainer.
        folder: where worlds and runs are written.
        imports: modules or files with trainers of the user's own.
        task: `lodo` or `fewshot`.
        config: yaml file or name of the method's configuration; "": that for the icons.
        pairs: KEY VALUE pairs.

    Attributes:
        kind: the trainer's class.
        ours: it is a `CLIPTrainer`.
        base: the world that all others are made from.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        imports: tuple[str, ...] = (),
        task: str = "lodo",
        config: str = "",
        pairs: tuple[tuple[str, str], ...] = (),
    ) -> None:
        from dassl_clip.engine.trainer import CLIPTrainer

        if task not in TASKS:
            raise UserError(f"--task: '{task}' is not checked.{did_you_mean(task, TASKS)} Known: {', '.join(TASKS)}.")
        self.name, self.folder, self.task = name, folder, task
        self.kind = registry.trainer_class(name)
        self.ours = issubclass(self.kind, CLIPTrainer)
        self.pool: Pool = make_pool(folder / "pool")
        self.base: World = self.pool.world(*TASKS[task])
        self.plan = Plan(name, _config_file(name, config), imports, pairs)
        self.plan = replace(self.plan, pairs=(*self._short(pairs), *pairs))
        self._made: dict[str, Outcome | ProbeError] = {}
        self._count = 0

    def _short(self, pairs: Pairs) -> list[tuple[str, str]]:
        """The settings of a short run that the user has not set: few epochs, small batches, what the method says."""
        given = {key for key, _ in pairs}
        first = self.plan.resolve(self.base.write(self.folder / "worlds" / "plan"), self.folder, self.base, SEED, ())
        short = {"DATALOADER.NUM_WORKERS": "0"}
        short["DATALOADER.TRAIN_X.BATCH_SIZE"] = str(min(BATCH, first.DATALOADER.TRAIN_X.BATCH_SIZE))
        short["OPTIM.MAX_EPOCH"] = str(min(EPOCHS, first.OPTIM.MAX_EPOCH))
        if not self.plan.config:
            short["INPUT.SIZE"] = "(64, 64)"
            short["MODEL.BACKBONE.NAME"] = "IconsCLIP" if self.ours else first.MODEL.BACKBONE.NAME
        node = self.name.upper()
        short |= {f"TRAINER.{node}.{key}": repr(value) for key, value in getattr(self.kind, "short", {}).items()}
        return [(key, value) for key, value in short.items() if key not in given and value]

    def config(self, world: World, label: str, pairs: Pairs = (), seed: int = SEED, folder: Path | None = None) -> Any:
        """The configuration of a run in a world, which is written beside it."""
        root = world.write(self.folder / "worlds" / label)
        return self.plan.resolve(root, folder or self.folder / "runs" / label, world, seed, tuple(pairs))

    def run(
        self, label: str, world: World | None = None, pairs: Pairs = (), seed: int = SEED, root: str = "", **how: Any
    ) -> Outcome:
        """The probe of this label; a label stands for one world and one way.

        Args:
            label: name of the probe and its folder.
            world: None: the base world.
            pairs: KEY VALUE pairs.
            seed: of the run.
            root: label of another probe whose DATASET.ROOT it shares.
            how: see `run_probe`.

        Raises:
            ProbeError: the method raised something, now or when it was first asked for.
        """
        if label not in self._made:
            world = world or self.base
            place = world.write(self.folder / "worlds" / (root or label))
            config = self.plan.resolve(place, self.folder / "runs" / label, world, seed, tuple(pairs))
            try:
                self._made[label] = run_probe(config, world, **how)
            except ProbeError as error:
                self._made[label] = error
        made = self._made[label]
        if isinstance(made, ProbeError):
            raise made
        return made

    def resumed(self, label: str, pairs: Pairs) -> Outcome:
        """A run in the folder of an interrupted one."""
        root = self.folder / "worlds" / label
        config = self.plan.resolve(root, self.folder / "runs" / label, self.base, SEED, tuple(pairs))
        return run_probe(config, self.base)

    # ------------------------------------------------------------------------------------------ probes that are shared

    def first(self) -> Outcome:
        """The base run, tested twice."""
        return self.run("base", tests=2)

    def reloaded(self) -> Outcome:
        """The learned parts of the base run, loaded into a new trainer and tested."""
        return self.run("reloaded", learned_by=self.first())

    def swapped(self) -> Outcome:
        """A whole run in which every other test picture is one of another domain."""
        kept = self.kept()
        others = self.pool.pictures[OTHER, "test"]
        strangers = [p for p in others if p.name not in self.base.labels()][: len(self.base.test) - len(kept)]
        test = tuple(p for p in self.base.test if p.name in kept) + tuple(strangers)
        unlabelled = self.pool.pictures[OTHER, "train"]
        return self.run("swapped", replace(self.base, test=test, unlabelled=unlabelled))

    def kept(self) -> list[str]:
        """Names of every other test picture."""
        return [picture.name for picture in self.base.test[::2]]

    def train_sees_test(self) -> bool:
        """Whether what was learned depends on which pictures are tested."""
        first, other = self.first(), self.swapped()
        return bool(distance_of_states(first.learned, other.learned))

    def scored(self, label: str, world: World, pairs: Pairs = ()) -> Outcome:
        """A run in a world that differs from the base in its test pictures alone.

        Where training does not see the test pictures, and what was learned can be loaded, the base run's learned parts
        are tested there; otherwise the method is trained there.
        """
        try:
            loads = not differences(self.first().scores, self.reloaded().scores, NOISE)
        except ProbeError:
            loads = False
        if loads and not self.train_sees_test():
            return self.run(label, world, pairs, learned_by=self.first())
        return self.run(label, world, pairs)

    @property
    def declares_transductive(self) -> bool | None:
        """What the method says of itself; None for a trainer that says nothing."""
        facts = self.first().facts
        return bool(facts.get("transductive")) if self.ours or facts.get("transductive") else None

    @property
    def declares_labels(self) -> bool | None:
        """Whether it says that it trains on labels; None for a trainer that says nothing."""
        declared = getattr(self.kind, "trains_on_labels", None)
        return declared if isinstance(declared, bool) else None


def _config_file(name: str, config: str) -> str:
    if name in catalogue.trainer_names():
        return catalogue.shown(catalogue.trainer_file(name, config, "icons"))
    return catalogue.shown(catalogue.existing_file(config)) if config else ""


def differences(one: Scores, other: Scores, least: float = NOISE) -> dict[str, float]:
    """Pictures in both whose scores differ by `least` nats or more, or in their number of classes -> by how much."""
    found = {}
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        gap = float((a - b).abs().max()) if a.shape == b.shape else float("inf")
        if not gap < least:
            found[name] = gap
    return found


def most(gaps: dict[str, float]) -> str:
    """The largest of some differences in words, "" for none."""
    return f" by up to {max(gaps.values()):.2g} nats" if gaps else ""


def changed_classes(one: Scores, other: Scores) -> int:
    """Number of pictures in both whose best class differs."""
    return sum(int(one[name].argmax()) != int(other[name].argmax()) for name in one.keys() & other.keys())


def distance_of_states(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between tensors of two states; infinite where they hold different ones."""
    if one.keys() != other.keys() or any(one[key].shape != other[key].shape for key in one):
        return float("inf")
    gaps = [float((one[key].double() - other[key].double()).abs().max()) for key in one if one[key].numel()]
    return max(gaps, default=0.0)


def accuracy(scores: Scores, labels: dict[str, int]) -> float:
    """Percent of the pictures whose best class is their label."""
    hits = [int(row.argmax()) == labels[name] for name, row in scores.items() if name in labels]
    return 100 * sum(hits) / max(len(hits), 1)


def nll(scores: Scores, labels: dict[str, int]) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    losses = [-float(row[labels[name]]) for name, row in scores.items() if name in labels]
    return sum(losses) / max(len(losses), 1)


Change = Callable[[World], World]
