"""Your own images: `dassl-clip predict FOLDER --run RUN`, or zero-shot `dassl-clip predict FOLDER --names a,b,c`.

Images are read as in testing (the model's own preprocessing), so a tested image gets the scores of the test. A share
is the softmax over the classes of the scaled scores: how the method splits one whole among these classes, not how
likely it is that the image shows any of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl_clip.cli.arguments import Parser, add_import, check_format, command
from dassl_clip.engine.config import make_folder
from dassl_clip.engine.errors import printable
from dassl_clip.results import image_rows
from dassl_clip.results.errors import UserError
from dassl_clip.results.escaping import csv_text
from dassl_clip.results.files import write_text_atomically

COLUMNS = ("path", "rank", "class", "share")
SKIPPED_EXIT = 1
DEFAULT_BACKBONE = "IconsCLIP"


@dataclass
class Answers:
    """What came out for all images."""

    rows: list[tuple[str, int, str, float]]  # path, rank (from 1), class and share, best first for each image
    skipped: list[tuple[str, str]]  # path and reason of each file that could not be read
    facts: dict[str, Any]  # what classified them: method, backbone, prompt, ...


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip predict",
        description="Classify your own images with a finished run, or zero-shot with class names alone. "
        "Exit code 0: all were classified; 1: some files could not be read; 2: nothing could be done.",
        usage="%(prog)s IMAGE_OR_FOLDER [...] (--run RUN | --names a,b,c) [options]",
        epilog="examples:\n"
        "  dassl-clip predict photos --run output/fewshot/icons/METHOD/icons/shots16/line/seed1 --out preds.csv\n"
        "  dassl-clip predict photos --names 'cat,dog,no animal'",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="folders are read with all below them, FILE.parquet row by row (or FILE.parquet#ROW)",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="RUN",
                        help="finished run's folder, or exported file; its training data may be gone")  # fmt: skip
    source.add_argument("--names", metavar="NAMES_OR_FILE",
                        help="class names with commas, or a file with one per line: zero-shot, no run")  # fmt: skip
    parser.add_argument("--top", type=int, default=5, metavar="N", help="answers per image (default: 5)")
    parser.add_argument("--out", default="", metavar="FILE", help="write preds.csv or preds.json (default: a table)")
    parser.add_argument("--backbone", metavar="NAME", help=f"with --names (default: {DEFAULT_BACKBONE}, which is here)")
    parser.add_argument("--weights", metavar="FILE", help="with --names: file with the backbone's weights")
    parser.add_argument("--templates", metavar="NAME",
                        help="with --names: a set of templates, or one with {} (default: single)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read files (default: 0)")
    add_import(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Classify the images, and print or write the answers; 1 if files were skipped.

    Raises:
        UserError: arguments that do not fit together (before anything is loaded), or no image that can be read.
    """
    alone = [f"--{name}" for name in ("backbone", "weights", "templates") if getattr(args, name) is not None]
    if args.run and alone:
        raise UserError(f"{' and '.join(alone)} go with --names; a run brings its own backbone and prompts")
    for flag, least in (("top", 1), ("batch_size", 1), ("workers", 0)):
        if (value := getattr(args, flag)) < least:
            raise UserError(f"--{flag.replace('_', '-')} {value}: at least {least} is needed")
    out = Path(args.out).expanduser()
    if args.out:
        check_format(args.out)
        make_folder(out.parent, "--out")
    answers = predict(args)
    if args.out:
        write_text_atomically(out, render(answers, out.suffix.lower()))
        print(f"{len({row[0] for row in answers.rows})} images: {out}")
    else:
        print(table(answers))
    for path, reason in answers.skipped:
        print(printable(f"skipped: {path}: {reason}"), file=sys.stderr)
    if answers.skipped:
        print(f"{len(answers.skipped)} files could not be read and are not among the answers", file=sys.stderr)
    return SKIPPED_EXIT if answers.skipped else 0


def predict(args: argparse.Namespace) -> Answers:
    """Classify the images that the arguments name.

    Raises:
        UserError: there are no images, or none of them can be read.
    """
    from dassl_clip.clip.finite import check_rows
    from dassl_clip.datasets.own_images import find_images

    paths = find_images(args.images)
    scorer = open_names(args) if args.names else open_scorer(args, paths)
    rows: list[tuple[str, int, str, float]] = []
    skipped: list[tuple[str, str]] = []
    for good, images, bad in batches(paths, scorer.preprocess, args.batch_size, args.workers):
        skipped += [(shown(path), reason) for path, reason in bad]
        if good:
            scores = scorer.scores(images)
            check_rows(scores, "scores", [shown(path) for path in good])
            shares = scores.softmax(dim=1)
            best = shares.topk(min(args.top, shares.shape[1]), dim=1)
            for path, indices, values in zip(good, best.indices.tolist(), best.values.tolist()):
                found = zip(indices, values)
                rows += [(shown(path), rank, scorer.names[i], value) for rank, (i, value) in enumerate(found, start=1)]
    if not rows:
        raise UserError(f"none of the {len(paths)} files can be read as an image; the first: {': '.join(skipped[0])}")
    return Answers(rows, skipped, scorer.facts)


def batches(
    paths: Sequence[Path], preprocess: Callable, size: int, workers: int
) -> Iterator[tuple[list[Path], Any, list[tuple[Path, str]]]]:
    """Paths and images `[B, 3, H, W]` of what could be read, and paths and reasons of the rest, batch by batch.

    A bar on stderr shows the progress where that is a terminal.
    """
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    load = functools.partial(load_batch, preprocess)
    loader = DataLoader(paths, batch_size=size, num_workers=workers, collate_fn=load)  # type: ignore[arg-type]
    with tqdm(total=len(paths), desc="images", unit="", leave=False, disable=not sys.stderr.isatty()) as bar:
        for good, images, bad in loader:
            yield good, images, bad
            bar.update(len(good) + len(bad))


def load_batch(preprocess: Callable, paths: list[Path]) -> tuple[list[Path], Any, list[tuple[Path, str]]]:
    """One batch."""
    from PIL import UnidentifiedImageError
    from torch import stack

    from dassl_clip.engine.images import read_image

    good, bad = {}, []
    for path in paths:
        try:
            good[path] = preprocess(read_image(path))
        except UnidentifiedImageError:
            bad.append((path, "is empty" if not image_rows.size_of(path) else "is no image that can be decoded"))
        except OSError as error:
            bad.append((path, " ".join(str(error).split()) or type(error).__name__))
    return list(good), stack(list(good.values())) if good else None, bad


@dataclass
class Scorer:
    """What turns a batch of preprocessed images `[B, 3, H, W]` into scaled scores `[B, C]`."""

    names: list[str]
    preprocess: Any
    scores: Any
    facts: dict[str, Any]


def open_scorer(args: argparse.Namespace, paths: Sequence[Path]) -> Scorer:
    """The scorer of a finished run."""
    import torch

    from dassl_clip.engine.open_run import open_run

    trainer, record = open_run(args.run, [Path(image_rows.file_of(paths[0]))], imports=args.imports)
    keys = ("method", "config", "dataset", "task", "source_domains", "target_domains", "shots", "seed", "prompt")
    facts = {"run": str(args.run)} | {key: record[key] for key in keys} | {"backbone": record["backbone"]["name"]}

    @torch.no_grad()
    def scores(images: Any) -> Any:
        return trainer.model_inference(images.to(trainer.device)).float()

    facts["weights_hash"] = record["backbone"]["weights_hash"]
    return Scorer(trainer.classnames, trainer.backbone.preprocess(), scores, facts)


def open_names(args: argparse.Namespace) -> Scorer:
    """The zero-shot classifier of class names."""
    import torch

    from dassl_clip.clip.backbone import load_backbone
    from dassl_clip.clip.templates import resolve_templates
    from dassl_clip.clip.zeroshot import zeroshot_weights
    from dassl_clip.datasets.own_images import given_names

    names, templates = given_names(args.names), resolve_templates(args.templates or "single")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = load_backbone(args.backbone or DEFAULT_BACKBONE, args.weights or "", device=device)
    weights = zeroshot_weights(backbone.text, names, templates)
    facts = {"method": "zero-shot", "backbone": backbone.name, "weights_hash": backbone.weights_hash}
    facts["prompt"] = " | ".join(templates)

    @torch.no_grad()
    def scores(images: Any) -> Any:
        return backbone.logit_scale * backbone.encode_image(images.to(device)).float() @ weights

    return Scorer(names, backbone.preprocess(), scores, facts)


def render(answers: Answers, suffix: str) -> str:
    """The answers as the text of a CSV or JSON file."""
    if suffix == ".json":
        content = {
            **answers.facts,
            "predictions": [dict(zip(COLUMNS, row)) for row in answers.rows],
            "skipped": [{"path": path, "reason": reason} for path, reason in answers.skipped],
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    return csv_text([COLUMNS, *((path, rank, name, f"{share:.6f}") for path, rank, name, share in answers.rows)])


def table(answers: Answers) -> str:
    """One line per image, the best class first, and what classified it."""
    from tabulate import tabulate

    lines: dict[str, list[str]] = {}
    for path, _, name, share in answers.rows:
        lines.setdefault(path, []).append(f"{name} {100 * share:.1f} %")
    width = max(map(len, lines.values()))
    header = ["image", *(f"{rank}." for rank in range(1, width + 1))]
    body = tabulate([[path, *cells] for path, cells in lines.items()], header, disable_numparse=True)
    facts = answers.facts
    config = f" ({facts['config']})" if facts.get("config") else ""
    prompt = facts["prompt"] if len(facts["prompt"]) <= 100 else f"{facts['prompt'][:97]}..."
    by = f"{facts['method']}{config}, backbone {facts['backbone']}, prompt: {prompt}"
    return f"{body}\nby {by}; shares among these classes"


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that can be printed and written, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


main = command(build_parser, run, "interrupted: nothing was written")
