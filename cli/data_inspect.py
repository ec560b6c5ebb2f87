"""`dassl-clip data inspect NAME --root DIR`: a sheet of images with the prompts they will get, and the class order."""

from __future__ import annotations

import argparse
import io
import random
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.cli.data_names import open_config
from dassl_clip.results.errors import UserError
from dassl_clip.results.files import write_bytes_atomically

TILE, MARGIN, LINES, CHARACTERS = 168, 8, 4, 27


def run(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Print classes and prompts, and draw the sheet."""
    from dassl_clip.clip.templates import resolve_templates
    from dassl_clip.datasets.verify import verify

    loader, cfg = open_config(args.name, args.root, pairs)
    if args.images < 1:
        raise UserError(f"--images {args.images}: at least one image a domain is needed")
    templates = resolve_templates(args.templates, cfg.DATASET.NAME)
    report = verify(loader, cfg)
    for finding in report.findings:
        print(f"{finding.level}: {finding.text}")
    if not report.images:
        return report.verdict
    more = f" (and {len(templates) - 1} more templates)" if len(templates) > 1 else ""
    print(f"{report.dataset}: {len(report.classes)} classes in label order, with their prompts{more}")
    for label, name in enumerate(report.classes):
        print(f"{label:>5}  {name}: {prompt(templates[0], name)}")
    rows = choose(report, args.images, args.seed)
    out = Path(args.out or f"{cfg.DATASET.NAME}.png").expanduser()
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}")
    picture = io.BytesIO()
    draw_sheet(rows, report.classes, templates[0]).save(picture, "PNG")
    write_bytes_atomically(out, picture.getvalue())
    print(f"Drew {sum(map(len, rows.values()))} images on {out}")
    return report.verdict


def prompt(template: str, name: str) -> str:
    """The text of a class, as trainers write it."""
    return template.format(name.replace("_", " "))


def choose(report: Any, number: int, seed: int) -> dict[str, list[Any]]:
    """Some images of each line of the report's table, of as many classes as possible."""
    draw, rows, start = random.Random(seed), {}, 0
    for count in report.counts:
        images = report.images[start : start + sum(count.images.values())]
        start += len(images)
        by_label: dict[int, list[Any]] = {}
        for image in draw.sample(images, len(images)):
            by_label.setdefault(image.label, []).append(image)
        groups, chosen = list(by_label.values()), []
        while groups and len(chosen) < number:
            chosen += [group.pop() for group in groups[: number - len(chosen)]]
            groups = [group for group in groups if group]
        rows[count.name] = sorted(chosen, key=lambda image: (image.label, image.key))
    return rows


def draw_sheet(rows: Mapping[str, Sequence[Any]], classes: Sequence[str], template: str) -> Any:
    """One row of pictures for each domain or part; below each its label and prompt."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    line = 13
    height = TILE + line * (LINES + 1) + 2 * MARGIN
    width = max(map(len, rows.values()), default=1)
    sheet = Image.new("RGB", (MARGIN + width * (TILE + MARGIN), len(rows) * (height + line) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, images) in enumerate(rows.items()):
        top = MARGIN + number * (height + line)
        pen.text((MARGIN, top), name, fill="black", font=font)
        for column, image in enumerate(images):
            left = MARGIN + column * (TILE + MARGIN)
            sheet.paste(thumbnail(image.path), (left, top + line + 2))
            text = f"{image.label}: {prompt(template, classes[image.label])}"
            for row, words in enumerate(textwrap.wrap(text, CHARACTERS)[:LINES]):
                pen.text((left, top + line + 4 + TILE + row * line), words, fill="black", font=font)
    return sheet


def thumbnail(path: str) -> Any:
    """The picture inside a square; a grey square with a cross if it cannot be read."""
    from PIL import Image, ImageDraw, ImageOps

    from dassl_clip.datasets.file_checks import read_image

    try:
        return ImageOps.pad(read_image(path), (TILE, TILE), color="lightgrey")
    except OSError:
        square = Image.new("RGB", (TILE, TILE), "lightgrey")
        ImageDraw.Draw(square).line((0, 0, TILE, TILE), fill="red", width=3)
        return square
