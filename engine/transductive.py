"""Methods that score images with the help of other unlabelled images: what they are given, and how they are run.

A method of this kind is a subclass of `TransductiveTrainer` that overrides `joint_logits`: all images of a batch are
scored together. An online method is a subclass of `OnlineTrainer` that overrides `begin`: images come one at a time,
each is scored when it comes, and what was learned of it is kept. Both may refine a finished run (`FROM`), whose
features, scores and class proxies then take the place of CLIP's.

Shapes (letters of docs/methods.md): `N` images, `C` classes, `E` joint embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.clip.finite import check_rows
from dassl_clip.clip.rows import FeatureRows
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.results.errors import UserError
from dassl_clip.results.protocols import NOTHING_LEARNED

from . import distributed
from .features import ROWS_AT_ONCE, CachedImages
from .refined import open_refined
from .source import known_budget
from .styles import class_texts
from .trainer import CLIPTrainer
from .unused import EPOCH_LOOP

logger = logging.getLogger(__name__)

BATCH = "all images of a batch at once"
STATE = "images one at a time, and what it kept of those before"
ITSELF = f"{STATE} and of each image itself, which it takes in before it scores it"
HORIZON = f"{STATE}, and how many images will come"
PAST = "all images before, whose features it keeps"


@dataclass(frozen=True)
class Images:
    """Unlabelled images as a transductive method is given them.

    Attributes:
        features: `[N, E]`, of length 1.
        logits: `[N, C]`, cosines with the class proxies times the logit scale, or the scores of the refined run.
        proxies: `[C, E]`, of length 1.
        scale: the logit scale.
    """

    features: Tensor
    logits: Tensor
    proxies: Tensor
    scale: float

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: Tensor | slice) -> Images:
        """Some of the images, in the order of `index`."""
        return replace(self, features=self.features[index], logits=self.logits[index])


Step = Callable[[Tensor, Tensor], Tensor]
"""Scores one image: its feature `[E]` and logits `[C]` to its new logits `[C]`."""


class TransductiveTrainer(CLIPTrainer):
    """Scores the images of a batch together; nothing is learned that could score others later.

    Attributes:
        needs: What a method needs to score an image, for tables.
        needs_online: The same in the task `online`; empty: `needs`.
    """

    needs = BATCH
    needs_online = ""
    settings: Mapping[str, Any] = {
        "TEMPLATES": "single",
        "TASKS": (),  # what a script runs if no task is named
        "FROM": "",  # folder of a finished run to refine
    }
    class_specific = True
    trains_on_labels = False
    has_epochs = False
    refines = True
    listed_usually = False
    unused_keys = EPOCH_LOOP
    used_instead = "nothing is trained"

    def joint_logits(self, images: Images) -> Tensor:
        """Logits `[N, C]`, whose softmax are the shares of the classes, of images that are scored together."""
        raise NotImplementedError(f"{type(self).__name__} does not score images together")

    def logits_of_draws(self, images: Images, draws: Sequence[Tensor]) -> Iterator[Tensor]:
        """Logits `[M, C]` of each draw of two images or more, an index `[M]` into the images, scored by itself."""
        for index in draws:
            yield self.joint_logits(images[index])

    def scored_draws(self, images: Images, draws: Sequence[Tensor]) -> Iterator[Tensor]:
        """`logits_of_draws`, and of a draw of one image, which says nothing of others, the logits it starts from."""
        several = self.logits_of_draws(images, [index for index in draws if len(index) > 1])
        for index in draws:
            yield next(several) if len(index) > 1 else images.logits[index]

    def logits_of_stream(self, images: Images, blocks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Logits `[M, C]` of each block of a stream in its order; nothing is kept from block to block."""
        yield from self.scored_draws(images, blocks)

    def logits_online(self, images: Images, order: Tensor) -> Tensor | None:
        """Logits `[N, C]`, rows as in `order` `[N]`, each from the images before it; None: the method has no such."""
        return None

    @property
    def scores_jointly(self) -> bool:
        """Whether the score of a tested image depends on the others that are tested."""
        return True

    @property
    def prompt(self) -> str:
        """The templates of the text proxies, or the prompt of the refined run."""
        return self.base.prompt if self.base is not None else " | ".join(self.templates)

    def build_model(self) -> None:
        """The text proxies `[C, E]`, or the run that is refined.

        Raises:
            UserError: There is a single class, or the run cannot be refined.
        """
        if self.num_classes < 2:
            raise UserError(
                f"{type(self).__name__} tells classes apart, but the class list holds {self.classnames[0]!r} alone: "
                "give it two classes or more"
            )
        self.base: Any = None
        self.base_record: dict[str, Any] = {}
        self.templates: list[str] = []
        if self.node.FROM:
            tested = {item.impath for item in self.dm.dataset.test}
            key = f"TRAINER.{type(self).__name__.upper()}.FROM"
            self.base, self.base_record = open_refined(
                self.node.FROM, self.run_cfg, self.backbone.describe(), tested, key
            )
            return
        self.templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
        self.text_proxies = F.normalize(class_texts(self), dim=-1).to(self.device)

    def fit(self) -> None:
        """Nothing is trained: images are scored when they are tested."""

    @torch.no_grad()
    def images(self, items: Sequence[Any]) -> Images:
        """The readable ones of a list of Datum, under CLIP or the refined run."""
        scale = float(self.logit_scale)
        if self.base is not None:
            features, cosines, proxies = self.base.refine_inputs(items)
        else:
            (features, _), proxies = self.features(items), self.text_proxies
            cosines = features @ proxies.T
        if len(features) == 0:
            raise UserError(f"none of the {len(items)} images can be read, so {type(self).__name__} has none to score")
        check_rows(cosines, "scores", [f"image {number}" for number in range(len(cosines))])
        check_images(features, type(self).__name__)
        return Images(features, scale * cosines, proxies, scale)

    @torch.no_grad()
    def score_jointly(self, items: Sequence[Any]) -> CachedImages | None:
        """The logits of all images together; NaN for those that cannot be read."""
        images = self.images(items)
        logits = self.joint_logits(images) if len(images) > 1 else images.logits
        logits = distributed.broadcast(logits.float().contiguous()).cpu()
        readable = self.features.cached(items).readable
        rows = torch.full((len(items), logits.shape[1]), float("nan"))
        rows[readable] = logits
        return CachedImages(rows, torch.arange(len(items)), readable)

    def model_inference(self, input: Tensor) -> Tensor:
        """Refused: single images have no scores."""
        raise UserError(
            f"{type(self).__name__} scores the images of a test set together and keeps nothing for others; test it "
            "with `task` or `eval`, or take a method that keeps what it learned"
        )

    def refine_inputs(self, items: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Refused: there is no classifier that another method could start from."""
        raise UserError(
            f"{type(self).__name__} scores images together and learns no classifier, so there is nothing to refine; "
            "refine the run that it starts from, or a method that keeps a classifier"
        )

    def record_facts(self) -> dict[str, Any]:
        """Also that tested images were used, what the method needs, and the run that was refined."""
        facts = super().record_facts() | {"transductive": True, "needs": self.needs}
        return facts | self.refined_facts() if self.base is not None else facts

    def refined_facts(self) -> dict[str, Any]:
        """What the record says of the refined run."""
        facts: dict[str, Any] = {"num_train": self.base_record["num_train"]}
        keys = ("method", "config", "config_hash", "num_train", "selection_rule", "shots", "seed", "finished_at")
        facts["refines"] = {"folder": self.node.FROM, "learned": self.base_record.get("learned", {})}
        facts["refines"] |= {key: self.base_record[key] for key in keys}
        own, base = known_budget(type(self), self.run_cfg), self.base_record.get("budget") or []
        facts["budget"] = list(dict.fromkeys([*base, *own])) if own and base else []
        if facts["num_train"]:  # labels were seen by the refined run alone
            facts |= {key: self.base_record[key] for key in ("shots", "source_domains", "protocol")}
        if self.base_record["selection_rule"] != NOTHING_LEARNED:
            facts["selection_rule"] = self.base_record["selection_rule"]
        return facts


class OnlineTrainer(TransductiveTrainer):
    """Scores images one at a time, each when it comes, and keeps what it learned of them.

    A test set is gone through in a random order that the seed fixes, since lists of images are sorted by class.
    """

    needs = STATE

    def begin(self, images: Images, horizon: int) -> Step:
        """A new pass over a stream of `horizon` images; the result scores them one after another."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it begins")

    def joint_logits(self, images: Images) -> Tensor:
        """Logits `[N, C]` of one pass in an order that the seed fixes."""
        order = torch.from_numpy(np.random.default_rng([max(self.cfg.SEED, 0), 0]).permutation(len(images)))
        logits = torch.empty_like(images.logits)
        logits[order] = self.logits_online(images, order)
        return logits

    def logits_of_draws(self, images: Images, draws: Sequence[Tensor]) -> Iterator[Tensor]:
        """Each draw is a stream of its own, in its own order."""
        for index in draws:
            yield self.logits_online(images, index)

    def logits_of_stream(self, images: Images, blocks: Sequence[Tensor]) -> Iterator[Tensor]:
        """One pass over all blocks: what was learned in one is there in the next."""
        step = self.begin(images, sum(map(len, blocks)))
        for index in blocks:
            yield torch.stack([step(images.features[i], images.logits[i]) for i in index.tolist()])

    def logits_online(self, images: Images, order: Tensor) -> Tensor:
        """One pass in the order given."""
        return next(self.logits_of_stream(images, [order]))


def check_images(features: FeatureRows, method: str) -> None:
    """Refuse images that are all one, which tell nothing of each other; warn of a single one.

    Args:
        features: `[N, E]`, of length 1.
        method: Its name, for the message.

    Raises:
        UserError: There are several images, and all have the same features.
    """
    count = features.shape[0]
    if count == 1:
        logger.warning("%s has a single image: its scores are those that it starts from", method)
        return
    first = features[slice(0, 1)]
    for start in range(0, count, ROWS_AT_ONCE):
        if not torch.allclose(features[slice(start, start + ROWS_AT_ONCE)], first, atol=1e-6):
            return
    raise UserError(
        f"all {count} images have the same features, so they are copies of one image, or empty ones, and {method} has "
        "nothing to tell them apart by; look at the files, or take a method that scores each image by itself"
    )
