"""A sheet of images of a data set, a row for each domain or part, each with its label and the prompt it will get."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dassl_clip.engine.images import read_image
from dassl_clip.results.labels import display_name

TILE, MARGIN, LINES, CHARACTERS = 168, 8, 4, 27
Captions = Mapping[str, Sequence[tuple[str, str]]]  # name of a row -> path and text of each image


def prompt(template: str, name: str) -> str:
    """The text of a class, as trainers write it."""
    return template.format(display_name(name))


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


def captioned(rows: Mapping[str, Sequence[Any]], classes: Sequence[str], template: str) -> Captions:
    """Path of each image, and its label and prompt."""
    return {
        name: [(image.path, f"{image.label}: {prompt(template, classes[image.label])}") for image in images]
        for name, images in rows.items()
    }


def draw_sheet(rows: Captions) -> Image.Image:
    """One row of images under each name; below each image its text."""
    font = ImageFont.load_default()
    line = 13
    height = TILE + line * (LINES + 1) + 2 * MARGIN
    width = max(map(len, rows.values()), default=1)
    sheet = Image.new("RGB", (MARGIN + width * (TILE + MARGIN), len(rows) * (height + line) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, images) in enumerate(rows.items()):
        top = MARGIN + number * (height + line)
        pen.text((MARGIN, top), name, fill="black", font=font)
        for column, (path, text) in enumerate(images):
            left = MARGIN + column * (TILE + MARGIN)
            sheet.paste(thumbnail(path), (left, top + line + 2))
            for row, words in enumerate(textwrap.wrap(text, CHARACTERS)[:LINES]):
                pen.text((left, top + line + 4 + TILE + row * line), words, fill="black", font=font)
    return sheet


def thumbnail(path: str) -> Image.Image:
    """The image inside a square; a grey square with a cross if it cannot be read."""
    try:
        return ImageOps.pad(read_image(path), (TILE, TILE), color="lightgrey")
    except OSError:
        square = Image.new("RGB", (TILE, TILE), "lightgrey")
        ImageDraw.Draw(square).line((0, 0, TILE, TILE), fill="red", width=3)
        return square
