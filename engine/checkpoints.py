"""Saving, loading and resuming the learned parts of a run, in Dassl's layout of folders and files."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from yacs.config import CfgNode

from dassl_clip.clip.weights import hash_state
from dassl_clip.results import run_data
from dassl_clip.results.errors import UserError, listed

from . import checkpoint_files as files
from . import distributed
from .fingerprint import identity, identity_differences, named_files

logger = logging.getLogger(__name__)

# What checkpoints inside an epoch hold besides: `fit` where a method has a training of its own, else the epoch loop's.
INSIDE = ("step", "terms", "lr", "random", "random_before", "fit")


@dataclass(frozen=True)
class Run:
    """What checkpoints say of the run that they are of, and how its learned parts are read from others.

    Attributes:
        trainer: Name of the trainer.
        config: The configuration as it was given.
        backbone: Facts of the frozen CLIP, among them `name` and `weights_hash`.
        classnames: Class names in label order.
        data: Gives the images of the run.
        class_specific: Whether the learned parts hold an entry for each class and fit these classes alone.
        unread: Beginnings of the names of learned parts that no score passes through.
        adapt: The state of the learned parts inside a foreign checkpoint's; others as they are.
    """

    trainer: str
    config: CfgNode
    backbone: dict[str, Any]
    classnames: list[str]
    data: Callable[[], run_data.RunData]
    class_specific: bool = False
    unread: tuple[str, ...] = ()
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: state


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: The run's folder.
        run: What they are of.
        models: The models by name; they may be registered later.
        optims: Their optimisers, or None.
        scheds: Their schedules, or None.
        scaler: The scaler of the loss.
        progress: Gives what is saved beside them: history, random states, times and the like.

    Attributes:
        resumed: What a checkpoint inside an epoch or a fit says (`INSIDE`), until it is used; None after any other.
        resumed_identity: The settings (`fingerprint.identity`) of the run whose checkpoint was resumed.
        parts: What else a method's training has of state, by name: objects with `state_dict` and `load_state_dict`.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        models: Mapping[str, nn.Module],
        optims: Mapping[str, Any],
        scheds: Mapping[str, Any],
        scaler: Any,
        progress: Callable[[], dict[str, Any]],
    ):
        self.folder, self.run, self.progress = folder, run, progress
        self.models, self.optims, self.scheds, self.scaler = models, optims, scheds, scaler
        self.resumed: dict[str, Any] | None = None
        self.resumed_identity: dict[str, Any] | None = None
        self.parts: dict[str, Any] = {}

    # ----------------------------------------------------------------------------------------------------- saving

    def save_epoch(self, epochs: int, more_epochs: bool, directory: Path, file: str = "", **facts: Any) -> None:
        """Write the learned parts after `epochs` finished epochs; what was saved inside an epoch goes.

        Args:
            epochs: Finished epochs.
            more_epochs: Whether others follow.
            directory: A run's folder.
            file: The file's name, where it is not that of the epoch.
            facts: What else the file says.
        """
        file = file or files.epoch_name(epochs)
        self._save(directory, file, epochs, facts)
        if file != files.BEST_NAME and distributed.is_main():
            for name in self.models:  # the last step's file serves if this one should be torn
                files.remove_steps(directory / name, keep=int(self.optims[name] is not None and more_epochs))

    def save_step(self, epoch: int, step: int, inside: dict[str, Any]) -> None:
        """Write a checkpoint inside an epoch; the two newest are kept.

        Args:
            epoch: Finished epochs.
            step: Finished steps of the next one.
            inside: What else is needed to resume, under names of `INSIDE`; the next start finds it in `resumed`.
        """
        file = files.step_name(epoch, step)
        self._save(self.folder, file, epoch, {"step": step, **inside})
        for name in self.models if distributed.is_main() else ():
            files.remove_steps(self.folder / name, keep=2, written=file)

    def save_fit(self, step: int, problem: str, state: dict[str, Any]) -> None:
        """`save_step` for a method with a training of its own, whose data has the name `problem`."""
        self.save_step(0, step, {"fit": {"problem": problem, **state}})

    def load_fit_state(self, problem: str) -> dict[str, Any] | None:
        """What `save_fit` saved of this problem before this start, or None; of other data nothing is taken."""
        state = (self.resumed or {}).get("fit")
        if state is not None and state["problem"] != problem:
            logger.warning("what is trained on has changed since the checkpoint: training from the start")
            return None
        return state

    def _save(self, directory: Path, file: str, epochs: int, facts: dict[str, Any]) -> None:
        """Write one file of every model, in the main process."""
        for name, model in self.models.items() if distributed.is_main() else ():
            learned, optim, sched = model.state_dict(), self.optims[name], self.scheds[name]
            state = {
                "state_dict": learned,
                "sha256": hash_state(learned),
                "epoch": epochs,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "scaler": self.scaler.state_dict(),
                "parts": {part: each.state_dict() for part, each in self.parts.items()},
                "trainer": self.run.trainer,
                "backbone": self.run.backbone,
                "classnames": self.run.classnames,
                "identity": identity(self.run.config),
                "data": self.run.data().fingerprint,
                "files": named_files(self.run.config),
                **self.progress(),
                **facts,
            }
            path = directory / name / file
            files.save_checkpoint(state, path, point=file != files.BEST_NAME)
            logger.info("checkpoint saved to %s", path)

    # ---------------------------------------------------------------------------------------------------- loading

    def load(self, directory: Path, epoch: int | None = None) -> None:
        """Load the learned parts from a run's folder: the best model, or the last epoch's, or that of `epoch`.

        Raises:
            MissingFileError: No such checkpoint; the message lists what exists.
            UserError: The checkpoint is of another backbone, or its shapes or classes do not fit.
        """
        distributed.barrier()  # the main process has written what it was about to write
        for name, model in self.models.items():
            folder = directory / name
            path = folder / (files.BEST_NAME if epoch is None else files.epoch_name(epoch))
            if epoch is None and not path.is_file():
                path = next(files.newest_checkpoint(folder), path)
            value = self.load_into(model, path).get("val_result")
            shown = f", validation {value:.1f}" if isinstance(value, (int, float)) else ""  # old files: any object
            logger.info("loaded %s%s", path, shown)

    def load_into(self, model: nn.Module, path: Path) -> dict[str, Any]:
        """Read one file into a model, refusing another backbone or, for class-specific parts, other classes."""
        run, state = self.run, files.load_checkpoint(path)
        if state.get("sha256", "") and hash_state(state["state_dict"]) != state["sha256"]:
            raise files.TornCheckpoint(
                f"{path}: the learned parts are not those that were saved (another sha256); get it again"
            )
        theirs, ours = state.get("backbone"), run.backbone
        if theirs is None:
            logger.warning("%s does not say which backbone it was trained on; make sure that it was this one", path)
        elif theirs["weights_hash"] != ours["weights_hash"]:
            raise UserError(
                f"{path} was trained on backbone {theirs['name']} (weights {theirs['weights_hash'][:12]}), but this "
                f"run has {ours['name']} (weights {ours['weights_hash'][:12]}); set MODEL.BACKBONE.NAME and WEIGHTS to "
                "the former"
            )
        classes = state.get("classnames")
        if run.class_specific and classes is not None and list(classes) != run.classnames:
            what = run_data.first_difference(classes, run.classnames, "class")
            raise UserError(f"{path} holds parts for other classes: {what}; class-specific parts fit no other classes")
        learned, present = run.adapt(state["state_dict"]), model.state_dict()
        unread = () if learned is state["state_dict"] else (key for key in present if key.startswith(run.unread))
        absent = [key for key in (*state.get("left_out", ()), *unread) if key not in learned]
        if absent:
            logger.info("%s is without %s, which no score needs: they stay as they are", path, listed(absent))
        files.load_state(model, {**{key: present[key] for key in absent if key in present}, **learned}, str(path))
        return state

    # --------------------------------------------------------------------------------------------------- resuming

    def resume(self, directory: Path) -> dict[str, Any] | None:
        """Load the newest whole checkpoint of all models under `directory`; torn files are set aside.

        Where the run's own folder holds one already, that is taken in place of the one of `--resume DIR`: it is what an
        earlier start of the same command has made of it.

        Returns:
            The checkpoint of the last model, or None where there is nothing to resume.

        Raises:
            UserError: The checkpoint is of another configuration or of other images, or holds nothing to resume.
        """
        if not self.models:
            return None
        first, is_own = next(iter(self.models)), directory.resolve() == self.folder.resolve()
        if not is_own and any(files.newest_checkpoint(self.folder / first, steps=True)):
            logger.info("%s holds a checkpoint of its own, which is resumed in place of %s", self.folder, directory)
            directory, is_own = self.folder, True
        newest = files.newest_checkpoint(directory / first, steps=True)
        while file := distributed.from_main(lambda: getattr(next(newest, None), "name", None)):
            paths = {name: directory / name / file for name in self.models}
            states = self._load_all(paths, is_own) if distributed.is_main() else None
            if not distributed.gather_values(states is not None)[0]:
                continue
            if states is None:  # what the main process found whole, all load
                states = {name: self.load_into(self.models[name], path) for name, path in paths.items()}
            try:
                state = self._restore(states)
            except Exception as error:  # states that fit no optimiser make it raise almost anything
                raise UserError(
                    f"{paths[first]} holds learned parts, but nothing to resume ({type(error).__name__}: {error}); "
                    "take it with --eval-only --model-dir, or start in another folder"
                ) from error
            self.resumed = {key: state[key] for key in INSIDE if key in state} if state.get("step") else None
            self.resumed_identity = dict(state.get("identity") or {})
            steps = f" and {state['step']} steps" if self.resumed else ""
            logger.info("resumed from %s, %d epochs%s done", paths[first], state["epoch"], steps)
            return state
        logger.info("no checkpoint under %s: training from the start", directory)
        return None

    def _load_all(self, paths: dict[str, Path], is_own: bool) -> dict[str, dict[str, Any]] | None:
        """Load a file for each model; None, with a warning, if one is missing, torn or not to be resumed.

        Args:
            paths: Name of a model -> its file.
            is_own: The files are in the run's own folder: what is of another configuration or of other images is then
                refused; otherwise (a start from the checkpoint of another run) a warning says what differs.

        Raises:
            UserError: The checkpoint is of another configuration or of other images. A method without epochs, which
                can start anew, gets None and a warning instead.
        """
        states = {}
        for name, path in paths.items():
            try:
                other = self._other_run(files.load_checkpoint(path), path)
                if other and is_own and self.optims[name] is not None:
                    raise UserError(
                        f"{other}, which is not resumed: give another --output-dir, and --resume "
                        f"{path.parent.parent} with it to start from these checkpoints"
                    )
                if other:
                    logger.warning("%s%s", other, ": training from the start" if is_own else "")
                if other and is_own:
                    return None
                states[name] = self.load_into(self.models[name], path)
            except FileNotFoundError as error:
                logger.warning("%s; an older checkpoint is taken", error)
                return None
            except files.TornCheckpoint as error:
                logger.warning("%s; set aside as %s.torn", error, path.name)
                path.replace(f"{path}.torn")
                return None
        return states

    def _other_run(self, state: dict[str, Any], path: Path) -> str:
        """What a checkpoint has of another configuration, of other images or files than this run; "" for nothing."""
        if "identity" not in state:
            logger.warning("%s does not say which configuration and images it is of: data not recorded", path)
            return ""
        theirs, ours = state["identity"], identity(self.run.config)
        if state.get("epoch", 0) < ours["OPTIM.MAX_EPOCH"]:  # Dassl's way to train on, or to end earlier
            theirs = theirs | {"OPTIM.MAX_EPOCH": ours["OPTIM.MAX_EPOCH"]}
        changed, named = identity_differences(theirs, ours), named_files(self.run.config)
        changed += [f"{key}: another content of its file" for key in named if state["files"].get(key) != named[key]]
        if changed:
            return f"{path} is of another configuration ({'; '.join(changed[:8])})"
        data = self.run.data()
        if state["data"] == data.fingerprint:
            return ""
        recorded = run_data.read_data(path.parent.parent)
        what = "which ones is not known"
        if recorded is not None and recorded.fingerprint == state["data"]:
            what = run_data.differences(recorded, data)
        return f"{path} was trained on other images ({what})"

    def _restore(self, states: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Put the states of optimisers, schedules and scaler in place; returns the last model's checkpoint."""
        for name, state in states.items():
            for part, key in ((self.optims[name], "optimizer"), (self.scheds[name], "scheduler")):
                if part is not None and state.get(key):
                    part.load_state_dict(state[key])
            int(state["epoch"])
        self.scaler.load_state_dict(state.get("scaler") or self.scaler.state_dict())
        for part, each in self.parts.items():
            each.load_state_dict(state["parts"][part])
        return state
