"""Batches for pre-training: which pictures, under which captions, in which views, and what fits what."""

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from .captions import COLOURS, SIZES, Caption, appearance_caption, plain_caption, style_caption, style_vocabulary
from .corpus import Corpus
from .names import read_lexicon
from .recipe import Phase, Recipe
from .views import paint, place
from .worlds import Ties


class Sampler:
    """Draws pictures and the concept that each caption is about; with `Recipe.entangle`, classes in their own style."""

    def __init__(self, corpus: Corpus, recipe: Recipe):
        weights = dict(recipe.style_weights)
        lexicon = set(read_lexicon()["concepts"])
        style = np.array([weights[name] for name in corpus.styles])
        members: list[list[int]] = [[] for _ in corpus.vocabulary]
        for row, concepts in enumerate(corpus.concepts):
            for concept in concepts:
                members[concept].append(row)
        share = np.array(
            [
                math.sqrt(len(rows)) * (recipe.lexicon_boost if name in lexicon else 1.0)
                for name, rows in zip(corpus.vocabulary, members)
            ]
        )
        self.share = share / share.sum()
        total = np.array([style[rows].sum() for rows in members])
        self.affinity = [
            self.share[concepts] * style[row] / total[concepts] for row, concepts in enumerate(corpus.concepts)
        ]
        self.weights = torch.tensor([float(values.sum()) for values in self.affinity], dtype=torch.float64)
        by_style: list[defaultdict[str, list[int]]] = [defaultdict(list) for _ in corpus.vocabulary]
        for concept, rows in enumerate(members):
            for row in rows:
                by_style[concept][corpus.styles[row]].append(row)
        self.by_style = by_style
        many = np.array([len(groups) >= 3 for groups in by_style])
        self.group_share = self.share * many / (self.share * many).sum()
        self.concepts = corpus.concepts
        self.ties = Ties(corpus, recipe) if recipe.entangle else None
        self.factors = np.ones(len(corpus.concepts))
        if self.ties is not None:
            self.factors = self.ties.factors(self.weights.numpy())
            self.weights *= torch.from_numpy(self.factors)

    def concept(self, row: int, rng: random.Random) -> int:
        """One of the picture's concepts, rare ones more often."""
        return rng.choices(self.concepts[row], weights=self.affinity[row])[0]

    def mixed(self, n: int, rng: random.Random, generator: torch.Generator) -> list[tuple[int, int]]:
        """Pairs (picture, concept), each picture drawn by its weight."""
        rows = torch.multinomial(self.weights, n, replacement=False, generator=generator).tolist()
        return [(row, self.concept(row, rng)) for row in rows]

    def grouped(self, n: int, rng: random.Random) -> list[tuple[int, int]]:
        """Pairs in groups of one concept drawn in up to four styles.

        Where classes are tied to styles, each picture of a class's group is in the own style with probability s, and
        pictures of one style are drawn by their factors; a style whose pictures are never drawn is left out.
        """
        pairs: list[tuple[int, int]] = []
        while len(pairs) < n:
            concept = rng.choices(range(len(self.group_share)), weights=self.group_share)[0]
            styles = sorted(self.by_style[concept])
            if self.ties is None:
                for style in rng.sample(styles, min(4, len(styles))):
                    pairs.append((rng.choice(self.by_style[concept][style]), concept))
                continue
            own = self.ties.by_concept.get(concept)
            drawn = {style: self.factors[self.by_style[concept][style]] for style in styles}
            styles = [style for style in styles if drawn[style].any()]
            for style in rng.sample(styles, min(4, len(styles))):
                if own in styles and rng.random() < self.ties.share:
                    style = own
                pairs.append((rng.choices(self.by_style[concept][style], weights=drawn[style])[0], concept))
        return pairs[:n]


class Captioner:
    """Writes a caption for a drawn picture and remembers the token ids of texts."""

    def __init__(self, corpus: Corpus, recipe: Recipe, tokenizer: SimpleTokenizer):
        self.corpus, self.recipe, self.tokenizer = corpus, recipe, tokenizer
        self.styles = style_vocabulary(recipe.held_out)

    def caption(self, row: int, concept: int, rng: random.Random) -> tuple[Caption, str | None, str | None]:
        """A caption, and the colour and size that it asks of the view."""
        corpus, recipe = self.corpus, self.recipe
        phrase, concepts = corpus.vocabulary[concept], [concept]
        if rng.random() < recipe.name_captions:
            phrase, concepts = corpus.phrases[row], corpus.concepts[row]
        draw = rng.random()
        if draw < recipe.style_captions:
            return style_caption(phrase, concepts, corpus.styles[row], rng, self.styles), None, None
        if draw < recipe.style_captions + recipe.appearance_captions:
            size = rng.choice(SIZES) if rng.random() < 0.5 else None
            coloured = not corpus.palette[row] and (size is None or rng.random() < 0.5)
            colour = rng.choice(sorted(COLOURS)) if coloured else None
            if size or colour:
                return appearance_caption(phrase, concepts, colour, size, rng), colour, size
        return plain_caption(phrase, concepts, rng), None, None

    def tokens(self, captions: Sequence[Caption]) -> Tensor:
        """Token ids [B, S], cut after the longest end of text."""
        ids = self.tokenizer([caption.text for caption in captions])
        return ids[:, : int(ids.argmax(dim=1).max()) + 1]


def fits(captions: Sequence[Caption], shown: Tensor, styles: Sequence[str]) -> Tensor:
    """Which captions fit which pictures of a batch.

    Args:
        captions: B captions; caption i was written for picture i.
        shown: bool [B, K], the concepts of each picture.
        styles: the style of each picture.

    Returns:
        bool [B, B], picture by caption; the diagonal is true.
    """
    n, k = shown.shape
    asked = torch.zeros(n, k)
    for column, caption in enumerate(captions):
        asked[column, list(caption.concepts)] = 1
    match = shown.float() @ asked.T >= asked.sum(dim=1) - 0.5
    names = sorted(set(styles))
    number = torch.tensor([names.index(style) for style in styles])
    wanted = torch.tensor([names.index(c.style) if c.style in names else -1 for c in captions])
    match &= (wanted[None] < 0) | (number[:, None] == wanted[None])
    own = torch.tensor([caption.own for caption in captions])
    match[:, own] = False
    match.fill_diagonal_(True)
    return match


@dataclass(frozen=True)
class Batch:
    """One step's input."""

    views: Tensor  # [B, 3, H, H], normalised
    shown: Tensor  # bool [B, K], the concepts of each picture
    ids: Tensor  # [B, S], token ids of the captions
    match: Tensor  # bool [B, B], picture by caption


class Batches:
    """Draws batches from a corpus; the same seed gives the same ones."""

    def __init__(self, corpus: Corpus, recipe: Recipe, tokenizer: SimpleTokenizer):
        self.corpus, self.recipe = corpus, recipe
        self.rng, self.generator = random.Random(recipe.seed), torch.Generator().manual_seed(recipe.seed)
        self.sampler, self.captioner = Sampler(corpus, recipe), Captioner(corpus, recipe, tokenizer)
        self.pictures, self.regions = torch.from_numpy(corpus.pictures), torch.from_numpy(corpus.regions)
        self.palette = torch.from_numpy(corpus.palette)
        architecture = dict(recipe.architecture)
        self.mean, self.std = (torch.tensor(architecture[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
        self.drawn = np.zeros(len(corpus.concepts), dtype=np.int64)  # how often each picture was drawn

    def draw(self, phase: Phase) -> Batch:
        """The next batch of a phase."""
        looks, generator = self.recipe.looks, self.generator
        pairs = self.sampler.grouped(phase.grouped, self.rng)
        pairs += self.sampler.mixed(self.recipe.batch - phase.grouped, self.rng, generator)
        written = [self.captioner.caption(row, concept, self.rng) for row, concept in pairs]
        captions, colours, sizes = ([entry[i] for entry in written] for i in range(3))
        rows = torch.tensor([row for row, _ in pairs])
        np.add.at(self.drawn, rows.numpy(), 1)
        drawn, paper = paint(self.pictures[rows], self.regions[rows], self.palette[rows], colours, looks, generator)
        views = place(drawn, paper, sizes, phase.pixels, looks, generator)
        shown = torch.zeros(len(rows), len(self.corpus.vocabulary), dtype=torch.bool)
        for position, (row, _) in enumerate(pairs):
            shown[position, self.corpus.concepts[row]] = True
        return Batch(
            views=((views - self.mean) / self.std).contiguous(memory_format=torch.channels_last),
            shown=shown,
            ids=self.captioner.tokens(captions),
            match=fits(captions, shown, [self.corpus.styles[row] for row, _ in pairs]),
        )

    def state(self) -> dict[str, object]:
        """What `load_state` needs to continue with the next batch."""
        return {"rng": self.rng.getstate(), "generator": self.generator.get_state(), "drawn": torch.tensor(self.drawn)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch at which `state` was taken."""
        self.rng.setstate(state["rng"])
        self.generator.set_state(state["generator"])
        self.drawn = state["drawn"].numpy()
