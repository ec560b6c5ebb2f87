"""Saving, resuming and loading the learned parts of a trainer, in Dassl's layout of folders and files."""

import logging
from pathlib import Path

from torch import nn

from dassl_clip.modeling.weights import hash_state

from . import checkpoint

logger = logging.getLogger(__name__)


class CheckpointMixin:
    """Checkpoint methods of Dassl trainers that have a frozen `backbone`, `classnames` and `precision`."""

    class_specific = False  # True: the learned parts hold an entry for each class and fit these classes alone

    def published_state(self, state: dict) -> dict:
        """The state of the learned parts inside a foreign checkpoint's; the same unless a trainer knows better."""
        return state

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name="") -> None:
        """Write the learned parts of every registered model in Dassl's layout, with the backbone's hash."""
        for name in self.get_model_names():
            learned = self._models[name].state_dict()
            state = {
                "state_dict": learned,
                "sha256": hash_state(learned),
                "epoch": epoch + 1,
                "optimizer": self._optims[name].state_dict() if self._optims[name] is not None else None,
                "scheduler": self._scheds[name].state_dict() if self._scheds[name] is not None else None,
                "val_result": None if val_result is None else float(val_result),
                "best_result": float(self.best_result),
                "scaler": self.precision.scaler.state_dict(),
                "trainer": type(self).__name__,
                "backbone": self.backbone.describe(),
                "classnames": self.classnames,
                "history": self.history,
            }
            file = model_name or checkpoint.epoch_name(epoch + 1)
            path = Path(directory) / name / file
            checkpoint.save_checkpoint(state, path, point=file != checkpoint.BEST_NAME)
            logger.info("checkpoint saved to %s", path)

    def resume_model_if_exist(self, directory) -> int:
        """Go on from the newest whole checkpoint under `directory`; a torn one is set aside with a warning."""
        names = self.get_model_names()
        for name in names:
            for path in checkpoint.newest_checkpoint(Path(directory) / name):
                try:
                    state = self._load(self._models[name], path)
                except ValueError as error:
                    if "not a readable checkpoint" not in str(error):
                        raise
                    logger.warning("%s; set aside as %s.torn", error, path.name)
                    path.rename(f"{path}.torn")
                    continue
                if self._optims[name] is not None and state.get("optimizer"):
                    self._optims[name].load_state_dict(state["optimizer"])
                if self._scheds[name] is not None and state.get("scheduler"):
                    self._scheds[name].load_state_dict(state["scheduler"])
                self.precision.scaler.load_state_dict(state.get("scaler") or self.precision.scaler.state_dict())
                self.best_result = state.get("best_result", self.best_result)
                self.history = state.get("history", [])
                logger.info("resumed from %s, %d epochs done", path, state["epoch"])
                return int(state["epoch"])
        if names:
            logger.info("no checkpoint under %s: training from the start", directory)
        return 0

    def load_model(self, directory, epoch=None) -> None:
        """Load learned parts from a run's folder: the best model, or the last epoch's, or that of `epoch`.

        Raises:
            FileNotFoundError: No such checkpoint; the message lists what exists.
            ValueError: The checkpoint is of another backbone, or its shapes or classes do not fit.
        """
        if not directory:
            logger.info("no model folder given: the learned parts stay as they are")
            return
        for name in self.get_model_names():
            folder = Path(directory) / name
            path = folder / (checkpoint.BEST_NAME if epoch is None else checkpoint.epoch_name(epoch))
            if epoch is None and not path.is_file():
                path = next(checkpoint.newest_checkpoint(folder), path)
            state = self._load(self._models[name], path)
            value = state.get("val_result")
            logger.info("loaded %s%s", path, "" if value is None else f", validation {value:.1f}")

    def _load(self, module: nn.Module, path: Path) -> dict:
        """Read one file into `module`, refusing another backbone or, for class-specific parts, other classes."""
        state = checkpoint.load_checkpoint(path)
        if state.get("sha256", "") and hash_state(state["state_dict"]) != state["sha256"]:
            raise ValueError(f"{path}: the learned parts are not those that were saved (another sha256); get it again")
        theirs, ours = state.get("backbone"), self.backbone.describe()
        if theirs is None:
            logger.warning("%s does not say which backbone it was trained on; make sure that it was this one", path)
        elif theirs["weights_hash"] != ours["weights_hash"]:
            raise ValueError(
                f"{path} was trained on backbone {theirs['name']} (weights {theirs['weights_hash'][:12]}), but this "
                f"run has "
                f"{ours['name']} (weights {ours['weights_hash'][:12]}); set MODEL.BACKBONE.NAME and WEIGHTS to the "
                f"former"
            )
        classes = state.get("classnames")
        if self.class_specific and classes is not None and list(classes) != self.classnames:
            raise ValueError(
                f"{path} holds parts for {len(classes)} classes ({', '.join(classes[:3])}, ...), but this run has "
                f"{len(self.classnames)} ({', '.join(self.classnames[:3])}, ...); class-specific parts fit no other "
                f"classes"
            )
        checkpoint.load_state(module, self.published_state(state["state_dict"]), str(path))
        return state
