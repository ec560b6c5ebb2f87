"""InMaP: class proxies learned in vision space from unlabeled images, on plain CLIP or on any other run.

Source: Qian et al., "Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP", NeurIPS 2023 (arXiv
2310.19752). The unlabeled images are the test images (transductive, and marked so in the record) or, with `UNLABELED:
train` or `val`, others (inductive: the tested images are unseen). `FROM` names the folder of a finished run, whose
features, scores and class proxies take the place of CLIP's.

The paper's form (`MARGINAL: uniform`) assumes classes of equal size. By default nothing is assumed: the images
themselves say how far the predicted sizes are evened out (`marginal.py`), and few images lean on the text's scores.

Beside the trainer's classifier three others are tested: the text proxy, the vision proxy from plain pseudo labels, and
the one from the refined labels alone.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.rows import Cosines, FeatureRows
from dassl_clip.engine import distributed
from dassl_clip.engine.evaluation import metrics_of
from dassl_clip.engine.features import Encoding, NormalizedRows
from dassl_clip.engine.method import at_least, one_of
from dassl_clip.engine.temperatures import AUTO, parse_temperature
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.transductive import PAST, Images, TransductiveTrainer, check_images
from dassl_clip.results.errors import UserError

from . import marginal, sizes
from .draws import TOLERANCE_OF_DRAWS, draws_at_once, filled_up, vision_proxies
from .labels import SOLVERS, PseudoLabels, harden, set_logits, sinkhorn_potentials, solve_vision_proxy

logger = logging.getLogger(__name__)

# What `auto` stands for, over the logit scale: by default, and with the uniform marginal or GAMMA.
TEMPERATURES = (
    {"TEXT_TEMPERATURE": 1.0, "IMAGE_TEMPERATURE": 2.0},
    {"TEXT_TEMPERATURE": 1.0, "IMAGE_TEMPERATURE": 4.0},
)
UNLABELED = ("test", "train", "val")
TEXT, VISION, SINKHORN, SIZES = "text proxy", "vision proxy", "vision proxy, Sinkhorn", "vision proxy, class sizes"
REFINED = "proxy of the refined run"


class VisionProxies(nn.Module):
    """What is learned: class proxies, and where class sizes were weighed the text's part of the scores.

    Args:
        weight: Class proxies `[C, E]` of length 1.
        weighed: Whether scores are a mixture (`mixed_logits`).

    Attributes:
        theta: What the class sizes add to the text's logits, `[C]`.
        share: Of the proxies in the mixture, 0 to 1.
    """

    def __init__(self, weight: Tensor, weighed: bool = False):
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)
        if weighed:
            self.theta = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
            self.share = nn.Parameter(weight.new_zeros(()), requires_grad=False)


@TRAINER_REGISTRY.register()
class InMaP(TransductiveTrainer):
    """Pseudo labels from text proxies, refined by the class sizes, and a proxy in vision space for each class."""

    settings = {
        **TransductiveTrainer.settings,
        "TEMPLATES": "inmap7",
        "UNLABELED": "test",
        "MARGINAL": sizes.AUTO,  # or uniform, zero-shot, a number r, or a file of known class sizes
        "TEXT_TEMPERATURE": AUTO,  # a number; auto: 1 over the logit scale (0.01 for OpenAI's models); auto:K: K
        "IMAGE_TEMPERATURE": AUTO,  # the same; auto: 2 over it, with the uniform marginal and with GAMMA 4
        "GAMMA": "",  # a number: the marginal is proportional to (predicted sizes)^GAMMA, as MARGINAL was once called
        "SINKHORN_ITERATIONS": 20,
        "THRESHOLD": 0.6,
        "SOLVER": "fast",  # or authors
        "STEPS": 0,  # 0: the solver's own number
        "TOLERANCE": 1e-6,
        "LR": 10.0,
        "RENEW": 64,  # a stream's images after which the proxies are learned again from all that came
    }
    needs_online = PAST
    repairs = "classes that take too many images"
    listed_usually = True
    listed_refining = True
    limits = {
        "SOLVER": one_of(SOLVERS),
        "UNLABELED": one_of(UNLABELED),
        **dict.fromkeys(("SINKHORN_ITERATIONS", "STEPS", "THRESHOLD", "TOLERANCE"), at_least(0)),
        "RENEW": at_least(1),
    }
    overridden = {
        "LR": ("SOLVER", lambda node: node.SOLVER != "authors" and node.LR > 0),
        "TOLERANCE": ("SOLVER", lambda node: node.SOLVER == "authors"),
    }
    used_instead = "its solver has SOLVER, STEPS, TOLERANCE and LR of TRAINER.INMAP"
    score_jointly = CLIPTrainer.score_jointly  # what is learned scores any image, and can be refined
    model_inference = CLIPTrainer.model_inference
    refine_inputs = CLIPTrainer.refine_inputs

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse an unknown marginal, and temperatures that are not positive."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.INMAP
        for key in TEMPERATURES[0]:
            parse_temperature(node[key], f"TRAINER.INMAP.{key}", 1.0, 1.0)
        kind, gamma = sizes.parse_marginal(node.MARGINAL, "TRAINER.INMAP.MARGINAL"), self._gamma(node)
        if gamma is not None and kind != sizes.AUTO:
            raise UserError(
                f"TRAINER.INMAP.GAMMA {node.GAMMA} and MARGINAL {node.MARGINAL!r} both name the class sizes: leave one "
                "of them out"
            )
        for key, usual in (("UNLABELED", "test"), ("SOLVER", "fast")) if cfg.SCENARIOS.TASK else ():
            if node[key] != usual:
                raise UserError(
                    f"TRAINER.INMAP.{key} is {node[key]!r}, but {cfg.SCENARIOS.TASK} learns proxies of each draw from "
                    f"its own tested images, by the fast solver: set {key} {usual}, or leave SCENARIOS.TASK out"
                )

    @staticmethod
    def _gamma(node: CfgNode) -> float | None:
        """The exponent `GAMMA`, or None where it is not set."""
        try:
            gamma = float(node.GAMMA) if str(node.GAMMA).strip() else None
        except ValueError:
            gamma = float("nan")
        if gamma is not None and not math.isfinite(gamma):
            raise UserError(
                f"TRAINER.INMAP.GAMMA is {node.GAMMA!r}; expected a number (0: classes of equal size, as with MARGINAL "
                "uniform)"
            )
        return gamma

    @property
    def scores_jointly(self) -> bool:
        """Whether tested images are learned from as they are scored; else what was learned scores each by itself."""
        return bool(self.cfg.SCENARIOS.TASK)

    def build_model(self) -> None:
        """The text proxies, which the vision proxies start from, or the run that is refined."""
        super().build_model()
        self.solutions: dict[str, dict] = {}
        self.read_settings(float(self.logit_scale))
        if self.node.GAMMA:
            logger.info("GAMMA %s: class sizes are taken as (predicted sizes)^GAMMA; see MARGINAL", self.gamma)
        if self.base is not None:
            self.text_proxies = F.normalize(torch.ones(self.num_classes, self.backbone.embed_dim), dim=-1)
        proxies = VisionProxies(self.text_proxies.cpu(), weighed=self.gamma is None)
        self.model = self.register_learner("proxies", proxies)

    def read_settings(self, scale: float) -> None:
        """The class sizes that are asked for, and the temperatures at a logit scale."""
        self.marginal = sizes.parse_marginal(self.node.MARGINAL, "TRAINER.INMAP.MARGINAL")
        self.gamma = 0.0 if self.marginal == sizes.UNIFORM else self._gamma(self.node)
        usual = TEMPERATURES[self.gamma is not None]
        self.tau_t, self.tau_i = (
            parse_temperature(self.node[key], f"TRAINER.INMAP.{key}", 1 / scale, usual[key]) for key in usual
        )

    def fit(self) -> None:
        """Learn the proxies from the unlabeled images; a resumed run learns them again."""
        node = self.node
        items = self._unlabeled()
        if not items:
            raise UserError(
                f"TRAINER.INMAP.UNLABELED is {node.UNLABELED!r}, but {self.cfg.DATASET.NAME} offers no such images "
                "here; take test, or a data set and task with that part"
            )
        features, scores, start = self._inputs(items)
        if isinstance(features, NormalizedRows):
            features = features.held()
            scores = Cosines(features, scores.text_proxy)
        check_images(features, "InMaP")
        facts = {}
        if self.gamma is not None:
            theta = sinkhorn_potentials(scores, self.tau_t, self.gamma, node.SINKHORN_ITERATIONS)
        else:
            choice = self._choose(set_logits(scores, self.tau_t), start, len(scores))
            if not self._tests_unlabeled():
                choice = choice._replace(share=marginal.share_of_new(choice.share))
            theta, facts = choice.theta, sizes.facts_of(choice)
            logger.info("%s", sizes.sentence(choice, self.marginal))
            self.model.theta.copy_(distributed.broadcast(theta.float()))
            self.model.share.copy_(distributed.broadcast(choice.share.float()))
        refined = SIZES if self.gamma is None else SINKHORN
        labels = {
            VISION: PseudoLabels(scores, self.tau_t, None, node.THRESHOLD),
            refined: PseudoLabels(scores, self.tau_t, theta, node.THRESHOLD),
        }
        options = {"solver": node.SOLVER, "steps": node.STEPS or None, "tolerance": node.TOLERANCE, "lr": node.LR}
        self.learned = {TEXT if self.base is None else REFINED: start}
        for name, own in labels.items():
            begin = time.monotonic()
            solution = solve_vision_proxy(features, start.T, own, self.tau_i, **options)
            seconds = time.monotonic() - begin
            self.learned[name] = distributed.broadcast(solution.proxy.T.contiguous())
            self.solutions[name] = {
                "solver": node.SOLVER, "steps": solution.steps, "objective": solution.objective, "seconds": seconds,
                "converged": solution.converged, "text_temperature": self.tau_t, "image_temperature": self.tau_i,
                "images": len(items),
            }  # fmt: skip
            logger.info("%s: %d steps, objective %.6f, %.1f s", name, solution.steps, solution.objective, seconds)
        self.solutions[refined] |= facts
        self.losses = {"cross-entropy": self.solutions[refined]["objective"]}
        self.model.weight.copy_(self.learned[refined])
        if len(scores) == 1:  # says nothing of others: it keeps the scores that it starts from
            self.model.weight.copy_(start)
            if self.gamma is None:
                self.model.theta.zero_()
                self.model.share.zero_()

    def _choose(self, logits: marginal.Logits, proxies: Tensor, images: int) -> marginal.Choice:
        """The labels under `MARGINAL`; proxies `[C, E]` are those that the logits come from."""
        if self.marginal == sizes.AUTO:
            return marginal.choose(logits, proxies @ proxies.T)
        if isinstance(self.marginal, Path):
            return marginal.known(logits, sizes.read_sizes(self.marginal, self.classnames, images))
        return marginal.fixed(logits, self.marginal)

    def _unlabeled(self) -> list:
        """The images that the proxies are learned from; their labels are not read."""
        dataset = self.dm.dataset
        return {"test": dataset.test, "train": dataset.train_x, "val": dataset.val}[self.node.UNLABELED] or []

    def _tests_unlabeled(self) -> bool:
        """Whether images that the proxies are learned from are tested."""
        tested = {item.impath for item in self.dm.dataset.test}
        return any(item.impath in tested for item in self._unlabeled())

    def _inputs(self, items: list) -> tuple[FeatureRows, Tensor | Cosines, Tensor]:
        """Features `[N, E]`, scores `[N, C]` and proxies to start from `[C, E]`, of CLIP or of the refined run."""
        if self.base is not None:
            return self.base.refine_inputs(items)
        features, _ = self.features.normalized_rows(items)
        return features, Cosines(features, self.text_proxies.T), self.text_proxies

    def _compared(self, items: list) -> tuple[FeatureRows, Tensor]:
        """Normalised features `[N, E]` that proxies are compared with, and labels `[N]`, of the readable images."""
        if self.base is None:
            return self.features.normalized_rows(items)
        rows, labels = self.features.raw(items, self.base.encoding if self.base.image_features_change else None)
        return F.normalize(self.row_content(rows.to(self.device)), dim=-1), labels.to(self.device)

    def content(self, features: Tensor) -> Tensor:
        """What the refined run compares of features."""
        return self.base.content(features) if self.base is not None else features

    def row_content(self, rows: Tensor) -> Tensor:
        """The same of rows `[B, W]`."""
        return self.base.row_content(rows) if self.base is not None else rows

    def class_proxies(self) -> Tensor:
        """The learned proxies, `[C, E]`."""
        return self.model.weight

    @property
    def encoding(self) -> Encoding:
        """Features; those and more where the scores of the refined run take part, and read more."""
        base = getattr(self, "base", None)  # asked for before it is known
        if base is None or base.encoding is base.features.encoding:
            return super().encoding
        return super().encoding if self.gamma is not None and not base.image_features_change else base.encoding

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`, or of the rows `[B, W]` that the refined run reads."""
        vision = self.cosine_logits(self.row_content(features), self.model.weight)
        if self.gamma is not None:
            return vision
        if self.base is not None:
            text = self.base.feature_logits(features).float()
        else:
            text = self.cosine_logits(features, self.text_proxies)
        unit = 1 / self.logit_scale
        text = text * (unit / self.tau_t) + self.model.theta
        return mixed_logits(vision * (unit / self.tau_i), text, self.model.share)

    # ------------------------------------------------------------------------------------------ batches and streams

    @torch.no_grad()
    def logits_of_draws(self, images: Images, draws: Sequence[Tensor]) -> Iterator[Tensor]:
        """Logits `[M, C]` of each draw, learned from it alone; many draws are solved at once."""
        size, (width, classes) = max(map(len, draws)), (images.features.shape[1], images.logits.shape[1])
        at_once = draws_at_once(size, width, classes, images.features.device)
        for start in range(0, len(draws), at_once):
            some = draws[start : start + at_once]
            features, present = filled_up(images.features, some)
            text = filled_up(images.logits, some)[0]
            logits = self._scored(features, text, images.scale, *self._learned(features, text, present, images))
            for rows, index in zip(logits, some):
                yield rows[: len(index)]

    def joint_logits(self, images: Images) -> Tensor:
        """Logits `[N, C]` of images that the proxies are learned from."""
        return next(self.logits_of_draws(images, [torch.arange(len(images))]))

    @torch.no_grad()
    def logits_online(self, images: Images, order: Tensor) -> Tensor:
        """Logits `[N, C]`, rows as in `order`, from proxies of the images before.

        They are learned again after `RENEW` images, or a tenth of all that came where that is more; the first images
        have the scores that are refined.
        """
        features, text = images.features[order][None], images.logits[order][None]
        end = min(self.node.RENEW, len(order))
        logits, present = [text[:, :end]], torch.ones(1, len(order), dtype=torch.bool, device=features.device)
        while end < len(order):
            proxies, theta, share = self._learned(features[:, :end], text[:, :end], present[:, :end], images)
            learned = proxies, theta, share if self.gamma is not None else marginal.share_of_new(share)
            start, end = end, min(len(order), end + max(self.node.RENEW, end // 10))
            logits.append(self._scored(features[:, start:end], text[:, start:end], images.scale, *learned))
        return torch.cat(logits, dim=1)[0]

    def _learned(self, features: Tensor, text: Tensor, present: Tensor, images: Images) -> tuple[Tensor, ...]:
        """Proxies `[D, E, C]`, theta `[D, C]` and the share of the proxies `[D]`, learned from draws of images.

        Args:
            features: `[D, N, E]`.
            text: The logits that are refined, `[D, N, C]`.
            present: Which images are there, `[D, N]`.
            images: What they were drawn from.
        """
        node, logits = self.node, marginal.DrawLogits(text / (images.scale * self.tau_t), present)
        if self.gamma is not None:
            theta = marginal.marginal_potentials(logits, self.gamma, node.SINKHORN_ITERATIONS)
            share = torch.ones_like(logits.images)
        else:
            choice = self._choose(logits, images.proxies, len(images))
            theta, share = choice.theta, choice.share
        labels = (logits.logits + theta[:, None].to(text)).softmax(dim=-1)
        labels = harden(labels.flatten(0, 1), node.THRESHOLD).view_as(labels) * present[..., None]
        tolerance = max(node.TOLERANCE, TOLERANCE_OF_DRAWS)
        proxies = vision_proxies(features, images.proxies.T, labels, self.tau_i, node.STEPS or 500, tolerance)
        return proxies, theta, share

    def _scored(self, features: Tensor, text: Tensor, scale: float, *learned: Tensor) -> Tensor:
        """Logits `[D, N, C]` of images `[D, N, E]` under what `_learned` gave."""
        proxies, theta, share = learned
        text = text / (scale * self.tau_t) + theta[:, None].to(text)
        return mixed_logits(features @ proxies / self.tau_i, text, share[:, None, None].to(text))

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split; where the proxies were learned in this run, also test the others."""
        value = super().test(split)
        if "test" in self.evaluation.results and (split or self.cfg.TEST.SPLIT) == "test" and self.solutions:
            features, labels = self._compared(self.dm.dataset.test)
            for name, proxies in self.learned.items():
                cosines = Cosines(features, proxies.T)
                self.evaluation.results[name] = metrics_of(cosines, labels, self.num_classes, float(self.logit_scale))
                logger.info("* %s: %.2f%%", name, self.evaluation.results[name]["accuracy"])
        return value

    def record_facts(self) -> dict:
        """Also whether test images were used, how the proxies were found, and the run that was refined."""
        facts = CLIPTrainer.record_facts(self) | {"needs": self.needs}
        shared = self._tests_unlabeled()
        facts["transductive"] = shared or self.base_record.get("transductive", False)
        facts["solutions"] = self.solutions
        seen = "the tested images" if shared else f"{self.node.UNLABELED} images (inductive)"
        if self.solutions:  # else another run learned them, from its own images
            facts["reading_notes"] = [f"proxies learned from {seen}, without labels"]
        if isinstance(self.marginal, Path) and self.scores_jointly:
            note = "the class sizes of the file, those of all images, are taken for the sizes of every draw"
            facts["reading_notes"] = [*facts.get("reading_notes", []), note]
        if self.base is not None:
            facts |= self.refined_facts()
        return facts


def mixed_logits(vision: Tensor, text: Tensor, share: Tensor) -> Tensor:
    """The logarithm of `share softmax(vision) + (1 - share) softmax(text)`, `[..., C]`."""
    vision, text = vision.log_softmax(dim=-1), text.log_softmax(dim=-1)
    return torch.logaddexp(share.log() + vision, (1 - share).log() + text)
