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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl_clip.clip.losses import nt_xent
from dassl_clip.clip.prompts import NOISE_STD, noise_context
from dassl_clip.clip.text_tower import TextTower
from dassl_clip.results.errors import NotFiniteError, UserError

from .head import TRAINING_ALPHA, ContentHead
from .texts import TextTables

SHUFFLED, IN_TURN = ORDERS = ("shuffled", "in-turn")  # of the texts (or images) that batches are made of
LAST_DROP, LAST_STEP = KEPT = ("last-drop", "last-step")  # which weights a fit ends with
CLASS_TEMPERATURE = 1.0  # of the term between augmented prompts and class names
STEPS_AT_ONCE = 16  # batches that are drawn, and noise prompts that are encoded, together
NOISE_POSITIONS = ("end", "middle", "front")  # of the text in `encode_prompts`: noise before, around, after the text

Batch = tuple[Tensor, Tensor, Tensor]


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
        """Features `[S, B, E]`, not normalised, of the texts `index [S, B]` of `S` batches, with noise from `draw`."""
        text, tokens = self.text, self._tokens
        features = torch.zeros(*index.shape, text.embed_dim, dtype=text.out_dtype, device=text.device)
        for number, position in enumerate(NOISE_POSITIONS):
            batches = (positions == number).nonzero().flatten()
            if not len(batches):
                continue
            rows = self._place[index[batches]].flatten()
            lengths = tuple(tokens.lengths[k] for k in rows.tolist())
            own = replace(
                tokens,
                classnames=tuple(tokens.classnames[k] for k in rows.tolist()),
                ids=tokens.ids[rows.to(tokens.ids.device), : max(lengths)],
                lengths=lengths,
                name_lengths=tuple(tokens.name_lengths[k] for k in rows.tolist()),
            )
            context = noise[batches].repeat_interleave(index.shape[1], dim=0).to(text.device)
            with self.autocast():
                read = text.encode_prompts(context, own, position, class_specific=True)
            features[batches.to(text.device)] = read.unflatten(0, (len(batches), -1))
        return features


class Pairs:
    """Batches of pairs, drawn from features of what stands class after class.

    The batches take all rows in an order that each pass over them draws again, one pass after the other: position
    `p = step * B + i` takes the row at place `p mod R` of pass `p div R`. A batch may hold several rows of a class, as
    in the authors' program; these are then negatives of each other. With the order `in-turn`, position `p` takes class
    `p mod C` and that class's row `(p div C) mod` its number of rows, so that neighbours differ in class.

    Args:
        features: Of which the batches are made, not normalised.
        what: What they are, for a message.
        counts: Rows of each class, `[C]`.
        batch_size: `B`.
        seed: Seed of the order and of what else is drawn.
        order: `shuffled`, or `in-turn`.

    Raises:
        UserError: The features are not numbers, or the batch has less than 2 pairs.
    """

    def __init__(self, features: Tensor, what: str, counts: Tensor, batch_size: int, seed: int, order: str):
        if batch_size < 2:
            raise UserError(f"a contrastive batch needs at least 2 pairs, got {batch_size}")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"the {what} have entries that are not finite numbers")
        self.features = features.detach().to(torch.promote_types(features.dtype, torch.float32))  # float64 stays
        self.counts, self.batch_size, self.seed, self.order = counts, batch_size, seed, order
        self._kept: tuple[int, Batch] | None = None

    def batch(self, step: int) -> Batch:
        """Features of the originals, of their augmented forms, and of their class names, each `[B, E]`."""
        block, row = divmod(step, STEPS_AT_ONCE)
        if self._kept is None or self._kept[0] != block:
            self._kept = block, self._read(block, _generator(self.seed, block))
        first, second, third = self._kept[1]
        return first[row], second[row], third[row]

    def _read(self, block: int, generator: torch.Generator) -> Batch:
        """The features of a block's batches, each `[STEPS_AT_ONCE, B, E]`."""
        raise NotImplementedError

    def _rows(self, block: int) -> tuple[Tensor, Tensor]:
        """Labels and rows of a block, each `[STEPS_AT_ONCE, B]`."""
        size, total, counts = STEPS_AT_ONCE * self.batch_size, int(self.counts.sum()), self.counts
        position = torch.arange(block * size, (block + 1) * size)
        if self.order == IN_TURN:
            labels = position % len(counts)
            rows = (counts.cumsum(0) - counts)[labels] + position // len(counts) % counts[labels]
        else:
            first, last = int(position[0]) // total, int(position[-1]) // total
            passes = [torch.randperm(total, generator=_generator(self.seed, p, 1)) for p in range(first, last + 1)]
            rows = torch.cat(passes)[position - first * total]
            labels = torch.arange(len(counts)).repeat_interleave(counts)[rows]
        return labels.view(STEPS_AT_ONCE, -1), rows.view(STEPS_AT_ONCE, -1)


class TextPairs(Pairs):
    """Batches of training texts with their augmented forms and class names.

    Args:
        tables: The texts and their places.
        features: Features of `tables.texts`, `[K, E]`, not normalised.
        batch_size: `B`.
        seed: Seed of the order and of the augmentation (and of the noise).
        noise: Adds noise tokens to the augmented prompts; None leaves them as they are.
        order: As in `Pairs`.

    Raises:
        UserError: As `Pairs`; or the features do not belong to the texts.
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
        super().__init__(features, "text features", tables.counts, batch_size, seed, order)
        self.tables, self.noise = tables, noise
        self._cumulative = tables.probabilities.cumsum(0)

    def index(self, block: int, generator: torch.Generator) -> Tensor:
        """Places of prompts, augmented forms and class names for the batches of a block, `[3, STEPS_AT_ONCE, B]`."""
        tables = self.tables
        labels, rows = self._rows(block)
        chance = torch.rand(rows.shape, generator=generator, dtype=torch.float64)
        form = torch.searchsorted(self._cumulative, chance * self._cumulative[-1], right=True)
        form = form.clamp_max(len(self._cumulative) - 1)
        return torch.stack([tables.prompts[rows], tables.augmented[rows, form], tables.names[labels]])

    def _read(self, block: int, generator: torch.Generator) -> Batch:
        index = self.index(block, generator)
        prompts, augmented, names = self.features[index.to(self.features.device, non_blocking=True)]
        if self.noise is not None:
            augmented = self.noise.encode(index[1], *self.noise.draw(STEPS_AT_ONCE, generator)).to(augmented)
        return prompts, augmented, names


class ImagePairs(Pairs):
    """Batches of a plain and an augmented view of images: Im.Aug, the paper's image-side baseline.

    One of the augmented views is drawn for each image. Im.Aug's loss has no class names: the third part of a batch is
    the plain view again, for `content_loss` with the weight 0.

    Args:
        features: Features of `V` views of each image, the plain one first, `[N, V, E]`, not normalised; the images
            stand class after class.
        counts: Images of each class, `[C]`.
        batch_size: `B`.
        seed: Seed of the order and of the views.
        order: As in `Pairs`.

    Raises:
        UserError: As `Pairs`; or shapes do not fit, an image has less than 2 views, or a class has no image.
    """

    def __init__(self, features: Tensor, counts: Tensor, batch_size: int, seed: int, order: str = SHUFFLED):
        if features.dim() != 3 or features.shape[1] < 2:
            raise UserError(
                "pairs of views need features [N, V, E] with a plain view and at least 1 augmented one, got "
                f"{list(features.shape)}"
            )
        if counts.min() < 1 or counts.sum() != len(features):
            raise UserError(f"each class needs an image, {len(features)} in all; the classes have {counts.tolist()}")
        super().__init__(features, "image features", counts, batch_size, seed, order)

    def _read(self, block: int, generator: torch.Generator) -> Batch:
        _, rows = self._rows(block)
        view = 1 + torch.randint(self.features.shape[1] - 1, rows.shape, generator=generator)
        image, view = torch.stack([rows, view]).to(self.features.device, non_blocking=True)
        plain = self.features[image, 0]
        return plain, self.features[image, view], plain


def _generator(seed: int, number: int, stream: int = 0) -> torch.Generator:
    """A CPU generator for one block of a run (stream 0) or one pass (stream 1); those of all seeds differ."""
    mixed = np.random.SeedSequence((seed % 2**64, number + 1, stream)).generate_state(1, np.uint32)
    return torch.Generator().manual_seed(int(mixed[0]))


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


def content_loss(head: ContentHead, batch: Sequence[Tensor], tau: float, weight: float) -> Tensor:
    """`NTXent(z_prompt, z_augmented; tau) + lambda NTXent(z_augmented, z_classname; 1)`, the mean over the pairs.

    Args:
        head: The content head, read with `TRAINING_ALPHA`.
        batch: Features of prompts, augmented forms and class names, each `[B, E]`.
        tau: Temperature of the first term.
        weight: `lambda`; at 0 the second term is not computed.
    """
    prompts, augmented, names = head(torch.stack(list(batch)), TRAINING_ALPHA)  # one pass for all three
    loss = nt_xent(prompts, augmented, tau)
    return loss + weight * nt_xent(augmented, names, CLASS_TEMPERATURE) if weight else loss


def fit_content_head(
    head: ContentHead,
    pairs: Pairs,
    *,
    tau: float,
    weight: float,
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
        tau: As in `content_loss`.
        weight: As in `content_loss`.
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
        step, best, waited, kept_step = (state[key] for key in ("step", "best", "waited", "kept_step"))
        kept = {name: value.to(device) for name, value in state["kept"].items()}
        checks = [tuple(check) for check in state["checks"]]
        losses = list(state["losses"].to(device).unbind())

    def make_state() -> dict[str, Any]:
        numbers = {"step": step, "checks": list(checks), "best": best, "waited": waited, "kept_step": kept_step}
        live = {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "kept": kept}
        return numbers | {"losses": torch.stack(losses) if losses else torch.zeros(0)} | deepcopy(live)

    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        while step < max_steps and waited < patience:
            loss = content_loss(head, pairs.batch(step), tau, weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().double())
            step += 1
            whole = step % check_every == 0
            if whole or step == max_steps:
                values = torch.stack(losses).cpu()  # the one wait for the device
                wrong = (~torch.isfinite(values)).nonzero().flatten().tolist()
                if wrong:
                    raise NotFiniteError(
                        f"the loss of step {step - len(values) + wrong[0]} is {float(values[wrong[0]])}; lower the "
                        "learning rate, or look for features that are not numbers"
                    )
                mean = values.mean().item()
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
