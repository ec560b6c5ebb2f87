"""Figures of what has been run: `dassl-clip plot domains output`; PNG, SVG or PDF, from saved results alone.

Nothing is trained or tested again. `curves`, `domains`, `shots` and `between` read records, `confusion` reads the saved
predictions, `tsne` and the settings that methods fix in their records read saved features.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dassl_clip.cli.arguments import Parser, add_data, add_seeds
from dassl_clip.engine import declared
from dassl_clip.engine.errors import guarded
from dassl_clip.results import plot_features as features
from dassl_clip.results import plots, records
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.figures import DEFAULT_FORMATS, FORMATS, Plot, shortened
from dassl_clip.results.groups import column_of, row_of
from dassl_clip.results.plot_between import between_plot

KINDS = {
    "curves": "loss terms and learning rate over training",
    "domains": "accuracy of each method in each target domain",
    "confusion": "confusion matrix, from saved predictions",
    "tsne": "image features in the plane, by class or domain (also --method umap, pca)",
    "shots": "accuracy by the number of training images per class",
    "between": "accuracy of the weights between the start and the end of a training",
}
EXAMPLES = {
    "curves": "output --rows METHOD --targets line",
    "domains": "output/lodo --out figures/lodo",
    "confusion": "output/fewshot --targets line --rows METHOD --seeds 1",
    "tsne": "output/lodo --rows METHOD --seeds 1 --together --by domain",
    "shots": "output --tasks probe",
    "between": "output/lodo --rows METHOD",
}
MOST_IMAGES = 2000
MOST_PANELS = 8


def setting_kinds() -> dict[str, str]:
    """The settings with candidates that methods fix in their records, and the method: each has a figure of its own."""
    kinds = {name: declared.trainer_fact(name, "fixed_in_record") or {} for name in declared.trainer_names()}
    return {
        fact: name
        for name, facts in kinds.items()
        for key, fact in facts.items()
        if f"{key}_CANDIDATES" in declared.trainer_fact(name, "settings")
    }


def build_parser(kind: str = "") -> argparse.ArgumentParser:
    """The arguments of all kinds of figures, or (faster) of those that need no method where `kind` is one of them."""
    parser = Parser(
        prog="dassl-clip plot",
        description="Draw a figure of finished runs, with a caption that says what was measured.",
        epilog="example: dassl-clip plot domains output/fewshot --out figures/fewshot",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND", parser_class=Parser)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or any folders above them")
    shared.add_argument(
        "--out",
        default="",
        metavar="STEM_OR_FILE",
        help="STEM.png and STEM.svg (default: the kind), or one file: FILE.pdf, FILE.svg, FILE.png",
    )
    shared.add_argument("--rows", nargs="+", default=(), metavar="ROW", help="only these methods, or 'Method (config)'")
    shared.add_argument("--targets", nargs="+", default=(), metavar="DOMAIN", help="only these target domains")
    shared.add_argument("--tasks", nargs="+", default=(), metavar="TASK", help="only these tasks")
    add_seeds(shared, "--seeds", default=(), metavar="N", help="only these seeds: 1 2 3 or 1,2,3")
    data = argparse.ArgumentParser(add_help=False)
    add_data(data, "folder above the data sets, to encode images again (default: saved features)")

    def add(kind: str, text: str, example: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        about, example = f"{text[0].upper()}{text[1:]}.", f"example: dassl-clip plot {kind} {example}"
        return kinds.add_parser(kind, parents=[shared, *parents], help=text, description=about, epilog=example)

    parsers = {name: add(name, text, EXAMPLES[name], *([data] * (name == "tsne"))) for name, text in KINDS.items()}
    parsers["confusion"].add_argument("--classes", nargs="+", default=(), metavar="NAME", help="only these classes")
    tsne = parsers["tsne"]
    tsne.add_argument("--method", choices=features.METHODS, default="tsne", help="default: tsne")
    tsne.add_argument("--by", choices=("class", "domain"), default="class", help="what is coloured (default: class)")
    tsne.add_argument("--together", action="store_true", help="all runs in one panel (default: a panel a run)")
    tsne.add_argument("--split", choices=("test", "val", "train"), default="test", help="default: test")
    tsne.add_argument("--classes", nargs="+", default=(), metavar="NAME", help="the classes (or domains) to colour")
    tsne.add_argument("--images", type=int, default=MOST_IMAGES, metavar="N",
                      help=f"most images of a run, a seeded draw (default: {MOST_IMAGES})")  # fmt: skip
    tsne.add_argument("--seed", type=int, default=1, metavar="N", help="of the draw and the method (default: 1)")
    for name, method in {} if kind in KINDS else setting_kinds().items():
        text = f"{method}'s accuracy by {name}, on source validation images"
        setting = add(name, text, f"output/lodo --rows {method}", data)
        setting.add_argument(f"--{name}s", dest="values", nargs="+", type=float, default=(), metavar=name[0].upper(),
                             help=f"default: {method}'s candidates")  # fmt: skip
        setting.add_argument("--test", action="store_true", help="test images; the figure is marked as a diagnostic")
    return parser


def run(args: argparse.Namespace) -> int:
    text = args.out or args.kind
    stem, kinds_of_file = Path(text).expanduser(), DEFAULT_FORMATS
    if (ending := stem.suffix.lower()[1:]) in FORMATS:
        stem, kinds_of_file = stem.with_suffix(""), (ending,)
    if text.endswith("/") or stem.is_dir():
        raise UserError(f"--out {text}: this is a folder; give the files' path without ending, such as {stem}/figure")
    found = find_runs(args)
    only_records = [item.record for item in found]
    kinds: dict[str, Callable[[], Plot]] = {
        "curves": lambda: plots.curves_plot(only_records),
        "domains": lambda: plots.domains_plot(only_records),
        "shots": lambda: plots.shots_plot(only_records),
        "between": lambda: between_plot(only_records),
        "confusion": lambda: features.confusion_plot([(item.folder, item.record) for item in found], args.classes),
        "tsne": lambda: draw_points(args, found),
    }
    plot = kinds[args.kind]() if args.kind in kinds else draw_setting(args, found)
    for path in plot.save(stem, kinds_of_file):
        print(path)
    print(plot.caption)
    return 0


def find_runs(args: argparse.Namespace) -> list[records.FoundRecord]:
    """The complete runs at and below the folders that pass the filters.

    Raises:
        UserError: there is none, or a filter names something that no run has.
    """
    found = {item.folder.resolve(): item for folder in args.runs for item in records.find_records(folder)}
    runs = [item for item in found.values() if item.record is not None]
    for item in found.values():
        if item.record is None:
            print(f"left out, {item.state}: {item.folder}: {item.reason}", file=sys.stderr)
    if not runs:
        raise UserError(f"there is no finished run at or below {', '.join(args.runs)}")
    filters = {
        "--rows": (args.rows, lambda r: {r["method"], *row_of(r).names}),
        "--targets": (args.targets, lambda r: {column_of(r), *r["target_domains"]}),
        "--tasks": (args.tasks, lambda r: {r["task"]}),
        "--seeds": (args.seeds, lambda r: {r["seed"]}),
    }
    passing = runs
    for flag, (asked, names) in filters.items():
        known = sorted({str(name) for item in runs for name in names(item.record)})
        for name in map(str, asked):
            if name not in known:
                raise UserError(f"{flag}: no run has '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")
        passing = [item for item in passing if not asked or names(item.record) & set(asked)]
    if not passing:
        raise UserError("no run passes all of --rows, --targets, --tasks and --seeds together")
    return passing


def draw_points(args: argparse.Namespace, found: Sequence[records.FoundRecord]) -> Plot:
    """t-SNE, UMAP or PCA of the features of runs."""
    if args.images < 4:
        raise UserError(f"--images {args.images}: at least 4 are needed")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: a whole number from 0 to {2**32 - 1} is needed")
    if len(found) > MOST_PANELS:
        first = ", ".join(str(item.folder) for item in found[:2])
        raise UserError(f"{len(found)} runs, and at most {MOST_PANELS} fit: give fewer run folders, such as {first}")
    drawn = [run_points(item.folder, args.by, args.split, args.images, args.seed, args.data) for item in found]
    panels, whats = [panel for panel, _ in drawn], list(dict.fromkeys(what for _, what in drawn))
    only_records = [item.record for item in found]
    if args.together:
        if len({panel.features.shape[1] for panel in panels}) > 1:
            raise UserError("the runs have features of different sizes, so they fit no common figure; drop --together")
        methods = dict.fromkeys(row_of(record).label for record in only_records)
        title = f"{', '.join(methods)}: {', '.join(dict.fromkeys(map(column_of, only_records)))}"
        names = [name for panel in panels for name in panel.names]
        panels = [features.Points(title, np.concatenate([panel.features for panel in panels]), names)]
    return features.points_plot(panels, only_records, args.method, "; ".join(whats), args.classes, args.seed)


def run_points(folder: Path, by: str, split: str, most: int, seed: int, data: str = "") -> tuple[features.Points, str]:
    """The features of a run's images, as the run compares them.

    Args:
        folder: the run's folder.
        by: `class` or `domain`: what the points are coloured by.
        split: `test`, `val` or `train`.
        most: of more images, a seeded draw of so many.
        seed: of the draw.
        data: folder above the data sets, to encode the images again; "": saved features.

    Returns:
        The points, and which images they are, for the caption.
    """
    import torch
    import torch.nn.functional as F

    from dassl_clip import trainers  # noqa: F401
    from dassl_clip.engine import run_features

    images = run_features.run_features(folder, split, data)
    record, trainer, count = images.record, images.trainer, len(images.labels)
    chosen, what = list(range(count)), run_features.SPLITS[split]
    if count > most:
        chosen = sorted(random.Random(seed).sample(chosen, most))
        what += f", a seeded draw of {most} of {count}"
    with torch.no_grad():
        content = images.features[chosen]
        content = content if trainer is None else trainer.content(content.to(trainer.device))
        content = F.normalize(content.float(), dim=-1).cpu().numpy()
    title = f"{shortened(row_of(record).label, 32)}: {column_of(record)}"
    if by == "class":
        names = [images.classnames[images.labels[index]] for index in chosen]
    else:
        domains = record["target_domains" if split == "test" else "source_domains"] or [record["dataset"]]
        names = [domains[min(images.domains[index], len(domains) - 1)] for index in chosen]
    return features.Points(title, content, names), what


def draw_setting(args: argparse.Namespace, found: Sequence[records.FoundRecord]) -> Plot:
    """Accuracy by a setting of a method; runs of other methods are left out where there are some of this one."""
    from dassl_clip.engine.run_features import SPLITS, setting_sweep

    runs = [item for item in found if args.kind in item.record] or found[:1]
    split = "test" if args.test else "val"
    read = [setting_sweep(item.folder, args.kind, args.values, split, args.data) for item in runs]
    axis = (declared.trainer_fact(setting_kinds()[args.kind], "setting_labels") or {}).get(args.kind, args.kind)
    drawn, sweeps = [record for record, _ in read], [sweep for _, sweep in read]
    return plots.setting_plot(drawn, sweeps, args.kind, axis, SPLITS[split], args.test)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and write a figure; 2 with one line where it cannot be drawn."""
    return guarded(lambda words: run(build_parser(*words[:1]).parse_args(words)), argv)
