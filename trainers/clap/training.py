"""How CLAP's content head is trained: the batches, the loss, and the rule that ends it.

Source: Cai et al., "CLAP", ECCV 2024 (arXiv 2311.16445). Features of all texts are computed once; a step draws the
augmented form of each text by index, so that it costs a small MLP. Batches are functions of seed and step: a run that
resumes at a step sees what an undisturbed run sees.

Shapes: `B` pairs of a batch, `K` distinct texts, `N` images, `V` views of each, `C` classes, `E` joint embedding, `M`
noise tokens, `D` text width.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dassl_clip.clip.losses import nt_xent
from dassl_clip.clip.prompts import NOISE_STD, noise_context
from dassl_clip.clip.text_tower import TextTower
from dassl_clip.clip.tokens import ClassTokens
from dassl_clip.results.errors import NotFiniteError, UserError

from .head import TRAINING_ALPHA, ContentHead
from .texts import TextTables

SHUFFLED, IN_TURN = ORDERS = ("shuffled", "in-turn")  # of the texts (or images) that batches are made of
LAST_DROP, LAST_STEP = KEPT = ("last-drop", "last-step")  # which weights a fit ends with
STEPS_AT_ONCE = 16  # batches that are drawn, and noise prompts that are encoded, together
NOISE_POSITIONS = ("end", "middle", "front")  # of the text in `encode_prompts`: noise before, around, after the text

Batch = tuple[Tensor, Tensor, Tensor]


class Pairs(Protocol):
    """What `fit_content_head` reads: the batch of a step."""

    def batch(self, step: int) -> Batch:
        """Features of the originals, of their augmented forms, and of their class names, each `[B, E]`."""


class PromptNoise:
    """Noise tokens (IGN) for augmented prompts, which the frozen text tower reads at each step.

    The noise is the same for all prompts of a batch. Each batch puts it before the text, around it (the first half,
    `M // 2` tokens, before and the rest after) or after it, with equal chance; start- and end-of-text stay outermost.

    Args:
        text: The text tower.
        tables: The texts.
        n_tokens: `M`.
        std: Standard deviation of the noise.
        autocast: Makes the context in which the frozen tower runs.

    Raises:
        UserError: A text does not fit beside the noise tokens.
    """

    def __init__(
        self,
        text: TextTower,
        tables: TextTables,
        n_tokens: int = 4,
        std: float = NOISE_STD,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.text, self.n_tokens, self.std, self.autocast = text, n_tokens, std, autocast
        used = tables.augmented.unique()
        self._place = torch.zeros(len(tables.texts), dtype=torch.long)
        self._place[used] = torch.arange(len(used))
        self._tokens = text.class_tokens([tables.texts[k] for k in used.tolist()], suffix="", n_ctx=n_tokens)

    def draw(self, batches: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise `[batches, M, D]` and where it goes, `[batches]` (an index into `NOISE_POSITIONS`)."""
        positions = torch.randint(len(NOISE_POSITIONS), (batches,), generator=generator)
        return noise_context(self.n_tokens, self.text.width, self.std, generator, draws=batches), positions

    @torch.no_grad()
    def encode(self, index: Tensor, noise: Tensor, positions: Tensor) -> Tensor:
        """Features of texts with noise.

        Args:
            index: `[S, B]`, texts of `S` batches by their place in the tables.
            noise: `[S, M, D]`, from `draw`.
            positions: `[S]`, from `draw`.

        Returns:
            `[S, B, E]`, not normalised.
        """
        text = self.text
        features = torch.zeros(*index.shape, text.embed_dim, dtype=text.out_dtype, device=text.device)
        for number, position in enumerate(NOISE_POSITIONS):
            chosen = (positions == number).nonzero().flatten()
            if not len(chosen):
                continue
            rows = self._place[index[chosen]].flatten()
            context = noise[chosen].repeat_interleave(index.shape[1], dim=0).to(text.device)
            with self.autocast():
                read = text.encode_prompts(context, self._of(rows), position, class_specific=True)
            features[chosen.to(text.device)] = read.unflatten(0, (len(chosen), -1))
        return features

    def _of(self, rows: Tensor) -> ClassTokens:
        """The tokens of some of the texts."""
        chosen, tokens = rows.tolist(), self._tokens
        lengths = tuple(tokens.lengths[k] for k in chosen)
        return replace(
            tokens,
            classnames=tuple(tokens.classnames[k] for k in chosen),
            ids=tokens.ids[rows.to(tokens.ids.device), : max(lengths)],
            lengths=lengths,
            name_lengths=tuple(tokens.name_lengths[k] for k in chosen),
        )


class TextPairs:
    """Batches of training texts with their augmented forms and class names.

    The batches take the texts of all classes in an order that each pass over them draws again, one pass after the
    other: position `p = step * B + i` takes the text at place `p mod R` of pass `p div R`. A batch may hold several
    texts of a class, as in the authors' program; these are then negatives of each other. With the order `in-turn`,
    position `p` takes class `p mod C` and that class's text `(p div C) mod` its number of texts, so that neighbours
    differ in class.

    Args:
        tables: The texts and their places.
        features: Features of `tables.texts`, `[K, E]`, not normalised.
        batch_size: `B`.
        seed: Seed of the order and of the augmentation (and of the noise).
        noise: Adds noise tokens to the augmented prompts; None leaves them as they are.
        order: `shuffled`, or `in-turn`.

    Raises:
        UserError: The features do not belong to the texts, or are not numbers; the batch has less than 2 pairs.
    """

    def __init__(
        self,
        tables: TextTables,
        features: Tensor,
        batch_size: int,
        seed: int,
        noise: PromptNoise | None = None,
        order: str = SHUFFLED,
    ):
        if features.dim() != 2 or len(features) != len(tables.texts):
            raise UserError(
                f"the {len(tables.texts)} texts need features [{len(tables.texts)}, E], got {list(features.shape)}"
            )
        _check_batch(batch_size)
        self.tables, self.noise = tables, noise
        self.features = _checked_features(features, "text features")
        self.batch_size, self.seed, self.order = batch_size, seed, order
        self._cumulative = tables.probabilities.cumsum(0)
        self._block = (-1, (self.features[:0],) * 3)

    def batch(self, step: int) -> Batch:
        """Features of the prompts, of their augmented forms, and of their class names, each `[B, E]`."""
        block, row = divmod(step, STEPS_AT_ONCE)
        if self._block[0] != block:
            self._block = (block, self._read(block))
        first, second, names = self._block[1]
        return first[row], second[row], names[row]

    def index(self, block: int, generator: torch.Generator) -> Tensor:
        """Places of prompts, augmented forms and class names for the batches of a block, `[3, STEPS_AT_ONCE, B]`."""
        tables = self.tables
        labels, rows = _rows(block, self.batch_size, tables.counts, self.order, self.seed)
        chance = torch.rand(rows.shape, generator=generator, dtype=torch.float64)
        form = torch.searchsorted(self._cumulative, chance * self._cumulative[-1], right=True)
        form = form.clamp_max(len(self._cumulative) - 1)
        return torch.stack([tables.prompts[rows], tables.augmented[rows, form], tables.names[labels]])

    def _read(self, block: int) -> Batch:
        """The features of a block's batches, each `[STEPS_AT_ONCE, B, E]`."""
        generator = _generator(self.seed, block)
        index = self.index(block, generator)
        prompts, augmented, names = self.features[index.to(self.features.device, non_blocking=True)]
        if self.noise is not None:
            augmented = self.noise.encode(index[1], *self.noise.draw(STEPS_AT_ONCE, generator)).to(augmented)
        return prompts, augmented, names


class ImagePairs:
    """Batches of a plain and an augmented view of images: Im.Aug, the paper's image-side baseline.

    The images come in an order as in `TextPairs`, and one of the augmented views is drawn for each. Im.Aug's loss has
    no class names: the third part of a batch is the plain view again, for `content_loss` with the weight 0.

    Args:
        features: Features of `V` views of each image, the plain one first, `[N, V, E]`, not normalised.
        labels: `[N]`, from 0 to `C - 1`, sorted.
        num_classes: `C`.
        batch_size: `B`.
        seed: Seed of the order and of the views.
        order: `shuffled`, or `in-turn`.

    Raises:
        UserError: Shapes do not fit, an image has less than 2 views, or a class has no image.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        batch_size: int,
        seed: int,
        order: str = SHUFFLED,
    ):
        if features.dim() != 3 or features.shape[1] < 2:
            raise UserError(
                "pairs of views need features [N, V, E] with a plain view and at least 1 augmented one, got "
                f"{list(features.shape)}"
            )
        labels = labels.cpu()
        if labels.shape != features.shape[:1] or not len(labels) or labels.min() < 0 or labels.max() >= num_classes:
            raise UserError(
                f"{len(features)} images need {len(features)} labels from 0 to {num_classes - 1}, got {_shown(labels)}"
            )
        if (labels.diff() < 0).any():
            raise UserError(f"the images must stand class after class, got the labels {_shown(labels)}")
        counts = torch.bincount(labels, minlength=num_classes)
        if not counts.all():
            raise UserError(
                f"each class needs an image; there is none for the labels {_shown((counts == 0).nonzero()[:, 0])}"
            )
        _check_batch(batch_size)
        self.features = _checked_features(features, "image features")
        self.batch_size, self.seed, self.order = batch_size, seed, order
        self._counts = counts
        self._block = (-1, (self.features[:0, 0],) * 3)

    def batch(self, step: int) -> Batch:
        """Features of the plain view, of an augmented view of the same image, and of the plain view, `[B, E]` each."""
        block, row = divmod(step, STEPS_AT_ONCE)
        if self._block[0] != block:
            self._block = (block, self._read(block))
        plain, augmented, again = self._block[1]
        return plain[row], augmented[row], again[row]

    def _read(self, block: int) -> Batch:
        """The features of a block's batches, each `[STEPS_AT_ONCE, B, E]`."""
        generator = _generator(self.seed, block)
        _, rows = _rows(block, self.batch_size, self._counts, self.order, self.seed)
        view = 1 + torch.randint(self.features.shape[1] - 1, rows.shape, generator=generator)
        image, view = torch.stack([rows, view]).to(self.features.device, non_blocking=True)
        plain = self.features[image, 0]
        return plain, self.features[image, view], plain


def _rows(block: int, batch_size: int, counts: Tensor, order: str, seed: int) -> tuple[Tensor, Tensor]:
    """Labels and rows `[STEPS_AT_ONCE, B]` of a block, of rows that stand class after class, `counts` of each."""
    size, total = STEPS_AT_ONCE * batch_size, int(counts.sum())
    position = torch.arange(block * size, (block + 1) * size)
    if order == IN_TURN:
        labels = position % len(counts)
        rows = (counts.cumsum(0) - counts)[labels] + position // len(counts) % counts[labels]
    else:
        first, last = int(position[0]) // total, int(position[-1]) // total
        passes = [torch.randperm(total, generator=_generator(seed, p, stream=1)) for p in range(first, last + 1)]
        rows = torch.cat(passes)[position - first * total]
        labels = torch.arange(len(counts)).repeat_interleave(counts)[rows]
    return labels.view(STEPS_AT_ONCE, batch_size), rows.view(STEPS_AT_ONCE, batch_size)


def _generator(seed: int, number: int, stream: int = 0) -> torch.Generator:
    """A CPU generator for one block of a run (stream 0) or one pass (stream 1); those of all seeds differ."""
    mixed = np.random.SeedSequence((seed % 2**64, number + 1, stream)).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(mixed[0]))


def _check_batch(batch_size: int) -> None:
    if batch_size < 2:
        raise UserError(f"a contrastive batch needs at least 2 pairs, got {batch_size}")


def _shown(numbers: Tensor) -> str:
    """The first few of a tensor of numbers, for a message."""
    values = numbers.flatten().tolist()
    return ", ".join(map(str, values[:10])) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


def _checked_features(features: Tensor, what: str) -> Tensor:
    """The features, float32 (float64 stays), detached."""
    if not bool(torch.isfinite(features).all()):
        raise UserError(f"the {what} have entries that are not finite numbers")
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))


# ------------------------------------------------------------------------------------------------------------ fit


@dataclass(frozen=True)
class FitReport:
    """What came of a fit.

    Attributes:
        steps: Steps done in all.
        checks: Step and mean loss at each check, the last steps included where they are no whole interval.
        stopped_early: Whether the loss had stopped to drop before the last step.
        kept_step: The step whose weights the head has.
    """

    steps: int
    checks: tuple[tuple[int, float], ...]
    stopped_early: bool
    kept_step: int


def content_loss(
    head: ContentHead,
    batch: Sequence[Tensor],
    tau: float,
    weight: float,
    class_temperature: float = 1.0,
) -> Tensor:
    """`NTXent(z_prompt, z_augmented; tau) + lambda NTXent(z_augmented, z_classname; 1)`.

    Args:
        head: The content head, read with `TRAINING_ALPHA`.
        batch: Features of prompts, augmented forms and class names, each `[B, E]`.
        tau: Temperature of the first term.
        weight: `lambda`; at 0 the second term is not computed.
        class_temperature: Temperature of the second term.

    Returns:
        A scalar, the mean over the pairs.
    """
    prompts, augmented, names = head(torch.stack(list(batch)), TRAINING_ALPHA)  # one pass for all three
    loss = nt_xent(prompts, augmented, tau)
    return loss + weight * nt_xent(augmented, names, class_temperature) if weight else loss


def fit_content_head(
    head: ContentHead,
    pairs: Pairs,
    *,
    tau: float,
    weight: float,
    class_temperature: float = 1.0,
    learning_rate: float = 1e-4,
    max_steps: int = 8000,
    check_every: int = 480,
    patience: int = 5,
    min_drop: float = 0.01,
    keep: str = LAST_DROP,
    on_check: Callable[[int, float], None] | None = None,
    state: dict[str, Any] | None = None,
    after_step: Callable[[int, Callable[[], dict[str, Any]]], None] | None = None,
) -> FitReport:
    """Train the head in place with Adam, until the loss no longer drops.

    The loss that is compared at a check is the mean over the steps since the check before. It counts as dropped if it
    is at least `min_drop` under the lowest one that counted so far. The head ends with the weights of the last check at
    which the loss dropped, as the authors' program keeps them; those of the last step if there was no check. What is
    left of the steps after the last whole interval is reported as a check and does not count. The device is waited for
    at checks alone.

    Args:
        head: The head; its own `alpha` plays no part.
        pairs: Gives the batch of each step.
        tau: Temperature of the term between prompts and augmented prompts.
        weight: `lambda`, of the term between augmented prompts and class names.
        class_temperature: Temperature of that term.
        learning_rate: Adam's.
        max_steps: Most steps in all.
        check_every: Steps between checks.
        patience: Checks without a drop after which training stops.
        min_drop: What counts as a drop.
        keep: `last-drop`, or `last-step` for the weights of the last step.
        on_check: Called at each check, and after the last step, with the step and the mean loss.
        state: Resumes from a state that `after_step` had made; the head's weights come from it.
        after_step: Called after each step with its number and a function that makes a state, all that is needed to go
            on: `step`, `checks`, `losses` since the last check, `best`, `waited`, `kept_step`, `kept` (the weights
            that the head would end with, by name; empty for those of the last step), `head`, `optimizer` (plain values
            and tensors, copies of the live ones).

    Returns:
        The report.

    Raises:
        UserError: A setting is out of range.
        NotFiniteError: A loss is not a finite number; names the step.
    """
    if min(max_steps, check_every, patience) < 1:
        raise UserError(
            f"max_steps, check_every and patience must be at least 1, got {max_steps}, {check_every} and {patience}"
        )
    device = head.linear.weight.device
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate, fused=device.type == "cuda")
    step, best, waited, checks = 0, math.inf, 0, []
    kept_step, kept = 0, dict[str, Tensor]()
    losses: list[Tensor] = []
    if state is not None:
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        step, best, waited = state["step"], state["best"], state["waited"]
        kept_step = state["kept_step"]
        kept = {name: value.to(device) for name, value in state["kept"].items()}
        checks = [tuple(check) for check in state["checks"]]
        losses = list(state["losses"].to(device).unbind())

    def make_state() -> dict[str, Any]:
        live = {"head": head.state_dict(), "optimizer": optimizer.state_dict()}
        numbers = {"step": step, "checks": list(checks), "best": best, "waited": waited, "kept_step": kept_step}
        return {
            **numbers,
            "losses": torch.stack(losses) if losses else torch.zeros(0),
            **deepcopy({**live, "kept": kept}),
        }

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        while step < max_steps and waited < patience:
            loss = content_loss(head, pairs.batch(step), tau, weight, class_temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().double())
            step += 1
            whole = step % check_every == 0
            if whole or step == max_steps:
                mean = _mean_loss(losses, step)
                checks.append((step, mean))
                losses.clear()
                if whole and mean <= best - min_drop:
                    best, waited = mean, 0
                    if keep == LAST_DROP:
                        kept_step, kept = step, deepcopy(head.state_dict())
                elif whole:
                    waited += 1
                if on_check is not None:
                    on_check(step, mean)
            if after_step is not None:
                after_step(step, make_state)
    if kept:
        head.load_state_dict(kept)
    return FitReport(step, tuple(checks), waited >= patience and step < max_steps, kept_step if kept else step)


def last_drop(checks: Sequence[Sequence[float]], check_every: int, min_drop: float) -> int:
    """The step of the last check at which the loss dropped, as `fit_content_head` counts it; 0 if there was no check.

    Args:
        checks: Step and mean loss of each check.
        check_every: Steps between checks.
        min_drop: What counts as a drop.
    """
    best, dropped = math.inf, 0
    for step, mean in checks:
        if int(step) % check_every == 0 and mean <= best - min_drop:
            best, dropped = mean, int(step)
    return dropped


def _mean_loss(losses: Sequence[Tensor], step: int) -> float:
    """The mean of the losses of the steps up to `step`; one wait for the device."""
    values = torch.stack(list(losses)).cpu()
    wrong = (~torch.isfinite(values)).nonzero().flatten()
    if len(wrong):
        first = step - len(values) + int(wrong[0])
        raise NotFiniteError(
            f"the loss of step {first} is {float(values[wrong[0]])}; lower the learning rate, or look for features "
            "that are not numbers"
        )
    return values.mean().item()
