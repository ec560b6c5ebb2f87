"""InMaP: class proxies learned in vision space from unlabeled images, on plain CLIP or on any other run.

Source: Qian et al., "Intra-Modal Proxy Learning for Zero-Shot Visual Categorization with CLIP", NeurIPS 2023 (arXiv
2310.19752). The unlabeled images are the test images (transductive, and marked so in the record) or, with `UNLABELED:
train` or `val`, others (inductive: the tested images are unseen). `FROM` names the folder of a finished run, whose
features, scores and class proxies take the place of CLIP's.

Three classifiers are tested: the text proxy, the vision proxy from plain pseudo labels, and the one from Sinkhorn
labels, which is the trainer's classifier.
"""

import logging
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.rows import Cosines, FeatureRows
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.clip.zeroshot import zeroshot_weights
from dassl_clip.engine import distributed
from dassl_clip.engine.evaluation import metrics_of
from dassl_clip.engine.features import NormalizedRows
from dassl_clip.engine.refined import open_refined
from dassl_clip.engine.styles import own_styles
from dassl_clip.engine.temperatures import AUTO, parse_temperature
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.unused import EPOCH_LOOP
from dassl_clip.results.errors import UserError
from dassl_clip.results.protocols import NOTHING_LEARNED

from .labels import SOLVERS, PseudoLabels, sinkhorn_potentials, solve_vision_proxy

logger = logging.getLogger(__name__)

TEMPERATURES = {"TEXT_TEMPERATURE": 1.0, "IMAGE_TEMPERATURE": 4.0}  # what `auto` stands for, over the logit scale
UNLABELED = ("test", "train", "val")
TEXT, VISION, SINKHORN = "text proxy", "vision proxy", "vision proxy, Sinkhorn"
REFINED = "proxy of the refined run"


class VisionProxies(nn.Module):
    """Class proxies `[C, E]` of length 1."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)


@TRAINER_REGISTRY.register()
class InMaP(CLIPTrainer):
    """Pseudo labels from text proxies, refined by Sinkhorn's iterations, and a proxy in vision space for each class."""

    settings = {
        "TEMPLATES": "inmap7",
        "TASKS": (),  # what a script runs if no task is named
        "FROM": "",
        "UNLABELED": "test",
        "TEXT_TEMPERATURE": AUTO,  # a number; auto: 1 over the logit scale (0.01 for OpenAI's models); auto:K: K
        "IMAGE_TEMPERATURE": AUTO,  # the same; auto: 4 over it
        "GAMMA": 0.0,
        "SINKHORN_ITERATIONS": 20,
        "THRESHOLD": 0.6,
        "SOLVER": "fast",  # or authors
        "STEPS": 0,  # 0: the solver's own number
        "TOLERANCE": 1e-6,
        "LR": 10.0,
    }
    repairs = "classes that take too many images"
    class_specific = True
    trains_on_labels = False
    has_epochs = False
    refines = True
    listed_refining = True
    overridden = {
        "LR": ("SOLVER", lambda node: node.SOLVER != "authors" and node.LR > 0),
        "TOLERANCE": ("SOLVER", lambda node: node.SOLVER == "authors"),
    }
    unused_keys = EPOCH_LOOP
    used_instead = "its solver has SOLVER, STEPS, TOLERANCE and LR of TRAINER.INMAP"

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse an unknown solver or source of images, and temperatures that are not positive."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.INMAP
        for key, known in (("SOLVER", tuple(SOLVERS)), ("UNLABELED", UNLABELED)):
            if node[key] not in known:
                raise UserError(f"TRAINER.INMAP.{key} is {node[key]!r}; expected one of {', '.join(known)}")
        for key, default in TEMPERATURES.items():
            parse_temperature(node[key], f"TRAINER.INMAP.{key}", 1.0, default)
        if node.SINKHORN_ITERATIONS < 0 or node.STEPS < 0:
            raise UserError(
                f"TRAINER.INMAP.SINKHORN_ITERATIONS and STEPS are at least 0, got {node.SINKHORN_ITERATIONS} and "
                f"{node.STEPS}"
            )

    @property
    def prompt(self) -> str:
        """The templates of the text proxies, or the prompt of the refined run."""
        return self.base.prompt if self.base is not None else " | ".join(self.templates)

    def build_model(self) -> None:
        """The text proxies, which the vision proxies start from, or the run that is refined."""
        self.base, self.base_record, self.templates = None, None, []
        self.solutions: dict[str, dict] = {}
        if self.node.FROM:
            tested = {item.impath for item in self.dm.dataset.test}
            self.base, self.base_record = open_refined(
                self.node.FROM, self.run_cfg, self.backbone.describe(), tested, "TRAINER.INMAP.FROM"
            )
            start = F.normalize(torch.ones(self.num_classes, self.backbone.embed_dim), dim=-1)
        else:
            self.templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
            with self.precision.autocast():
                start = zeroshot_weights(
                    self.backbone.text, self.classnames, self.templates, own_styles=own_styles(self)
                ).T.float()
        self.text_proxies = start.to(self.device)
        self.model = self.register_learner("proxies", VisionProxies(start))

    def fit(self) -> None:
        """Learn the proxies from the unlabeled images; a resumed run learns them again."""
        node, unit = self.node, 1 / float(self.logit_scale)
        tau_t, tau_i = (
            parse_temperature(node[key], f"TRAINER.INMAP.{key}", unit, default) for key, default in TEMPERATURES.items()
        )
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
        potentials = sinkhorn_potentials(scores, tau_t, node.GAMMA, node.SINKHORN_ITERATIONS)
        labels = {
            VISION: PseudoLabels(scores, tau_t, None, node.THRESHOLD),
            SINKHORN: PseudoLabels(scores, tau_t, potentials, node.THRESHOLD),
        }
        options = {"solver": node.SOLVER, "steps": node.STEPS or None, "tolerance": node.TOLERANCE, "lr": node.LR}
        self.learned = {TEXT if self.base is None else REFINED: start}
        for name, own in labels.items():
            begin = time.monotonic()
            solution = solve_vision_proxy(features, start.T, own, tau_i, **options)
            seconds = time.monotonic() - begin
            self.learned[name] = distributed.broadcast(solution.proxy.T.contiguous())
            self.solutions[name] = {
                "solver": node.SOLVER, "steps": solution.steps, "objective": solution.objective, "seconds": seconds,
                "converged": solution.converged, "text_temperature": tau_t, "image_temperature": tau_i,
                "images": len(items),
            }  # fmt: skip
            logger.info("%s: %d steps, objective %.6f, %.1f s", name, solution.steps, solution.objective, seconds)
        self.losses = {"cross-entropy": self.solutions[SINKHORN]["objective"]}
        self.model.weight.copy_(self.learned[SINKHORN])

    def _unlabeled(self) -> list:
        """The images that the proxies are learned from; their labels are not read."""
        dataset = self.dm.dataset
        return {"test": dataset.test, "train": dataset.train_x, "val": dataset.val}[self.node.UNLABELED] or []

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
        features, labels = self.features.raw(items)
        return F.normalize(self.content(features.to(self.device)), dim=-1), labels.to(self.device)

    def content(self, features: Tensor) -> Tensor:
        """What the refined run compares of features."""
        return self.base.content(features) if self.base is not None else features

    def class_proxies(self) -> Tensor:
        """The learned proxies, `[C, E]`."""
        return self.model.weight

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.cosine_logits(self.content(features), self.model.weight)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split; where the proxies were learned in this run, test all three classifiers."""
        value = super().test(split)
        if (split or self.cfg.TEST.SPLIT) == "test" and self.solutions:
            features, labels = self._compared(self.dm.dataset.test)
            for name, proxies in self.learned.items():
                self.evaluation.results[name] = metrics_of(Cosines(features, proxies.T), labels, self.num_classes)
                logger.info("* %s: %.2f%%", name, self.evaluation.results[name]["accuracy"])
        return value

    def record_facts(self) -> dict:
        """Also whether test images were used, how the proxies were found, and the run that was refined."""
        facts = super().record_facts()
        tested = {item.impath for item in self.dm.dataset.test}
        shared = any(item.impath in tested for item in self._unlabeled())
        facts["transductive"] = shared or (self.base_record or {}).get("transductive", False)
        facts["solutions"] = self.solutions
        seen = "the tested images" if shared else f"{self.node.UNLABELED} images (inductive)"
        if self.solutions:  # else another run learned them, from its own images
            facts["reading_notes"] = [f"proxies learned from {seen}, without labels"]
        if self.base_record is not None:
            keys = ("method", "config", "config_hash", "num_train", "selection_rule", "shots", "seed", "finished_at")
            facts["refines"] = {"folder": self.node.FROM, "learned": self.base_record.get("learned", {})}
            facts["refines"] |= {key: self.base_record[key] for key in keys}
            facts["num_train"] = self.base_record["num_train"]
            if facts["num_train"]:  # labels were seen by the refined run alone
                facts |= {key: self.base_record[key] for key in ("shots", "source_domains", "protocol")}
            if self.base_record["selection_rule"] != NOTHING_LEARNED:
                facts["selection_rule"] = self.base_record["selection_rule"]
        return facts
