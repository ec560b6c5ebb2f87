"""Your own images: `dassl-clip predict FOLDER --run RUN`, or zero-shot `dassl-clip predict FOLDER --names a,b,c`.

Images are read as in testing (the model's own preprocessing), so a tested image gets the scores of the test. A share
is the softmax over the classes of the scaled scores: how the method splits one whole among these classes, not how
likely it is that the image shows any of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dassl_clip.cli import predict_scores
from dassl_clip.cli.arguments import Parser, add_import, check_format, command, refuse_among_images
from dassl_clip.clip.names import check_name
from dassl_clip.engine import declared
from dassl_clip.engine.catalogue import match_trainer
from dassl_clip.engine.config import declared_config, decode, make_folder, set_key
from dassl_clip.engine.errors import printable
from dassl_clip.engine.overrides import Pairs
from dassl_clip.results.errors import UserError
from dassl_clip.results.escaping import csv_text
from dassl_clip.results.files import write_text_atomically
from dassl_clip.results.own_images import find_images, given_names

COLUMNS = ("path", "rank", "class", "share")
REJECTED = "(rejected)"  # the class of an image whose best share is too small
SKIPPED_EXIT = 1
SHEET_ROWS, SHEET_COLUMNS = 4, 6  # images of the sheet
EXPORT = ".safetensors"


@dataclass
class Answers:
    """What came out for all images."""

    rows: list[tuple[str, int, str, float]]  # path, rank (from 1), class and share, best first for each image
    skipped: list[tuple[str, str]]  # path and reason of each file that could not be read
    facts: dict[str, Any]  # what classified them: method, backbone, prompt, ...
    best: list[tuple[float, Path, str]] = field(default_factory=list)  # share and name of the best class of each image


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip predict",
        description="Classify your own images with a finished run, by a method that needs no labels, or zero-shot with "
        "class names alone. Exit code 0: all were classified; 1: some files could not be read; 2: nothing was done.",
        usage="%(prog)s IMAGE_OR_FOLDER [...] (--run RUN | --names a,b,c [--method METHOD]) [options] [KEY VALUE ...]",
        epilog="examples:\n"
        "  dassl-clip predict photos --run output/fewshot/icons/METHOD/icons/shots16/line/seed1 --out preds.csv\n"
        "  dassl-clip predict photos --names 'cat,dog,no animal' --backbone ViT-B/16 --method METHOD",
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
                        help="class names with commas, or a file with one per line: no run")  # fmt: skip
    parser.add_argument("--method", metavar="METHOD",
                        help="with --names: a method that needs no labels; it sees all images "
                        "(default: zero-shot)")  # fmt: skip
    parser.add_argument("--top", type=int, default=5, metavar="N", help="answers per image (default: 5)")
    parser.add_argument("--out", default="", metavar="FILE",
                        help="write preds.csv (and preds.facts.json) or preds.json (default: a table)")  # fmt: skip
    parser.add_argument("--export", default="", metavar="FILE", help="with --method: write what was fitted, for --run")
    parser.add_argument("--reject-below", type=float, default=0.0, metavar="P",
                        help=f"images whose best share is below P, 0 to 1, get the class {REJECTED}")  # fmt: skip
    parser.add_argument("--sheet", default="", metavar="FILE",
                        help=f"draw the {SHEET_ROWS * SHEET_COLUMNS} least certain images, a png file")  # fmt: skip
    parser.add_argument("--backbone", metavar="NAME", help="with --names; only the embedded icons need none")
    parser.add_argument("--weights", metavar="FILE", help="with --names: file with the backbone's weights")
    parser.add_argument("--templates", metavar="NAME",
                        help="with --names: a set of templates, or one with {} (default: single, or the "
                        "method's)")  # fmt: skip
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 64, or the method's")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read files (default: 0)")
    add_import(parser)
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    """Classify the images, and print or write the answers; 1 if files were skipped.

    Raises:
        UserError: arguments that do not fit together (before anything is loaded), or no image that can be read.
    """
    check_arguments(args, pairs)
    out = Path(args.out).expanduser()
    answers = predict(args, pairs)
    if args.out:
        write_text_atomically(out, render(answers, out.suffix.lower()))
        beside = out.with_suffix(".facts.json")
        if out.suffix.lower() == ".csv":
            write_text_atomically(beside, render_facts(answers))
        facts = f" (what classified them: {beside})" if out.suffix.lower() == ".csv" else ""
        print(f"{len(answers.best)} images: {out}{facts}")
        print(footer(answers))
    else:
        print(table(answers))
    if args.reject_below:
        count, total = answers.facts["rejected"], len(answers.best)
        print(f"{count} of {total} images are {REJECTED}: their best share is below {args.reject_below:g}")
    if args.sheet:
        draw_least_certain(answers, Path(args.sheet).expanduser())
    for path, reason in answers.skipped:
        print(printable(f"skipped: {path}: {reason}"), file=sys.stderr)
    if answers.skipped:
        print(f"{len(answers.skipped)} files could not be read and are not among the answers", file=sys.stderr)
    return SKIPPED_EXIT if answers.skipped else 0


def check_arguments(args: argparse.Namespace, pairs: Pairs) -> None:
    """Refuse arguments that do not fit together, and make the folders of files that are written.

    Raises:
        UserError: naming them.
    """
    alone = [f"--{name}" for name in ("method", "backbone", "weights", "templates") if getattr(args, name) is not None]
    if args.run and alone:
        raise UserError(f"{' and '.join(alone)} go with --names; a run brings its own backbone and prompts")
    if (pairs or args.export) and not args.method:
        raise UserError(f"{'--export' if args.export else f'{pairs[0][0]} (KEY VALUE)'} goes with --method")
    if args.method and not args.imports:
        check_method(match_trainer(args.method, declared.trainer_names()), pairs)
    if args.names:
        given_names(args.names)
    if args.backbone and not args.imports:  # which may add architectures
        check_name(args.backbone)
    for flag, least in (("top", 1), ("batch_size", 1), ("workers", 0)):
        if (value := getattr(args, flag)) is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} {value}: at least {least} is needed")
    if not 0 <= args.reject_below <= 1:
        raise UserError(f"--reject-below {args.reject_below:g}: a share from 0 to 1 is needed, such as 0.5")
    if args.out:
        check_format(args.out)
        if args.names and Path(args.out).expanduser().resolve() == Path(args.names).expanduser().resolve():
            raise UserError(f"--out {args.out} is the file of the class names, which would be lost; give another file")
    for flag, ending in (("export", EXPORT), ("sheet", ".png")):
        name = getattr(args, flag)
        if name and Path(name).suffix.lower() != ending:
            raise UserError(f"--{flag} {name}: the file should end in {ending}")
    if args.sheet:
        refuse_among_images(args.sheet, "--sheet", args.images)
    for flag in ("out", "export", "sheet"):
        if getattr(args, flag):
            make_folder(Path(getattr(args, flag)).expanduser().parent, f"--{flag}")


def check_method(method: str, pairs: Pairs) -> None:
    """Refuse a method of ours that trains on labels, and settings that are not there, before torch is imported.

    Raises:
        UserError: naming them.
    """
    if declared.trainer_fact(method, "trains_on_labels"):
        raise predict_scores.trained_on_labels(method)
    cfg = declared_config()
    for key, text in pairs:
        set_key(cfg, key, decode(text), "the command line")


def predict(args: argparse.Namespace, pairs: Pairs = ()) -> Answers:
    """Classify the images that the arguments name.

    Raises:
        UserError: there are no images, or none of them can be read.
    """
    paths = find_images(args.images)
    if args.names:
        predict_scores.chosen_backbone(args, paths)
    from dassl_clip.clip.finite import check_rows

    if args.run:
        scores = predict_scores.of_run(args, paths)
    elif args.method:
        scores = predict_scores.of_method(args, pairs, paths)
    else:
        scores = predict_scores.of_names(args, paths)
    answers = Answers([], [], scores.facts)
    for good, logits, bad in scores.batches:
        answers.skipped += [(shown(path), reason) for path, reason in bad]
        if good:
            check_rows(logits, "scores", [shown(path) for path in good])
            shares = logits.softmax(dim=1)
            best = shares.topk(min(args.top, shares.shape[1]), dim=1)
            for path, indices, values in zip(good, best.indices.tolist(), best.values.tolist()):
                answers.best.append((values[0], path, scores.names[indices[0]]))
                found = list(enumerate(zip((scores.names[index] for index in indices), values), start=1))
                if values[0] < args.reject_below:
                    found = [(1, (REJECTED, values[0]))]
                answers.rows += [(shown(path), rank, name, value) for rank, (name, value) in found]
    if not answers.rows:
        first = ": ".join(answers.skipped[0])
        raise UserError(f"none of the {len(paths)} files can be read as an image; the first: {first}")
    if args.reject_below:
        rejected = sum(name == REJECTED for _, _, name, _ in answers.rows)
        answers.facts |= {"reject_below": args.reject_below, "rejected": rejected}
    if args.export:
        export_fitted(Path(args.export).expanduser(), *scores.fitted)
    return answers


def export_fitted(path: Path, trainer: Any, record: dict[str, Any]) -> None:
    """Write what a method has learned from the images, for `--run`."""
    from dassl_clip.engine.export import make_export, save_export

    save_export(make_export(trainer, trainer.run_cfg, record), path)
    print(f"exported: {path}")


def draw_least_certain(answers: Answers, path: Path) -> None:
    """Draw the images with the smallest best shares, the least certain first."""
    from dassl_clip.cli.data_sheet import draw_sheet

    least = sorted(answers.best, key=lambda found: found[0])[: SHEET_ROWS * SHEET_COLUMNS]
    starts = range(0, len(least), SHEET_COLUMNS)
    rows = {f"least certain, from {start + 1} on": least[start : start + SHEET_COLUMNS] for start in starts}
    captions = {
        name: [(str(place), f"{word} {100 * share:.1f} % {shown(place.name)}") for share, place, word in found]
        for name, found in rows.items()
    }
    draw_sheet(captions).save(path, "PNG")
    print(f"the {len(least)} least certain images: {path}")


def render(answers: Answers, suffix: str) -> str:
    """The answers as the text of a CSV or JSON file."""
    if suffix == ".json":
        return render_facts(answers, {"predictions": [dict(zip(COLUMNS, row)) for row in answers.rows]})
    return csv_text([COLUMNS, *((path, rank, name, f"{share:.6f}") for path, rank, name, share in answers.rows)])


def render_facts(answers: Answers, more: dict[str, Any] | None = None) -> str:
    """What classified the images, and what was left out, as the text of a JSON file."""
    skipped = [{"path": path, "reason": reason} for path, reason in answers.skipped]
    content = {**answers.facts, **(more or {}), "skipped": skipped}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def table(answers: Answers) -> str:
    """One line per image, the best class first, and what classified it."""
    from tabulate import tabulate

    lines: dict[str, list[str]] = {}
    for path, _, name, share in answers.rows:
        lines.setdefault(path, []).append(f"{name} {100 * share:.1f} %")
    width = max(map(len, lines.values()))
    header = ["image", *(f"{rank}." for rank in range(1, width + 1))]
    body = tabulate([[path, *cells] for path, cells in lines.items()], header, disable_numparse=True)
    return f"{body}\n{footer(answers)}"


def footer(answers: Answers) -> str:
    """What classified the images, in a line."""
    facts = answers.facts
    config = f" ({facts['config']})" if facts.get("config") else ""
    prompt = facts["prompt"] if len(facts["prompt"]) <= 100 else f"{facts['prompt'][:97]}..."
    backbone = f"{facts['backbone']} (weights {facts['weights_hash'][:12]})"
    return f"by {facts['method']}{config}, backbone {backbone}, prompt: {prompt}; shares among these classes"


def shown(path: str | os.PathLike[str]) -> str:
    """A path as text that can be printed and written, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")


main = command(build_parser, run, "interrupted: nothing was written")
