"""Pre-train the small CLIP on icon packs, in three phases.

1. *Words*: the image tower learns to tell the concepts in icon names, by a softmax over cosine scores.
2. *Captions*: image and text towers learn from each other; a caption fits every picture of the batch that shows its
   concepts and has its style (several positives), and the word loss stays with a small weight. From the middle on,
   pictures have their full size.
3. *Styles*: three quarters of each batch are the same concept drawn in up to four styles, so that style words matter.

Radford et al. 2021 (arXiv 2103.00020) for the contrastive loss; Khosla et al. 2020 (arXiv 2004.11362) for several
positives.
"""

import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from .corpus import Corpus
from .model import trainable_model
from .recipe import Phase, Recipe
from .sampling import Batch, Batches

logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)
LOG_EVERY = 50


@dataclass(frozen=True)
class Pretrained:
    """A trained model and how it came about."""

    model: CLIP
    drawn: np.ndarray  # [N], how often each picture of the corpus was drawn
    seconds: float  # of training, over all sessions of it


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


def word_loss(images: Tensor, words: Tensor, scale: float, shown: Tensor) -> Tensor:
    """Cross-entropy over concepts, the target spread evenly over those that a picture shows.

    Args:
        images: normalised [B, E].
        words: one vector for each concept, [K, E].
        scale: of the cosine scores.
        shown: bool [B, K].
    """
    target = shown.float() / shown.sum(dim=1, keepdim=True)
    return F.cross_entropy(scale * images @ F.normalize(words, dim=-1).T, target)


def optimizer_for(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices and kernels only."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas)


def losses_of(model: CLIP, words: Tensor, batch: Batch, phase: Phase, recipe: Recipe) -> dict[str, Tensor]:
    """The terms of the loss that a phase uses, `word` and `pair`."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"):
        features = model.visual(batch.views)
    images = F.normalize(features.float(), dim=-1)
    terms = {}
    if phase.words:
        terms["word"] = word_loss(images, words, recipe.word_scale, batch.shown)
    if phase.pairs:
        texts = F.normalize(encode_text(model, batch.ids), dim=-1)
        terms["pair"] = contrastive_loss(images, texts, model.logit_scale.exp(), batch.match)
    return terms


def pretrain(
    corpus: Corpus,
    recipe: Recipe,
    config: dict,
    tokenizer: SimpleTokenizer,
    checkpoint: Callable[[CLIP, int], None] | None = None,
    checkpoint_every: int = 400,
    state: Path | None = None,
) -> Pretrained:
    """Train the model.

    Args:
        corpus: pictures and words.
        recipe: sizes, shares, rates and the seed.
        config: of `model.model_config`.
        tokenizer: with the restricted merges.
        checkpoint: called with the model (in evaluation mode) and the step, now and then and at the end.
        checkpoint_every: steps between two calls.
        state: file that keeps the state of the training as often as `checkpoint` is called; where it exists, the
            training continues from it, to the same weights.

    Returns:
        the model, in evaluation mode, how often each picture was drawn, and the time.

    Raises:
        ValueError: the state is of another recipe.
    """
    torch.manual_seed(recipe.seed)
    model = trainable_model(config).to(memory_format=torch.channels_last)
    words = nn.Parameter(torch.randn(len(corpus.vocabulary), dict(recipe.architecture)["embed_dim"]) * 0.05)
    parameters = [*model.parameters(), words]
    optimizer = optimizer_for(parameters, recipe)
    batches = Batches(corpus, recipe, tokenizer)
    first, earlier, started = 0, 0.0, time.monotonic()

    def seconds() -> float:
        return earlier + time.monotonic() - started

    if state is not None and state.is_file():
        saved = torch.load(state, weights_only=True)
        if saved["recipe"] != recipe.describe():
            raise ValueError(f"{state} is of a training with another recipe; remove it, or give another folder.")
        model.load_state_dict(saved["model"])
        words.data.copy_(saved["words"])
        optimizer.load_state_dict(saved["optimizer"])
        batches.load_state(saved["batches"])
        first, earlier = saved["step"], saved["seconds"]
        logger.info("continuing after step %d of %d", first, recipe.steps)
    log: defaultdict[str, float] = defaultdict(float)
    for step in range(first, recipe.steps):
        phase = recipe.phase(step)
        for group in optimizer.param_groups:
            group["lr"] = phase.rate
        batch = batches.draw(phase)
        model.train()
        terms = losses_of(model, words, batch, phase, recipe)
        loss = sum(value * (phase.words if name == "word" else 1.0) for name, value in terms.items())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        for name, value in terms.items():
            log[name] += value.item()
        if (step + 1) % LOG_EVERY == 0:
            rate = (step + 1 - first) * recipe.batch / (time.monotonic() - started)
            parts = ", ".join(f"{name} {value / LOG_EVERY:.3f}" for name, value in log.items())
            scale = model.logit_scale.exp().item()
            logger.info("step %d/%d: %s, scale %.1f, %.0f pictures/s", step + 1, recipe.steps, parts, scale, rate)
            log.clear()
        due = (step + 1) % checkpoint_every == 0 or step + 1 == recipe.steps
        if due and state is not None:
            saved = {"model": model.state_dict(), "words": words.data, "optimizer": optimizer.state_dict()}
            saved |= {"step": step + 1, "recipe": recipe.describe(), "batches": batches.state(), "seconds": seconds()}
            torch.save(saved, state.with_suffix(".new"))
            os.replace(state.with_suffix(".new"), state)
        if due and checkpoint is not None:
            checkpoint(model.eval(), step + 1)
    return Pretrained(model.eval(), batches.drawn, seconds())
