"""Methods that train by steps: batches, rates, source validation, averages, and the rows of one training.

A training of `T` steps is cut into parts; after each, source validation images are scored without augmentation. One
training gives several weights: the `last`, the `best` by source validation, an `average` that has seen every step
(`averaging.py`), and those between the start and the end. All of them are tested; one of them is the result, which is
saved, exported and evaluated: the best under `TEST.FINAL_MODEL best_val`, else the method's own.

Shapes: `B` images, `C` classes.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl.optim import build_optimizer
from dassl_clip.clip.fine_tuned import between, by_depth, interpolate
from dassl_clip.results.errors import UserError

from . import distributed
from .averaging import AVERAGES, SHARES, make_average
from .checkpoint_files import BEST_NAME
from .data import mix_seed
from .evaluation import Evaluation, selection_images, split_logits
from .method import ABOVE_ZERO, at_least, one_of
from .source_validation import by_domain
from .step_batches import StepBatches, part_lengths, step_loader
from .tracked import SCHEDULES, StepSchedule, Tracked
from .trainer import CLIPTrainer

logger = logging.getLogger(__name__)

OF_AVERAGE = {
    "AVERAGE_START": "uniform",
    "BETA": "beta",
    **dict.fromkeys(("N_CONVERGE", "N_TOLERANCE", "TOLERANCE", "SHARES"), "swad"),
}  # setting -> its average
LAST, BEST, AVERAGE = "last", "best", "average"  # weights of one training, as records name them
VALLEY_RULE = "average of the steps of a valley of the loss on source validation images"


class StepTrainer(CLIPTrainer):
    """A method that trains by steps; a subclass gives `learner`, `loss_terms` and `model_logits`.

    Attributes:
        steps: `T`.
        tracked: Evaluations, the best weights and the average.
        model: What is learned.
    """

    settings = {
        "PER_DOMAIN": 0,  # images of each source domain in a batch; 0: DATALOADER.TRAIN_X.BATCH_SIZE of all
        "STEPS": 0,  # 0: OPTIM.MAX_EPOCH passes over the training images
        "EVALUATE_EVERY": 0,  # steps between evaluations on source validation images; 0: a pass
        "EVALUATE_FIRST": False,  # also after the first step, from which the others are counted then
        "EVALUATE_TARGET": False,  # also score the tested images at every evaluation; nothing is chosen by it
        "VAL_AUGMENT": False,  # evaluate on augmented views, re-drawn at each evaluation
        "SCHEDULE": "constant",  # or cosine, to 0
        "WARMUP": 0,  # steps
        "MAX_NORM": 0.0,  # largest norm of the gradients; 0: any
        "LAYER_DECAY": 1.0,  # factor on the rate from block to block, downwards
        "AVERAGE": "none",  # or uniform, beta, swad
        "AVERAGE_START": 0,  # of uniform: steps before the first weights that count
        "BETA": 0.5,
        "N_CONVERGE": 3,  # of swad, as the next three
        "N_TOLERANCE": 6,
        "TOLERANCE": 0.3,
        "SHARES": "exact",  # or released
        "ALPHAS": (),  # shares of the end in weights between start and end that are tested, too
    }
    undecisive = ("EVALUATE_FIRST", "VAL_AUGMENT", "SCHEDULE", "SHARES", "GRADIENT_CHECKPOINTING",
                  "INPUT_STATISTICS", "NORMALIZE", "HEAD_LEARNED")  # fmt: skip
    limits = {
        **dict.fromkeys(("PER_DOMAIN", "STEPS", "EVALUATE_EVERY", "WARMUP", "MAX_NORM", "AVERAGE_START"), at_least(0)),
        **dict.fromkeys(("N_CONVERGE", "N_TOLERANCE"), at_least(1)),
        "TOLERANCE": at_least(0),
        "BETA": ABOVE_ZERO,
        "LAYER_DECAY": (lambda value: 0 < value <= 1, "a factor above 0, at most 1"),
        "SCHEDULE": one_of(SCHEDULES),
        "AVERAGE": one_of(AVERAGES),
        "SHARES": one_of(SHARES),
        "ALPHAS": (lambda value: all(0 <= share <= 1 for share in value), "shares of 0 to 1"),
    }
    short = {"STEPS": 4, "EVALUATE_EVERY": 2, "PER_DOMAIN": 0}
    listed = False
    image_features_change = True
    unused_keys = ("OPTIM.LR_SCHEDULER", "OPTIM.STEPSIZE", "OPTIM.GAMMA", "OPTIM.WARMUP_EPOCH", "OPTIM.WARMUP_TYPE",
                   "OPTIM.WARMUP_CONS_LR", "OPTIM.WARMUP_MIN_LR", "OPTIM.WARMUP_RECOUNT",
                   "DATALOADER.TRAIN_X.SAMPLER")  # fmt: skip
    used_instead = "rates and batches go by steps, with SCHEDULE, WARMUP and PER_DOMAIN of its own node"
    own_row = LAST  # the weights that are the result where no average is kept
    model: Any
    train_loader_x: Any  # the loader of `step_batches.py`

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse a training without a step, and settings of another average than the one that is kept."""
        super().check_cfg(cfg)
        name = type(self).__name__.upper()
        node = cfg.TRAINER[name]
        for key, average in OF_AVERAGE.items():
            if average != node.AVERAGE and node[key] != self.settings[key]:
                raise UserError(
                    f"TRAINER.{name}.{key} is {node[key]}, a setting of the average {average}, but AVERAGE is "
                    f"{node.AVERAGE}: set AVERAGE {average}, or leave {key} at {self.settings[key]}"
                )
        if node.STEPS and node.AVERAGE_START > node.STEPS:
            raise UserError(
                f"TRAINER.{name}.AVERAGE_START is {node.AVERAGE_START}, and a training of {node.STEPS} STEPS has no "
                f"weights behind it; take {node.STEPS} or less"
            )
        if not cfg.TRAINER[name].STEPS and cfg.OPTIM.MAX_EPOCH < 1:
            raise UserError(
                f"TRAINER.{name}.STEPS is 0 and OPTIM.MAX_EPOCH {cfg.OPTIM.MAX_EPOCH}; a training needs a step or an "
                "epoch"
            )

    def _average(self) -> Any:
        """The average that the settings name, or None."""
        node = self.node
        valley = {"n_converge": node.N_CONVERGE, "n_tolerance": node.N_TOLERANCE, "tolerance": node.TOLERANCE}
        return make_average(node.AVERAGE, self.steps, node.AVERAGE_START, node.BETA, shares=node.SHARES, **valley)

    # ------------------------------------------------------------------------------------------------ what is built

    def build_data_loader(self) -> None:
        """Also the batches by steps, and the parts that end in an evaluation."""
        super().build_data_loader()
        node, items = self.node, self.dm.dataset.train_x
        domains = [item.domain for item in items]
        batch_size = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        size = node.PER_DOMAIN * len(set(domains)) if node.PER_DOMAIN else min(batch_size, len(items))
        each = max(1, len(items) // size)
        self.steps = node.STEPS or each * self.cfg.OPTIM.MAX_EPOCH
        self.lengths = part_lengths(self.steps, node.EVALUATE_EVERY or each, node.EVALUATE_FIRST)
        self.max_epoch = len(self.lengths)
        batches = StepBatches(domains, self.lengths, node.PER_DOMAIN, batch_size)
        self.train_loader_x = step_loader(self.train_loader_x, batches)
        self.held_out = selection_images(self.dm.dataset, f"{type(self).__name__}'s source validation")
        if not self.held_out:
            logger.info("no validation images: nothing is evaluated during training, and there are no best weights")

    def build_model(self) -> None:
        """What is learned, its start, and what is kept of the training."""
        self.model = self.register_learner("fine_tuned", self.learner())
        self.start = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.tracked = Tracked(self._average())
        if self.tracked.average is not None:
            self.tracked.average.begin(self.weights)
        self.checkpoints.parts["tracked"] = self.tracked
        self.loop.max_norm, self.loop.stepped = self.node.MAX_NORM, self.stepped
        self.row_metrics: dict[str, dict[str, Any]] = {}
        self.evaluated_at: list[dict[str, float]] = []  # seconds after each evaluation of this process
        self.weights_changed()

    def learner(self) -> nn.Module:
        """What is learned."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it learns")

    def loss_terms(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """The loss terms of a batch by name, their weights, and the tensors that they are made of.

        Args:
            images: `[B, 3, H, W]`.
            labels: `[B]`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def model_logits(self, images: Tensor) -> Tensor:
        """Logits `[B, C]` of images `[B, 3, H, W]`, of the weights in place."""
        raise NotImplementedError(f"{type(self).__name__} does not score images")

    def weights_changed(self) -> None:
        """Forget what was derived from other weights."""

    def rate_groups(self) -> list[tuple[float, list[nn.Parameter]]]:
        """The learned parameters by factor on the rate."""
        return by_depth(self.model_parameters(), self.node.LAYER_DECAY)

    def model_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of what is learned."""
        return list(self._learned.named_parameters())

    def optimiser_of(self, module: nn.Module) -> tuple[Optimizer, Any]:
        """An optimiser with a group for each factor on the rate, and its rates by steps."""
        self._learned, optim = module, self.cfg.OPTIM
        groups = [{"params": parameters, "lr": factor * optim.LR} for factor, parameters in self.rate_groups()]
        optimizer = build_optimizer(module, optim, param_groups=groups)
        return optimizer, StepSchedule(optimizer, self.node.SCHEDULE, self.steps, self.node.WARMUP)

    # --------------------------------------------------------------------------------------------------- training

    @property
    def weights(self) -> dict[str, Tensor]:
        """The learned parameters by name, as they are now."""
        return dict(self.model.named_parameters())

    @property
    def step(self) -> int:
        """Number of steps that were made: while one is being made, its own number, counted from 0."""
        return sum(self.lengths[: self.epoch]) + self.loop.step

    def before_epoch(self) -> None:
        """Draw the batches of the part."""
        self.train_loader_x.batch_sampler.part = self.epoch
        self.sched.apply(sum(self.lengths[: self.epoch]))
        super().before_epoch()

    def before_train(self) -> None:
        """Also refuse an average by validation losses that there are none of; a training that is over stays so."""
        if self.node.AVERAGE == "swad" and not self.held_out:
            raise UserError(
                f"TRAINER.{type(self).__name__.upper()}.AVERAGE is swad, which follows the loss on source validation "
                f"images, and {self.cfg.DATASET.NAME} has none here; take uniform, or a split with validation images"
            )
        super().before_train()
        if self.is_over:
            self.max_epoch = min(self.max_epoch, self.start_epoch)

    @property
    def is_over(self) -> bool:
        """Whether nothing that follows can change the average that is the result."""
        average = self.tracked.average
        return average is not None and average.is_over and self.cfg.TEST.FINAL_MODEL != "best_val"

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step on a batch, at its rate."""
        views, labels = self.parse_batch_train(batch)
        self.sched.apply(self.step)
        terms, weights, tensors = self.loss_terms(views[0], labels)
        return self.optimise(terms, weights, {"images": views[0], **tensors})

    def stepped(self) -> None:
        """The average sees the weights after every step."""
        self.weights_changed()
        if self.tracked.average is not None:
            self.tracked.average.update(self.step, self.weights)

    def after_epoch(self) -> None:
        """Evaluate, and save where a checkpoint is due."""
        with self.loop.saved_if_stopped():
            if self.held_out:
                self.tracked.saw(self.evaluate(), self.weights)
            if self.is_over:
                logger.info("the valley of the validation loss has ended: training stops after %d steps", self.step)
                self.max_epoch = self.epoch + 1
            every, done = self.cfg.TRAIN.CHECKPOINT_FREQ, self.epoch + 1
            if done == self.max_epoch or (every > 0 and done % every == 0):
                self.save_model(self.epoch, self.output_dir)
            self.log.write_table(self.history)

    def evaluate(self) -> dict[str, Any]:
        """Accuracy and loss of the weights on the validation images of each source domain."""
        names = list(getattr(self.dm.dataset, "source_domains", ()))
        transform = self.train_loader_x.dataset.transform[0] if self.node.VAL_AUGMENT else None
        seed = mix_seed(max(0, self.cfg.SEED), self.step) if transform is not None else None
        self.set_model_mode("eval")
        self.before_test()
        with self.clock.on("test"):
            accuracy, loss = by_domain(self, self.held_out, self.model_logits, names, transform, seed)
            mean = sum(accuracy.values()) / len(accuracy)
            facts = {"step": self.step - 1, "accuracy": accuracy, "mean": mean, "loss": sum(loss.values()) / len(loss)}
            if self.node.EVALUATE_TARGET:
                tested = list(getattr(self.dm.dataset, "target_domains", ()))
                facts["target"], _ = by_domain(self, self.dm.dataset.test, self.model_logits, tested)
        self.evaluated_at.append(self.clock.so_far())
        each = ", ".join(f"{name} {value:.1f}" for name, value in accuracy.items())
        logger.info("step %d: source validation %.2f %% (%s), loss %.4f", self.step, mean, each, facts["loss"])
        self.set_model_mode("train")
        return facts

    # -------------------------------------------------------------------------------------------- rows and result

    def rows(self) -> dict[str, dict[str, Tensor]]:
        """The weights that this training gives, by name; the newest are `last`."""
        rows = {LAST: {name: value.detach().cpu().clone() for name, value in self.weights.items()}}
        if self.tracked.best is not None:
            rows[BEST] = self.tracked.best
        if self.tracked.average is not None:
            rows[AVERAGE] = self.tracked.average.average()
        start = {name: self.start[name] for name in rows[LAST]}
        return rows | {between(share): interpolate(start, rows[LAST], share) for share in self.node.ALPHAS}

    @property
    def result_row(self) -> str:
        """Which of the rows is the result."""
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            return BEST
        return self.own_row if self.tracked.average is None else AVERAGE

    @torch.no_grad()
    def take(self, weights: dict[str, Tensor]) -> None:
        """Put weights in place."""
        for name, value in self.weights.items():
            value.copy_(weights[name])
        self.weights_changed()

    def after_train(self) -> None:
        """Test the rows, take and save the result, and end as every method does."""
        distributed.barrier()
        rows = self.rows()
        tested = not self.cfg.TEST.NO_TEST and self.cfg.TEST.SPLIT == "test"
        if tested and not getattr(self.dm.dataset, "unlabelled", False):
            for name in (name for name in rows if name != self.result_row):
                self.take(rows[name])
                self.row_metrics[name] = self.test_row(name)
        self.take(rows[self.result_row])
        self.save_model(self.epoch, self.output_dir, is_best=True, model_name=BEST_NAME)
        super().after_train()

    @torch.no_grad()
    def test_row(self, name: str) -> dict[str, Any]:
        """Metrics of the tested images under the weights that are in place; their features are not cached on disk."""
        self.set_model_mode("eval")
        self.before_test()
        logger.info("evaluate the row %s on the test images", name)
        evaluation, cached = Evaluation(), self.features.on_disk
        self.features.on_disk = False
        try:
            with self.clock.on("test"):
                logits = split_logits(self, self.test_loader, "test")
                evaluation.measure(name, logits, self.evaluator, len(self.test_loader.dataset))
        finally:
            self.features.on_disk = cached
        return evaluation.results[name]

    def record_facts(self) -> dict[str, Any]:
        """Also the rows, the evaluations, and what the training was made of."""
        facts, node = super().record_facts(), self.node
        metrics = facts["metrics"]
        if "test" in metrics and self.row_metrics:
            found = self.row_metrics | {self.result_row: metrics["test"]}
            order = [LAST, BEST, AVERAGE, *map(between, node.ALPHAS)]
            facts["metrics"] = metrics | {name: found[name] for name in order if name in found}
        average, done = self.tracked.average, sum(self.lengths[: self.epoch + 1])
        images = self.train_loader_x.batch_sampler.batch_size
        facts |= {"validation": self.tracked.validation, "evaluated_at": self.evaluated_at}
        facts["training"] = {"steps": done, "images_per_step": images, "evaluations": len(self.tracked.validation)}
        facts["training"] |= {"result": self.result_row, "between": {between(share): share for share in node.ALPHAS}}
        if self.tracked.validation:
            facts["training"] |= {"best_step": self.tracked.best_evaluation["step"]}
        if average is not None:
            facts["training"] |= {"average": average.facts()}
            if self.result_row == AVERAGE:
                rule = f"{node.AVERAGE} average of the weights of all steps"
                facts["selection_rule"] = rule if node.AVERAGE != "swad" else VALLEY_RULE
        if self.row_metrics:
            note = f"all rows are of one training of {node.STEPS or self.steps} steps of {images} images"
            facts["reading_notes"] = [*facts.get("reading_notes", ()), note]
        return facts
