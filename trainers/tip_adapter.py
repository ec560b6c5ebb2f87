"""Tip-Adapter and Tip-Adapter-F: a cache of the training images' features beside CLIP's text classifier.

Source: Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022, arXiv
2207.09519, and the authors' program. With features and text features of length 1 an image scores

    s f T^T + alpha exp(-beta (1 - f Q^T)) Y

where `Q` are the keys, one per training image: the mean of the features of its random views, as the tower gives them,
then normalised. `Y` are their labels, one-hot. Tip-Adapter-F trains the keys, and nothing else.

The program writes 100 for `s`, which is the logit scale of OpenAI's models; others have their own.
It chooses `alpha`, `beta` (ImageNet) and the epoch of the trained keys (all data sets) on test images. Here source
validation images choose `alpha` and `beta`; without any, both stay as they are set. The last epoch is taken, or with
`TEST.FINAL_MODEL best_val` the best on these images.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.engine import distributed
from dassl_clip.engine.data import derive_seed
from dassl_clip.engine.evaluation import selection_images
from dassl_clip.engine.method import at_least
from dassl_clip.engine.styles import class_texts
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.training_views import TrainingViews
from dassl_clip.engine.unused import EPOCH_LOOP
from dassl_clip.results.errors import UserError
from dassl_clip.results.protocols import BEST_ON_VAL

logger = logging.getLogger(__name__)

LOWEST = 0.1  # of the grid over alpha and beta


def mean_keys(views: Iterable[Tensor]) -> Tensor:
    """Keys `[N, E]` of length 1: means over views, each `[N, E]` as the tower gives them (not normalised)."""
    total, count = torch.zeros(()), 0
    for features in views:
        total, count = total.to(features) + features, count + 1
    return F.normalize(total / count, dim=-1)


class KeyCache(nn.Module):
    """The cache and its two strengths, which are all that is learned.

    Args:
        keys: `[N, E]`.
        values: Labels of the keys, one-hot, `[N, C]`.
        beta: Sharpness: how fast the weight of a key falls with its distance.
        alpha: Weight of the cache beside the text classifier.
    """

    def __init__(self, keys: Tensor, values: Tensor, beta: float, alpha: float):
        super().__init__()
        self.keys = nn.Parameter(keys.clone())
        self.register_buffer("values", values.clone())
        self.register_buffer("beta", torch.tensor(float(beta)))
        self.register_buffer("alpha", torch.tensor(float(alpha)))

    def forward(self, features: Tensor, text: Tensor, scale: float | Tensor = 100.0) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`, given text features `[C, E]`, both of length 1."""
        weights = torch.exp(-self.beta * (1 - features @ self.keys.T))  # [B, N]
        return scale * features @ text.T + self.alpha * weights @ self.values


def grid(top: float, steps: int) -> list[float]:
    """`steps` values from 0.1 up to, and without, `top`."""
    return [LOWEST + number * (top - LOWEST) / steps for number in range(steps)]


@torch.no_grad()
def best_strengths(
    cache: KeyCache,
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    top: Sequence[float],
    steps: Sequence[int],
    scale: float = 100.0,
) -> tuple[float, float, float]:
    """`beta`, `alpha` and accuracy in percent of the first of the best points of a grid, `beta` outside.

    Args:
        cache: Its keys and values count.
        features: Of the images that choose, `[V, E]`, of length 1.
        labels: `[V]`.
        text: `[C, E]`, of length 1.
        top: Where the grid ends, for `beta` and `alpha`.
        steps: Number of its values of either.
        scale: Factor on cosines with the text features.
    """
    distances, logits = 1 - features @ cache.keys.T, scale * features @ text.T  # [V, N], [V, C]
    best = (0.0, 0.0, -1.0)
    for beta in grid(top[0], steps[0]):
        weights = torch.exp(-beta * distances) @ cache.values
        for alpha in grid(top[1], steps[1]):
            hits = int((logits + alpha * weights).argmax(dim=1).eq(labels).sum())
            if hits > best[2]:
                best = (beta, alpha, hits)
    return best[0], best[1], 100 * best[2] / len(labels)


def trained_keys(
    cache: KeyCache,
    views: Iterable[Tensor],
    labels: Tensor,
    text: Tensor,
    batches: Sequence[Sequence[Tensor]],
    scale: float = 100.0,
    lr: float = 1e-3,
    eps: float = 1e-4,
    weight_decay: float = 0.01,
) -> Iterator[float]:
    """Train the keys by cross-entropy, with AdamW and a cosine schedule per step; gives the loss of each step.

    Args:
        cache: Its keys change in place; `beta` and `alpha` stay.
        views: Features `[N, E]` of the training images for each epoch, as the tower gives them.
        labels: `[N]`.
        text: `[C, E]`, of length 1.
        batches: For each epoch the images of each batch, `[B]`.
        scale: Factor on the scores.
        lr: Rate of the first step.
        eps: Of AdamW. 1e-8, its usual value, gives other keys: gradients here are small.
        weight_decay: Of AdamW; it draws the keys to zero.
    """
    optim = torch.optim.AdamW([cache.keys], lr=lr, eps=eps, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, sum(map(len, batches)))
    for epoch, view in zip(batches, views):
        features = F.normalize(view, dim=-1)
        for index in epoch:
            with torch.enable_grad():
                loss = F.cross_entropy(cache(features[index], text, scale), labels[index])
                optim.zero_grad()
                loss.backward()
            optim.step()
            schedule.step()
            yield loss.item()


@TRAINER_REGISTRY.register()
class TipAdapter(CLIPTrainer):
    """Keys from the training images, `alpha` and `beta` from validation images."""

    settings = {
        "TEMPLATES": "coop",
        "VIEWS": 10,  # random views that a key is the mean of
        "BETA": 1.0,  # without validation images, and while keys are trained
        "ALPHA": 3.0,
        "GRID_TOP": (12.0, 5.0),  # of beta and alpha
        "GRID_STEPS": (200, 20),
        "KEYS": 0,  # how many the cache has; 0: as many as there are training images
    }
    limits = {"VIEWS": at_least(1), **dict.fromkeys(("KEYS", "BETA", "ALPHA"), at_least(0))}
    class_specific = True
    has_epochs = False
    listed = False
    unused_keys = EPOCH_LOOP
    used_instead = "keys are means of features, see TRAINER.TIPADAPTER"
    fixed_in_record = {"KEYS": "keys"}

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse an impossible grid."""
        super().check_cfg(cfg)
        name = type(self).__name__.upper()
        node = cfg.TRAINER[name]
        top, steps = node.GRID_TOP, node.GRID_STEPS
        if len(top) != 2 or min(top) <= LOWEST or len(steps) != 2 or min(steps) < 1:
            raise UserError(
                f"TRAINER.{name}.GRID_TOP is {tuple(top)} and GRID_STEPS {tuple(steps)}; expected two numbers each, "
                f"for beta and alpha: tops above {LOWEST} and steps of at least 1"
            )

    def build_model(self) -> None:
        """The text classifier, and an empty cache."""
        node = self.node
        self.templates = resolve_templates(node.TEMPLATES, self.cfg.DATASET.NAME)
        self.text = class_texts(self)
        self.chosen, self.epoch_chosen = "", False  # by validation images
        count = node.KEYS or len(self.dm.dataset.train_x)
        keys = torch.zeros(count, self.backbone.embed_dim)
        cache = KeyCache(keys, torch.zeros(count, self.num_classes), node.BETA, node.ALPHA)
        self.model = self.register_learner("tip_adapter", cache)

    def fit(self) -> None:
        """Fill the cache, train its keys where the method does, then choose the strengths."""
        views = TrainingViews(self, self.node.VIEWS)
        count = len(self.model.keys)
        if count != len(self.dm.dataset.train_x):
            raise UserError(
                f"TRAINER.{type(self).__name__.upper()}.KEYS is {count}, but there are "
                f"{len(self.dm.dataset.train_x)} training images and each is a key; leave KEYS at 0 to train"
            )
        # Images that cannot be read keep a value of zero, which counts for nothing.
        self.model.values[views.readable] = F.one_hot(views.labels, self.num_classes).to(self.model.values)
        with torch.no_grad():
            self.model.keys[views.readable] = mean_keys(views)
        self.train_keys()
        self.model.keys.data = distributed.broadcast(self.model.keys.data)
        self.choose_strengths()

    def train_keys(self) -> None:
        """Nothing: the keys stay as they are."""

    def held_out(self, what: str) -> tuple[Tensor, Tensor] | None:
        """Features `[V, E]` and labels `[V]` of source validation images, or None where there are none."""
        images = selection_images(self.dm.dataset, f"{type(self).__name__}'s search of {what}")
        return self.features(images) if images else None

    def choose_strengths(self) -> None:
        """Search `beta` and `alpha` on validation images."""
        node = self.node
        held_out = self.held_out("beta and alpha")
        if held_out is None:
            logger.warning("no validation images to choose on: taking BETA %g and ALPHA %g", node.BETA, node.ALPHA)
            self.chosen = "; beta and alpha as set"
        else:
            area = tuple(node.GRID_TOP), tuple(node.GRID_STEPS)
            beta, alpha, accuracy = best_strengths(self.model, *held_out, self.text, *area, float(self.logit_scale))
            self.model.beta.fill_(beta)
            self.model.alpha.fill_(alpha)
            logger.info("beta %.3g and alpha %.3g: %.1f %% of the validation images", beta, alpha, accuracy)
            self.chosen = "; beta and alpha by source validation images"
        self.losses |= {"beta": float(self.model.beta), "alpha": float(self.model.alpha)}

    def record_facts(self) -> dict:
        """Also how many keys there are, and by what the strengths were chosen."""
        facts = super().record_facts()
        rule = BEST_ON_VAL if self.epoch_chosen else facts["selection_rule"]
        return facts | {"keys": len(self.model.keys), "selection_rule": rule + self.chosen}

    def class_proxies(self) -> Tensor:
        """The text classifier, `[C, E]`."""
        return self.text

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.model(F.normalize(features.float(), dim=-1), self.text, self.logit_scale)


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """The keys are trained, then `alpha` and `beta` chosen."""

    settings = TipAdapter.settings | {
        "LR": 1e-3,
        "EPS": 1e-4,
        "WEIGHT_DECAY": 0.01,
        "EPOCHS": 20,  # each on a random view of its own
        "BATCH_SIZE": 256,
    }
    limits = TipAdapter.limits | {
        **dict.fromkeys(("EPOCHS", "LR", "EPS", "WEIGHT_DECAY"), at_least(0)),
        "BATCH_SIZE": at_least(1),
    }
    used_instead = "AdamW trains the keys, with LR, EPOCHS and BATCH_SIZE of TRAINER.TIPADAPTERF"

    def train_keys(self) -> None:
        """Train the keys on one view per epoch; with `best_val` take the best epoch on validation images."""
        node, cache, scale = self.node, self.model, float(self.logit_scale)
        views = TrainingViews(self, node.VIEWS + node.EPOCHS)
        epochs = (views[number] for number in range(node.VIEWS, len(views)))
        draw = torch.Generator().manual_seed(derive_seed(self.cfg.SEED, "batches"))
        orders = [torch.randperm(len(views.labels), generator=draw).to(self.device) for _ in range(node.EPOCHS)]
        batches = [order.split(node.BATCH_SIZE) for order in orders]
        settings = {"lr": node.LR, "eps": node.EPS, "weight_decay": node.WEIGHT_DECAY}
        steps = trained_keys(cache, epochs, views.labels, self.text, batches, scale, **settings)
        choosing = self.held_out("the epoch") if self.cfg.TEST.FINAL_MODEL == "best_val" else None
        best, keys = -1, cache.keys.detach().clone()
        for epoch, parts in enumerate(batches):
            losses = [next(steps) for _ in parts]
            self.losses = {"ce": sum(losses) / len(losses)}
            self.history.append({"epoch": epoch + 1, **self.losses})
            if choosing is not None:
                with torch.no_grad():
                    hits = int(cache(choosing[0], self.text, scale).argmax(dim=1).eq(choosing[1]).sum())
                if hits > best:
                    best, keys = hits, cache.keys.detach().clone()
        if choosing is not None:
            cache.keys.data = keys
            self.epoch_chosen = True
