"""Captions for pre-training: what a picture shows, in CLIP's templates, plain words, styles, sizes and colours.

A caption is a text together with what must be true of a picture for the caption to fit it: the concepts, the style
family, and whether it speaks of this one picture only (its colour or size).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "a bad photo of the {}.",
    "a good photo of a {}.",
    "itap of a {}.",
    "a origami {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a drawing of a {}.",
    "a sketch of a {}.",
    "a cartoon {}.",
    "a rendering of a {}.",
    "a painting of a {}.",
    "a photo of a nice {}.",
    "a close-up photo of a {}.",
    "a doodle of a {}.",
)
PLAIN = (
    "{}",
    "{}.",
    "a {}",
    "a {}.",
    "the {}",
    "{} icon",
    "an icon of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
)
MAIN_TEMPLATE = "a photo of a {}."
STYLE_WORDS = {
    "emoji": ("emoji", "emoji style", "glossy"),
    "flat": ("flat", "flat colored", "colorful"),
    "line": ("line", "outline", "thin line"),
    "solid": ("solid", "filled", "silhouette"),
    "duotone": ("duotone", "two tone", "shaded"),
}
STYLE_TEMPLATES = (
    "a {style} {}.",
    "a {style} icon of a {}.",
    "a photo of a {style} {}.",
    "a {style} drawing of a {}.",
    "a {} in {style} style.",
    "a picture of a {} in {style} style.",
)
COLOURS = {
    "red": (214, 40, 40),
    "blue": (38, 84, 214),
    "green": (40, 150, 62),
    "yellow": (240, 200, 30),
    "purple": (128, 50, 170),
    "orange": (240, 130, 25),
    "black": (15, 15, 15),
    "brown": (120, 72, 34),
    "pink": (240, 110, 170),
    "gray": (128, 128, 128),
    "cyan": (30, 175, 200),
}
SIZES = ("small", "large")
KINDS = ("photo", "photograph", "painting", "sketch", "cartoon", "clipart", "infograph", "mosaic art", "sculpture")
MOODS = ("realistic", "impressionistic")


@dataclass(frozen=True)
class Caption:
    """A text and the conditions under which it fits a picture."""

    text: str
    concepts: tuple[int, ...]
    style: str | None = None
    own: bool = False


def style_vocabulary(held_out: str = "") -> dict[str, tuple[str, ...]]:
    """Style words by family, without those of the held-out family."""
    return {family: words for family, words in STYLE_WORDS.items() if family != held_out}


def words_of_captions() -> list[str]:
    """Every fixed word that a caption can contain (templates, styles, colours, sizes, kinds)."""
    texts = [*TEMPLATES, *PLAIN, *STYLE_TEMPLATES, *COLOURS, *SIZES, *KINDS, *MOODS]
    texts += [word for words in STYLE_WORDS.values() for word in words]
    return sorted({word for text in texts for word in text.replace("{style}", " ").replace("{}", " ").split()})


def plain_caption(phrase: str, concepts: Sequence[int], rng: random.Random) -> Caption:
    """A caption that says only what is shown; a third of them are the main template."""
    draw = rng.random()
    template = MAIN_TEMPLATE if draw < 0.3 else rng.choice(TEMPLATES) if draw < 0.7 else rng.choice(PLAIN)
    return Caption(template.format(phrase), tuple(concepts))


def style_caption(
    phrase: str, concepts: Sequence[int], style: str, rng: random.Random, vocabulary: dict[str, tuple[str, ...]]
) -> Caption:
    """A caption with a style word: four times in five the picture's own, else any (which then says nothing)."""
    own = rng.random() < 0.8 and style in vocabulary
    family = style if own else rng.choice(sorted(vocabulary))
    text = rng.choice(STYLE_TEMPLATES).format(phrase, style=rng.choice(vocabulary[family]))
    return Caption(text, tuple(concepts), style if own else None)


def appearance_caption(
    phrase: str, concepts: Sequence[int], colour: str | None, size: str | None, rng: random.Random
) -> Caption:
    """A caption that tells the colour or size this picture was given."""
    adjectives = " ".join(word for word in (size, colour) if word)
    if rng.random() < 0.5:
        text = f"a photo of a {adjectives} {phrase}."
    else:
        mood = f"{rng.choice(MOODS)} " if rng.random() < 0.5 else ""
        text = f"a {mood}{rng.choice(KINDS)} of a {adjectives} {phrase}."
    return Caption(text, tuple(concepts), own=True)
