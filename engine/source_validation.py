"""Source validation during a training: accuracy and loss on each source domain's validation images.

Shapes: `B` images of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import sharding

if TYPE_CHECKING:
    from .trainer import CLIPTrainer


@torch.no_grad()
def by_domain(
    trainer: "CLIPTrainer",
    items: Sequence[Any],
    logits: Callable[[Tensor], Tensor],
    names: Sequence[str],
    transform: Callable[..., Any] | None = None,
    view_seed: int | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy in percent, and mean cross-entropy in nats, of the images of each domain.

    Args:
        trainer: Reads the images; in evaluation mode.
        items: The images.
        logits: Images `[B, 3, H, W]` to logits `[B, C]`.
        names: Names of domains by number; others are called by their number.
        transform: How an image is read; None: the test preprocessing.
        view_seed: Of a random transform.
    """
    loader = trainer.features.loader(items, transform, view_seed)

    def own() -> Iterator[tuple[Tensor, ...]]:
        for batch in sharding.shard_batches(loader):
            readable = torch.tensor(trainer.features.note_unreadable(batch))
            images = trainer.features.to_device(batch["img"])[readable.to(trainer.device)]
            labels = batch["label"][readable].to(trainer.device)
            scores = logits(images) if len(labels) else torch.zeros(0, trainer.num_classes, device=trainer.device)
            losses = F.cross_entropy(scores, labels, reduction="none")
            yield scores.argmax(1).eq(labels).cpu(), losses.double().cpu(), batch["domain"][readable]

    rows = list(sharding.merge_shards(own(), loader))
    hits, losses, domains = (torch.cat(column) for column in zip(*rows))
    accuracy: dict[str, float] = {}
    loss: dict[str, float] = {}
    for domain in domains.unique().tolist():
        name = names[domain] if domain < len(names) else str(domain)
        accuracy[name] = 100 * hits[domains == domain].double().mean().item()
        loss[name] = losses[domains == domain].mean().item()
    return accuracy, loss
