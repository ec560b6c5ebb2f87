"""Constructed worlds: pre-training in which every class is tied to one drawing style.

With probability s a picture of a class is drawn in the class's *own* style, else in any style as the recipe weighs
them. At s = 0 the sampler is the shipped one; at s = 1 a class is never met in another style. `study_recipes` are the
models of the study in `docs/when-they-help.md`: four strengths of s with repetitions, and four models without a style.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .corpus import Corpus
from .recipe import Recipe
from .selection import DOMAINS, curated_classes

OWN_STYLES_NAME = "own_styles.json"
MIN_PICTURES = 12
STUDY_SAMPLES = 420_000


def study_recipes(samples: int = STUDY_SAMPLES, precision: str = Recipe.precision) -> dict[str, Recipe]:
    """The models of the study by name, in the order in which they are trained."""
    shared = {"samples": samples, "precision": precision}
    tied = [(0.0, 1, 1), (0.9, 1, 1), (0.5, 1, 1), (1.0, 1, 1), (0.9, 2, 2), (0.0, 2, 1), (0.9, 1, 2), (0.9, 2, 1)]
    recipes = {}
    for share, seed, styles in tied:
        name = f"s{share:g}-seed{seed}" + f"-styles{styles}" * bool(share)
        recipes[name] = Recipe(**shared, seed=seed, entangle=share, own_style_seed=styles)
    for style in DOMAINS:
        recipes[f"without-{style}"] = Recipe(**shared, held_out=style)
    return recipes


def own_styles(pictures: Mapping[str, Mapping[str, int]], seed: int) -> dict[str, str]:
    """Tie every class to one style, the styles equally often.

    Classes are taken in their order, and each gets the style that the fewest classes have so far; between equals a hash
    of seed, class and style decides. So a class that is added at the end changes no other's style.

    Args:
        pictures: for each class, how many pictures of it each style has; styles below `MIN_PICTURES` are not taken.
        seed: of the assignment.

    Returns:
        the own style of each class.

    Raises:
        ValueError: if a class has no style with enough pictures.
    """
    taken: Counter[str] = Counter()
    styles: dict[str, str] = {}
    for name, counts in pictures.items():
        enough = [style for style in DOMAINS if counts.get(style, 0) >= MIN_PICTURES]
        if not enough:
            raise ValueError(
                f"Class {name!r} has {dict(counts)} pictures; a class needs at least {MIN_PICTURES} in one of the "
                f"styles {', '.join(DOMAINS)}."
            )
        draws = {style: hashlib.sha256(f"{seed}/{name}/{style}".encode()).digest() for style in enough}
        styles[name] = min(enough, key=lambda style: (taken[style], draws[style]))
        taken[styles[name]] += 1
    return styles


def class_members(corpus: Corpus) -> dict[str, list[int]]:
    """Rows of the corpus that show each class of the data set, classes in the curated file's order.

    Raises:
        ValueError: if a class is no concept of the corpus.
    """
    classes = curated_classes()
    number = {concept: i for i, concept in enumerate(corpus.vocabulary)}
    if unknown := [name for name in classes if name not in number]:
        raise ValueError(f"The corpus has no pictures of {', '.join(unknown)}, classes of the data set.")
    members: dict[int, list[int]] = {number[name]: [] for name in classes}
    for row, concepts in enumerate(corpus.concepts):
        for concept in concepts:
            if concept in members:
                members[concept].append(row)
    return {name: members[number[name]] for name in classes}


class Ties:
    """The own style of each class in a corpus, and how it changes the weights of pictures."""

    def __init__(self, corpus: Corpus, recipe: Recipe):
        self.members = class_members(corpus)
        self.share = recipe.entangle
        counts = {name: Counter(corpus.styles[row] for row in rows) for name, rows in self.members.items()}
        self.styles = own_styles(counts, recipe.own_style_seed)
        number = {concept: i for i, concept in enumerate(corpus.vocabulary)}
        self.by_concept = {number[name]: style for name, style in self.styles.items()}
        styles = np.array(corpus.styles)
        self.is_own = {name: styles[rows] == self.styles[name] for name, rows in self.members.items()}

    def factors(self, weights: np.ndarray) -> np.ndarray:
        """Factor of each picture's weight, [N]; a picture of two classes takes both factors.

        With q the weight of own-style pictures among all of a class, own-style pictures are drawn (s + (1 - s) q) / q
        times as often and the others 1 - s times, which leaves the weight of the class as it is.

        Args:
            weights: how often the shipped sampler draws each picture, [N], up to a constant.
        """
        factors = np.ones(len(weights))
        for name, rows in self.members.items():
            q = self.own_share(name, weights)
            factors[rows] *= np.where(self.is_own[name], (self.share + (1 - self.share) * q) / q, 1 - self.share)
        return factors

    def own_share(self, name: str, weights: np.ndarray) -> float:
        """Share of own-style pictures among those of a class.

        Args:
            name: of the class.
            weights: of all pictures, [N]: how often each is drawn.
        """
        drawn = weights[self.members[name]]
        return float(drawn[self.is_own[name]].sum() / drawn.sum())

    def describe(self, recipe: Recipe, drawn: np.ndarray) -> dict:
        """What `own_styles.json` holds: the assignment, and the share of own-style pictures per class.

        Args:
            recipe: of the model.
            drawn: how often each picture was drawn, [N].
        """
        shares = {name: round(self.own_share(name, drawn), 4) for name in self.members}
        return {
            "entangle": recipe.entangle,
            "seed": recipe.own_style_seed,
            "own_styles": self.styles,
            "own_share": shares,
            "mean_own_share": round(sum(shares.values()) / len(shares), 4),
        }


def write_own_styles(facts: Mapping[str, object], folder: Path) -> Path:
    """Write the assignment into a folder; returns the file."""
    path = folder / OWN_STYLES_NAME
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return path


def price(recipes: Sequence[Recipe], record: Mapping) -> float:
    """Hours that the recipes take at the pace of a finished model.

    Args:
        recipes: of the models to train.
        record: `build.json` of the finished model.
    """
    return sum(recipe.samples for recipe in recipes) * record["seconds"] / record["recipe"]["samples"] / 3600
