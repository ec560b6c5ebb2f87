"""The epoch loop: reproducible epochs, one step, checks of every loss, and resuming inside an epoch.

The path of a step: `run_epoch` takes a batch -> the method's `forward_backward` computes loss terms -> `optimise` does
the backward pass, checks the loss, steps, and saves where a checkpoint is due or a stop was requested.

All randomness of an epoch follows from (seed, epoch). A run that is resumed inside an epoch draws the same order of
images, reads only those that are left, and restores the random states after its last step.

Several processes (`distributed.py`) each have some rows of every batch. Loss terms are then those of the whole batch,
gradients are averaged, and all processes stop together.
"""

import contextlib
import datetime
import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl.utils import AverageMeter, MetricMeter
from dassl_clip.results.errors import NotFiniteError, listed
from dassl_clip.results.files import write_atomically

from . import distributed, signals
from .data import derive_seed, mix_seed, progress_bar

logger = logging.getLogger(__name__)

DUMP_NAME = "not-finite.pt"


def seed_all(seed: int) -> None:
    """Seed the generators of python, numpy and torch (all devices) in this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The states of these generators: numbers, lists and byte tensors only, which load with `weights_only=True`."""
    version, numbers, gauss = random.getstate()
    legacy = np.random.get_state(legacy=True)
    assert isinstance(legacy, tuple)  # a dict only where other code has set another generator
    kind, keys, *rest = legacy
    states: dict[str, Any] = {"python": [version, list(numbers), gauss], "numpy": [kind, keys.tolist(), *rest]}
    states["torch"] = torch.get_rng_state()
    states["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return states


def restore_random(states: dict[str, Any]) -> None:
    """Restore what `random_states` gave; the states of GPUs that are not here are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


class EpochLoop:
    """Runs a `CLIPTrainer` through its epochs, by the methods of the Dassl contract.

    Args:
        trainer: The trainer; its loader's batch sampler is `data.EpochBatches`.

    Attributes:
        processes: Number of processes that share each batch.
        step: Finished steps of this epoch, also those before a resume.
        terms: The loss and its terms in each of these steps.
        lr: Learning rate at the beginning of the epoch.
        random_before: Random states before the epoch.
        max_norm: Largest norm of the gradients of a step; 0 for any.
        stepped: Called after every step, before anything is saved.
    """

    max_norm = 0.0
    stepped: Callable[[], None] | None = None

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.processes = distributed.world_size()
        self.step, self.lr = 0, 0.0
        self.terms: dict[str, list[float]] = {}
        self.random_before: dict[str, Any] = {}
        self.random_resumed: dict[str, Any] | None = None  # random states of the step that this epoch is resumed after

    def run(self) -> None:
        """All epochs that are left."""
        trainer, epoch = self.trainer, self.trainer.start_epoch
        while epoch < trainer.max_epoch:  # which a method may lower
            trainer.epoch = epoch
            trainer.before_epoch()
            with signals.deferred():
                trainer.run_epoch()
                trainer.after_epoch()
            epoch += 1
        trainer.train_loader_x._iterator = None  # its workers end now; for those of cyclic garbage torch waits 5 s each
        if trainer.start_epoch >= trainer.max_epoch > 0:
            logger.info("nothing left to train: the checkpoint has all %d epochs", trainer.max_epoch)
            trainer.epoch = trainer.max_epoch - 1

    def begin_epoch(self) -> None:
        """Fix all randomness of the epoch.

        Without a seed the order and the views follow from the random states before the epoch, which checkpoints hold.
        """
        trainer, loader = self.trainer, self.trainer.train_loader_x
        resumed, trainer.checkpoints.resumed = trainer.checkpoints.resumed or {}, None
        if resumed:
            restore_random(resumed["random_before"])
        self.random_before, self.random_resumed = random_states(), resumed.get("random")
        self.step, self.lr = resumed.get("step", 0), resumed.get("lr", trainer.get_current_lr())
        self.terms = {name: list(values) for name, values in resumed.get("terms", {}).items()}
        if trainer.cfg.SEED >= 0:
            seed_all(mix_seed(trainer.cfg.SEED, trainer.epoch))
            seed = derive_seed(derive_seed(trainer.cfg.SEED, "train_x"), trainer.epoch)
        else:
            seed = int(torch.randint(2**62, ()))
        loader.dataset.view_seed.fill_(seed)
        loader.batch_sampler.start(seed, self.step)

    def run_epoch(self) -> None:
        """One pass over the training batches, or over those that a resumed epoch has left."""
        trainer, loader = self.trainer, self.trainer.train_loader_x
        trainer.set_model_mode("train")
        trainer.num_batches = len(loader)
        report = _Report(trainer)
        if self.random_resumed is not None:
            restore_random(self.random_resumed)
        bar = progress_bar(loader, f"epoch {trainer.epoch + 1}/{trainer.max_epoch}", self.step)
        for trainer.batch_idx, batch in enumerate(bar, self.step):
            report.batch_arrived()
            report.batch_done(trainer.forward_backward(batch))
        distributed.check_same_parameters(trainer._models.values())
        trainer.losses = {name: sum(values) / len(values) for name, values in self.terms.items()}
        trainer.history.append({"epoch": trainer.epoch + 1, "lr": self.lr, **trainer.losses})

    def optimise(
        self, terms: dict[str, Tensor], weights: dict[str, float], tensors: dict[str, Tensor]
    ) -> dict[str, float]:
        """One step on the weighted sum of loss terms, and the rate's step after the epoch's last batch.

        Args:
            terms: Unweighted scalar terms by name, means over the images of `batch_paths`.
            weights: Weight of each term.
            tensors: Intermediate tensors in the order they were made, to name the first bad one.

        Returns:
            `loss` and every term as numbers, for the log.

        Raises:
            NotFiniteError: The loss is not finite; the message names the first bad tensor, the step, the images and
                the file that holds them all.
        """
        trainer, precision, processes = self.trainer, self.trainer.precision, self.processes
        if processes > 1:  # means over this process's rows become its share of the means over the batch
            rows = trainer.train_loader_x.batch_sampler.size(self.step)
            share = len(trainer.batch_paths) * processes / rows
            terms = {name: share * term for name, term in terms.items()}
        loss = sum((weights[name] * term for name, term in terms.items()), start=torch.zeros(()))
        values = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
        shown = values
        if processes > 1:
            stop_here = values.new_full((1,), float(signals.stop.requested))
            shown = distributed.total(torch.cat([values / processes, stop_here]))
        read = precision.to_host(shown)
        trainer.optim.zero_grad(set_to_none=True)
        precision.scaler.scale(loss).backward()
        if processes > 1:
            learned = [trainer._models[name] for name in trainer.get_model_names()]
            distributed.average_gradients(p for module in learned for p in module.parameters())
        numbers = read()
        stop = numbers.pop() > 0 if processes > 1 else signals.stop.requested
        summary = dict(zip(["loss", *terms], numbers))
        if not all(map(math.isfinite, numbers)):
            raise NotFiniteError(self._not_finite(values, tensors, summary))
        if self.max_norm:
            precision.scaler.unscale_(trainer.optim)
            every = [p for group in trainer.optim.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(every, self.max_norm)
        precision.scaler.step(trainer.optim)
        precision.scaler.update()
        if self.stepped is not None:
            self.stepped()

        for name, value in summary.items():
            self.terms.setdefault(name, []).append(value)
        self.step += 1
        is_last, every = trainer.batch_idx + 1 == trainer.num_batches, trainer.cfg.TRAIN.get("CHECKPOINT_STEPS", 0)
        if is_last:
            trainer.update_lr()
        if stop:
            self.save_step()
            distributed.barrier()  # nobody leaves before the file is whole
            raise signals.Terminated(f"saved after epoch {trainer.epoch + 1}, step {self.step}")
        if every > 0 and self.step % every == 0 and not is_last:
            self.save_step()
        return summary

    @contextlib.contextmanager
    def saved_if_stopped(self) -> Iterator[None]:
        """Around the end of an epoch: a run that is to stop is saved after the epoch whatever `CHECKPOINT_FREQ` says.

        One that stops in the middle of a validation is saved as before it, so that the validation is done again.
        """
        trainer, states = self.trainer, random_states()
        try:
            yield
        except signals.Terminated as stop:
            trainer.history.pop()
            self.save_step(states)
            if stop.agreed:
                distributed.barrier()  # nobody leaves before the file is whole
            raise
        if any(distributed.gather_values(signals.stop.requested)):
            if trainer.epoch + 1 < trainer.max_epoch:
                trainer.save_model(trainer.epoch, trainer.output_dir)
            distributed.barrier()
            raise signals.Terminated(f"saved after epoch {trainer.epoch + 1}")

    def save_step(self, states: dict[str, Any] | None = None) -> None:
        """Write what is needed to resume after the step that was just done.

        Args:
            states: The random states after that step, where they are no longer the present ones.
        """
        inside = {"terms": self.terms, "lr": self.lr, "random_before": self.random_before}
        inside |= {} if states is None else {"random": states}
        self.trainer.checkpoints.save_step(self.trainer.epoch, self.step, inside)

    def _not_finite(self, values: Tensor, tensors: dict[str, Tensor], summary: dict[str, float]) -> str:
        """The message of the first process whose own loss is not finite, which writes the dump."""
        bad = distributed.gather_values(not bool(values.isfinite().all()))
        first = bad.index(True) if True in bad else 0
        message = dump_not_finite(self.trainer, tensors, summary) if distributed.rank() == first else ""
        return distributed.gather_values(message)[first]


def dump_not_finite(trainer: Any, tensors: dict[str, Tensor], summary: dict[str, float]) -> str:
    """Write the tensors of a step whose loss is not finite beside the run; returns what to tell the user."""
    learned = {
        f"parameter {n}": p for name in trainer.get_model_names() for n, p in trainer._models[name].named_parameters()
    }
    first = "none of the inputs"
    for name, tensor in {**learned, **tensors}.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            first = f"{name} ({bad} of {tensor.numel()} values)"
            break
    epoch, step = trainer.epoch + 1, trainer.batch_idx + 1
    state = {name: tensor.detach().cpu() for name, tensor in {**learned, **tensors}.items()}
    facts = {"epoch": epoch, "step": step, "values": summary, "first_bad": first}
    facts |= {"paths": list(trainer.batch_paths), "tensors": state}
    path = Path(trainer.output_dir) / DUMP_NAME
    try:
        write_atomically(path, lambda file: torch.save(facts, file))
        dump = f"all of it is in {path}"
    except OSError as error:
        dump = f"{path} could not be written ({error})"
    return (
        f"the loss is not finite at epoch {epoch}, step {step} of {trainer.num_batches}: {summary}; first bad tensor: "
        f"{first}; learning rate {trainer.get_current_lr():.3g}; images: {listed(trainer.batch_paths)}; {dump}. "
        f"A smaller OPTIM.LR is the usual cure; with PREC amp try fp32"
    )


class _Report:
    """Dassl's line of an epoch's progress every `TRAIN.PRINT_FREQ` batches, and its scalars of every batch."""

    def __init__(self, trainer: Any):
        self.trainer, self.losses = trainer, MetricMeter()
        self.batch_time, self.data_time, self.since = AverageMeter(), AverageMeter(), time.time()

    def batch_arrived(self) -> None:
        self.data_time.update(time.time() - self.since)

    def batch_done(self, summary: dict[str, float] | None) -> None:
        trainer = self.trainer
        self.batch_time.update(time.time() - self.since)
        self.losses.update(summary or {})
        number, batches, rate = trainer.batch_idx + 1, trainer.num_batches, trainer.get_current_lr()
        every = trainer.cfg.TRAIN.PRINT_FREQ
        if every > 0 and (number % every == 0 or batches < every):
            left = batches - number + (trainer.max_epoch - trainer.epoch - 1) * batches
            eta = datetime.timedelta(seconds=int(self.batch_time.avg * left))
            times = f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f})"
            times += f" data {self.data_time.val:.3f} ({self.data_time.avg:.3f})"
            place = f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] batch [{number}/{batches}]"
            print(" ".join(filter(None, [place, times, str(self.losses), f"lr {rate:.4e} eta {eta}"])))
        step = trainer.epoch * batches + trainer.batch_idx
        means = {f"train/{name}": meter.avg for name, meter in self.losses.meters.items()}
        trainer.log.add_scalars(means | {"train/lr": rate}, step)
        self.since = time.time()
