"""Saving, resuming and loading the learned parts of a trainer, in Dassl's layout of folders and files."""

import logging
from pathlib import Path

from torch import nn

from dassl_clip.clip.listing import listed
from dassl_clip.clip.weights import hash_state
from dassl_clip.results import records, run_data
from dassl_clip.results.errors import UserError

from . import checkpoint_files as checkpoint
from . import distributed, randomness

logger = logging.getLogger(__name__)

# What checkpoints inside an epoch hold besides: `fit` where a method has a training of its own, else the epoch loop's.
INSIDE = ("step", "terms", "lr", "random", "random_before", "fit")


class CheckpointMixin:
    """Checkpoint methods of Dassl trainers that have a frozen `backbone`, `classnames` and `precision`."""

    class_specific = False  # True: the learned parts hold an entry for each class and fit these classes alone

    @property
    def unread_parts(self) -> tuple[str, ...]:
        """Beginnings of the names of learned parts that no score passes through, so that an export needs none."""
        return ()

    def published_state(self, state: dict) -> dict:
        """The state of the learned parts inside a foreign checkpoint's; the same unless a trainer knows better."""
        return state

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name="") -> None:
        """Write the learned parts of every registered model in Dassl's layout, with the backbone's hash."""
        file = model_name or checkpoint.epoch_name(epoch + 1)
        self._save(directory, file, epoch + 1, {"val_result": None if val_result is None else float(val_result)})
        if file != checkpoint.BEST_NAME and distributed.is_main():
            for name in self.get_model_names():  # the last step's file serves if this one should be torn
                goes_on = self._optims[name] is not None and epoch + 1 < self.max_epoch
                checkpoint.remove_steps(Path(directory) / name, keep=int(goes_on))

    def save_step(self, random: dict | None = None) -> None:
        """Write what is needed to go on after the epoch loop's step that was just done.

        Args:
            random: The random states after that step, where they are no longer the present ones.
        """
        inside = {"terms": self.epoch_terms, "lr": self.epoch_lr, "random_before": self.random_before}
        inside |= {} if random is None else {"random": random}
        self.save_inside(self.epoch, self.steps_done, inside)

    def save_inside(self, epoch: int, step: int, inside: dict) -> None:
        """Write a checkpoint inside an epoch; the two newest are kept.

        Args:
            epoch: Finished epochs.
            step: Finished steps of the next one.
            inside: What else is needed to go on, under names of `INSIDE`; the next start finds it in `resumed`.
        """
        file = checkpoint.step_name(epoch, step)
        self._save(self.output_dir, file, epoch, {"step": step, **inside})
        for name in self.get_model_names() if distributed.is_main() else ():
            checkpoint.remove_steps(Path(self.output_dir) / name, keep=2, written=file)

    def _save(self, directory, file: str, epochs: int, more: dict) -> None:
        """Write one file of every registered model after `epochs` finished epochs, in the main process."""
        for name in self.get_model_names() if distributed.is_main() else ():
            learned = self._models[name].state_dict()
            state = {
                "state_dict": learned,
                "sha256": hash_state(learned),
                "epoch": epochs,
                "optimizer": self._optims[name].state_dict() if self._optims[name] is not None else None,
                "scheduler": self._scheds[name].state_dict() if self._scheds[name] is not None else None,
                "best_result": float(self.best_result),
                "scaler": self.precision.scaler.state_dict(),
                "random": randomness.capture(),
                "trainer": type(self).__name__,
                "backbone": self.backbone.describe(),
                "classnames": self.classnames,
                "history": self.history,
                "skipped": list(self.features.skipped),
                "seconds": self.seconds_so_far(),
                "identity": records.identity(self.asked),
                "data": self.data.fingerprint,
                "files": records.named_files(self.asked),
                **more,
            }
            path = Path(directory) / name / file
            checkpoint.save_checkpoint(state, path, point=file != checkpoint.BEST_NAME)
            logger.info("checkpoint saved to %s", path)

    def save_fit(self, step: int, problem: str, state: dict) -> None:
        """`save_inside` for a method with a training of its own, whose data has the name `problem`."""
        self.save_inside(0, step, {"fit": {"problem": problem, **state}})

    def kept_fit(self, problem: str) -> dict | None:
        """What `save_fit` kept of this problem before this start, or None; of other data nothing is taken."""
        kept = (self.resumed or {}).get("fit")
        if kept is not None and kept["problem"] != problem:
            logger.warning("what is trained on has changed since the checkpoint: training from the start")
            return None
        return kept

    def resume_model_if_exist(self, directory) -> int:
        """Go on from the newest whole checkpoint of all models under `directory`; torn files are set aside.

        Where the run's own folder holds one already, that is taken in place of the one of `--resume DIR`: it is what an
        earlier start of the same command has made of it.

        Returns:
            The number of finished epochs.
        """
        names = self.get_model_names()
        own = [Path(self.output_dir) / name for name in names[:1]]
        if directory != self.output_dir and any(next(checkpoint.newest_checkpoint(f, steps=True), None) for f in own):
            logger.info(
                "%s holds a checkpoint of its own: going on from there, not from %s", self.output_dir, directory
            )
            directory = self.output_dir
        folders = {name: Path(directory) / name for name in names}
        paths = checkpoint.newest_checkpoint(folders[names[0]], steps=True) if names else iter(())
        while file := distributed.from_main(lambda: getattr(next(paths, None), "name", None)):
            path = folders[names[0]] / file
            states = self._load_everywhere(
                {name: folder / file for name, folder in folders.items()},
                strict=Path(directory).resolve() == Path(self.output_dir).resolve(),
            )
            if states is None:
                continue
            try:
                state = self._go_on_from(states)
            except Exception as error:  # states that fit no optimiser make it raise almost anything
                raise UserError(
                    f"{path} holds learned parts, but nothing to go on from ({type(error).__name__}: {error}); take it "
                    "with --eval-only --model-dir, or start in another folder"
                ) from error
            self.best_result = state.get("best_result", self.best_result)
            self.history = state.get("history", [])
            done = self.history[-1] if self.history else {}
            self.losses = {name: value for name, value in done.items() if name not in ("epoch", "lr")}
            self.features.skipped |= dict.fromkeys(state.get("skipped", ()))
            self.seconds |= state.get("seconds", {})
            self.started -= sum(self.seconds.values())
            if state.get("step"):
                self.resumed = {key: state[key] for key in INSIDE if key in state}
            elif "random" in state:
                randomness.restore(state["random"])
            steps = f" and {state['step']} steps" if state.get("step") else ""
            logger.info("resumed from %s, %d epochs%s done", path, state["epoch"], steps)
            return int(state["epoch"])
        if names:
            logger.info("no checkpoint under %s: training from the start", directory)
        return 0

    def _other_run(self, state: dict, path: Path) -> str:
        """What a checkpoint has of another configuration, of other images or files than this run; "" for nothing."""
        if "identity" not in state:
            logger.warning("%s does not say which configuration and images it is of: data not recorded", path)
            return ""
        theirs, own = state["identity"], records.identity(self.asked)
        if state.get("epoch", 0) < own["OPTIM.MAX_EPOCH"]:  # Dassl's way to train on, or to end earlier
            theirs = theirs | {"OPTIM.MAX_EPOCH": own["OPTIM.MAX_EPOCH"]}
        changed = records.identity_differences(theirs, own)
        files = records.named_files(self.asked)
        changed += [f"{key}: another content of its file" for key in files if state["files"].get(key) != files[key]]
        if changed:
            return f"{path} is of another configuration ({'; '.join(changed[:8])})"
        if state["data"] == self.data.fingerprint:
            return ""
        there = run_data.read_data(path.parent.parent)
        known = there is not None and there.fingerprint == state["data"]
        what = run_data.differences(there, self.data) if known else "which ones is not known"
        return f"{path} was trained on other images ({what})"

    def _go_on_from(self, states: dict[str, dict]) -> dict:
        """Put the states of optimisers, schedules and scaler in place; returns the last model's checkpoint."""
        for name, state in states.items():
            if self._optims[name] is not None and state.get("optimizer"):
                self._optims[name].load_state_dict(state["optimizer"])
            if self._scheds[name] is not None and state.get("scheduler"):
                self._scheds[name].load_state_dict(state["scheduler"])
            int(state["epoch"])
        self.precision.scaler.load_state_dict(state.get("scaler") or self.precision.scaler.state_dict())
        return state

    def _load_everywhere(self, paths: dict[str, Path], strict: bool) -> dict[str, dict] | None:
        """As `_load_together`, in the main process first: what it finds whole, all load.

        Raises:
            MissingFileError: Another process cannot read the file.
            UserError: As `_load_together`.
        """
        states = self._load_together(paths, strict) if distributed.is_main() else None
        if not distributed.from_main(lambda: states is not None):
            return None
        if distributed.is_main():
            return states
        return {name: self._load(self._models[name], path) for name, path in paths.items()}

    def _load_together(self, paths: dict[str, Path], strict: bool) -> dict[str, dict] | None:
        """Load a file for each model; None, with a warning, if one is missing or torn.

        Args:
            paths: Name of a model -> its file.
            strict: Do not resume what is of another configuration, or of other images; otherwise (a start from the
                checkpoint of another run) a warning says what differs.

        Raises:
            UserError: The checkpoint is of another configuration or of other images. A method without epochs, which
                can start anew, gets None and a warning instead.
        """
        states = {}
        for name, path in paths.items():
            try:
                if other := self._other_run(checkpoint.load_checkpoint(path), path):
                    if strict and self._optims[name] is not None:
                        raise UserError(
                            f"{other}, which is not resumed: give another --output-dir, and --resume "
                            f"{path.parent.parent} with it to start from these checkpoints"
                        )
                    logger.warning("%s%s", other, ": training from the start" if strict else "")
                    if strict:
                        return None
                states[name] = self._load(self._models[name], path)
            except FileNotFoundError as error:
                logger.warning("%s; an older checkpoint is taken", error)
                return None
            except checkpoint.TornCheckpoint as error:
                logger.warning("%s; set aside as %s.torn", error, path.name)
                path.replace(f"{path}.torn")
                return None
        return states

    def load_model(self, directory, epoch=None) -> None:
        """Load learned parts from a run's folder: the best model, or the last epoch's, or that of `epoch`.

        Raises:
            MissingFileError: No such checkpoint; the message lists what exists.
            UserError: The checkpoint is of another backbone, or its shapes or classes do not fit.
        """
        if not directory:
            logger.info("no model folder given: the learned parts stay as they are")
            return
        distributed.barrier()  # the main process has written what it was about to write
        for name in self.get_model_names():
            folder = Path(directory) / name
            path = folder / (checkpoint.BEST_NAME if epoch is None else checkpoint.epoch_name(epoch))
            if epoch is None and not path.is_file():
                path = next(checkpoint.newest_checkpoint(folder), path)
            state = self._load(self._models[name], path)
            value = state.get("val_result")
            told = f", validation {value:.1f}" if isinstance(value, (int, float)) else ""  # old files: any object
            logger.info("loaded %s%s", path, told)

    def _load(self, module: nn.Module, path: Path) -> dict:
        """Read one file into `module`, refusing another backbone or, for class-specific parts, other classes."""
        state = checkpoint.load_checkpoint(path)
        if state.get("sha256", "") and hash_state(state["state_dict"]) != state["sha256"]:
            raise checkpoint.TornCheckpoint(
                f"{path}: the learned parts are not those that were saved (another sha256); get it again"
            )
        theirs, ours = state.get("backbone"), self.backbone.describe()
        if theirs is None:
            logger.warning("%s does not say which backbone it was trained on; make sure that it was this one", path)
        elif theirs["weights_hash"] != ours["weights_hash"]:
            raise UserError(
                f"{path} was trained on backbone {theirs['name']} (weights {theirs['weights_hash'][:12]}), but this "
                f"run has "
                f"{ours['name']} (weights {ours['weights_hash'][:12]}); set MODEL.BACKBONE.NAME and WEIGHTS to the "
                f"former"
            )
        classes = state.get("classnames")
        if self.class_specific and classes is not None and list(classes) != self.classnames:
            what = run_data.first_difference(classes, self.classnames, "class")
            raise UserError(f"{path} holds parts for other classes: {what}; class-specific parts fit no other classes")
        learned = self.published_state(state["state_dict"])
        own = module.state_dict()
        unread = () if learned is state["state_dict"] else (key for key in own if key.startswith(self.unread_parts))
        absent = [key for key in (*state.get("left_out", ()), *unread) if key not in learned]
        if absent:
            logger.info("%s is without %s, which no score needs: they stay as they are", path, listed(absent))
        learned = {**{key: own[key] for key in absent if key in own}, **learned}
        checkpoint.load_state(module, learned, str(path))
        return state
