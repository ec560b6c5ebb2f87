"""LP++: a linear probe whose classes are blended with their text features by a learned weight for each class.

Source: Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024, arXiv 2404.02285, and the
authors' program, where it is called `LinearProbe_P2`. With features and text features of length 1 an image scores

    f V^T + b + a * (f T^T)

without a factor on top: `a [C]` starts at tens and takes its place. The step sizes follow from the features.

As in the program, the gradient of `a` is never set back: each of its steps takes the sum over all passes since the
start. The program takes the number of classes from the images; here classes without an image start at zero weights.
"""

import logging
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from dassl_clip.results.protocols import BEST_ON_VAL

logger = logging.getLogger(__name__)


class BlendedProbe(nn.Module):
    """Class weights `[C, E]`, a bias `[C]`, and the weight `alpha` `[C]` of each class's text feature.

    Args:
        text: Text features `[C, E]`, of length 1; they are no part of checkpoints.
    """

    text: Tensor

    def __init__(self, text: Tensor):
        super().__init__()
        self.register_buffer("text", text.clone(), persistent=False)
        self.weight = nn.Parameter(torch.zeros_like(text))
        self.bias = nn.Parameter(text.new_zeros(len(text)))
        self.alpha = nn.Parameter(text.new_zeros(len(text)))

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]` of length 1."""
        return features @ self.weight.T + self.bias + self.alpha * (features @ self.text.T)


@torch.no_grad()
def start_at(probe: BlendedProbe, features: Tensor, labels: Tensor, bias: Tensor, factor: float = 250.0) -> None:
    """Put a probe at its start: sums of features, and one text weight for all classes.

    Args:
        probe: Changed in place.
        features: Of the training images, `[N, E]`, of length 1.
        labels: `[N]`.
        bias: `[C]`.
        factor: The text weight over the mean cosine of an image with the text of its class, each class counting alike.
    """
    sums = torch.zeros_like(probe.weight).index_add_(0, labels, features)
    counts = torch.bincount(labels, minlength=len(sums))
    present = counts > 0
    cosines = (sums * probe.text).sum(dim=1)[present] / counts[present]
    probe.weight.copy_(sums)
    probe.bias.copy_(bias)
    probe.alpha.fill_(factor * cosines.mean())


def step_sizes(features: Tensor, text: Tensor) -> tuple[float, float]:
    """Rates of weights and bias, and of the text weights, for features `[N, E]` and text features `[C, E]`."""
    largest = torch.linalg.eigvalsh(features.T @ features)[-1]
    return float(4 * len(features) / largest), float(len(features) / (4 * (features @ text.T).square().sum(0).max()))


def trained_passes(
    probe: BlendedProbe, features: Tensor, labels: Tensor, passes: int = 300, every: int = 10
) -> Iterator[float]:
    """Train a probe on all images at once; gives the loss of each pass before its step.

    Args:
        probe: Changed in place.
        features: `[N, E]`, of length 1.
        labels: `[N]`.
        passes: How many.
        every: The text weights take a step in every so many passes.
    """
    rate, rate_of_alpha = step_sizes(features, probe.text)
    optim = torch.optim.SGD([probe.weight, probe.bias], lr=rate, momentum=0.9)
    probe.alpha.grad = None
    for number in range(1, passes + 1):
        with torch.enable_grad():
            loss = F.cross_entropy(probe(features), labels)
            optim.zero_grad()  # not that of alpha, which adds up
            loss.backward()
        optim.step()
        if number % every == 0:
            with torch.no_grad():
                probe.alpha -= rate_of_alpha * probe.alpha.grad
        yield loss.item()


@TRAINER_REGISTRY.register()
class LinearProbeP2(CLIPTrainer):
    """The pass with the best accuracy on *source* validation images, of equal ones the latest; else the last."""

    settings = {
        "TEMPLATES": "coop",
        "PASSES": 300,
        "ALPHA_EVERY": 10,  # passes between two steps of the text weights
        "ALPHA_FACTOR": 250.0,  # the first text weight over the mean cosine of images with the text of their class
    }
    limits = {"PASSES": at_least(0), "ALPHA_EVERY": at_least(1), "ALPHA_FACTOR": at_least(0)}
    class_specific = True
    has_epochs = False
    listed = False
    unused_keys = EPOCH_LOOP
    used_instead = "it trains on all images at once, with step sizes that follow from them"

    def build_model(self) -> None:
        """The text features, and a probe of zeros."""
        self.templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
        text = class_texts(self)
        self.pass_chosen = False
        self.model = self.register_learner("linear_probe_p2", BlendedProbe(text))

    def fit(self) -> None:
        """Train on one view of each image, and keep the best pass on validation images."""
        node, probe = self.node, self.model
        views = TrainingViews(self, 1)
        features, labels = F.normalize(views[0], dim=-1), views.labels
        width = features.shape[1]
        draw = torch.Generator().manual_seed(derive_seed(self.cfg.SEED, "bias"))
        bias = (2 * torch.rand(self.num_classes, generator=draw) - 1) / width**0.5
        start_at(probe, features, labels, bias.to(features), node.ALPHA_FACTOR)
        images = selection_images(self.dm.dataset, "LP++'s choice of a pass")
        held_out, truth = self.features(images) if images else (None, None)
        if held_out is None:
            logger.warning("no validation images to choose a pass on: taking the last of %d", node.PASSES)
        best, kept, taken = -1, {}, node.PASSES
        for number, loss in enumerate(trained_passes(probe, features, labels, node.PASSES, node.ALPHA_EVERY), 1):
            self.losses = {"ce": loss}
            if held_out is None:
                continue
            with torch.no_grad():
                hits = int(probe(held_out).argmax(dim=1).eq(truth).sum())
            if hits >= best:
                best, taken = hits, number
                kept = {name: value.clone() for name, value in probe.state_dict().items()}
        probe.load_state_dict(kept or probe.state_dict())
        self.pass_chosen = bool(kept)
        for parameter in probe.parameters():
            parameter.data = distributed.broadcast(parameter.data)
        self.losses["pass"] = taken

    def record_facts(self) -> dict:
        """Also by what the pass was chosen."""
        facts = super().record_facts()
        return facts | {"selection_rule": BEST_ON_VAL} if self.pass_chosen else facts

    def class_proxies(self) -> Tensor:
        """What features are compared with, but for the bias: `V + a T`, `[C, E]`."""
        return (self.model.weight + self.model.alpha[:, None] * self.model.text).detach()

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.model(F.normalize(features.float(), dim=-1))
