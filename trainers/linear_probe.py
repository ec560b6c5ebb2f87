"""A linear classifier on frozen image features that starts at the text features and is regularised towards them.

The strongest simple few-shot baseline: with few images it stays near zero-shot CLIP, with many it is a plain probe.
Sources: the text start is that of WiSE-FT (Wortsman et al., CVPR 2022) and of Lin et al., "Multimodality helps
unimodality", CVPR 2023; the pull is an L2 penalty on the distance from the start (L2-SP, Li et al., ICML 2018).
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.engine import distributed
from dassl_clip.engine.evaluation import selection_images
from dassl_clip.engine.method import at_least
from dassl_clip.engine.styles import class_texts
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.unused import EPOCH_LOOP, templates_override
from dassl_clip.results.errors import UserError

logger = logging.getLogger(__name__)


class Probe(nn.Module):
    """Class weights `[C, E]`, applied to normalised features without a bias."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, features: Tensor) -> Tensor:
        """Inner products `[N, C]` of features `[N, E]` with the class weights."""
        return features @ self.weight.T


def fit_probe(features: Tensor, labels: Tensor, start: Tensor, logit_scale: float, pull: float, steps: int) -> Tensor:
    """Minimise cross-entropy plus `pull * mean_c |w_c - start_c|^2` over all images at once, with L-BFGS.

    Args:
        features: `[N, E]`, normalised.
        labels: `[N]`.
        start: Weights to start from and to be pulled to, `[C, E]`.
        logit_scale: Factor on the inner products.
        pull: Weight of the penalty, at least 0.
        steps: Most iterations.

    Returns:
        The weights, `[C, E]`.
    """
    weight = start.clone().requires_grad_(True)
    solver = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(logit_scale * features @ weight.T, labels)
        loss = loss + pull * (weight - start).square().sum(1).mean()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(objective)
    return weight.detach()


@TRAINER_REGISTRY.register()
class LinearProbe(CLIPTrainer):
    """The pull is a value of `PULL`; of several, the one with the best accuracy on *source* validation images."""

    aliases = ("lp",)
    settings = {
        "TEMPLATES": "single",  # of the weights to start from
        "CTX_INIT": "a photo of a",
        "PULL": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),  # candidates
        "STEPS": 500,  # most iterations of the solver
    }
    class_specific = True
    limits = {"STEPS": at_least(0)}
    has_epochs = False
    overridden = {"CTX_INIT": ("TEMPLATES", templates_override)}
    unused_keys = EPOCH_LOOP
    used_instead = "L-BFGS solves for the weights on all images at once, see TRAINER.LINEARPROBE"

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse an empty or negative pull."""
        super().check_cfg(cfg)
        pulls = cfg.TRAINER.LINEARPROBE.PULL
        if not pulls or min(pulls) < 0:
            raise UserError(f"TRAINER.LINEARPROBE.PULL is {tuple(pulls)}; expected one or more numbers of at least 0")

    @property
    def prompt(self) -> str:
        """The templates of the starting weights, and the chosen pull."""
        return f"weights from {' | '.join(self.templates)}"

    def build_model(self) -> None:
        """The probe at the text features."""
        node = self.node
        self.templates = resolve_templates(node.TEMPLATES, self.cfg.DATASET.NAME, words=node.CTX_INIT)
        self.start = class_texts(self)
        self.pull_chosen = False  # by validation images
        self.model = self.register_learner("probe", Probe(self.start))

    def fit(self) -> None:
        """Extract the features once, solve for every candidate pull, keep the best on validation images."""
        features, labels = self.features(self.dm.dataset.train_x)
        pulls = sorted(self.node.PULL, reverse=True)
        if len(pulls) > 1 and not self.dm.dataset.val:
            middle = pulls[len(pulls) // 2]
            logger.warning("no validation images to choose TRAINER.LINEARPROBE.PULL on: taking %g", middle)
            pulls = [middle]
        scale = float(self.logit_scale)
        fitted = {pull: fit_probe(features, labels, self.start, scale, pull, self.node.STEPS) for pull in pulls}
        weights = {pull: distributed.broadcast(weight) for pull, weight in fitted.items()}
        self.pull, self.pull_chosen = pulls[0], len(pulls) > 1
        if len(pulls) > 1:
            images = selection_images(self.dm.dataset, "TRAINER.LINEARPROBE.PULL, of several values,")
            held_out, held_out_labels = self.features(images)
            accuracy = {
                pull: (held_out @ weight.T).argmax(1).eq(held_out_labels).float().mean().item() * 100
                for pull, weight in weights.items()
            }
            self.pull = max(pulls, key=accuracy.get)  # the strongest pull among equals
            logger.info("validation accuracy by pull: %s", {f"{p:g}": round(a, 1) for p, a in accuracy.items()})
        with torch.no_grad():
            self.model.weight.copy_(weights[self.pull])
        logits = scale * self.model(features)
        self.losses = {"ce": F.cross_entropy(logits, labels).item(), "pull": self.pull}

    def record_facts(self) -> dict:
        """Also by what the pull was chosen."""
        facts = super().record_facts()
        facts["selection_rule"] += "; pull by source validation images" * self.pull_chosen
        return facts

    def class_proxies(self) -> Tensor:
        """The class weights, `[C, E]`."""
        return self.model.weight.detach()

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.logit_scale * self.model(F.normalize(features, dim=-1))
