"""What all trainers share: device, precision, the frozen CLIP, images, schedule, checkpoints, testing, records.

A method overrides `build_model`, `forward_backward` and `model_inference` (and `fit` where there is no epoch loop).
The class relies on names of the Dassl contract only, so it runs on upstream Dassl and on the embedded toolbox alike.
"""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.engine import TrainerX
from dassl.optim import build_optimizer
from dassl_clip.clip.backbone import load_backbone
from dassl_clip.results import run_data
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import check_labels, check_training_labels
from dassl_clip.results.protocols import NO_LABELS, RULE_NOT_RECORDED

from . import distributed
from .checkpoint_files import BEST_NAME
from .checkpoints import Checkpoints, Run
from .clock import Clock
from .data import RAISE, SeededImages, can_be_fixed, training_loader, with_model_input
from .evaluation import Evaluation, check_images, split_logits
from .extra_tests import EXTRA_TEST_SETTINGS, check_extra_tests, further_tests
from .features import CachedImages, Encoding, FeatureStore
from .fingerprint import identity
from .loop import EpochLoop, random_states, restore_random
from .method import Limit, check_limits, trainer_node
from .metrics_log import MetricsLog, wants_wandb
from .precision import Precision, check_precision
from .record import trainer_facts, write_run
from .schedule import EpochSchedule
from .unused import Overridden, refuse_overridden, warn_of_input, warn_of_unused

logger = logging.getLogger(__name__)


class CLIPTrainer(TrainerX):
    """A Dassl trainer around a frozen CLIP (`self.backbone`) and a few learned parts.

    Attributes, beside those of the class that tell what a method learns from, refines, and is tested by:
        run_cfg: The configuration as it was given; in `cfg`, `INPUT` is that of the frozen CLIP.
        features: Features of images and texts under the frozen CLIP, cached.
        logit_scale: Its exponentiated logit scale, a scalar tensor.
        losses: Means of the last epoch's loss terms.
        history: Rate and means of the loss terms of each epoch, kept in checkpoints.
    """

    cfg: CfgNode
    best_result: float  # of validation so far, in percent
    feature_logits: Callable[[Tensor], Tensor]  # rows of `encoding` to logits `[B, C]`; a method may have none

    trains_on_labels = True  # False: no label decides anything that is learned
    reads_rows = True  # images that are rows of a parquet or arrow file, which Dassl's own loader does not open
    class_specific = False  # True: the learned parts hold an entry for each class and fit these classes alone
    repairs: str = ""  # what the method can repair of a frozen CLIP, a key of `results.diagnosis.REPAIRS`
    settings: Mapping[str, Any] = {}  # keys of its node and their defaults
    limits: Mapping[str, Limit] = {}  # of its node: what a setting has to be
    aliases: tuple[str, ...] = ()  # other names that a command line may give it; not inherited
    has_epochs = True  # False: `fit` solves the problem anew; there is no optimiser, and no epoch is resumed
    refines = False  # True: it refines the finished run that `FROM` of its node names
    listed_last = False  # True: where all methods are listed, it comes last
    listed = True  # False: it is not among all methods where these are listed; it is run by its name
    listed_usually = True  # False: it is listed among all methods of tasks without labels and of scenarios alone
    listed_refining = False  # True: where all methods are listed, every other one is listed refined by it too
    is_reference = False  # True: the method that others are compared with
    extra_tests: tuple[str, ...] = ()  # further tests that it can take: of forms, probe and attacks (`extra_tests.py`)
    fixed_in_record: Mapping[str, str] = {}  # key of its node -> the record's key that fixes it once a run is finished
    unused_keys: tuple[str, ...] = ()  # keys, or nodes, of the toolbox that the method does not read
    used_keys: tuple[str, ...] = ()  # the exceptions among them
    undecisive: tuple[str, ...] = ()  # settings in words or switches that do not decide which images or labels it reads
    unread_parts: tuple[str, ...] = ()  # beginnings of the names of learned parts that no score passes through
    cached_splits: tuple[str, ...] = ()  # splits beside the tested one whose features are cached for figures
    image_features_change = False  # True: its image tower is not CLIP's own, so no classifier serves CLIP's features
    caches_first_view = False  # a step takes what it needs of the first training view from `cached_view`
    short: Mapping[str, Any] = {}  # settings of its node for a run of seconds, as `dassl-clip check` makes many
    overridden: Overridden = {}  # settings of its node that another one may take the place of
    used_instead = ""  # what it reads in their place, for the warning to a user who changed one

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add the node of the trainer, `TRAINER.<NAME>`, with its `settings` and those of its extra tests."""
        trainer_node(cfg, cls.__name__.upper(), **cls.settings, **(EXTRA_TEST_SETTINGS if cls.extra_tests else {}))

    @property
    def node(self) -> CfgNode:
        """The trainer's own settings, `TRAINER.<NAME>`."""
        return self.cfg.TRAINER[type(self).__name__.upper()]

    @property
    def prompt(self) -> str:
        """The words around the class name, for the record; the templates where there are."""
        if hasattr(self, "templates"):
            return " | ".join(self.templates)
        raise NotImplementedError(f"{type(self).__name__} does not say which prompt it uses")

    def published_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of the learned parts inside a foreign checkpoint's; the same unless a trainer knows better."""
        return state

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse impossible settings before anything is built.

        Raises:
            UserError: One that is unknown, outside its limits or without effect, or whose package is not installed.
        """
        name = type(self).__name__.upper()
        check_limits(self.limits, cfg, name)
        wants_wandb(cfg)
        warn_of_unused(cfg, self.unused_keys, self.used_keys, self.used_instead)
        if self.overridden:
            refuse_overridden(cfg, name, self.overridden, self.add_config)
        check_precision(cfg.TRAINER[name].PREC, f"TRAINER.{name}.PREC")
        if self.extra_tests:
            check_extra_tests(name, cfg.TRAINER[name], self.extra_tests)

    def build_data_loader(self) -> None:
        """Load the frozen model first: its pixel statistics, size and interpolation make the images."""
        self.losses: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self.clock, self.loop, self.evaluation = Clock(), EpochLoop(self), Evaluation()
        self.run_cfg = cfg = self.cfg
        shown = identity(cfg) | {key: cfg.RUN[key] for key in ("TASK", "CONFIG") if key in cfg.get("RUN", {})}
        self.log = self._writer = MetricsLog(Path(self.output_dir), wants_wandb(cfg), shown)
        self.precision = Precision(self.node.PREC, self.device)
        node = cfg.MODEL.BACKBONE
        more = {"compiled": node.get("COMPILE", False), "tokenizer": node.get("TOKENIZER", "")}
        self.backbone = load_backbone(node.NAME, node.WEIGHTS, self.device, **more)
        self.logit_scale = self.backbone.logit_scale
        self.cfg = cfg = with_model_input(cfg, self.backbone)
        warn_of_input(self.run_cfg, cfg)
        transform, preprocess = self.train_transform(), self.backbone.preprocess()
        views = list(transform) if isinstance(transform, (list, tuple)) else [transform]
        self.dm = dm = DataManager(cfg, list(views), preprocess, dataset_wrapper=SeededImages)
        check_labels(dm.dataset, cfg.DATASET.NAME)
        check_images(cfg, dm.dataset, measures=bool(cfg.SCENARIOS.TASK or self.node.get("EVALUATE")))
        self.train_loader_u, self.val_loader, self.test_loader = dm.train_loader_u, dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains, self.lab2cname = dm.num_classes, dm.num_source_domains, dm.lab2cname
        self.classnames = list(dm.dataset.classnames)
        on_gpu, bad = self.device.type == "cuda", cfg.DATALOADER.get("ON_BAD_IMAGE", RAISE)
        read = functools.partial(SeededImages, cfg, as_bytes=on_gpu)
        loading = {name: getattr(dm.test_loader, name) for name in ("batch_size", "num_workers", "pin_memory")}
        self.features = FeatureStore(self.backbone, self.precision, self.device, read, **loading, on_bad_image=bad)
        is_fixed = self.caches_first_view and can_be_fixed(views[0], cfg, preprocess)
        fits = self.encoding.fits(len(dm.dataset.train_x))
        if is_fixed and not fits:
            logger.info("the first training view is encoded in every epoch: its rows would take too much memory")
        self.fixed_view = views.pop(0) if is_fixed and fits else None
        ours = type(self).forward_backward.__module__.startswith("dassl_clip.")  # others may read the batch as it is
        images = SeededImages(cfg, dm.dataset.train_x, views, is_train=True, as_bytes=on_gpu and ours)
        self.train_loader_x = training_loader(dm.train_loader_x, images)
        facts = type(self).__name__, self.run_cfg, self.backbone.describe(), self.classnames, lambda: self.data
        run = Run(*facts, self.class_specific, self.unread_parts, self.published_state)
        parts = self._models, self._optims, self._scheds, self.precision.scaler
        self.checkpoints = Checkpoints(Path(self.output_dir), run, *parts, self._progress)

    @functools.cached_property
    def data(self) -> run_data.RunData:
        """The images of this run under their fingerprint, as the disk has them at the first look."""
        return run_data.data_of(self.dm.dataset)

    def train_transform(self) -> Any:
        """Transform of training images: `INPUT.TRANSFORMS` if any are named, else the model's own preprocessing."""
        return build_transform(self.cfg, is_train=True) if self.cfg.INPUT.TRANSFORMS else self.backbone.preprocess()

    def register_learner(self, name: str, module: nn.Module) -> nn.Module:
        """Put learned parts on the device, load `MODEL.INIT_WEIGHTS`, and register them under their folder's name."""
        module.to(self.device)
        if self.cfg.MODEL.INIT_WEIGHTS:
            self.checkpoints.load_into(module, Path(self.cfg.MODEL.INIT_WEIGHTS))
        distributed.broadcast_parameters(module)
        own: tuple[Any, Any] = self.optimiser_of(module) if self.has_epochs else (None, None)
        self.optim, self.sched = own
        self.register_model(name, module, self.optim, self.sched)
        return module

    def optimiser_of(self, module: nn.Module) -> tuple[Any, Any]:
        """The optimiser of learned parts and its schedule, by `OPTIM`."""
        return (optim := build_optimizer(module, self.cfg.OPTIM)), EpochSchedule(optim, self.cfg.OPTIM)

    @functools.cached_property
    def first_view(self) -> CachedImages | None:
        """The cached rows of the training images; None while the first view is read."""
        if self.fixed_view is None:
            return None
        items, is_own = self.dm.dataset.train_x, repr(self.fixed_view) == repr(self.backbone.preprocess())
        rows = self.features.cached(items, self.encoding, None if is_own else self.fixed_view)
        logger.info("the first training view is fixed: its %d images are encoded once", len(items))
        return rows

    def cached_view(self, batch: dict[str, Any]) -> Tensor | None:
        """The `encoding` of the first view of a batch's images, `[B, W]`, or None if the view is read."""
        rows = self.first_view
        return None if rows is None else rows[batch["index"]].to(self.device, non_blocking=True)

    def train(self) -> None:
        """Fit, test and write the record."""
        if self.trains_on_labels:
            check_training_labels(self.dm.dataset, self.cfg.DATASET.NAME, type(self).__name__)
        self.before_train()
        with self.clock.on("train"):
            self.fit()
        if not self.has_epochs:
            self.save_model(0, self.output_dir)
            if self.cfg.TEST.FINAL_MODEL == "best_val":  # which Dassl looks for
                self.save_model(0, self.output_dir, is_best=True, model_name=BEST_NAME)
        self.after_train()

    def before_train(self) -> None:
        """Dassl's start of training: resume; then the log."""
        super().before_train()
        self.log.open(self.start_epoch)

    def fit(self) -> None:
        """The epoch loop; methods without epochs override this, and are saved after it."""
        if self.start_epoch < self.max_epoch:
            _ = self.first_view  # encoded before the loop
        self.loop.run()

    def before_epoch(self) -> None:
        """Fix all randomness of the epoch by (seed, epoch), so that a resumed run equals an undisturbed one."""
        self.loop.begin_epoch()

    def run_epoch(self) -> None:
        """Train on the batches of an epoch."""
        self.loop.run_epoch()

    def after_epoch(self) -> None:
        """Dassl's end of an epoch (validate, save), then the table of metrics."""
        with self.loop.saved_if_stopped():
            super().after_epoch()
            self.log.write_table(self.history)

    def optimise(
        self, terms: dict[str, Tensor], weights: dict[str, float], tensors: dict[str, Tensor]
    ) -> dict[str, float]:
        """One step on the weighted sum of loss terms, see `EpochLoop.optimise`."""
        return self.loop.optimise(terms, weights, tensors)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        """The views of the images (`img`, `img2`, ...), each `[B, 3, H, W]`, and the labels `[B]`, on the device."""
        names = ("img", *(f"img{k}" for k in range(2, len(batch))))
        self.batch_paths = batch["impath"]
        self.features.note_unreadable(batch)
        views = [self.features.to_device(batch[name]) for name in names if name in batch]
        return views, batch["label"].to(self.device, non_blocking=True)

    def after_train(self) -> None:
        """Dassl's end of training (choose the model, test), then the record, which marks the run as done."""
        distributed.barrier()  # the main process has written the best model that all look for
        self.log.is_final = True
        super().after_train()
        if self.cfg.TEST.NO_TEST:  # the record says what a method settles before its test, too
            self.set_model_mode("eval")
            self.before_test()
        self.log.write_table(self.history)
        write_run(self)

    def before_test(self) -> None:
        """Called once before the batches of a test: the place for what all images share, such as text features."""

    def test(self, split: str | None = None) -> float:
        """Evaluate on a split, and make the extra tests of the test images; returns the accuracy in percent.

        Test images without labels get predictions alone, and NaN is returned.

        Raises:
            UserError: The split is neither `test` nor `val`, or the data set has no such images.
        """
        split = split or self.cfg.TEST.SPLIT
        loader = {"test": self.test_loader, "val": self.val_loader}.get(split)
        if loader is None:
            others = ", no val images" if self.val_loader is None else " and val images"
            raise UserError(f"cannot test on '{split}': {self.cfg.DATASET.NAME} offers test images{others}")
        with torch.no_grad(), self.clock.on("test"):
            self.set_model_mode("eval")
            self.before_test()
            logger.info("evaluate on the %s images", split)
            logits, images = split_logits(self, loader, split), len(loader.dataset)
            labelled = split != "test" or not getattr(self.dm.dataset, "unlabelled", False)
            metrics = self.evaluation.measure(split, logits, self.evaluator, images, labelled)
            if not labelled:
                logger.info("%s: the %d test images get predictions, and nothing is measured", NO_LABELS, images)
                return math.nan
            for key, value in metrics.items():
                self.write_scalar(f"{split}/{key}", value, self.epoch)
        if split == "test":
            further_tests(self)  # outside the block above, since attacks need gradients
        return float(next(iter(metrics.values())))

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` and labels `[B]` on the device, without those that could not be decoded."""
        images, labels = self.features.to_device(batch["img"]), batch["label"].to(self.device, non_blocking=True)
        readable = self.features.note_unreadable(batch)
        return (images, labels) if all(readable) else (images[readable], labels[readable])

    def model_inference(self, input: Tensor) -> Tensor:
        """Logits `[B, C]` of images `[B, 3, H, W]`."""
        return self.feature_logits(self.encoding.encode(input))

    def cached_images(self, items: Sequence[Any]) -> CachedImages | None:
        """The cached rows of images under `encoding`, or None if `model_inference` shall see the images."""
        reads_images = type(self).model_inference is not CLIPTrainer.model_inference
        if reads_images or not hasattr(self, "feature_logits") or not self.encoding.fits(len(items)):
            return None
        return self.features.cached(items, self.encoding)

    def score_jointly(self, items: Sequence[Any]) -> CachedImages | None:
        """Rows of logits `[N, C]` of images that are scored together; None where each is scored by itself."""
        return None

    @property
    def encoding(self) -> Encoding:
        """What the method needs of an image: rows that are cached, and that `feature_logits` takes."""
        return self.features.encoding

    @property
    def reads_features(self) -> bool:
        """Whether the logits of an image depend on its features alone, so that a classifier `[C, E]` may exist."""
        return hasattr(self, "feature_logits") and self.encoding is self.features.encoding

    def content(self, features: Tensor) -> Tensor:
        """What is compared of features `[..., E]` of either tower: the features, unless a method changes them."""
        return features

    def row_content(self, rows: Tensor) -> Tensor:
        """What is compared of rows `[B, W]` of `encoding`, `[B, E]`; by default they begin with the features."""
        return self.content(rows[:, : self.backbone.embed_dim])

    def cosine_logits(self, features: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines `[B, C]` of features `[B, E]` with class features `[C, E]`; both are normalised here."""
        logits: Tensor = self.logit_scale * F.normalize(features.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        return logits

    @torch.no_grad()
    def refine_inputs(self, items: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """What a method needs that refines this one on unlabeled images: three tensors.

        Normalised features `[N, E]`, their logits without the logit scale `[N, C]`, and normalised proxies `[C, E]`.
        """
        features, _ = self.features.raw(items, self.encoding)
        batches = [batch.to(self.device) for batch in features.split(self.features.batch_size)]
        cosines = torch.cat([self.feature_logits(batch).float() for batch in batches]) / self.logit_scale
        content = torch.cat(list(map(self.row_content, batches)))
        return F.normalize(content, dim=-1), cosines, F.normalize(self.class_proxies().float(), dim=-1)

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write the learned parts of every registered model in Dassl's layout, with the backbone's hash."""
        facts = {"val_result": None if val_result is None else float(val_result)}
        self.checkpoints.save_epoch(epoch + 1, epoch + 1 < self.max_epoch, Path(directory), model_name, **facts)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned parts from a run's folder: the best model, or the last epoch's, or that of `epoch`."""
        if directory:
            self.checkpoints.load(Path(directory), epoch)
        else:
            logger.info("no model folder given: the learned parts stay as they are")

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume from the newest checkpoint under `directory`; returns the number of finished epochs."""
        if (state := self.checkpoints.resume(Path(directory))) is None:
            return 0
        self.best_result = state.get("best_result", self.best_result)
        self.history = state.get("history", [])
        last = self.history[-1] if self.history else {}
        self.losses = {name: value for name, value in last.items() if name not in ("epoch", "lr")}
        self.features.skipped |= dict.fromkeys(state.get("skipped", ()))
        self.clock.resume(state.get("seconds", {}))
        if self.checkpoints.resumed is None and "random" in state:
            restore_random(state["random"])
        return int(state["epoch"])

    def _progress(self) -> dict[str, Any]:
        """What checkpoints hold beside the learned parts."""
        states = {"best_result": float(self.best_result), "random": random_states(), "history": self.history}
        return states | {"skipped": list(self.features.skipped), "seconds": self.clock.so_far()}

    def record_facts(self) -> dict[str, Any]:
        """What the trainer knows of its run's record; a method adds its own."""
        return trainer_facts(self)

    def evaluated_rule(self, trained: Mapping[str, Any]) -> str:
        """The selection rule of an evaluation of a run that says this of itself (`trained` of its record)."""
        return str(trained.get("selection_rule", RULE_NOT_RECORDED))
