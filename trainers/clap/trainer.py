"""CLAP: a content head trained on augmented text alone, read on image and text features.

Source: Cai et al., "CLAP: Isolating Content from Style through Contrastive Learning with Augmented Prompts", ECCV 2024
(arXiv 2311.16445). Each distinct text is encoded once and its features are kept on disk; a training step is a small MLP
on them. `MODALITY: image` trains the same head on images, the paper's baseline Im.Aug.

No label is used in training. `ALPHA`, the head's weight at inference, is a number, or `source-val`: the candidate with
the best accuracy on *source* validation images. It is never chosen on test images.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import fill_template, resolve_templates
from dassl_clip.engine import distributed, feature_cache, signals
from dassl_clip.engine.clock import Pace
from dassl_clip.engine.evaluation import selection_images
from dassl_clip.engine.method import ABOVE_ZERO, at_least, one_of
from dassl_clip.engine.styles import own_styles
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.unused import EPOCH_LOOP
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name
from dassl_clip.results.protocols import FILE_NOT_RECORDED, LAST, NOTHING_LEARNED

from .head import ContentHead, check_trained, check_widths, is_published, published_network, published_state
from .pairs import OVERRIDDEN_PAIRS, PAIR_KEYS, check_pair_keys, class_pictures, image_pairs, text_pairs
from .training import KEPT, LAST_DROP, LAST_STEP, FitReport, Pairs, fit_content_head, last_drop

logger = logging.getLogger(__name__)

SOURCE_VAL = "source-val"
ALPHA_CHOSEN = "; alpha by source validation images"


@TRAINER_REGISTRY.register()
class CLAP(CLIPTrainer):
    """Contrasts prompts with their augmented forms, and these with class names."""

    short = {"MAX_STEPS": 24, "CHECK_EVERY": 8, "BATCH_SIZE": 24}
    settings = {
        "TEMPLATES": "clap_pc",  # of the classifier that is tested
        "TASKS": (),  # what a script runs if no task is named
        "LATENT_DIM": 512,
        "ALPHA": "1.0",
        "ALPHA_CANDIDATES": (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 0.7, 1.0),
        "TAU": 0.3,
        "LAMBDA": 1e-4,
        "BATCH_SIZE": 96,
        "MAX_STEPS": 8000,
        "CHECK_EVERY": 480,
        "PATIENCE": 5,
        "MIN_DROP": 0.01,
        "KEEP": LAST_DROP,  # the weights of the last check at which the loss dropped, or last-step
        **PAIR_KEYS,
    }
    repairs = "style words in class names"
    trains_on_labels = False
    has_epochs = False
    extra_tests = ("forms", "probe", "attacks")
    fixed_in_record = {"ALPHA": "alpha"}
    setting_labels = {"alpha": "alpha, the weight of the content head (0: plain CLIP)"}  # of a figure's axis
    overridden = OVERRIDDEN_PAIRS
    limits = {
        "TAU": ABOVE_ZERO,
        "LATENT_DIM": at_least(1),
        "BATCH_SIZE": at_least(2),
        **dict.fromkeys(("LAMBDA", "MAX_STEPS"), at_least(0)),  # 0 steps train nothing
        **dict.fromkeys(("CHECK_EVERY", "PATIENCE"), at_least(1)),
        "KEEP": one_of(KEPT),
    }
    unused_keys, used_keys = EPOCH_LOOP, ("OPTIM.LR", "TRAIN.CHECKPOINT_STEPS")
    used_instead = "the head is trained with Adam at OPTIM.LR; BATCH_SIZE and MAX_STEPS are those of TRAINER.CLAP"
    cached_splits = ("val",)  # accuracy by alpha is drawn of them

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse impossible settings of the head and its training."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.CLAP
        check_pair_keys(node)
        parse_alpha(node.ALPHA)
        shared = set(cfg.DATASET.SOURCE_DOMAINS) & set(cfg.DATASET.TARGET_DOMAINS)
        tested = cfg.DATASET.get("PROTOCOL") == "all-images" and (shared or not cfg.DATASET.SOURCE_DOMAINS)
        candidates = tuple(node.ALPHA_CANDIDATES)
        if not candidates or not all(isinstance(alpha, (int, float)) and math.isfinite(alpha) for alpha in candidates):
            raise UserError(f"TRAINER.CLAP.ALPHA_CANDIDATES is {candidates}; expected one or more numbers")
        if parse_alpha(node.ALPHA) is None and tested:
            raise UserError(
                f"TRAINER.CLAP.ALPHA is '{SOURCE_VAL}', but under DATASET.PROTOCOL all-images every image of "
                f"{', '.join(sorted(shared)) or cfg.DATASET.NAME} is tested, and nothing is chosen on test images: "
                "give ALPHA a number, or source domains other than the target"
            )

    def build_model(self) -> None:
        """The head."""
        self.templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
        names = [display_name(name) for name in self.classnames]
        own = own_styles(self) or [""] * len(names)
        texts = [fill_template(words, name, style) for name, style in zip(names, own) for words in self.templates]
        self.prompts = self.features.texts(texts)
        self.report: FitReport | None = None
        self.resumed_identity: Mapping[str, Any] | None = None  # of the run whose finished head is taken up
        self.checks: list[list[float]] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(max(self.cfg.SEED, 0))
            head = ContentHead(self.backbone.embed_dim, self.node.LATENT_DIM)
        self.model = self.register_learner("clap", head)
        self.start = parameters_to_vector(self.model.parameters()).detach()

    def published_state(self, state: dict) -> dict:
        """The head of an authors' checkpoint, or the state as it is.

        Heads of other widths, and heads that were not trained, are refused by name.
        """
        if is_published(state):
            logger.info("the authors' checkpoint: the head is its %s", published_network(state))
            state = published_state(state)
        check_widths(state, self.backbone.embed_dim, self.node.LATENT_DIM)
        if self.node.MAX_STEPS or self.cfg.MODEL.INIT_WEIGHTS:  # else an untrained head is asked for
            check_trained(state)
        return state

    def fit(self) -> None:
        """Train the head until its loss no longer drops, or take it from the feature cache.

        A head depends on texts (or pictures), towers, seed and settings, not on the tested domain; so the runs of a
        task train it once.
        """
        node = self.node
        if self.start_epoch or not node.MAX_STEPS:
            logger.info("the content head is not trained: %s", "it is already" if self.start_epoch else "MAX_STEPS 0")
            self._note_checks([[check["step"], check["contrastive"]] for check in self.history])
            return
        pairs, facts = image_pairs(self) if node.MODALITY == "image" else text_pairs(self)
        keys = ("LATENT_DIM", "TAU", "BATCH_SIZE", "MAX_STEPS", "CHECK_EVERY", "PATIENCE", "MIN_DROP", "KEEP")
        facts |= {key: node[key] for key in keys}
        facts |= {"LAMBDA": self._weight, "seed": self.cfg.SEED, "rate": self.cfg.OPTIM.LR}
        start = hashlib.sha256(self.start.cpu().numpy().tobytes()).hexdigest()
        facts |= {"kind": "content head", "start": start}
        keep = feature_cache.cached if self.cfg.SEED >= 0 else lambda facts, make: make()
        with signals.deferred():
            kept = keep(facts, lambda: self._train_head(pairs, feature_cache.entry_name(facts)))
            self._note_checks(kept[1 : 1 + 2 * int(kept[0])].view(-1, 2).tolist())
            vector_to_parameters(kept[1 + 2 * len(self.checks) :].to(self.device), self.model.parameters())
            distributed.broadcast_parameters(self.model)

    @property
    def _weight(self) -> float:
        """The weight of the term with class names, which Im.Aug does not have."""
        return 0.0 if self.node.MODALITY == "image" else self.node.LAMBDA

    def _note_checks(self, checks: list[list[float]]) -> None:
        """Step and loss of each check of the training, for the record."""
        self.checks = checks
        self.history = [{"step": int(step), "contrastive": loss} for step, loss in checks]
        self.losses = {"contrastive": checks[-1][1]} if checks else {}

    def _train_head(self, pairs: Pairs, problem: str) -> Tensor:
        """One vector: the number of checks, step and loss of each, and the kept parameters."""
        node, state = self.node, self.checkpoints.load_fit_state(problem)
        if state is not None:
            state = {**state, "head": self.model.state_dict()}
        elif self.checkpoints.resumed is not None:  # the head is that of a checkpoint that is not resumed
            vector_to_parameters(self.start.clone(), self.model.parameters())
        self.pace = Pace(0 if state is None else state["step"], node.MAX_STEPS)
        self.report = fit_content_head(
            self.model,
            pairs,
            tau=node.TAU,
            weight=self._weight,
            learning_rate=self.cfg.OPTIM.LR,
            max_steps=node.MAX_STEPS,
            check_every=node.CHECK_EVERY,
            patience=node.PATIENCE,
            min_drop=node.MIN_DROP,
            keep=node.KEEP,
            on_check=self._log_check,
            state=state,
            after_step=partial(self._after_step, problem),
        )
        why = "the loss no longer drops" if self.report.stopped_early else "MAX_STEPS"
        report = self.report
        logger.info("content head trained: %d steps (%s), kept step %d", report.steps, why, report.kept_step)
        weights = parameters_to_vector(self.model.parameters()).detach()
        checks = weights.new_tensor(self.report.checks)
        return torch.cat([weights.new_tensor([len(checks)]), checks.flatten(), weights])

    def _after_step(self, problem: str, step: int, make_state: Callable[[], dict]) -> None:
        """Save where `TRAIN.CHECKPOINT_STEPS` or a SIGTERM asks for it; the latter ends the run.

        Several processes agree on a SIGTERM at checks, where they wait for each other anyway.
        """
        every = self.cfg.TRAIN.get("CHECKPOINT_STEPS", 0)
        agree = distributed.world_size() == 1 or step % self.node.CHECK_EVERY == 0
        stop = agree and any(distributed.gather_values(signals.stop.requested))
        if stop or (every > 0 and step % every == 0):
            self.checkpoints.save_fit(
                step, problem, {key: value for key, value in make_state().items() if key != "head"}
            )
        if self.pace.due():
            logger.info(self.pace.line(step))
        if stop:
            distributed.barrier()  # nobody leaves before the file is whole
            raise signals.Terminated(f"saved after step {step}")

    def _log_check(self, step: int, loss: float) -> None:
        logger.info("%s: loss %.4f", self.pace.line(step), loss)
        self.write_scalar("train/contrastive", loss, step)

    def content(self, features: Tensor) -> Tensor:
        """The head's output for features `[..., E]` of either tower."""
        return self.model(features)

    def before_test(self) -> None:
        """The head's weight at inference, and the classifier."""
        self.model.alpha = self._alpha()
        self.classifier = self.class_proxies()

    def class_proxies(self) -> Tensor:
        """Content features of the prompts, averaged over the templates, `[C, E]`, normalised."""
        with torch.no_grad():
            content = F.normalize(self.content(self.prompts), dim=-1)
        return F.normalize(content.unflatten(0, (self.num_classes, -1)).mean(1), dim=-1)

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.cosine_logits(self.content(features), self.classifier)

    @torch.no_grad()
    def _alpha(self) -> float:
        """The configured weight, or the best candidate on source validation images (the smallest among equals)."""
        alpha = parse_alpha(self.node.ALPHA)
        if alpha is not None:
            return alpha
        if not self.dm.dataset.val:
            raise UserError(
                f"TRAINER.CLAP.ALPHA is '{SOURCE_VAL}', but {self.cfg.DATASET.NAME} offers no validation images of "
                "the source domains here, and nothing is chosen on test images: give ALPHA a number"
            )
        features, labels = self.features.raw(selection_images(self.dm.dataset, f"TRAINER.CLAP.ALPHA {SOURCE_VAL}"))
        features, labels, accuracy = features.to(self.device), labels.to(self.device), {}
        for candidate in sorted(self.node.ALPHA_CANDIDATES):
            self.model.alpha = candidate
            scores = self.cosine_logits(self.content(features), self.class_proxies())
            accuracy[candidate] = 100 * scores.argmax(1).eq(labels).float().mean().item()
        logger.info("validation accuracy by alpha: %s", {f"{a:g}": round(v, 1) for a, v in accuracy.items()})
        return max(accuracy, key=accuracy.get)

    def resume_model_if_exist(self, directory: str) -> int:
        """As in the base; also note by which settings a finished head was trained."""
        epochs = super().resume_model_if_exist(directory)
        self.resumed_identity = self.checkpoints.resumed_identity if epochs else None
        return epochs

    def _trained_with(self, key: str) -> Any:
        """A setting of the node under which the head was trained: of the resumed run, if that had trained it."""
        if self.resumed_identity is None:
            return self.node[key]
        return self.resumed_identity.get(f"TRAINER.CLAP.{key}", LAST_STEP if key == "KEEP" else self.node[key])

    def _dropped(self) -> int:
        """The step of the last drop if the head is that of it, 0 if it is that of the last step."""
        if not self.checks or self._trained_with("KEEP") != LAST_DROP:
            return 0
        return last_drop(self.checks, self._trained_with("CHECK_EVERY"), self._trained_with("MIN_DROP"))

    def _kept_by(self) -> str:
        """Which step's head is tested, and what chose it."""
        if not self.checks:
            resumed = (self.resumed_identity or {}).get("MODEL.INIT_WEIGHTS", self.cfg.MODEL.INIT_WEIGHTS)
            return FILE_NOT_RECORDED if resumed else NOTHING_LEARNED
        if not self._dropped():
            return LAST
        seen = "unlabelled images" if self._trained_with("MODALITY") == "image" else "texts (no images)"
        return f"last drop of the training loss on {seen}"

    def evaluated_rule(self, trained: Mapping[str, Any]) -> str:
        """The rule of the run that trained the head; by what alpha was chosen, the evaluation may have changed."""
        rule = super().evaluated_rule(trained)
        if parse_alpha(self.node.ALPHA) is None:
            return rule.removesuffix(ALPHA_CHOSEN) + ALPHA_CHOSEN
        return rule if trained.get("alpha", self.model.alpha) == self.model.alpha else rule.removesuffix(ALPHA_CHOSEN)

    def record_facts(self) -> dict:
        """Also the head's weight and where it came from, and how training went."""
        facts = super().record_facts() | {"alpha": self.model.alpha}
        chosen = parse_alpha(self.node.ALPHA) is None
        facts["selection_rule"] = self._kept_by() + ALPHA_CHOSEN * chosen
        if self.checks:
            steps = int(self.checks[-1][0])
            facts["training"] = {"steps": steps, "kept_step": self._dropped() or steps, "checks": self.checks}
            facts["training"]["reused"] = self.report is None
        if self.checks and self._trained_with("MODALITY") == "image" and self.resumed_identity is None:
            folder = Path(self.node.IMAGE_FOLDER).expanduser()
            seen = {os.path.realpath(item.impath) for item in class_pictures(folder, self.classnames)}
            shared = any(os.path.realpath(item.impath) in seen for item in self.dm.dataset.test)
            facts["transductive"] = facts.get("transductive", False) or shared
            note = f"head trained on {'the tested images' if shared else f'{len(seen)} images'}, without labels"
            facts["reading_notes"] = [note, *facts["reading_notes"]]
        return facts


def parse_alpha(value: str | float) -> float | None:
    """A number, or None for `source-val`.

    Raises:
        UserError: Neither.
    """
    if str(value).strip().lower() == SOURCE_VAL:
        return None
    try:
        alpha = float(value)
    except ValueError:
        alpha = math.nan
    if not math.isfinite(alpha):
        raise UserError(f"TRAINER.CLAP.ALPHA is {value!r}; expected a number, or '{SOURCE_VAL}'")
    return alpha
