"""How CLAP's content head is trained: the batches, the loss, and the rule that ends it.

Source: Cai et al., "CLAP", ECCV 2024 (arXiv 2311.16445). Features of all texts are computed once; a step draws the
augmented form of each text by index, so that it costs a small MLP. Batches are functions of seed and step: a run that
goes on at a step sees what an undisturbed run sees.

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

from .clap import NOISE_STD, TRAINING_ALPHA, ContentHead, TextTables, noise_context
from .losses import nt_xent
from .peers import ALONE, Peers
from .text_tower import ClassTokens, TextTower

STEPS_AT_ONCE = 16  # batches that are drawn, and noise prompts that are encoded, together
NOISE_POSITIONS = ("end", "middle", "front")  # of the text in `encode_prompts`: noise before, around, after the text

Batch = tuple[Tensor, Tensor, Tensor]


class Pairs(Protocol):
    """What `fit_content_head` reads: the batch of a step, or the rows of it that a process has."""

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
        peers: The processes that share the work, by position: each encodes whole groups, so that the features do not
            depend on their number.
        autocast: Makes the context in which the frozen tower runs.

    Raises:
        ValueError: A text does not fit beside the noise tokens.
    """

    def __init__(
        self,
        text: TextTower,
        tables: TextTables,
        n_tokens: int = 4,
        std: float = NOISE_STD,
        peers: Peers = ALONE,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        self.text, self.n_tokens, self.std, self.peers, self.autocast = text, n_tokens, std, peers, autocast
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
            if not len(chosen) or number % self.peers.size != self.peers.rank:
                continue
            rows = self._place[index[chosen]].flatten()
            context = noise[chosen].repeat_interleave(index.shape[1], dim=0).to(text.device)
            with self.autocast():
                read = text.encode_prompts(context, self._of(rows), position, class_specific=True)
            features[chosen.to(text.device)] = read.unflatten(0, (len(chosen), -1))
        return self.peers.sum(features)

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

    Position `p = step * B + i` takes class `p mod C` and that class's text `(p div C) mod` its number of texts, so that
    neighbours differ in class.

    Args:
        tables: The texts and their places.
        features: Features of `tables.texts`, `[K, E]`, not normalised.
        batch_size: `B`.
        seed: Seed of the augmentation (and of the noise).
        noise: Adds noise tokens to the augmented prompts; None leaves them as they are.
        peers: The processes that each read their own rows of a batch.

    Raises:
        ValueError: The features do not belong to the texts, or are not numbers; the batch has less than 2 pairs, or
            cannot be shared by the processes.
    """

    def __init__(
        self,
        tables: TextTables,
        features: Tensor,
        batch_size: int,
        seed: int,
        noise: PromptNoise | None = None,
        peers: Peers = ALONE,
    ):
        if features.dim() != 2 or len(features) != len(tables.texts):
            raise ValueError(
                f"the {len(tables.texts)} texts need features [{len(tables.texts)}, E], got {list(features.shape)}"
            )
        _check_batch(batch_size, peers)
        self.tables, self.noise, self.peers = tables, noise, peers
        self.features = _checked_features(features, "text features")
        self.batch_size, self.seed = batch_size, seed
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
        labels, rows = _walk(block, self.batch_size, tables.starts, tables.counts)
        chance = torch.rand(rows.shape, generator=generator, dtype=torch.float64)
        form = torch.searchsorted(self._cumulative, chance * self._cumulative[-1], right=True)
        form = form.clamp_max(len(self._cumulative) - 1)
        return torch.stack([tables.prompts[rows], tables.augmented[rows, form], tables.names[labels]])

    def _read(self, block: int) -> Batch:
        """The features of a block's batches, each `[STEPS_AT_ONCE, B, E]`."""
        generator = _generator(self.seed, block)
        index, own = self.index(block, generator), self.peers.own(self.batch_size)
        prompts, augmented, names = self.features[index[:, :, own].to(self.features.device, non_blocking=True)]
        if self.noise is not None:
            noisy = self.noise.encode(index[1], *self.noise.draw(STEPS_AT_ONCE, generator))
            augmented = noisy[:, own].to(augmented)
        return prompts, augmented, names


class ImagePairs:
    """Batches of two augmented views of pictures with their class names: Im.Aug, the paper's image-side baseline.

    Classes take turns as in `TextPairs`; the pictures of a class come in an order drawn once from the seed, and each
    time two different views are drawn.

    Args:
        features: Features of `V` augmented views of each picture, `[N, V, E]`, not normalised.
        labels: `[N]`, from 0 to `C - 1`.
        class_features: Text features of the class names, `[C, E]`, not normalised.
        batch_size: `B`.
        seed: Seed of the order and of the views.
        peers: The processes that each read their own rows of a batch.

    Raises:
        ValueError: Shapes do not fit, a picture has less than 2 views, a class has no picture, or the batch cannot be
            shared by the processes.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        class_features: Tensor,
        batch_size: int,
        seed: int,
        peers: Peers = ALONE,
    ):
        if features.dim() != 3 or features.shape[1] < 2 or class_features.shape[1:] != features.shape[2:]:
            raise ValueError(
                "pairs of views need features [N, V, E] with at least 2 views and class features [C, E], got "
                f"{list(features.shape)} and {list(class_features.shape)}"
            )
        classes, labels = len(class_features), labels.cpu()
        if labels.shape != features.shape[:1] or not len(labels) or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"{len(features)} pictures need {len(features)} labels from 0 to {classes - 1}, got {_shown(labels)}"
            )
        counts = torch.bincount(labels, minlength=classes)
        if not counts.all():
            raise ValueError(
                f"each class needs a picture; there is none for the labels {_shown((counts == 0).nonzero()[:, 0])}"
            )
        _check_batch(batch_size, peers)
        self.peers = peers
        self.features = _checked_features(features, "image features")
        self.class_features = _checked_features(class_features, "class features").to(self.features)
        self.batch_size, self.seed = batch_size, seed
        shuffled = torch.randperm(len(labels), generator=_generator(seed, -1))
        self._order = shuffled[labels[shuffled].argsort(stable=True)]
        self._counts, self._starts = counts, counts.cumsum(0) - counts
        self._block = (-1, (self.features[:0, 0],) * 3)

    def batch(self, step: int) -> Batch:
        """Features of one view, of another view of the same picture, and of its class name, each `[B, E]`."""
        block, row = divmod(step, STEPS_AT_ONCE)
        if self._block[0] != block:
            self._block = (block, self._read(block))
        first, second, names = self._block[1]
        return first[row], second[row], names[row]

    def _read(self, block: int) -> Batch:
        """The features of a block's batches, each `[STEPS_AT_ONCE, B, E]`."""
        generator, views = _generator(self.seed, block), self.features.shape[1]
        labels, rows = _walk(block, self.batch_size, self._starts, self._counts)
        one = torch.randint(views, rows.shape, generator=generator)
        other = (one + 1 + torch.randint(views - 1, rows.shape, generator=generator)) % views
        index = torch.stack([self._order[rows], one, other, labels])[:, :, self.peers.own(self.batch_size)]
        picture, one, other, labels = index.to(self.features.device, non_blocking=True)
        return self.features[picture, one], self.features[picture, other], self.class_features[labels]


def _walk(block: int, batch_size: int, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and rows `[STEPS_AT_ONCE, B]` of a block: the classes in turn, each with its own rows in turn."""
    size = STEPS_AT_ONCE * batch_size
    position = torch.arange(block * size, (block + 1) * size).view(STEPS_AT_ONCE, batch_size)
    labels = position % len(counts)
    return labels, starts[labels] + position // len(counts) % counts[labels]


def _generator(seed: int, number: int) -> torch.Generator:
    """A CPU generator for one block of a run; all blocks of all seeds differ."""
    mixed = np.random.SeedSequence((seed % 2**64, number + 1)).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(mixed[0]))


def _check_batch(batch_size: int, peers: Peers) -> None:
    if batch_size < 2:
        raise ValueError(f"a contrastive batch needs at least 2 pairs, got {batch_size}")
    if batch_size % peers.size:
        raise ValueError(
            f"a batch of {batch_size} pairs cannot be shared equally by {peers.size} processes; its size must be a "
            f"multiple of {peers.size}"
        )


def _shown(numbers: Tensor) -> str:
    """The first few of a tensor of numbers, for a message."""
    values = numbers.flatten().tolist()
    return ", ".join(map(str, values[:10])) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


def _checked_features(features: Tensor, what: str) -> Tensor:
    """The features, float32 (float64 stays), detached."""
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"the {what} have entries that are not finite numbers")
    return features.detach().to(torch.promote_types(features.dtype, torch.float32))


# ------------------------------------------------------------------------------------------------------------ fit


@dataclass(frozen=True)
class FitReport:
    """What came of a fit.

    Attributes:
        steps: Steps done in all.
        checks: Step and mean loss at each check, the last steps included where they are no whole interval.
        stopped_early: Whether the loss had stopped to drop before the last step.
    """

    steps: int
    checks: tuple[tuple[int, float], ...]
    stopped_early: bool


def content_loss(
    head: ContentHead,
    batch: Sequence[Tensor],
    tau: float,
    weight: float,
    class_temperature: float = 1.0,
    peers: Peers = ALONE,
) -> Tensor:
    """`NTXent(z_prompt, z_augmented; tau) + lambda NTXent(z_augmented, z_classname; 1)`.

    Args:
        head: The content head, read with `TRAINING_ALPHA`.
        batch: Features of prompts, augmented forms and class names, each `[B, E]`.
        tau: Temperature of the first term.
        weight: `lambda`; at 0 the second term is not computed.
        class_temperature: Temperature of the second term.
        peers: The processes that each have some pairs of the batch.

    Returns:
        A scalar, the mean over the pairs at hand.
    """
    prompts, augmented, names = head(torch.stack(list(batch)), TRAINING_ALPHA)  # one pass for all three
    loss = nt_xent(prompts, augmented, tau, peers)
    return loss + weight * nt_xent(augmented, names, class_temperature, peers) if weight else loss


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
    on_check: Callable[[int, float], None] | None = None,
    state: dict[str, Any] | None = None,
    after_step: Callable[[int, Callable[[], dict[str, Any]]], None] | None = None,
    peers: Peers = ALONE,
) -> FitReport:
    """Train the head in place with Adam, until the loss no longer drops.

    The loss that is compared at a check is the mean over the steps since the check before. It counts as dropped if it
    is at least `min_drop` under the lowest one that counted so far. The head keeps the weights of the last step. The
    device is waited for at checks alone.

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
        on_check: Called at each check, and after the last step, with the step and the mean loss.
        state: Goes on from a state that `after_step` had made; the head's weights come from it.
        after_step: Called after each step with its number and a function that makes a state, all that is needed to go
            on: `step`, `checks`, `losses` since the last check, `best`, `waited`, `head`, `optimizer` (plain values and
            tensors, copies of the live ones). Several processes make it together.
        peers: The processes that each have some pairs of a batch, an equal number.

    Returns:
        The report.

    Raises:
        ValueError: A setting is out of range.
        FloatingPointError: A loss is not a finite number; names the step.
    """
    if min(max_steps, check_every, patience) < 1:
        raise ValueError(
            f"max_steps, check_every and patience must be at least 1, got {max_steps}, {check_every} and {patience}"
        )
    device = head.linear.weight.device
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate, fused=device.type == "cuda")
    step, best, waited, checks = 0, math.inf, 0, []
    losses: list[Tensor] = []
    if state is not None:
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        step, best, waited = state["step"], state["best"], state["waited"]
        checks = [tuple(check) for check in state["checks"]]
        losses = list(state["losses"].to(device).unbind())

    def make_state() -> dict[str, Any]:
        live = {"head": head.state_dict(), "optimizer": optimizer.state_dict()}
        everywhere = peers.sum(torch.stack(losses)) / peers.size if losses else torch.zeros(0)
        numbers = {"step": step, "checks": list(checks), "best": best, "waited": waited}
        return {**numbers, "losses": everywhere, **deepcopy(live)}

    joined = peers.joined(head)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        while step < max_steps and waited < patience:
            loss = joined(content_loss(head, pairs.batch(step), tau, weight, class_temperature, peers))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().double())
            step += 1
            whole = step % check_every == 0
            if whole or step == max_steps:
                mean = _mean_loss(losses, step, peers)
                checks.append((step, mean))
                losses.clear()
                if mean <= best - min_drop:
                    best, waited = mean, 0
                elif whole:
                    waited += 1
                if on_check is not None:
                    on_check(step, mean)
            if after_step is not None:
                after_step(step, make_state)
    return FitReport(step, tuple(checks), waited >= patience and step < max_steps)


def _mean_loss(losses: Sequence[Tensor], step: int, peers: Peers) -> float:
    """The mean of the losses of the steps up to `step`; one wait for the device."""
    values = (peers.sum(torch.stack(list(losses))) / peers.size).cpu()
    wrong = (~torch.isfinite(values)).nonzero().flatten()
    if len(wrong):
        first = step - len(values) + int(wrong[0])
        raise FloatingPointError(
            f"the loss of step {first} is {float(values[wrong[0]])}; lower the learning rate, or look for features "
            "that are not numbers"
        )
    return values.mean().item()
