"""The recipe of the pre-training: every number that decides the weights, and what each step does."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .views import Looks


@dataclass(frozen=True)
class Phase:
    """What one step trains on."""

    rate: float
    words: float  # weight of the word loss
    pairs: bool  # whether captions are read
    grouped: int  # pictures that come in groups of one concept in several styles
    pixels: int


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the pictures and their names."""

    samples: int = 680_000
    seed: int = 1
    held_out: str = ""
    entangle: float = 0.0  # probability that a picture of a class is drawn in the class's own style
    own_style_seed: int = 1
    precision: str = "bfloat16"  # of the image tower
    batch: int = 256
    word_share: float = 0.33
    style_share: float = 0.28
    full_size_from: float = 0.55
    low_pixels: int = 48
    lr: float = 2e-3
    style_lr: float = 8e-4
    warm_up: int = 150
    grouped_share: float = 0.75
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    word_weight: float = 0.3
    word_scale: float = 16.0
    style_captions: float = 0.45
    appearance_captions: float = 0.15
    name_captions: float = 0.15
    lexicon_boost: float = 5.0
    style_weights: tuple[tuple[str, float], ...] = (
        ("emoji", 4.0), ("flat", 4.0), ("line", 1.0), ("solid", 1.2), ("duotone", 1.5),
    )  # fmt: skip
    looks: Looks = field(default_factory=Looks)
    architecture: tuple[tuple[str, object], ...] = (
        ("pixels", 64), ("vision_width", 32), ("vision_layers", (1, 2, 2, 1)), ("embed_dim", 256),
        ("context_length", 24), ("text_width", 128), ("text_heads", 4), ("text_layers", 2),
        ("mean", (0.8, 0.8, 0.8)), ("std", (0.33, 0.33, 0.33)),
    )  # fmt: skip

    def describe(self) -> dict:
        """The recipe as plain data; ties of classes to styles, and the precision, only where they are not the usual."""
        left_out = () if self.entangle else ("entangle", "own_style_seed")
        left_out += ("precision",) if self.precision == "bfloat16" else ()
        return {k: v for k, v in json.loads(json.dumps(asdict(self))).items() if k not in left_out}

    def sha256(self, *files: Path) -> str:
        """Hash of the recipe and of the files that it reads, hex."""
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for path in files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return self.samples // self.batch

    def phase(self, step: int) -> Phase:
        """What step number `step` does."""
        style_from = round(self.steps * (1 - self.style_share))
        pairs = step >= round(self.steps * self.word_share)
        full = step >= round(self.steps * self.full_size_from)
        pixels = dict(self.architecture)["pixels"] if full else self.low_pixels
        if step >= style_from:
            rate = learning_rate(step, style_from, self.steps, self.style_lr, self.warm_up)
            return Phase(rate, 0.0, True, round(self.grouped_share * self.batch), pixels)
        rate = learning_rate(step, 0, style_from, self.lr, self.warm_up)
        return Phase(rate, self.word_weight if pairs else 1.0, pairs, 0, pixels)


def learning_rate(step: int, first: int, last: int, peak: float, warm_up: int) -> float:
    """Linear warm-up, then a cosine to zero, over the steps first <= step < last."""
    done = step - first
    if done < warm_up:
        return peak * (done + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / max(1, last - first - warm_up)))
