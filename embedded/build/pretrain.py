"""Pre-train the small CLIP on icon packs, in three phases.

1. *Words*: the image tower learns to tell the concepts in icon names, by a softmax over cosine scores.
2. *Captions*: image and text towers learn from each other; a caption fits every picture of the batch that shows its
   concepts and has its style (several positives), and the word loss stays with a small weight. From the middle on,
   pictures have their full size.
3. *Styles*: three quarters of each batch are the same concept drawn in up to four styles, so that style words matter.

Radford et al. 2021 (arXiv 2103.00020) for the contrastive loss; Khosla et al. 2020 (arXiv 2004.11362) for several
positives.
"""

import hashlib
import json
import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from .captions import COLOURS, SIZES, Caption, appearance_caption, plain_caption, style_caption, style_vocabulary
from .corpus import Corpus
from .model import trainable_model
from .names import read_lexicon
from .views import Looks, paint, place

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the pictures and their names."""

    samples: int = 680_000
    seed: int = 1
    held_out: str = ""
    batch: int = 256
    word_share: float = 0.33
    style_share: float = 0.28
    full_size_from: float = 0.55
    low_pixels: int = 48
    lr: float = 2e-3
    style_lr: float = 8e-4
    warm_up: int = 150
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
        """The recipe as plain data."""
        return json.loads(json.dumps(asdict(self)))

    def sha256(self, *files: Path) -> str:
        """Hash of the recipe and of the files that it reads, hex."""
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for path in files:
            digest.update(path.read_bytes())
        return digest.hexdigest()


class Sampler:
    """Draws pictures and the concept that each caption is about."""

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

    def concept(self, row: int, rng: random.Random) -> int:
        """One of the picture's concepts, rare ones more often."""
        return rng.choices(self.concepts[row], weights=self.affinity[row])[0]

    def mixed(self, n: int, rng: random.Random, generator: torch.Generator) -> list[tuple[int, int]]:
        """Pairs (picture, concept), each picture drawn by its weight."""
        rows = torch.multinomial(self.weights, n, replacement=False, generator=generator).tolist()
        return [(row, self.concept(row, rng)) for row in rows]

    def grouped(self, n: int, rng: random.Random) -> list[tuple[int, int]]:
        """Pairs in groups of one concept drawn in up to four styles."""
        pairs: list[tuple[int, int]] = []
        while len(pairs) < n:
            concept = rng.choices(range(len(self.group_share)), weights=self.group_share)[0]
            styles = sorted(self.by_style[concept])
            for style in rng.sample(styles, min(4, len(styles))):
                pairs.append((rng.choice(self.by_style[concept][style]), concept))
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


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, match: Tensor) -> Tensor:
    """Symmetric cross-entropy with several positives, each row's target spread evenly over them.

    Args:
        images: normalised [B, E].
        texts: normalised [B, E].
        scale: logit scale.
        match: bool [B, B], image by text.
    """
    logits = scale * images @ texts.T
    targets = match.float()
    by_image = F.cross_entropy(logits, targets / targets.sum(dim=1, keepdim=True))
    by_text = F.cross_entropy(logits.T, targets.T / targets.sum(dim=0)[:, None])
    return (by_image + by_text) / 2


def encode_text(model: CLIP, ids: Tensor) -> Tensor:
    """Text features [B, E] of ids cut to S tokens; equal to the uncut ones, since the tower is causal."""
    length = ids.shape[1]
    hidden = model.token_embedding(ids) + model.positional_embedding[:length]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    ends = model.ln_final(hidden[torch.arange(len(ids)), ids.argmax(dim=1)])
    return ends @ model.text_projection


def learning_rate(step: int, first: int, last: int, peak: float, warm_up: int) -> float:
    """Linear warm-up, then a cosine to zero, over the steps first <= step < last."""
    done = step - first
    if done < warm_up:
        return peak * (done + 1) / warm_up
    return peak * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / max(1, last - first - warm_up)))


def pretrain(
    corpus: Corpus,
    recipe: Recipe,
    config: dict,
    tokenizer: SimpleTokenizer,
    checkpoint: Callable[[CLIP, int], None] | None = None,
    checkpoint_every: int = 400,
) -> CLIP:
    """Train the model.

    Args:
        corpus: pictures and words.
        recipe: sizes, shares, rates and the seed.
        config: of `model.model_config`.
        tokenizer: with the restricted merges.
        checkpoint: called with the model (in evaluation mode) and the step, now and then and at the end.
        checkpoint_every: steps between two calls.

    Returns:
        the trained model, in evaluation mode.
    """
    torch.manual_seed(recipe.seed)
    rng, generator = random.Random(recipe.seed), torch.Generator().manual_seed(recipe.seed)
    architecture = dict(recipe.architecture)
    model = trainable_model(config).to(memory_format=torch.channels_last)
    words = nn.Parameter(torch.randn(len(corpus.vocabulary), architecture["embed_dim"]) * 0.05)
    parameters = [*model.parameters(), words]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=recipe.betas,
    )
    sampler, captioner = Sampler(corpus, recipe), Captioner(corpus, recipe, tokenizer)
    pictures, regions = torch.from_numpy(corpus.pictures), torch.from_numpy(corpus.regions)
    palette = torch.from_numpy(corpus.palette)
    mean = torch.tensor(architecture["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(architecture["std"]).view(1, 3, 1, 1)
    steps = recipe.samples // recipe.batch
    style_from = round(steps * (1 - recipe.style_share))
    words_until = round(steps * recipe.word_share)
    full_from = round(steps * recipe.full_size_from)
    started, log = time.monotonic(), defaultdict(float)
    for step in range(steps):
        in_styles = step >= style_from
        first, last, peak = (style_from, steps, recipe.style_lr) if in_styles else (0, style_from, recipe.lr)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, first, last, peak, recipe.warm_up)
        grouped = round(0.75 * recipe.batch) if in_styles else 0
        pairs = sampler.grouped(grouped, rng) + sampler.mixed(recipe.batch - grouped, rng, generator)
        rows = torch.tensor([row for row, _ in pairs])
        written = [captioner.caption(row, concept, rng) for row, concept in pairs]
        captions = [caption for caption, _, _ in written]
        side = architecture["pixels"] if step >= full_from else recipe.low_pixels
        drawn, paper = paint(
            pictures[rows], regions[rows], palette[rows], [c for _, c, _ in written], recipe.looks, generator
        )
        views = place(drawn, paper, [size for _, _, size in written], side, recipe.looks, generator)
        views = ((views - mean) / std).contiguous(memory_format=torch.channels_last)
        shown = torch.zeros(len(rows), len(corpus.vocabulary), dtype=torch.bool)
        for row, (index, _) in enumerate(pairs):
            shown[row, corpus.concepts[index]] = True

        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            image_features = model.visual(views)
        text_features = encode_text(model, captioner.tokens(captions)) if step >= words_until else None
        images = F.normalize(image_features.float(), dim=-1)
        loss = images.new_zeros(())
        if not in_styles:
            scores = recipe.word_scale * images @ F.normalize(words, dim=-1).T
            target = shown.float() / shown.sum(dim=1, keepdim=True)
            word_loss = F.cross_entropy(scores, target)
            log["word"] += word_loss.item()
            loss = loss + (recipe.word_weight if step >= words_until else 1.0) * word_loss
        if text_features is not None:
            texts = F.normalize(text_features, dim=-1)
            pair_loss = contrastive_loss(
                images, texts, model.logit_scale.exp(), fits(captions, shown, [corpus.styles[i] for i, _ in pairs])
            )
            log["pair"] += pair_loss.item()
            loss = loss + pair_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        if (step + 1) % 50 == 0:
            rate = (step + 1) * recipe.batch / (time.monotonic() - started)
            parts = ", ".join(f"{name} {value / 50:.3f}" for name, value in log.items())
            scale = model.logit_scale.exp().item()
            logger.info("step %d/%d: %s, scale %.1f, %.0f pictures/s", step + 1, steps, parts, scale, rate)
            log.clear()
        if checkpoint is not None and ((step + 1) % checkpoint_every == 0 or step + 1 == steps):
            checkpoint(model.eval(), step + 1)
    return model.eval()
