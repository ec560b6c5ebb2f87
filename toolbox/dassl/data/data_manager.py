"""Loaders for training, validation and testing."""
# ruff: noqa: F401 (the original's module offers what it imports)

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from yacs.config import CfgNode

from dassl.utils import read_image
from dassl.utils.errors import CheckError
from dassl.utils.on_demand import import_on_demand

from .datasets import build_dataset
from .samplers import build_sampler
from .seeding import SeededLoader, derive_seed
from .transforms import build_transform
from .wrapper import DatasetWrapper, collate_items

__getattr__ = import_on_demand(
    __name__,
    INTERPOLATION_MODES=".transforms:INTERPOLATION_MODES",
    T="torchvision.transforms",
    tabulate="tabulate:tabulate",
)
__all__ = [*(name for name in globals() if name[0] != "_"), "INTERPOLATION_MODES", "T", "tabulate"]  # noqa: F822


def build_data_loader(
    cfg: CfgNode,
    sampler_type: str = "SequentialSampler",
    data_source: Sequence | None = None,
    batch_size: int = 64,
    n_domain: int = 0,
    n_ins: int = 2,
    tfm: Callable | Sequence[Callable] | None = None,
    is_train: bool = True,
    dataset_wrapper: type | None = None,
    stream: str = "",
) -> DataLoader:
    """Makes a loader over a list of Datum.

    The last, partial batch is dropped in training if there is at least one full batch.

    Args:
        cfg: The configuration.
        sampler_type: Name of the sampler.
        data_source: List of Datum.
        batch_size: Images in a batch.
        n_domain: Domains in a batch (RandomDomainSampler).
        n_ins: Images of a class in a batch (RandomClassSampler).
        tfm: The transform, see `DatasetWrapper`.
        is_train: Whether the loader serves training.
        dataset_wrapper: A class with the signature of `DatasetWrapper`.
        stream: Name of the loader's stream of random numbers.

    Raises:
        AssertionError: The loader would be empty.
    """
    if not data_source:
        raise CheckError(
            f"There is nothing to load for {stream or 'this loader'}: the list of images is empty. "
            "Check DATASET.ROOT, the domains and the split of the data set."
        )
    drop_last = is_train and len(data_source) >= batch_size
    generator = torch.Generator() if cfg.SEED >= 0 else None
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins, generator)
    wrapper = dataset_wrapper or DatasetWrapper
    options = {
        "batch_size": batch_size,
        "sampler": sampler,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "drop_last": drop_last,
        "pin_memory": torch.cuda.is_available() and cfg.USE_CUDA,
        "collate_fn": collate_items,
    }
    dataset = wrapper(cfg, data_source, transform=tfm, is_train=is_train)
    if generator is None:
        loader = DataLoader(dataset, **options)
    else:
        loader = SeededLoader(dataset, **options, generator=generator, seed=derive_seed(cfg.SEED, stream))
    if len(loader) == 0:
        raise CheckError(
            f"The loader {stream} gives no batch: {len(data_source)} images, {sampler_type}, batch size {batch_size}"
        )
    total = len(data_source)
    lost = total % batch_size
    if drop_last and sampler_type in {"RandomSampler", "SequentialSampler"} and lost > total / 4:
        warnings.warn(
            f"Each training epoch leaves out {lost} of {total} images, because the last batch (of {batch_size}) is "
            f"partial; a batch size that divides {total} uses them all",
            stacklevel=2,
        )
    return loader


class DataManager:
    """The data set, its transforms and its loaders.

    Args:
        cfg: The configuration.
        custom_tfm_train: Takes the place of the training transform: a callable or a list of callables.
        custom_tfm_test: Takes the place of the test transform.
        dataset_wrapper: A class with the signature of `DatasetWrapper`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        custom_tfm_train: Callable | Sequence[Callable] | None = None,
        custom_tfm_test: Callable | Sequence[Callable] | None = None,
        dataset_wrapper: type | None = None,
    ) -> None:
        dataset = build_dataset(cfg)
        transforms = {}
        for is_train, custom in ((True, custom_tfm_train), (False, custom_tfm_test)):
            if custom is not None:
                print(f"* Using custom transform for {'training' if is_train else 'testing'}")
            transforms[is_train] = build_transform(cfg, is_train=is_train) if custom is None else custom
        loaders = cfg.DATALOADER

        def build(stream: str, items: Sequence, node: CfgNode, is_train: bool) -> DataLoader:
            shares = {"n_domain": node.N_DOMAIN, "n_ins": node.N_INS} if is_train else {}
            return build_data_loader(
                cfg,
                sampler_type=node.SAMPLER,
                data_source=items,
                batch_size=node.BATCH_SIZE,
                tfm=transforms[is_train],
                is_train=is_train,
                dataset_wrapper=dataset_wrapper,
                stream=stream,
                **shares,
            )

        self.dataset = dataset
        self.num_classes = dataset.num_classes
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        self.lab2cname = dataset.lab2cname
        self.train_loader_x = build("train_x", dataset.train_x, loaders.TRAIN_X, True)
        self.train_loader_u = None
        if dataset.train_u:
            node = loaders.TRAIN_X if loaders.TRAIN_U.SAME_AS_X else loaders.TRAIN_U
            self.train_loader_u = build("train_u", dataset.train_u, node, True)
        self.val_loader = build("val", dataset.val, loaders.TEST, False) if dataset.val else None
        self.test_loader = build("test", dataset.test, loaders.TEST, False)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Prints names, domains and sizes as a table of two columns."""
        from tabulate import tabulate

        rows = [["Dataset", cfg.DATASET.NAME]]
        if cfg.DATASET.SOURCE_DOMAINS:
            rows.append(["Source", list(cfg.DATASET.SOURCE_DOMAINS)])
        if cfg.DATASET.TARGET_DOMAINS:
            rows.append(["Target", list(cfg.DATASET.TARGET_DOMAINS)])
        rows.append(["# classes", f"{self.num_classes:,}"])
        for part in ("train_x", "train_u", "val", "test"):
            if items := getattr(self.dataset, part):
                rows.append([f"# {part}", f"{len(items):,}"])
        print(tabulate(rows))
