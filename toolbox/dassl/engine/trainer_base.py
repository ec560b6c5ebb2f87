"""Models, checkpoints and the order of events that all trainers share."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from dassl.utils import load_checkpoint, save_checkpoint, tolist_if_not
from dassl.utils.checkpoints import BEST_FILE, find_common_checkpoints, load_strictly, restore
from dassl.utils.errors import CheckError

from .run_state import KEY, capture_run_state, restore_run_state


class TrainerBase:
    """Holds registered models with their optimizers and schedules, and runs the epochs."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer = None
        self.shown_not_finite: set[str] = set()  # names of shown values that were warned of

    # ---- models

    def register_model(
        self, name: str = "model", model: nn.Module | None = None, optim: Any = None, sched: Any = None
    ) -> None:
        """Adds a model; it is then saved, loaded, resumed and switched between training and testing.

        Raises:
            AttributeError: The constructor has not run.
            AssertionError: The name is taken.
        """
        if self.__dict__.get("_models") is None:
            raise AttributeError("Cannot assign model before super().__init__() call")
        if name in self._models:
            raise CheckError(f'A model named "{name}" is registered already; registered: {list(self._models)}')
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """All registered names, or the given ones.

        Raises:
            AssertionError: A given name is not registered.
        """
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise CheckError(f'No model named "{name}" is registered; registered: {list(self._models)}')
        return names

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        """Switches models to "train", or to "test" or "eval".

        Raises:
            KeyError: Another mode.
        """
        if mode not in {"train", "test", "eval"}:
            raise KeyError(f'The mode must be "train", "test" or "eval", but got "{mode}"')
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    # ---- checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Writes each registered model to `directory/<name>/`.

        Args:
            epoch: Number of the epoch, from 0; the file carries epoch + 1.
            directory: The folder of the run.
            is_best: A copy is written as the best model.
            val_result: Result on the validation data.
            model_name: The file's name; empty means `model.pth.tar-{epoch + 1}`.
        """
        best = getattr(self, "best_result", None)
        run_state = capture_run_state(self)
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": None if val_result is None else float(val_result),
                "best_result": None if best is None or best == -float("inf") else float(best),
                KEY: run_state,
            }
            save_checkpoint(state, os.path.join(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Restores every registered model, its optimizer, its schedule and the random states from a run's folder.

        Returns:
            The number of finished epochs; 0 if the folder lacks a checkpoint of some model, or nothing is registered.
        """
        names = self.get_model_names()
        if not names:
            return 0
        files = find_common_checkpoints([os.path.join(directory, name) for name in names])
        if files is None:
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        epoch, checkpoint = 0, {}
        for name, fpath in zip(names, files):
            print(f'Loading checkpoint from "{fpath}"')
            checkpoint = load_checkpoint(fpath)
            epoch = restore(checkpoint, fpath, self._models[name], self._optims[name], self._scheds[name])
        restore_run_state(self, checkpoint.get(KEY), epoch)
        self.restore_best_result(directory, checkpoint)
        return epoch

    def restore_best_result(self, directory: str, checkpoint: dict[str, Any]) -> None:
        """Called after a resume with the last checkpoint that was loaded. Does nothing here."""

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Loads every registered model, strictly, for testing.

        Args:
            directory: The folder of a run; empty loads nothing.
            epoch: Number of finished epochs; None means the best model.

        Raises:
            FileNotFoundError: There is no such file.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        file_name = BEST_FILE if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            fpath = os.path.join(directory, name, file_name)
            if not os.path.exists(fpath):
                raise FileNotFoundError(f'Model not found at "{fpath}"; {_list_models(os.path.dirname(fpath))}')
            checkpoint = load_checkpoint(fpath)
            facts = [f"epoch={checkpoint.get('epoch')}"]
            if checkpoint.get("val_result") is not None:
                facts.append(f"val_result={checkpoint['val_result']:.1f}")
            load_strictly(self._models[name], checkpoint["state_dict"], fpath)
            print(f"Load {fpath} to {name} ({', '.join(facts)})")

    # ---- tensorboard

    def init_writer(self, log_dir: str) -> None:
        """Opens a tensorboard writer, unless one is open or tensorboard is not installed."""
        if self.__dict__.get("_writer") is not None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print("Note: tensorboard is not installed, no scalars are written")
            return
        print(f"Initialize tensorboard (log_dir={log_dir})")
        self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        """Closes the writer, if there is one."""
        if self.__dict__.get("_writer") is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Writes one value; does nothing without a writer."""
        if self.__dict__.get("_writer") is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # ---- the order of events

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Runs the epochs from `start_epoch` (or where the run before stopped) to `max_epoch`."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        if self._has_nothing_to_train():
            print("No model is registered and forward_backward() is not implemented: there is nothing to train")
        elif self.start_epoch >= self.max_epoch:
            print(f"All {self.max_epoch} epochs were trained by an earlier run: nothing to train, only the test is run")
            self.epoch = max(self.start_epoch - 1, 0)
        else:
            for epoch in range(self.start_epoch, self.max_epoch):
                self.epoch = epoch
                self.before_epoch()
                self.run_epoch()
                self.after_epoch()
        self.after_train()

    def _has_nothing_to_train(self) -> bool:
        """Whether the epochs would only call a forward_backward that nobody wrote (a zero-shot trainer)."""
        kind = type(self)
        calls = getattr(kind.run_epoch, "calls_forward_backward", False)
        return not self._models and calls and kind.forward_backward is TrainerBase.forward_backward

    def before_train(self) -> None:
        """Hook."""

    def after_train(self) -> None:
        """Hook."""

    def before_epoch(self) -> None:
        """Hook."""

    def after_epoch(self) -> None:
        """Hook."""

    def run_epoch(self) -> None:
        """Trains one epoch."""
        raise NotImplementedError

    def test(self) -> float:
        """Tests the model."""
        raise NotImplementedError

    def parse_batch_train(self, batch):
        """Takes what training needs from a batch."""
        raise NotImplementedError

    def parse_batch_test(self, batch):
        """Takes what testing needs from a batch."""
        raise NotImplementedError

    def forward_backward(self, batch):
        """Trains on one batch and returns a dictionary of losses, or None."""
        raise NotImplementedError

    def model_inference(self, input):
        """Logits of test images."""
        raise NotImplementedError

    # ---- optimisation

    def update_lr(self, names: str | list[str] | None = None) -> None:
        """Steps the schedules. A trainer calls it itself in the last batch of an epoch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def detect_anomaly(self, loss: Tensor) -> None:
        """Checks a loss.

        Raises:
            FloatingPointError: It is infinite or NaN.
        """
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def model_zero_grad(self, names: str | list[str] | None = None) -> None:
        """Clears the gradients that the models' optimizers hold."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Checks a loss and propagates it backwards."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: str | list[str] | None = None) -> None:
        """Steps the models' optimizers."""
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: Tensor, names: str | list[str] | None = None) -> None:
        """Clears the gradients, checks the loss, propagates it and steps the optimizers."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)


def _list_models(folder: str) -> str:
    if not os.path.isdir(folder):
        return f'the folder "{folder}" does not exist'
    files = sorted(name for name in os.listdir(folder) if name.startswith("model"))
    return f"the folder holds {files}" if files else "the folder holds no model"
