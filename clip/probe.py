"""CLAP's few-shot linear probe: a linear classifier on normalised features.

Source: Cai et al., "CLAP", ECCV 2024 (arXiv 2311.16445): Adam, batches of 32, at most 1000 epochs, stopped by the
training loss. The authors' program counts the epochs without a drop in all, and keeps the weights of the last drop
that counted; `STOPPING` names that and the usual rule.

Shapes: `N` images, `C` classes, `E` joint embedding.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.results.errors import NotFiniteError, UserError

IN_ALL, IN_A_ROW = STOPPING = ("in-all", "in-a-row")  # how epochs without a drop are counted


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    learning_rate: float = 0.005,
    batch_size: int = 32,
    max_epochs: int = 1000,
    patience: int = 10,
    min_drop: float = 0.001,
    seed: int = 0,
    stopping: str = IN_ALL,
) -> tuple[Tensor, Tensor]:
    """Fit the scores `features @ weight.T + bias` to the labels with cross-entropy.

    The training loss of an epoch is the mean of the losses of its batches. It counts as dropped if it is at least
    `min_drop` under the lowest one that counted so far. Training stops after `patience` epochs without a drop in all,
    and the weights at the end of the last epoch with a drop are kept, as in the authors' program. `in-a-row` counts
    only epochs without a drop that follow each other, and keeps the weights of the epoch with the lowest loss. The
    start is `nn.Linear`'s, from the seed.

    Args:
        features: `[N, E]`, normalised.
        labels: `[N]`, from 0 to `C - 1`; classes without an image are allowed.
        num_classes: `C`.
        learning_rate: Adam's.
        batch_size: Images of a batch; the last batch of an epoch takes what is left.
        max_epochs: Most epochs.
        patience: Epochs without a drop after which training stops.
        min_drop: What counts as a drop.
        seed: Seed of the start and of the batches, the same on every device.
        stopping: `in-all`, or `in-a-row`.

    Returns:
        Weight `[C, E]` and bias `[C]`, on the features' device, float32 (float64 for float64 features).

    Raises:
        UserError: Shapes or labels do not fit, there are no images, or a setting is out of range.
        NotFiniteError: The training loss is not a finite number.
    """
    _check(features, labels, num_classes)
    if min(batch_size, max_epochs, patience) < 1:
        raise UserError(
            f"batch_size, max_epochs and patience must be at least 1, got {batch_size}, {max_epochs} and {patience}"
        )
    if stopping not in STOPPING:
        raise UserError(f"stopping is {stopping!r}; expected one of {', '.join(STOPPING)}")
    features = features.detach().to(torch.promote_types(features.dtype, torch.float32))
    device, labels = features.device, labels.to(features.device)
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(features.shape[1])
    start = torch.empty(num_classes, features.shape[1] + 1).uniform_(-bound, bound, generator=generator)
    weight = start[:, :-1].to(features).contiguous().requires_grad_()
    bias = start[:, -1].to(features).contiguous().requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=learning_rate, fused=device.type == "cuda")
    kept, lowest, reference, waited = (weight, bias), math.inf, math.inf, 0
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for epoch in range(max_epochs):
            total = torch.zeros((), dtype=torch.float64, device=device)
            order = torch.randperm(len(features), generator=generator).to(device)
            batches = order.split(batch_size)
            for rows in batches:
                loss = F.cross_entropy(F.linear(features[rows], weight, bias), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
            mean = total.item() / len(batches)
            if not math.isfinite(mean):
                raise NotFiniteError(f"the probe's training loss in epoch {epoch} is {mean}; lower the learning rate")
            dropped = mean <= reference - min_drop
            if dropped if stopping == IN_ALL else mean < lowest:
                kept = weight.detach().clone(), bias.detach().clone()
            lowest = min(lowest, mean)
            if not dropped:
                waited += 1
            else:
                reference, waited = mean, waited if stopping == IN_ALL else 0
            if waited >= patience:
                break
    return kept


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raise a UserError unless features and labels make a training set."""
    if features.dim() != 2 or labels.shape != features.shape[:1] or not len(features):
        raise UserError(
            f"a probe needs features [N, E] and labels [N] of at least one image, got {list(features.shape)} and "
            f"{list(labels.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        raise UserError("the probe's features have entries that are not finite numbers")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(f"labels must lie between 0 and {num_classes - 1}, got {low} to {high}")
