"""A finished run as one safetensors file: what it learned, and all that is needed to use it elsewhere.

Tensors: `learned.<model>.<name>` for every learned part and, where the scores of a method are a linear function of the
normalised image features, `classifier.weight` `[C, E]` and `classifier.logit_scale`: the scores are then
`logit_scale * normalize(features) @ weight.T`, which needs no more than open_clip. A run that refines another carries
that one too, with `base.` before its names.

Metadata, each a text of JSON: `format`, `version`, `method`, `config` (resolved), `classnames`, `backbone` (name, hash
of the weights, preprocessing, ...), `record`, `classifier` (a sentence on it), `sha256` (of all tensors), and `base`.

Shapes: `C` classes, `E` joint embedding.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dassl_clip.modeling.backbone import FrozenCLIP
from dassl_clip.modeling.weights import hash_state
from dassl_clip.results import records

from . import checkpoint

logger = logging.getLogger(__name__)

FORMAT, VERSION, SUFFIX = "dassl-clip export", 1, ".safetensors"
KEYS = ("format", "version", "method", "config", "classnames", "backbone", "record", "classifier", "sha256")
LEARNED, BASE = "learned.", "base."
WEIGHT, SCALE = "classifier.weight", "classifier.logit_scale"
CONFIG_NAME, REFINED = "config.yaml", "refined"
# Where a run lay on its machine; the learned parts take the place of weights that they started from.
LEFT_OUT = ("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "MODEL.INIT_WEIGHTS")
TRIALS, TOLERANCE = 64, 1e-5  # features on which a classifier is compared, largest difference relative to the scores

LINEAR = "scores = logit_scale * normalize(image features) @ weight.T"
PER_IMAGE = "none: the class features of an image depend on that image, so no classifier serves all images"
NOT_LINEAR = "none: the scores are not a linear function of the normalised image features"


@dataclass(frozen=True)
class Export:
    """A finished run without its folder.

    Attributes:
        learned: State dict of each learned part, by the name of its model.
        classnames: `C` names in label order.
        backbone: What `FrozenCLIP.describe()` says of the backbone.
        config: The resolved configuration, as a tree of plain values.
        record: The run's record.
        classifier: `[C, E]`, or None.
        logit_scale: Scalar, or None where there is no classifier.
        note: A sentence on the classifier.
        base: The run that it refines, or None.
    """

    learned: dict[str, dict[str, Tensor]]
    classnames: list[str]
    backbone: dict[str, Any]
    config: dict[str, Any]
    record: dict[str, Any]
    classifier: Tensor | None
    logit_scale: Tensor | None
    note: str
    base: "Export | None" = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file."""
        named = {
            f"{LEARNED}{model}.{key}": value for model, state in self.learned.items() for key, value in state.items()
        }
        if self.classifier is not None:
            named |= {WEIGHT: self.classifier, SCALE: self.logit_scale}
        if self.base is not None:
            named |= {f"{BASE}{name}": value for name, value in self.base.tensors.items()}
        return named

    @property
    def sha256(self) -> str:
        """Hash over names, shapes, dtypes and bytes of all tensors."""
        return hash_state(self.tensors)

    @property
    def metadata(self) -> dict[str, Any]:
        """The values behind the file's metadata."""
        facts = {
            "format": FORMAT,
            "version": VERSION,
            "method": self.record["method"],
            "config": self.config,
            "classnames": self.classnames,
            "backbone": self.backbone,
            "record": self.record,
            "classifier": self.note,
            "sha256": self.sha256,
        }
        return facts | ({"base": self.base.metadata} if self.base is not None else {})


def make_export(trainer: Any, config: Mapping[str, Any], record: Mapping[str, Any]) -> Export:
    """The export of a finished run.

    Args:
        trainer: Its trainer, with what it learned, after `before_test`.
        config: Its resolved configuration.
        record: Its record.

    Raises:
        ValueError: What the trainer holds is not what the record was written of.
    """
    learned = {
        name: {
            key: value.detach().cpu().clone().contiguous() for key, value in trainer._models[name].state_dict().items()
        }
        for name in trainer.get_model_names()
    }
    _check_learned(learned, record, "the run's checkpoint")
    weight = linear_classifier(trainer)
    note = LINEAR if weight is not None else NOT_LINEAR if hasattr(trainer, "feature_scores") else PER_IMAGE
    return Export(
        learned=learned,
        classnames=list(trainer.classnames),
        backbone=trainer.backbone.describe(),
        config=_portable(config),
        record=dict(record),
        classifier=weight,
        logit_scale=None if weight is None else trainer.logit_scale.detach().cpu().clone(),
        note=note,
        base=_export_base(trainer),
    )


def _export_base(trainer: Any) -> Export | None:
    """The export of the run that a trainer refines, if it refines one."""
    base = getattr(trainer, "base", None)
    if base is None:
        return None
    tree = yaml.safe_load((Path(trainer.node.FROM).expanduser() / CONFIG_NAME).read_text(encoding="utf-8"))
    return make_export(base, tree, trainer.base_record)


@torch.no_grad()
def linear_classifier(trainer: Any) -> Tensor | None:
    """The weights `[C, E]` of the linear classifier that a trainer's scores amount to, or None.

    The columns are the scores of the unit vectors; random features tell whether the scores are linear at all.
    """
    if not hasattr(trainer, "feature_scores"):
        return None
    width, scale = trainer.backbone.embed_dim, trainer.logit_scale
    weight = trainer.feature_scores(torch.eye(width, device=trainer.device)).float().T / scale
    trials = torch.randn(TRIALS, width, generator=torch.Generator().manual_seed(0)).to(trainer.device)
    scores = trainer.feature_scores(trials).float()
    difference = (scores - scale * F.normalize(trials, dim=-1) @ weight.T).abs().max()
    return weight.cpu().contiguous() if difference <= TOLERANCE * scores.abs().max() else None


def save_export(export: Export, path: Path) -> None:
    """Write an export, atomically."""
    metadata = {key: json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in export.metadata.items()}
    records.write_bytes_atomically(Path(path), save(export.tensors, metadata))


def load_export(path: str | Path, backbone: FrozenCLIP | None = None) -> Export:
    """Read an export and check it.

    Args:
        path: The file.
        backbone: The backbone that it shall be used with, if there is one already.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no export, of another version, not as it was written, or of another backbone; the sentence
            says which.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        beside = sorted(item.name for item in path.parent.glob(f"*{SUFFIX}")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"there is no file {path}; exports beside it: {', '.join(beside[:8]) or 'none'}")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); get it again") from None
    try:
        metadata = {key: json.loads(text) for key, text in texts.items()}
    except ValueError:
        metadata = {}
    export = _read(metadata, tensors, str(path))
    if backbone is not None:
        _check_backbone(export, backbone, str(path))
    return export


def _read(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str) -> Export:
    missing = [key for key in KEYS if key not in metadata]
    if missing or metadata["format"] != FORMAT:
        lacks = f"its metadata lacks {', '.join(missing)}" if missing else f"its format is {metadata['format']!r}"
        raise ValueError(
            f"{path} is a safetensors file, but no export of a run: {lacks}; `dassl-clip export RUN` makes one"
        )
    if metadata["version"] != VERSION:
        raise ValueError(
            f"{path} has version {metadata['version']} of the format, this program reads {VERSION}; update it"
        )
    if hash_state(tensors) != metadata["sha256"]:
        raise ValueError(f"{path}: the learned parts are not those that were written (another sha256); get it again")
    learned: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(LEARNED):
            model, _, key = name.removeprefix(LEARNED).partition(".")
            learned.setdefault(model, {})[key] = value
    _check_learned(learned, metadata["record"], path)
    weight, classes = tensors.get(WEIGHT), metadata["classnames"]
    shape = [len(classes), metadata["backbone"].get("embed_dim")]
    if weight is not None and list(weight.shape) != shape:
        raise ValueError(
            f"{path}: {WEIGHT} is {list(weight.shape)}, but classes and backbone say {shape}; get it again"
        )
    base = None
    if "base" in metadata:
        own = {name.removeprefix(BASE): value for name, value in tensors.items() if name.startswith(BASE)}
        base = _read(metadata["base"], own, f"{path} (the run it refines)")
    return Export(
        learned, classes, metadata["backbone"], metadata["config"], metadata["record"], weight, tensors.get(SCALE),
        metadata["classifier"], base,
    )  # fmt: skip


def _check_learned(learned: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any], path: str) -> None:
    """Raise a ValueError unless the learned parts are those whose hashes a record names."""
    for name, facts in record.get("learned", {}).items():
        if hash_state(learned.get(name, {})) != facts["sha256"]:
            raise ValueError(
                f"{path}: the learned part '{name}' is not the one that the record was written of (another sha256); "
                "the numbers of the record are not its own"
            )


def _check_backbone(export: Export, backbone: FrozenCLIP, path: str) -> None:
    """Raise a ValueError if an export belongs to other weights."""
    theirs, ours = export.backbone, backbone.weights_hash
    if ours != theirs["weights_hash"]:
        raise ValueError(
            f"{path} belongs to the backbone {theirs['name']} (weights {theirs['weights_hash'][:12]}), not to "
            f"{backbone.name} (weights {ours[:12]}); what was learned fits no other weights"
        )


def unpack_export(export: Export, folder: Path) -> Path:
    """Make a run folder of an export, for everything that takes one; the record is written last.

    Returns:
        The folder.

    Raises:
        ValueError: The folder holds something.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a folder that does not exist yet")
    config = json.loads(json.dumps(export.config))
    weights = config["MODEL"]["BACKBONE"].get("WEIGHTS", "")
    if weights and not Path(weights).expanduser().is_file():
        logger.warning("%s, the backbone's file of the run, is not here: taking it by its name", weights)
        config["MODEL"]["BACKBONE"]["WEIGHTS"] = ""
    if export.base is not None:
        config["TRAINER"][export.record["method"].upper()]["FROM"] = str(unpack_export(export.base, folder / REFINED))
    for name, state in export.learned.items():
        content = {
            "state_dict": state,
            "sha256": hash_state(state),
            "trainer": export.record["method"],
            "backbone": export.backbone,
            "classnames": export.classnames,
        }
        checkpoint.save_checkpoint(content, folder / name / checkpoint.BEST_NAME, point=False)
    records.write_text_atomically(folder / CONFIG_NAME, yaml.safe_dump(config, sort_keys=True))
    records.write_record(folder, export.record)
    return folder


def _portable(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as plain values, with what held on the run's machine alone left empty."""
    tree: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            tree[key] = _portable(value, f"{name}.")
        else:
            tree[key] = "" if name in LEFT_OUT else list(value) if isinstance(value, tuple) else value
    return tree
