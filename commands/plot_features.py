"""Saved features of runs, for the figures that need more than records: t-SNE and its kin, and CLAP's alpha.

A run's trainer is built again from its folder, and the features come from the bank of frozen features on the disk;
what is not there any more is encoded again, and then kept.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.commands import predict_run
from dassl_clip.commands.errors import UserError
from dassl_clip.results.plot_points import Points
from dassl_clip.results.plot_style import shortened
from dassl_clip.results.tables import column_of, row_of

SPLITS = ("test", "val", "train")
PARTS = {"test": "test images", "val": "source validation images", "train": "source training images"}


def open_on_data(place: Path, data: str = "") -> tuple[Any, dict[str, Any]]:
    """The trainer of a finished run on the data of that run, ready to score, and the run's record.

    Args:
        place: the run's folder.
        data: folder above the data sets; "": the one that the run had.

    Raises:
        UserError: the run cannot be opened.
    """
    place, record, tree = predict_run.read_run(place)
    cfg = predict_run.run_config(tree, record)
    cfg.DATASET.ROOT = data or cfg.DATASET.ROOT
    trainer = predict_run.build(cfg, record["method"])
    predict_run.load(trainer, place)
    if record["data_fingerprint"] != getattr(trainer.dm.dataset, "fingerprint", record["data_fingerprint"]):
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


def run_points(place: Path, by: str, split: str, most: int, seed: int, data: str = "") -> tuple[Points, str]:
    """The features of a run's images, as the run compares them.

    Args:
        place: the run's folder.
        by: `class` or `domain`: what the points are coloured by.
        split: `test`, `val` or `train`.
        most: of more images, a seeded draw of so many.
        seed: of the draw.
        data: folder above the data sets; "": the one that the run had.

    Returns:
        The points, and a phrase on which images they are.
    """
    import torch
    import torch.nn.functional as F

    trainer, record = open_on_data(place, data)
    items = part(trainer, split)
    raw, _ = trainer.raw_features(items)
    if len(raw) < len(items):
        items = [item for item in items if item.impath not in trainer.skipped]
    chosen, what = list(range(len(items))), PARTS[split]
    if len(items) > most:
        chosen = sorted(random.Random(seed).sample(chosen, most))
        what += f", a seeded draw of {most} of {len(items)}"
    with torch.no_grad():
        content = F.normalize(trainer.content(raw[chosen].to(trainer.device)).float(), dim=-1).cpu().numpy()
    title = f"{shortened(row_of(record).label, 32)}: {column_of(record)}"
    if by == "class":
        names = [trainer.classnames[items[index].label] for index in chosen]
    else:
        domains = record["target_domains" if split == "test" else "source_domains"] or [record["dataset"]]
        names = [domains[min(items[index].domain, len(domains) - 1)] for index in chosen]
    return Points(title, content, names), what


def alpha_sweep(place: Path, alphas: Sequence[float], split: str, data: str = "") -> tuple[dict[str, Any], dict]:
    """Accuracy of a CLAP run by the weight of its head.

    Args:
        place: the run's folder.
        alphas: weights to read; the run's own is added; empty: the candidates of the run's configuration.
        split: `val` (of the source domains) or `test`.
        data: folder above the data sets; "": the one that the run had.

    Returns:
        The run's record, and weight -> accuracy in percent.

    Raises:
        UserError: the run is not one of CLAP, or has no such images.
    """
    import torch

    _, record, _ = predict_run.read_run(place)
    if "alpha" not in record:
        raise UserError(f"{place} is a run of {record['method']}, which has no alpha; give runs of CLAP")
    trainer, record = open_on_data(place, data)
    features, labels = trainer.raw_features(part(trainer, split))
    features, labels = features.to(trainer.device), labels.to(trainer.device)
    sweep: dict[float, float] = {}
    with torch.no_grad():
        for alpha in sorted({*(alphas or trainer.node.ALPHA_CANDIDATES), record["alpha"]}):
            trainer.model.alpha = float(alpha)
            scores = trainer.cosine_scores(trainer.content(features), trainer.class_proxies())
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
