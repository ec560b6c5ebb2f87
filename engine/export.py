"""A finished run as one safetensors file: what its scores are made of, and all that is needed to use it elsewhere.

Tensors: `learned.<model>.<name>` for every learned part that scores are made of and, where the scores of a method are a
linear function of the normalised image features, `classifier.weight` `[C, E]` and `classifier.logit_scale`: the scores
are then `logit_scale * normalize(features) @ weight.T`, which needs no more than open_clip. A run that refines another
carries that one too, with `base.` before its names. Learned parts may be stored in float16; a classifier never is.

Metadata, each a text of JSON: `format`, `version`, `method`, `config` (resolved), `classnames`, `backbone` (name, hash
of the weights, preprocessing, ...), `record`, `classifier` (a sentence on it), `sha256` (of all tensors), `storage`
(precision of the learned parts, and the parts that are left out since no score passes through them), and `base`.
Shapes: `C` classes, `E` joint embedding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dassl_clip.clip.backbone import FrozenCLIP
from dassl_clip.clip.finite import check_state
from dassl_clip.clip.names import embedded_folder
from dassl_clip.clip.weights import hash_state
from dassl_clip.results.documents import CONFIG_NAME, read_run_config
from dassl_clip.results.errors import MissingFileError, UserError, listed
from dassl_clip.results.files import no_file, write_bytes_atomically

FORMAT, VERSION, SUFFIX = "dassl-clip export", 1, ".safetensors"
KINDS = {"format": str, "version": int, "method": str, "config": dict, "classnames": list, "backbone": dict,
         "record": dict, "classifier": str, "sha256": str}  # fmt: skip
LEARNED, BASE = "learned.", "base."
WEIGHT, SCALE = "classifier.weight", "classifier.logit_scale"
FULL, HALF = "float32", "float16"
# Where a run lay on its machine; the learned parts take the place of weights that they started from.
LEFT_OUT = ("OUTPUT_DIR", "RESUME", "DATASET.ROOT", "MODEL.INIT_WEIGHTS")
TRIALS, TOLERANCE = 64, 1e-5  # features on which a classifier is compared, largest difference relative to the scores
ICONS = 32  # embedded images on which half precision is measured

LINEAR = "scores = logit_scale * normalize(image features) @ weight.T"
PER_IMAGE = "none: the class features of an image depend on that image, so no classifier serves all images"
OTHER_TOWER = (
    "none: the image tower is changed or reads learned tokens, so no classifier serves the features of CLIP's own"
)
NOT_LINEAR = "none: the scores are not a linear function of the normalised image features"


@dataclass(frozen=True)
class Storage:
    """How the learned parts are stored.

    Attributes:
        precision: `float32`, as they were learned, or `float16`.
        left_out: Names of each model's learned parts that no score passes through, which the file does not hold.
        note: What storing them so changes, as it was measured; "" where nothing was.
    """

    precision: str = FULL
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    note: str = ""

    @property
    def whole(self) -> bool:
        """Whether everything that was learned is stored as it was."""
        return self.precision == FULL and not any(self.left_out.values())


@dataclass(frozen=True)
class Export:
    """A finished run without its folder.

    Attributes:
        learned: State dict of each learned part, by the name of its model; float32 in either precision of the file.
        classnames: `C` names in label order.
        backbone: What `FrozenCLIP.describe()` says of the backbone.
        config: The resolved configuration, as a tree of plain values.
        record: The run's record.
        classifier: `[C, E]`, or None.
        logit_scale: Scalar, or None where there is no classifier.
        note: A sentence on the classifier.
        storage: How the file holds the learned parts.
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
    storage: Storage = field(default_factory=Storage)
    base: Export | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file, as they are stored."""
        named = {
            f"{LEARNED}{model}.{key}": stored(value, self.storage.precision)
            for model, state in self.learned.items()
            for key, value in state.items()
        }
        if self.classifier is not None and self.logit_scale is not None:
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
        storage = self.storage
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
            "storage": {"precision": storage.precision, "left_out": dict(storage.left_out), "note": storage.note},
        }
        return facts | ({"base": self.base.metadata} if self.base is not None else {})


def stored(value: Tensor, precision: str) -> Tensor:
    """A learned tensor of any shape as a file holds it.

    Raises:
        UserError: a number is too large for half precision.
    """
    if precision != HALF or value.dtype != torch.float32:
        return value
    half = value.half()
    if value.isfinite().all() and not half.isfinite().all():
        raise UserError(
            f"a learned number, {value.abs().max().item():.3g}, is too large for float16 (at most 65504): store float32"
        )
    return half


def make_export(trainer: Any, config: Mapping[str, Any], record: Mapping[str, Any], half: bool = False) -> Export:
    """The export of a finished run, without learned parts that no score passes through.

    Args:
        trainer: Its trainer, with what it learned, after `before_test`.
        config: Its resolved configuration.
        record: Its record.
        half: Store the learned parts in float16; what that changes is measured.

    Raises:
        UserError: What it holds is not what the record is of, does not fit into float16, or it keeps nothing.
    """
    from .trainer import CLIPTrainer  # which imports this module

    if type(trainer).score_jointly is not CLIPTrainer.score_jointly:
        raise UserError(
            f"{record['method']} scores images together and keeps nothing that could score others, so there is nothing "
            "to export; export the run that it starts from, or one of a method that keeps what it learned"
        )
    learned = {
        name: {key: value.detach().cpu().clone().contiguous() for key, value in part.state_dict().items()}
        for name, part in ((name, trainer._models[name]) for name in trainer.get_model_names())
    }
    check_learned(learned, record, "the run's checkpoint")
    left_out: dict[str, list[str]] = {}
    for name, state in learned.items():
        unread = [key for key in state if key.startswith(tuple(trainer.unread_parts))]
        left_out |= {name: unread} if unread else {}
        for key in unread:
            del state[key]
    weight, base = linear_classifier(trainer), getattr(trainer, "base", None)
    if base is not None:
        tree = read_run_config(Path(trainer.node.FROM).expanduser() / CONFIG_NAME)
        base = make_export(base, tree, trainer.base_record, half)
    export = Export(
        learned=learned,
        classnames=list(trainer.classnames),
        backbone=trainer.backbone.describe(),
        config=_portable(config),
        record=dict(record),
        classifier=weight,
        logit_scale=None if weight is None else trainer.logit_scale.detach().cpu().clone(),
        note=_note(trainer, weight),
        storage=Storage(HALF if half else FULL, left_out),
        base=base,
    )
    if half and learned:
        return replace(export, storage=replace(export.storage, note=halving_note(trainer, export)))
    return export


def _note(trainer: Any, weight: Tensor | None) -> str:
    """What an export says of its classifier."""
    if weight is not None:
        return LINEAR
    if trainer.image_features_change:
        return OTHER_TOWER
    return NOT_LINEAR if trainer.reads_features else PER_IMAGE


@torch.no_grad()
def linear_classifier(trainer: Any) -> Tensor | None:
    """The weights `[C, E]` of the linear classifier that a trainer's scores amount to, or None.

    The columns are the scores of the unit vectors; random features tell whether the scores are linear at all.
    """
    if not trainer.reads_features:
        return None
    width, scale = trainer.backbone.embed_dim, trainer.logit_scale
    weight = trainer.feature_logits(torch.eye(width, device=trainer.device)).float().T / scale
    trials = torch.randn(TRIALS, width, generator=torch.Generator().manual_seed(0)).to(trainer.device)
    scores = trainer.feature_logits(trials).float()
    difference = (scores - scale * F.normalize(trials, dim=-1) @ weight.T).abs().max()
    return weight.cpu().contiguous() if difference <= TOLERANCE * scores.abs().max() else None


@torch.no_grad()
def halving_note(trainer: Any, export: Export) -> str:
    """How much float16 changes the scores of some embedded images of all styles; the trainer stays as it is."""
    paths = sorted((embedded_folder().parent / "icons").rglob("*.png"))
    preprocess = trainer.backbone.preprocess()
    chosen = paths[:: max(1, len(paths) // ICONS)][:ICONS]
    pixels = [preprocess(Image.open(path, formats=["PNG"]).convert("RGB")) for path in chosen]
    images = torch.stack(pixels).to(trainer.device)
    before = trainer.model_inference(images).float()
    full = {name: {k: v.clone() for k, v in trainer._models[name].state_dict().items()} for name in export.learned}
    try:
        for name, state in export.learned.items():
            halved = {key: stored(value, HALF).to(value.dtype) for key, value in state.items()}
            trainer._models[name].load_state_dict(full[name] | halved)
        trainer.before_test()
        after = trainer.model_inference(images).float()
    finally:
        for name, state in full.items():
            trainer._models[name].load_state_dict(state)
        trainer.before_test()
    same = int(after.argmax(1).eq(before.argmax(1)).sum())
    moved, span, count = (after - before).abs().max().item(), (before.max() - before.min()).item(), len(images)
    return (
        f"float16 moves a score of {count} embedded images by at most {moved:.2g} (their scores span {span:.3g}); "
        f"{same} of {count} keep their best class"
    )


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


def as_bytes(export: Export) -> bytes:
    """The content of the file of an export."""
    metadata = {key: json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in export.metadata.items()}
    return save(export.tensors, metadata)


def save_export(export: Export, path: Path) -> None:
    """Write an export, atomically."""
    write_bytes_atomically(path, as_bytes(export))


def is_export(path: Path) -> bool:
    """Whether a safetensors file says that it is an export."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool(json.loads((file.metadata() or {}).get("format", "null")) == FORMAT)
    except (SafetensorError, OSError, ValueError, RecursionError):
        return False


def load_export(path: str | Path, backbone: FrozenCLIP | None = None) -> Export:
    """Read an export and check it.

    Args:
        path: The file.
        backbone: The backbone that it shall be used with, if there is one already.

    Raises:
        MissingFileError: There is no such file.
        UserError: It is no export, of another version, not as it was written, or of another backbone; the sentence
            says which.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        beside = sorted(item.name for item in path.parent.glob(f"*{SUFFIX}")) if path.parent.is_dir() else []
        raise MissingFileError(f"{no_file(path)}; exports beside it: {listed(beside) or 'none'}")
    try:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); get it again") from None
    try:
        metadata = {key: json.loads(text) for key, text in texts.items()}
    except (ValueError, RecursionError):
        metadata = {}
    try:
        export = _read(metadata, tensors, str(path))
    except RecursionError:
        raise UserError(f"{path} refines runs that refine runs without end; get it again") from None
    theirs = export.backbone
    if backbone is not None and backbone.weights_hash != theirs["weights_hash"]:
        raise UserError(
            f"{path} belongs to the backbone {theirs['name']} (weights {theirs['weights_hash'][:12]}), not to "
            f"{backbone.name} (weights {backbone.weights_hash[:12]}); what was learned fits no other weights"
        )
    return export


def _read(metadata: Any, tensors: Mapping[str, Tensor], path: str) -> Export:
    """The export that metadata and tensors make, checked."""
    storage, base = _check_metadata(metadata, path), None
    if hash_state(tensors) != metadata["sha256"]:
        raise UserError(f"{path}: the learned parts are not those that were written (another sha256); get it again")
    check_state(tensors, path)
    learned: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(LEARNED):
            model, _, key = name.removeprefix(LEARNED).partition(".")
            if not model.isidentifier():  # it will be the name of a folder
                raise UserError(f"{path}: {model!r} is no name of a learned part; get it again")
            learned.setdefault(model, {})[key] = value.float() if value.dtype == torch.float16 else value
    if storage.whole:
        check_learned(learned, metadata["record"], path)
    weight, classes = tensors.get(WEIGHT), metadata["classnames"]
    shape = [len(classes), metadata["backbone"].get("embed_dim")]
    if weight is not None and list(weight.shape) != shape:
        raise UserError(f"{path}: {WEIGHT} is {list(weight.shape)}, but classes and backbone say {shape}; get it again")
    if "base" in metadata:
        inner = {name.removeprefix(BASE): value for name, value in tensors.items() if name.startswith(BASE)}
        base = _read(metadata["base"], inner, f"{path} (the run it refines)")
    return Export(
        learned, classes, metadata["backbone"], metadata["config"], metadata["record"], weight, tensors.get(SCALE),
        metadata["classifier"], storage, base,
    )  # fmt: skip


def _check_metadata(metadata: Any, path: str) -> Storage:
    """Raise a ValueError unless the metadata are those of an export that this program reads."""
    metadata = metadata if isinstance(metadata, Mapping) else {}
    missing = [key for key in KINDS if key not in metadata]
    if missing or metadata["format"] != FORMAT:
        lacks = f"its metadata lacks {', '.join(missing)}" if missing else f"its format is {metadata['format']!r}"
        raise UserError(
            f"{path} is a safetensors file, but no export of a run: {lacks}; `dassl-clip export RUN` makes one"
        )
    if metadata["version"] != VERSION:
        raise UserError(
            f"{path} has version {metadata['version']} of the format, this program reads {VERSION}; update it"
        )
    storage = metadata.get("storage", {})
    wrong = [key for key, kind in KINDS.items() if not isinstance(metadata[key], kind)]
    if "classnames" not in wrong and not all(isinstance(name, str) for name in metadata["classnames"]):
        wrong.append("classnames")
    weights = () if "backbone" in wrong else ("name", "weights_hash")
    if not all(isinstance(metadata["backbone"].get(key), str) for key in weights):
        wrong.append("backbone")
    if not isinstance(storage, dict) or not isinstance(storage.get("left_out", {}), dict):
        wrong.append("storage")
    if wrong:
        raise UserError(f"{path}: what its metadata say of {', '.join(wrong)} cannot be read; get it again")
    return Storage(storage.get("precision", FULL), storage.get("left_out", {}), str(storage.get("note", "")))


def check_learned(learned: Mapping[str, Mapping[str, Tensor]], record: Mapping[str, Any], path: str) -> None:
    """Raise a ValueError unless the learned parts are those whose hashes a record names."""
    named = record.get("learned", {})
    if not isinstance(named, dict) or not all(
        isinstance(facts, dict) and "sha256" in facts for facts in named.values()
    ):
        raise UserError(f"{path}: what its record says of the learned parts cannot be read")
    for name, facts in named.items():
        if hash_state(learned.get(name, {})) != facts["sha256"]:
            raise UserError(
                f"{path}: the learned part '{name}' is not the one that the record was written of (another sha256); "
                "the numbers of the record are not its own"
            )
