"""Classifiers of images in the manner of scikit-learn, around the methods of this project.

    clf = InMaPClassifier(["cat", "dog"], backbone="ViT-B/16").fit("photos/")
    clf.predict(["x.jpg"])

A classifier builds the configuration of a run and its trainer, so its numbers are those of a run with the same
settings, data and seed. Images are given as `inputs.ACCEPTED` says. Every error that a caller can cause is a
`ValueError` of one line; of a missing file also a `FileNotFoundError`.

Shapes (letters of docs/methods.md): `N` images, `C` classes, `E` joint embedding.
"""

import contextlib
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dassl_clip.results.errors import MissingFileError, UserError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?<!\.safetensors)")
OWN = ("names", "backbone", "weights", "config", "seed", "device")


class Classifier:
    """A classifier of images by any registered method.

    Args:
        method: Registry name of the method, such as "TransCLIP"; classes of one method do not take it.
        names: Class names in label order: a list, "cat,dog", or a file with one per line. None: those of the labels.
        backbone: The frozen CLIP, as `MODEL.BACKBONE.NAME` takes it.
        weights: A file with its weights; "": by its name.
        config: Name or path of a yaml file with settings; "": the method's own, as `dassl-clip task` takes it.
        seed: Of everything random.
        device: "auto" (a GPU where there is one) or "cpu".
        settings: Keys of the method in small letters (`marginal="uniform"`), `epochs`, `lr`, `batch_size` and
            `transforms` of methods with epochs, `workers`, and config keys in full (`**{"OPTIM.NAME": "adam"}`).

    Attributes:
        classes_: The class names, `[C]`.
        record_: The record of the fit, as a run writes it.
        trainer_: The method's trainer.

    Raises:
        UserError: There is no such method or setting.
    """

    _method = ""

    def __init__(
        self,
        method: str,
        names: Any = None,
        *,
        backbone: str = "ViT-B/16",
        weights: Any = "",
        config: Any = "",
        seed: int = 1,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        self.method, self.names, self.backbone, self.weights = method, names, backbone, weights
        self.config, self.seed, self.device, self._settings = config, seed, device, settings
        self._kind()
        self._values()

    def __repr__(self) -> str:
        params = self.get_params()
        usual = {"names": None, "weights": "", "config": "", "seed": 1, "device": "auto"}
        shown = (f"{key}={value!r:.60}" for key, value in params.items() if usual.get(key, usual) != value)
        return f"{type(self).__name__}({', '.join(shown)})"

    # ------------------------------------------------------------------------------------------------ parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Every parameter of the constructor, as it was given."""
        first = {} if self._method else {"method": self.method}
        return first | {name: getattr(self, name) for name in OWN} | self._settings

    def set_params(self, **params: Any) -> "Classifier":
        """Set parameters; what was fitted stays until the next `fit`."""
        for name, value in params.items():
            if name in OWN or (name == "method" and not self._method):
                setattr(self, name, value)
            else:
                self._settings = {**self._settings, name: value}
        self._values()
        return self

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of an estimator."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags

        required = bool(self._kind().trains_on_labels)
        return Tags("classifier", TargetTags(required=required), classifier_tags=ClassifierTags())

    def _kind(self) -> type[Any]:
        """The class of the method's trainer."""
        from dassl_clip.engine.given_images import trainer_class

        return trainer_class(self.method)

    def _values(self) -> dict[str, Any]:
        """Config key -> value."""
        from .settings import config_values

        if self.device not in ("auto", "cpu"):
            raise UserError(f"device is {self.device!r}; expected 'auto' (a GPU where there is one) or 'cpu'")
        own = {"SEED": self.seed, "MODEL.BACKBONE.WEIGHTS": os.fspath(self.weights), "USE_CUDA": self.device == "auto"}
        return own | config_values(self._kind(), self._settings, type(self).__name__)

    def _resolved(self, folder: str = "") -> Any:
        """The configuration of a run."""
        from dassl_clip.engine.given_images import resolve

        values = self._values() | {"OUTPUT_DIR": folder}
        place = {"config": os.fspath(self.config), "origin": type(self).__name__}
        return resolve(self._kind().__name__, self.backbone, values, **place)

    # ------------------------------------------------------------------------------------------------ fit, predict

    def fit(self, images: Any = None, labels: Any = None, validation: Any = None) -> "Classifier":
        """Learn what the method learns.

        Args:
            images: What is learned from; None for methods that need no images.
            labels: `[N]`, names or numbers from 0, for methods that train on labels; the others read none.
            validation: Pair of images and labels that settings are chosen on, or None.

        Raises:
            UserError: The method needs images or labels, or what is given cannot be used.
        """
        from dassl_clip.engine.given_images import GivenImages, Item, fit
        from dassl_clip.engine.transductive import TransductiveTrainer

        from .inputs import Inputs, class_names

        kind = self._kind()
        who = type(self).__name__
        if kind.trains_on_labels and (images is None or labels is None):
            raise UserError(f"{who} trains on labelled images: fit(images, labels)")
        if images is None and issubclass(kind, TransductiveTrainer):
            raise UserError(f"{who} learns from unlabelled images: fit(images)")
        names = class_names(self.names, labels)
        labels = labels if kind.trains_on_labels else None
        with tempfile.TemporaryDirectory() as scratch, quiet():
            place = Path(scratch)
            val = None if validation is None else (Inputs(validation[0], place, "validation image"), validation[1])
            if images is None:
                data = GivenImages(names, [Item("no image")])
            else:
                data = Inputs(images, place).given(names, labels, val)
            trainer, record = fit(self._resolved(str(place / "run")), data)
        self._take(trainer, record)
        return self

    def _take(self, trainer: Any, record: dict[str, Any]) -> None:
        self.trainer_, self.record_ = trainer, record
        self.classes_ = np.array(trainer.classnames)

    def decision_function(self, images: Any) -> np.ndarray:
        """Logits `[N, C]` of images, float32, columns as in `classes_`.

        Methods that score images together (TransCLIP, ZLaP, ...) take all that are given as one set.

        Raises:
            NotFittedError: Before `fit`.
            UserError: What is given cannot be used, or an image cannot be read.
        """
        from dassl_clip.engine.given_images import score

        return self._of_images(images, score)

    def transform(self, images: Any) -> np.ndarray:
        """Features `[N, E]` of images as the image tower gives them; every method of here takes them for the images.

        Raises:
            NotFittedError: Before `fit`.
            UserError: What is given cannot be used, or an image cannot be read.
        """
        from dassl_clip.engine.given_images import encode

        return self._of_images(images, encode)

    def _of_images(self, images: Any, compute: Callable[..., Any]) -> np.ndarray:
        """Rows of all images, by a function of `given_images`."""
        from .inputs import Inputs

        self._check_fitted()
        with tempfile.TemporaryDirectory() as scratch, quiet():
            given = Inputs(images, Path(scratch))
            rows, paths = compute(self.trainer_, given.given(self.trainer_.classnames), given.items)
        if paths != given.paths:  # a run that skips bad images was loaded
            bad = next(path for path in given.paths if path not in paths)
            raise UserError(f"cannot decode the image {bad}; leave it out")
        return np.asarray(rows.numpy())

    def predict_proba(self, images: Any) -> np.ndarray:
        """Shares `[N, C]`: the softmax over the classes, which says how the method splits one whole among them."""
        import torch

        return torch.from_numpy(self.decision_function(images)).softmax(dim=1).numpy()

    def predict(self, images: Any) -> np.ndarray:
        """Class names, `[N]`."""
        best = self.decision_function(images).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def score(self, images: Any, labels: Any) -> float:
        """Accuracy, from 0 to 1."""
        from .inputs import label_numbers

        logits = self.decision_function(images)
        return float(np.mean(logits.argmax(axis=1) == label_numbers(labels, list(self.classes_), len(logits))))

    def _check_fitted(self) -> None:
        if not hasattr(self, "trainer_"):
            from .errors import NotFittedError

            raise NotFittedError(f"this {type(self).__name__} is not fitted: call fit, or load one that was saved")

    # ------------------------------------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, as `dassl-clip export` does, and return its path; `load` reads it.

        Raises:
            NotFittedError: Before `fit`.
            UserError: The ending is not .safetensors.
        """
        from dassl_clip.engine.export import SUFFIX, make_export, save_export

        self._check_fitted()
        place = Path(path).expanduser()
        if place.suffix != SUFFIX:
            raise UserError(f"{place} should end in {SUFFIX}")
        if not place.parent.is_dir():
            raise MissingFileError(f"there is no folder {place.parent}")
        with quiet():
            save_export(make_export(self.trainer_, self.trainer_.run_cfg, self.record_), place)
        return place

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload what `save` writes, and a model card made of the record; returns the repository's address.

        Args:
            repo: "user/name".
            options: Of the hub's mixin: `private`, `token`, `branch`, `create_pr`, `commit_message`.

        Raises:
            NotFittedError: Before `fit`.
            UserError: The hub cannot be reached, or refuses.
        """
        from .hub import push

        self._check_fitted()
        return push(self, repo, options)

    @staticmethod
    def from_pretrained(repo: str, **options: Any) -> "Classifier":
        """The classifier of a repository on the hub, in its local cache, or downloaded to a folder.

        Args:
            repo: "user/name", or the folder.
            options: Of the hub's mixin: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

        Raises:
            UserError: The hub cannot be reached, or there is no such repository.
        """
        from .hub import fetch

        return fetch(repo, options)

    @classmethod
    def opened(cls, source: Path) -> "Classifier":
        """The classifier of an export or a finished run."""
        from dassl_clip.engine.given_images import resolve
        from dassl_clip.engine.open_run import open_run

        from .settings import settings_between

        with quiet():
            trainer, record = open_run(source)
            cfg, kind = trainer.run_cfg, type(trainer)
            own = next((each for each in _OfOneMethod.__subclasses__() if each._method == kind.__name__), None)
            params = {"names": list(trainer.classnames), "backbone": cfg.MODEL.BACKBONE.NAME, "seed": cfg.SEED}
            params["weights"] = cfg.MODEL.BACKBONE.WEIGHTS
            before = resolve(kind.__name__, params["backbone"], {"SEED": cfg.SEED})
            params |= settings_between(kind, before, cfg)
            fitted = own(**params) if own else Classifier(kind.__name__, **params)
        fitted._take(trainer, record)
        return fitted


class _OfOneMethod(Classifier):
    """A classifier by one method; the parameters are those of `Classifier` without `method`."""

    def __init__(
        self,
        names: Any = None,
        *,
        backbone: str = "ViT-B/16",
        weights: Any = "",
        config: Any = "",
        seed: int = 1,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        own = {"backbone": backbone, "weights": weights, "config": config, "seed": seed, "device": device}
        super().__init__(self._method, names, **own, **settings)


class ZeroshotClassifier(_OfOneMethod):
    """Zero-shot CLIP; `fit()` needs no images."""

    _method = "ZeroshotCLIP"


class CLAPClassifier(_OfOneMethod):
    """CLAP's head, trained on augmented texts; `fit()` needs no images."""

    _method = "CLAP"


class InMaPClassifier(_OfOneMethod):
    """InMaP: a proxy for each class in vision space, from unlabelled images: `fit(images)`."""

    _method = "InMaP"


class LinearProbeClassifier(_OfOneMethod):
    """Class weights that are regularised towards the text features: `fit(images, labels)`."""

    _method = "LinearProbe"


class CoOpClassifier(_OfOneMethod):
    """CoOp's learned context: `fit(images, labels)`."""

    _method = "CoOp"


class GOProClassifier(_OfOneMethod):
    """GOPro's prompt of each image: `fit(images, labels)`."""

    _method = "GOPro"


def load(source: str | os.PathLike[str]) -> Classifier:
    """A fitted classifier of a file that `save` or `dassl-clip export` wrote, or of the folder of a finished run.

    "user/name" is a repository on the Hugging Face hub, where there is no folder `user` here.

    Raises:
        MissingFileError: There is neither.
        UserError: What is there cannot be used.
    """
    place = Path(source).expanduser()
    if not place.exists() and REPOSITORY.fullmatch(str(source)) and not place.parent.exists():
        return Classifier.from_pretrained(str(source))
    if not place.exists():
        raise MissingFileError(f"there is no file or folder {place}; give a .safetensors file or a finished run")
    return Classifier.opened(place)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within this context a trainer prints nothing, its warnings are Python's, and random states stay the caller's."""
    from dassl_clip.engine import open_run
    from dassl_clip.engine.loop import random_states, restore_random

    package, handler, states = logging.getLogger("dassl_clip"), _AsWarnings(), random_states()
    package.addHandler(handler)
    try:
        with open_run.quiet(logging.WARNING):
            yield
    finally:
        package.removeHandler(handler)
        restore_random(states)


class _AsWarnings(logging.Handler):
    """Hands log lines on as Python's warnings."""

    def emit(self, record: logging.LogRecord) -> None:
        warnings.warn(record.getMessage(), stacklevel=1)
