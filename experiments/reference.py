"""The method that another is compared with: the same images, model, precision and prompt words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dassl_clip.cli import train
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.results import records

from . import plan

REFERENCE = "ZeroshotCLIP"
# Keys in which the reference follows the method: what is tested, on which images, with which model and words.
_SHARED_KEYS = ("DATASET.", "INPUT.", "MODEL.BACKBONE.", "TEST.SPLIT", "DATALOADER.NUM_WORKERS", "USE_CUDA")
_SHARED_SETTINGS = ("TEMPLATES", "CTX_INIT", "PREC")
_EVALUATION_SETTINGS = ("NC_", "PROBE_", "ATTACK")  # beginnings of keys


def reference_method(
    request: plan.Request, method: plan.Method, trainer: str = REFERENCE, name: str = ""
) -> plan.Method:
    """The method to compare with: the same images, model, precision and prompt words, as far as it has such keys.

    Args:
        request: what is asked for.
        method: the method that is to be compared.
        trainer: registry name of the reference.
        name: its config; "": the default one.
    """
    train.register()
    asked = plan.resolve(plan.common_words(request, method), method.pairs)
    flat, own = records.flatten_config(asked), f"TRAINER.{method.trainer.upper()}."
    given = [key for key, _ in plan.by_two(method.pairs)]
    wanted = {key: flat[key] for key in (*given, "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.WEIGHTS")
              if key.startswith(_SHARED_KEYS)}  # fmt: skip
    words = {key: flat[f"{own}{key}"] for key in _SHARED_SETTINGS if flat.get(f"{own}{key}")}
    words |= {
        key.removeprefix(own): value
        for key, value in flat.items()
        if key.startswith(tuple(f"{own}{start}" for start in _EVALUATION_SETTINGS))
    }
    if "CTX_INIT" in words:
        words.setdefault("TEMPLATES", "words")
    wanted |= {f"TRAINER.{trainer.upper()}.{key}": value for key, value in words.items()}
    plain = records.flatten_config(plan.resolve(plan.common_words(request, plan.Method(trainer, name)), ()))
    changed = {key: value for key, value in wanted.items() if key in plain and plain[key] != value}
    prompt = [f"TRAINER.{trainer.upper()}.{key}" for key in ("TEMPLATES", "CTX_INIT")]
    if _templates(plain, prompt, asked.DATASET.NAME) == _templates(plain | changed, prompt, asked.DATASET.NAME):
        changed = {key: value for key, value in changed.items() if key not in prompt}
    pairs = [word for key, value in changed.items() for word in (key, value if isinstance(value, str) else repr(value))]
    return plan.Method(trainer, name, tuple(pairs))


def _templates(flat: dict[str, Any], keys: Sequence[str], dataset: str) -> list[str] | None:
    """The sentences of a trainer's prompt, or None if it has no such keys."""
    if not all(key in flat for key in keys):
        return None
    return resolve_templates(flat[keys[0]], dataset, words=flat[keys[1]])
