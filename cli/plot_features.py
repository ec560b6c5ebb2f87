"""Saved features of runs, for the figures that need more than records: t-SNE and its kin, and CLAP's alpha.

A run names its cached features (`features.npz`), so the data need not be there any more. A method that compares
the towers' own features needs no trainer either; of any other, the trainer is built again from the run's folder. Only
where a folder of data is given, images are encoded again, and kept.
"""

from __future__ import annotations

import random
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl_clip.engine import open_run
from dassl_clip.results import records
from dassl_clip.results.errors import UserError
from dassl_clip.results.figures import shortened
from dassl_clip.results.files import CACHE_OFF, CACHE_VARIABLE, cache_dir
from dassl_clip.results.groups import column_of, row_of
from dassl_clip.results.plot_features import Points

SPLITS = ("test", "val", "train")
PARTS = {"test": "test images", "val": "source validation images", "train": "source training images"}


def open_on_data(place: Path, data: str) -> tuple[Any, dict[str, Any]]:
    """The trainer of a finished run on the data of that run, ready to score, and the run's record.

    Args:
        place: the run's folder.
        data: folder above the data sets.

    Raises:
        UserError: the run cannot be opened.
    """
    trainer, record = open_run.open_run(place, root=data)
    if record.get("data") and record["data_fingerprint"] != trainer.data.fingerprint:
        print(f"caution: {record['dataset']} is no longer what the run in {place} was made with", file=sys.stderr)
    return trainer, record


def part(trainer: Any, split: str) -> list[Any]:
    """The images of a split.

    Raises:
        UserError: the run has none.
    """
    dataset = trainer.dm.dataset
    items = {"test": dataset.test, "val": dataset.val, "train": dataset.train_x}[split]
    if not items:
        raise UserError(f"{dataset.__class__.__name__} offers no {PARTS[split]} here; choose another --split")
    return list(items)


@dataclass
class Images:
    """The readable images of a split with their features `[N, E]` as the tower gave them, and the run's trainer.

    The trainer is absent where the towers' own features are what the method compares.
    """

    record: dict[str, Any]
    classnames: list[str]
    features: Any
    labels: Any
    domains: list[int]
    trainer: Any = None


def read_images(place: Path, split: str, data: str = "", trainer: bool = False) -> Images:
    """The images of a run's split, from its folder and the feature cache, or from a folder of data where one is given.

    Args:
        place: the run's folder.
        split: `test`, `val` or `train`.
        data: folder above the data sets, "" for saved features.
        trainer: whether the trainer is needed in any case.

    Raises:
        UserError: the run has no such images, or its features were not kept, or are there no longer.
    """
    record, tree = open_run.read_run(place)
    if data:
        return _encode(place, record, split, data)
    from dassl_clip.engine.features import saved_features

    found = saved_features(place).get(split)
    features = found.read() if found is not None else None
    if found is None or features is None:
        why = "names no saved features" if found is None else f"names features (entry {found.entry[:12]} of the cache)"
        raise UserError(
            f"the run in {place} {why} of its {PARTS[split]}{'' if found is None else ' that are there no longer'}; "
            f"with --data {root_of(tree)} (the folder above the data sets) this command encodes the images again, and "
            "keeps them"
        )
    import torch

    readable = features.isfinite().all(dim=1)
    labels, domains = torch.from_numpy(found.labels)[readable], found.domains[readable.numpy()].tolist()
    built = None
    if trainer or changes_features(record["method"]):
        built, _ = open_run.open_run(place)
    return Images(record, open_run.class_names(place, record), features[readable], labels, domains, built)


def _encode(place: Path, record: dict[str, Any], split: str, data: str) -> Images:
    """The same from the data, which are encoded, cached, and named in the run's folder."""
    trainer, record = open_on_data(place, data)
    items = sorted(part(trainer, split), key=lambda item: item.impath)
    features, labels = trainer.features.raw(items)
    items = [item for item in items if item.impath not in trainer.features.skipped]
    trainer.save_features(place, split)
    if cache_dir() is None:
        off = f"{CACHE_VARIABLE} is '{CACHE_OFF}'"
        print(f"caution: {off}, so the features are not cached", file=sys.stderr)
    return Images(record, trainer.classnames, features, labels, [item.domain for item in items], trainer)


def changes_features(method: str) -> bool:
    """Whether what a method compares is made of the tower's features by something that it learned."""
    from dassl.engine import TRAINER_REGISTRY
    from dassl_clip.engine import registry
    from dassl_clip.engine.trainer import CLIPTrainer

    registry.register()
    if method not in TRAINER_REGISTRY.registered_names():
        return True
    return getattr(TRAINER_REGISTRY.get(method), "content", None) is not CLIPTrainer.content


def root_of(tree: Mapping[str, Any]) -> str:
    """The folder above the data sets that a run had, for a command line."""
    return shlex.quote(str(tree.get("DATASET", {}).get("ROOT") or "DIR"))


def run_points(place: Path, by: str, split: str, most: int, seed: int, data: str = "") -> tuple[Points, str]:
    """The features of a run's images, as the run compares them.

    Args:
        place: the run's folder.
        by: `class` or `domain`: what the points are coloured by.
        split: `test`, `val` or `train`.
        most: of more images, a seeded draw of so many.
        seed: of the draw.
        data: folder above the data sets, to encode the images again; "": saved features.

    Returns:
        The points, and a phrase on which images they are.
    """
    import torch
    import torch.nn.functional as F

    images = read_images(place, split, data)
    record, raw, trainer, count = images.record, images.features, images.trainer, len(images.labels)
    chosen, what = list(range(count)), PARTS[split]
    if count > most:
        chosen = sorted(random.Random(seed).sample(chosen, most))
        what += f", a seeded draw of {most} of {count}"
    with torch.no_grad():
        content = raw[chosen] if trainer is None else trainer.content(raw[chosen].to(trainer.device))
        content = F.normalize(content.float(), dim=-1).cpu().numpy()
    title = f"{shortened(row_of(record).label, 32)}: {column_of(record)}"
    if by == "class":
        names = [images.classnames[images.labels[index]] for index in chosen]
    else:
        domains = record["target_domains" if split == "test" else "source_domains"] or [record["dataset"]]
        names = [domains[min(images.domains[index], len(domains) - 1)] for index in chosen]
    return Points(title, content, names), what


def alpha_sweep(place: Path, alphas: Sequence[float], split: str, data: str = "") -> tuple[dict[str, Any], dict]:
    """Accuracy of a CLAP run by the weight of its head.

    Args:
        place: the run's folder.
        alphas: weights to read; the run's own is added; empty: the candidates of the run's configuration.
        split: `val` (of the source domains) or `test`.
        data: folder above the data sets, to encode the images again; "": saved features.

    Returns:
        The run's record, and weight -> accuracy in percent.

    Raises:
        UserError: the run is not one of CLAP, or has no such images, or their features are not there.
    """
    import torch

    record = records.read_record(place) or open_run.read_run(place)[0]
    if "alpha" not in record:
        raise UserError(f"{place} is a run of {record['method']}, which has no alpha; give runs of CLAP")
    images = read_images(place, split, data, trainer=True)
    trainer = images.trainer
    features, labels = images.features.to(trainer.device), images.labels.to(trainer.device)
    sweep: dict[float, float] = {}
    with torch.no_grad():
        for alpha in sorted({*(alphas or trainer.node.ALPHA_CANDIDATES), record["alpha"]}):
            trainer.model.alpha = float(alpha)
            scores = trainer.cosine_logits(trainer.content(features), trainer.class_proxies())
            sweep[float(alpha)] = 100 * scores.argmax(dim=1).eq(labels).double().mean().item()
    return record, sweep


def together(panels: Sequence[Points], title: str) -> Points:
    """The points of several runs as one panel."""
    import numpy as np

    widths = {panel.features.shape[1] for panel in panels}
    if len(widths) > 1:
        raise UserError("the runs have features of different sizes, so they fit no common figure; drop --together")
    names = [name for panel in panels for name in panel.names]
    return Points(title, np.concatenate([panel.features for panel in panels]), names)


def facts_of(found: Sequence[Mapping[str, Any]]) -> str:
    """Methods and targets of several runs as a title."""
    rows = list(dict.fromkeys(row_of(record).label for record in found))
    return f"{', '.join(rows)}: {', '.join(dict.fromkeys(column_of(record) for record in found))}"
