"""ProLIP: the last projection of the image tower is learned, and drawn to CLIP's.

Source: Fahes et al., "CLIP's Visual Embedding Projector is a Few-shot Cornucopia", arXiv 2410.05270, and the authors'
program. An image's features before the projection, `h [W]`, give `f = normalise(h P + c)`, where `P [W, E]` is learned
and `c [E]`, which ResNets have, stays. The loss is

    CE(s f T^T) + LAMBDA sum((P - P_0)^2)

in full batches, each step on another of `VIEWS` random views, which are encoded beforehand. No tower runs in training.

The program writes 100 for `s`, the logit scale of OpenAI's models. Its published runs train `P` in float16, where their
rate of 1e-5 lies below the spacing of the numbers and Adam's second moment underflows: steps are then an order of
magnitude longer than in float32. Here `P` is float32, and 1e-4 stands for that rate.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.clip.vision_tower import Projection
from dassl_clip.engine import distributed
from dassl_clip.engine.evaluation import selection_images
from dassl_clip.engine.features import Encoding
from dassl_clip.engine.method import at_least
from dassl_clip.engine.styles import class_texts
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.training_views import TrainingViews
from dassl_clip.engine.unused import EPOCH_LOOP
from dassl_clip.results.errors import UserError

logger = logging.getLogger(__name__)


class Projector(nn.Module):
    """The learned projection.

    Args:
        weight: `[W, E]`, CLIP's own.
        bias: `[E]`, which stays, or None.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.vit_proj = nn.Parameter(weight.detach().float().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features `[B, E]` of length 1 of what comes before the projection, `[B, W]`."""
        features = inputs @ self.vit_proj
        return F.normalize(features if self.bias is None else features + self.bias, dim=-1)


def trained_steps(
    projector: Projector,
    views: Sequence[Tensor],
    labels: Tensor,
    text: Tensor,
    penalty: float,
    lr: float,
    steps: int = 300,
    scale: float = 100.0,
    eps: float = 1e-4,
) -> Iterator[float]:
    """Train a projection on all images at once, with Adam and a cosine schedule to 0; gives the loss of each step.

    Args:
        projector: Changed in place; where it starts is what it is drawn to.
        views: `A` views of the training images, `[N, W]` before the projection; step `i` takes view `(i + 1) mod A`.
        labels: `[N]`.
        text: `[C, E]`, of length 1.
        penalty: Weight of the squared distance from the start.
        lr: Rate of the first step.
        steps: How many.
        scale: Factor on the scores.
        eps: Of Adam. 1e-8, its usual value, gives another projection.
    """
    weight, start = projector.vit_proj, projector.vit_proj.detach().clone()
    optim = torch.optim.Adam([weight], lr=lr, eps=eps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, max(1, steps))
    for number in range(steps):
        with torch.enable_grad():
            logits = scale * projector(views[(number + 1) % len(views)]) @ text.T
            loss = F.cross_entropy(logits, labels) + penalty * (weight - start).square().sum()
            optim.zero_grad()
            loss.backward()
        optim.step()
        schedule.step()
        yield loss.item()


def parse_penalty(value: object, shots: float) -> float:
    """A weight of the penalty: a number, `1/K` or `1/K^2` with `K` images per class.

    Raises:
        UserError: Another form, or a negative number.
    """
    known = {"1/K": 1 / shots, "1/K^2": 1 / shots**2}
    try:
        penalty = known[value] if isinstance(value, str) and value in known else float(str(value))
    except ValueError:
        penalty = -1.0
    if not 0 <= penalty < math.inf:
        raise UserError(f"TRAINER.PROLIP.LAMBDA holds {value!r}; expected a number of at least 0, 1/K or 1/K^2")
    return penalty


@TRAINER_REGISTRY.register()
class ProLIP(CLIPTrainer):
    """Of several rates and penalties those with the best accuracy on *source* validation images are taken."""

    settings = {
        "TEMPLATES": "coop",
        "VIEWS": 300,  # random views of each training image; fewer is another method
        "STEPS": 300,
        "LR": (1e-4,),  # candidates
        "LAMBDA": ("1/K",),  # candidates: numbers, 1/K or 1/K^2
        "EPS": 1e-4,
    }
    limits = {"VIEWS": at_least(1), "STEPS": at_least(0), "EPS": at_least(0)}
    has_epochs = False
    image_features_change = True
    listed = False
    unused_keys = EPOCH_LOOP
    used_instead = "it trains on all images at once, with LR, LAMBDA and STEPS of TRAINER.PROLIP"

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse impossible candidates."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.PROLIP
        if not node.LR or not node.LAMBDA or min(node.LR) < 0:
            raise UserError(
                f"TRAINER.PROLIP.LR is {tuple(node.LR)} and LAMBDA {tuple(node.LAMBDA)}; expected one or more of each, "
                "rates of at least 0"
            )
        for value in node.LAMBDA:
            parse_penalty(value, 1)

    def published_state(self, state: dict) -> dict:
        """The projection of an authors' checkpoint of a ResNet, which holds it as a linear layer."""
        if "linear.weight" not in state:
            return state
        return {"vit_proj": state["linear.weight"].T}

    def build_model(self) -> None:
        """The text classifier and CLIP's projection."""
        self.templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
        self.text = class_texts(self)
        self.setting_chosen = False  # by validation images
        self.model = self.register_learner("prolip", Projector(self.projection.weight, self.projection.bias))

    @cached_property
    def projection(self) -> Projection:
        """CLIP's own, which is asked for before the model is built."""
        return self.backbone.projection()

    @cached_property
    def encoding(self) -> Encoding:
        """What comes before the projection, `[B, W]`."""
        width = len(self.projection.weight)
        return Encoding("image features before the projection", width, lambda images: self._encode(images))

    def _encode(self, images: Tensor) -> Tensor:
        """What comes before the projection, `[B, W]`, of images `[B, 3, H, W]`."""
        with self.precision.autocast():
            return self.backbone.encode_unprojected(images, self.projection)

    def fit(self) -> None:
        """Train with every rate and penalty, and keep the best on validation images."""
        node, views = self.node, TrainingViews(self, self.node.VIEWS)
        shots = self.cfg.DATASET.NUM_SHOTS
        shots = shots if shots >= 1 else max(1.0, len(views.labels) / self.num_classes)
        pairs = list(itertools.product(node.LR, node.LAMBDA))
        images = selection_images(self.dm.dataset, "ProLIP's choice of LR and LAMBDA") if len(pairs) > 1 else []
        if len(pairs) > 1 and not images:
            logger.warning("no validation images to choose LR and LAMBDA on: taking %g and %s", *pairs[0])
            pairs = pairs[:1]
        held_out, truth = self._held_out(images)
        start = taken = self.model.vit_proj.detach().clone()
        best = -1
        for lr, penalty in pairs:
            self.model.vit_proj.data = start.clone()
            arguments = views, views.labels, self.text, parse_penalty(penalty, shots), lr, node.STEPS
            losses = list(trained_steps(self.model, *arguments, float(self.logit_scale), node.EPS))
            hits = int((self.model(held_out) @ self.text.T).argmax(dim=1).eq(truth).sum()) if len(pairs) > 1 else 0
            if hits > best:  # the first of equal ones
                best, taken = hits, self.model.vit_proj.detach().clone()
                self.losses = {"loss": losses[-1] if losses else 0.0, "lr": lr, "lambda": parse_penalty(penalty, shots)}
        self.setting_chosen = len(pairs) > 1
        self.model.vit_proj.data = distributed.broadcast(taken)

    def _held_out(self, items: list) -> tuple[Tensor, Tensor]:
        """Rows `[V, W]` and labels `[V]` of the readable ones of some images."""
        if not items:
            return torch.zeros(0, len(self.projection.weight)), torch.zeros(0)
        images = self.features.cached(items, self.encoding)
        labels = torch.tensor([items[number].label for number in images.readable.tolist()], device=self.device)
        return images[images.readable].to(self.device), labels

    def record_facts(self) -> dict:
        """Also by what rate and penalty were chosen."""
        facts = super().record_facts()
        facts["selection_rule"] += "; LR and LAMBDA by source validation images" * self.setting_chosen
        return facts

    def row_content(self, rows: Tensor) -> Tensor:
        """Features `[B, E]` of rows `[B, W]`."""
        return self.model(rows)

    def class_proxies(self) -> Tensor:
        """The text classifier, `[C, E]`."""
        return self.text

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of rows `[B, W]`."""
        return self.cosine_logits(self.row_content(features), self.text)
