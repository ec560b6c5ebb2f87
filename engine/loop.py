"""The epoch loop of the trainers: reproducible epochs, one step, checks of every loss, and going on inside an epoch."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from dassl_clip.clip.listing import listed
from dassl_clip.results.errors import NotFiniteError
from dassl_clip.results.files import write_atomically

from . import distributed, randomness
from . import signals as termination
from .data import living_workers, mix_seed

logger = logging.getLogger(__name__)

DUMP_NAME = "not-finite.pt"


class LoopMixin:
    """The training methods of Dassl trainers that save (`saving.py`) and have a `precision` and a `history`.

    A step ends in `optimise`. After it the run may be saved (`TRAIN.CHECKPOINT_STEPS`) and may stop (SIGTERM); a run
    that goes on from there draws the same order of images, reads only those that are left, and has the same random
    states.

    Several processes (`distributed.py`) each have some rows of every batch. Loss terms are then those of the whole
    batch, gradients are reduced by DistributedDataParallel, and all stop together.
    """

    first_batch = 0  # number of the first batch of this pass; the embedded toolbox counts from it
    steps_done = 0  # finished steps of this epoch, also those before a resume
    joined: Callable[[Tensor], Tensor] | None = None  # what a loss passes through, for gradients of the whole batch
    resumed: dict | None = None  # what a checkpoint inside an epoch says: step, terms, lr, random states

    def fit(self) -> None:
        """The epoch loop; methods without one override this."""
        plain = self.train_loader_x
        try:
            with living_workers(plain) as self.train_loader_x:
                for epoch in range(self.start_epoch, self.max_epoch):
                    self.epoch = epoch
                    self.before_epoch()
                    with termination.deferred():
                        self.run_epoch()
                        self.after_epoch()
        finally:
            self.train_loader_x = plain
        if self.start_epoch >= self.max_epoch > 0:
            logger.info("nothing left to train: the checkpoint has all %d epochs", self.max_epoch)
            self.epoch = self.max_epoch - 1

    def before_epoch(self) -> None:
        """Fix all randomness of the epoch by (seed, epoch), so that a resumed run equals an undisturbed one.

        Without a seed the order and the views of an epoch follow from the random states before it, which stand in the
        checkpoints.
        """
        if self.resumed is not None:
            randomness.restore(self.resumed["random_before"])
        self.random_before = randomness.capture()
        if self.cfg.SEED >= 0:
            seed = mix_seed(self.cfg.SEED, self.epoch)
            randomness.seed_all(seed)
        else:
            seed = int(torch.randint(2**62, ()))
        self.train_loader_x.dataset.view_seed.fill_(seed)
        if hasattr(self.train_loader_x, "epochs_started"):  # a seeded loader orders images by this number
            self.train_loader_x.epochs_started = self.epoch

    def run_epoch(self) -> None:
        """Dassl's epoch, or what is left of it, under a progress bar where stderr is a terminal."""
        fresh = {"step": 0, "terms": {}, "lr": self.get_current_lr(), "random": None}
        loader, resumed, self.resumed = self.train_loader_x, self.resumed or fresh, None
        self.first_batch = self.steps_done = resumed["step"]
        self.epoch_terms: dict[str, list[float]] = {name: list(values) for name, values in resumed["terms"].items()}
        self.epoch_lr = resumed["lr"]
        if self.joined is None:
            learned = [self._models[name] for name in self.get_model_names() if self._optims[name] is not None]
            self.joined = distributed.peers().joined(nn.ModuleList(learned))
        self.rows_of_batch = getattr(loader.batch_sampler, "rows", None)
        try:
            rest = RestOfEpoch(loader, self.first_batch, resumed["random"])
            self.train_loader_x = self.progress(rest, f"epoch {self.epoch + 1}/{self.max_epoch}")
            super().run_epoch()
        finally:
            self.train_loader_x = loader
        distributed.check_alike(self._models.values())
        self.losses = {name: sum(values) / len(values) for name, values in self.epoch_terms.items()}
        self.history.append({"epoch": self.epoch + 1, "lr": self.epoch_lr, **self.losses})

    def after_epoch(self) -> None:
        """Dassl's end of an epoch; a run that is told to end in it saves all the same.

        One that stops in the middle of a validation is saved as before it, so that the validation is done again.
        """
        random = randomness.capture()
        try:
            super().after_epoch()
        except termination.Terminated as end:
            self.history.pop()
            self.save_step(random)
            if end.agreed:
                distributed.barrier()  # nobody leaves before the file is whole
            raise
        if any(distributed.gather_values(termination.requested())):
            if self.epoch + 1 < self.max_epoch:
                self.save_model(self.epoch, self.output_dir)
            distributed.barrier()
            raise termination.Terminated(f"saved after epoch {self.epoch + 1}")

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
        share = self._share()
        terms = {name: share * term for name, term in terms.items()}
        loss = sum(weights[name] * term for name, term in terms.items())
        own = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
        peers, everywhere = distributed.peers(), own
        if peers.size > 1:
            told = own.new_full((1,), float(termination.requested()))
            everywhere = peers.sum(torch.cat([own / peers.size, told]))
        values = self.precision.to_host(everywhere)
        self.optim.zero_grad(set_to_none=True)
        self.precision.scaler.scale(self.joined(loss) if self.joined is not None else loss).backward()
        numbers = values()
        all_told = peers.size > 1 and numbers.pop() > 0
        summary = dict(zip(["loss", *terms], numbers))
        if not all(value - value == 0 for value in numbers):
            raise NotFiniteError(self._explained(own, tensors, summary))
        self.precision.scaler.step(self.optim)
        self.precision.scaler.update()
        for name, value in summary.items():
            self.epoch_terms.setdefault(name, []).append(value)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        self.after_step(all_told if peers.size > 1 else termination.requested())
        return summary

    def _share(self) -> float:
        """The factor on means over this process's rows of the batch; 1 for full batches, which are shared equally."""
        if distributed.world_size() == 1:
            return 1.0
        return distributed.peers().share(len(self.batch_paths), self.rows_of_batch(self.steps_done))

    def after_step(self, told_to_end: bool) -> None:
        """Save where `TRAIN.CHECKPOINT_STEPS` or a SIGTERM asks for it; the latter ends the run."""
        self.steps_done += 1
        every = self.cfg.TRAIN.get("CHECKPOINT_STEPS", 0)
        if told_to_end:
            self.save_step()
            distributed.barrier()  # nobody leaves before the file is whole
            raise termination.Terminated(f"saved after epoch {self.epoch + 1}, step {self.steps_done}")
        if every > 0 and self.steps_done % every == 0 and self.batch_idx + 1 < self.num_batches:
            self.save_step()

    def _explained(self, own: Tensor, tensors: dict[str, Tensor], summary: dict[str, float]) -> str:
        """The explanation of the first process whose own loss is not finite."""
        bad = distributed.gather_values(not bool(own.isfinite().all()))
        teller = bad.index(True) if True in bad else 0
        return distributed.gather_values(self._explain(tensors, summary) if distributed.rank() == teller else "")[
            teller
        ]

    def _explain(self, tensors: dict[str, Tensor], summary: dict[str, float]) -> str:
        learned = {
            f"parameter {n}": p for name in self.get_model_names() for n, p in self._models[name].named_parameters()
        }
        first = "none of the inputs"
        for name, tensor in {**learned, **tensors}.items():
            bad = int((~torch.isfinite(tensor)).sum())
            if bad:
                first = f"{name} ({bad} of {tensor.numel()} values)"
                break
        facts = {"epoch": self.epoch + 1, "step": self.batch_idx + 1, "values": summary, "first_bad": first}
        state = {name: tensor.detach().cpu() for name, tensor in {**learned, **tensors}.items()}
        path = Path(self.output_dir) / DUMP_NAME
        try:
            write_atomically(
                path, lambda f: torch.save({**facts, "paths": list(self.batch_paths), "tensors": state}, f)
            )
            dump = f"all of it is in {path}"
        except OSError as error:
            dump = f"{path} could not be written ({error})"
        return (
            f"the loss is not finite at epoch {self.epoch + 1}, step {self.batch_idx + 1} of {self.num_batches}: "
            f"{summary}; first bad tensor: {first}; learning rate {self.get_current_lr():.3g}; images: "
            f"{listed(self.batch_paths)}; {dump}. "
            f"A smaller OPTIM.LR is the usual cure; with PREC amp try fp32"
        )


class RestOfEpoch:
    """The batches of a loader after the first ones, whose images are drawn but not read.

    Args:
        loader: A loader with torch's own batch sampler.
        skipped: Number of batches to leave out.
        random: Random states to restore before the first batch is handed out (or the end, if none is left); None
            leaves them.
    """

    def __init__(self, loader: DataLoader, skipped: int, random: dict | None):
        self.loader, self.skipped, self.random = loader, skipped, random

    def __len__(self) -> int:
        return len(self.loader) - self.skipped

    def __iter__(self) -> Iterator[dict]:
        batches = self.loader.batch_sampler
        whole = batches.sampler
        if self.skipped:
            batches.sampler = _Rest(whole, self.skipped * batches.batch_size)
        try:
            iterator = iter(self.loader)
            first = next(iterator, None)  # what starting the loader and its first batch draw was drawn before
            if self.random is not None:
                randomness.restore(self.random)
            if first is not None:
                yield first
                yield from iterator
        finally:
            batches.sampler = whole


class _Rest(Sampler):
    """The indices of a sampler after the first ones."""

    def __init__(self, sampler: Sampler, skipped: int):
        self.sampler, self.skipped = sampler, skipped

    def __len__(self) -> int:
        return max(len(self.sampler) - self.skipped, 0)

    def __iter__(self) -> Iterator[int]:
        indices = iter(self.sampler)
        for _ in range(self.skipped):
            next(indices, None)
        yield from indices
