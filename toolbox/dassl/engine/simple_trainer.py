"""The trainer with data, a model, an evaluator and a folder."""

from __future__ import annotations

import datetime
import os
import pickle
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import count_num_param, load_checkpoint, load_pretrained_weights, mkdir_if_missing
from dassl.utils.checkpoints import BEST_FILE
from dassl.utils.determinism import apply_deterministic_switch
from dassl.utils.switches import is_on

from .simple_net import SimpleNet
from .trainer_base import TrainerBase

FROM_DATA_MANAGER = (
    "train_loader_x",
    "train_loader_u",
    "val_loader",
    "test_loader",
    "num_classes",
    "num_source_domains",
    "lab2cname",
)


class SimpleTrainer(TrainerBase):
    """A trainer made from a configuration.

    Args:
        cfg: The configuration.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.check_cfg(cfg)
        apply_deterministic_switch()
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self._take_from_data_manager()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -float("inf")

    def check_cfg(self, cfg: CfgNode) -> None:
        """Checks the configuration before anything is built. Does nothing here."""

    def build_data_loader(self) -> None:
        """Makes the loaders; an overrider sets the same attributes, or those of `self.dm` are taken."""
        self.dm = DataManager(self.cfg)
        for name in FROM_DATA_MANAGER:
            setattr(self, name, getattr(self.dm, name))

    def _take_from_data_manager(self) -> None:
        """What `build_data_loader` left unset comes from the data manager, or is None."""
        manager = getattr(self, "dm", None)
        for name in FROM_DATA_MANAGER:
            if not hasattr(self, name):
                setattr(self, name, getattr(manager, name, None))

    def build_model(self) -> None:
        """Makes a `SimpleNet` with its optimizer and schedule, registered as "model"."""
        cfg = self.cfg
        print("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)
        if is_on("DASSL_DATA_PARALLEL") and self.device.type == "cuda" and torch.cuda.device_count() > 1:
            print(f"Detected {torch.cuda.device_count()} GPUs (use nn.DataParallel)")
            self.model = nn.DataParallel(self.model)

    def train(self) -> None:
        """Runs all epochs, and the final test."""
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resumes an earlier run of RESUME or OUTPUT_DIR, opens the tensorboard writer and notes the time."""
        self._check_selection()
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.cfg.OUTPUT_DIR)
        writer_dir = os.path.join(self.output_dir, "tensorboard")
        mkdir_if_missing(writer_dir)
        self.init_writer(writer_dir)
        self.time_start = time.time()

    def after_train(self) -> None:
        """Tests the last or the best model, and prints the time."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                self._deploy_best()
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    def after_epoch(self) -> None:
        """Validates and saves the best model (best_val), then saves the epoch's if it is due."""
        test_cfg, every = self.cfg.TEST, self.cfg.TRAIN.CHECKPOINT_FREQ
        if not test_cfg.NO_TEST and test_cfg.FINAL_MODEL == "best_val":
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST_FILE)
        is_last = self.epoch + 1 == self.max_epoch
        if is_last or (every > 0 and (self.epoch + 1) % every == 0):
            self.save_model(self.epoch, self.output_dir)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluates the model.

        Args:
            split: "val" or "test"; None means TEST.SPLIT. Without validation data the test set is used.

        Returns:
            The first result of the evaluator (the accuracy).
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = self.cfg.TEST.SPLIT if split is None else split
        if split == "val" and self.val_loader is not None:
            loader = self.val_loader
        else:
            split, loader = "test", self.test_loader
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader):
            input, label = self.parse_batch_test(batch)
            output = self.model_inference(input)
            self.evaluator.process(output, label)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input: Tensor, *args: Any) -> Tensor:
        """Logits of test images; further arguments go to the model."""
        return self.model(input, *args)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Images and labels on the device."""
        return self.to_device(batch["img"]), self.to_device(batch["label"])

    def to_device(self, value: Any) -> Any:
        """A tensor, or the tensors in a list (several views), on the device; anything else as it is."""
        if isinstance(value, (list, tuple)):
            return [self.to_device(item) for item in value]
        return value.to(self.device) if isinstance(value, Tensor) else value

    def get_current_lr(self, names: str | list[str] | None = None) -> float:
        """Rate of the first group of the first model that has an optimizer; 0 if none has."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        return next((optim.param_groups[0]["lr"] for optim in optims if optim is not None), 0.0)

    def restore_best_result(self, directory: str, checkpoint: dict[str, Any]) -> None:
        """Takes the best result so far from a resumed checkpoint and from the best models beside it."""
        known = [checkpoint.get("best_result")]
        for name in self.get_model_names():
            fpath = os.path.join(directory, name, BEST_FILE)
            if self.cfg.TEST.FINAL_MODEL == "best_val" and os.path.isfile(fpath):
                try:
                    known.append(load_checkpoint(fpath).get("val_result"))
                except pickle.UnpicklingError as error:
                    warnings.warn(f"The best result so far is unknown: {error}", stacklevel=2)
        self.best_result = max([self.best_result, *(float(value) for value in known if value is not None)])

    def _check_selection(self) -> None:
        """Says what best_val means where there is no validation data of its own, or no test.

        Raises:
            ValueError: The test set would select the model and DASSL_REFUSE_TEST_SELECTION is set.
        """
        if self.cfg.TEST.FINAL_MODEL != "best_val":
            return
        if self.cfg.TEST.NO_TEST:
            _announce("FINAL_MODEL is best_val, but NO_TEST is set: no best model will be saved")
            return
        reason = self._why_selection_sees_test_data()
        if reason is None:
            return
        if is_on("DASSL_REFUSE_TEST_SELECTION"):
            raise ValueError(f"best_val is refused, because {reason} (DASSL_REFUSE_TEST_SELECTION is set)")
        _announce(
            f"THE TEST SET SELECTS THE MODEL: FINAL_MODEL is best_val, but {reason}. The selected model's accuracy is "
            "too good; use last_step, or give validation data"
        )

    def _why_selection_sees_test_data(self) -> str | None:
        if self.val_loader is None:
            return "there is no validation data and the test set takes its place"
        dataset = getattr(getattr(self, "dm", None), "dataset", None)
        val, test = getattr(dataset, "val", None), getattr(dataset, "test", None)
        if val and test and not {item.impath for item in val}.isdisjoint(item.impath for item in test):
            return "the validation data shares images with the test set"
        return None

    def _deploy_best(self) -> None:
        """Loads the best model of this run; else that of the resumed run; else keeps the last, with a warning."""
        for directory in filter(None, (self.output_dir, self.cfg.RESUME)):
            files = [os.path.join(directory, name, BEST_FILE) for name in self.get_model_names()]
            if all(os.path.isfile(fpath) for fpath in files):
                if directory != self.output_dir:
                    _announce(f"No epoch of this run was better than the best model of {directory}")
                print("Deploy the model with the best val performance")
                self.load_model(directory)
                return
        _announce(f'No best model in "{self.output_dir}": the last-epoch model is deployed')
        print("Deploy the last-epoch model")


def _announce(message: str) -> None:
    """A warning that stands in the log too."""
    print(f"WARNING: {message}")
    warnings.warn(message, stacklevel=4)
