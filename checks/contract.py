"""The contract of a trainer: its hooks and their arguments, its refusals, its checkpoints."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .probe import ProbeError
from .session import Session, differences
from .suite import Result, check, fails, not_applicable, passes

# fmt: off
HOOKS = (
    "check_cfg", "build_data_loader", "build_model", "train_transform", "before_train", "after_train", "before_epoch",
    "after_epoch", "run_epoch", "train", "fit", "forward_backward", "parse_batch_train", "parse_batch_test",
    "before_test", "test", "model_inference", "feature_logits", "score_jointly", "class_proxies", "save_model",
    "load_model", "resume_model_if_exist", "record_facts",
)
# fmt: on
CALLS = {
    "test": ((), ("val",)),
    "load_model": (("folder",), ("folder", 1)),
    "save_model": ((0, "folder"),),
    "model_inference": (("images",),),
    "forward_backward": (("batch",),),
}  # fmt: skip
TWO_BATCHES = (("batch", "batch"),)


@check("contract.hooks")
def hooks(session: Session) -> Result:
    """What the method overrides takes the arguments that the program calls it with."""
    from dassl.engine import TrainerXU

    roots = {"dassl", "dassl_clip.engine"}
    overridden, wrong = [], []
    for name in HOOKS:
        owner = next((kind for kind in session.kind.__mro__ if name in vars(kind)), None)
        if owner is None or any(owner.__module__ == root or owner.__module__.startswith(f"{root}.") for root in roots):
            continue
        overridden.append(name)
        calls: tuple[tuple[Any, ...], ...] = CALLS.get(name, ())
        if name == "forward_backward" and issubclass(session.kind, TrainerXU):
            calls = TWO_BATCHES
        for arguments in calls:
            try:
                inspect.signature(vars(owner)[name]).bind(None, *arguments)
            except TypeError as error:
                wrong.append(f"{name}({', '.join(map(str, arguments))}): {error}")
    text = f"overrides {', '.join(overridden) or 'nothing'}"
    return (fails if wrong else passes)(text + (f"; refuses {'; '.join(wrong)}" if wrong else ""), hooks=overridden)


@check("contract.refusals")
def refusals(session: Session) -> Result:
    """Settings that it cannot work with are refused in one line, and never with a traceback."""
    node = session.name.upper()
    config = session.config(session.base, "refusals")
    settings = dict(config.TRAINER[node]) if node in config.TRAINER else {}
    wrong: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, str):
            wrong.append((f"TRAINER.{node}.{key}", "no-such-value"))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            wrong.append((f"TRAINER.{node}.{key}", repr(type(value)(-1))))
    refused, taken, broken = [], [], []
    for key, value in wrong:
        try:
            session.run(f"refusal-{key}", pairs=[(key, value)], build_only=True)
            taken.append(key.rpartition(".")[2])
        except ProbeError as error:
            (refused if error.refused else broken).append(f"{key.rpartition('.')[2]} {value}: {error.text[:120]}")
    try:
        session.run("no-val", replace(session.base, val=()), [("TEST.FINAL_MODEL", "best_val")], build_only=True)
        taken.append("best_val without validation images")
    except ProbeError as error:
        (refused if error.refused else broken).append(f"best_val without validation images: {error.text[:120]}")
    text = f"of {len(wrong) + 1} impossible or odd settings, {len(refused)} are refused in one line when it is built, "
    text += f"{len(taken)} are taken"
    text += f", {len(broken)} end in a traceback: {'; '.join(broken)}" if broken else ""
    return (fails if broken else passes)(text, refused=refused, taken=taken, broken=broken)


@check("contract.checkpoint", "labels.selection")
def checkpoint(session: Session) -> Result:
    """Checkpoints hold the parts that were trained, as they were at the end, and nothing else."""
    first = session.first()
    if not first.learned:
        return not_applicable("nothing is registered, so nothing is saved")
    lost = sorted(first.learned.keys() - first.saved.keys())
    if lost and not first.saved:
        return fails(f"no checkpoint of {len(lost)} registered tensors was written")
    changed = {name for name, tensor in first.learned.items() if _differ(first.start.get(name), tensor)}
    missing = sorted(name for name in changed if name in lost)
    stale = sorted(n for n in changed & first.saved.keys() if _differ(first.saved[n], first.learned[n]))
    same = [name for name, tensor in first.saved.items() if name not in changed and tensor.numel() > 1]
    wasted = sum(first.saved[name].numel() for name in same)
    total = sum(tensor.numel() for tensor in first.saved.values())
    text = f"of {total:,} saved numbers {total - wasted:,} were trained"
    facts = {"saved": total, "unchanged": wasted, "missing": missing, "stale": stale}
    if missing or stale:
        return fails(f"{text}; trained but not saved as they were tested: {', '.join((missing + stale)[:4])}", **facts)
    if wasted > total / 2 and not _useful(session):
        return fails(f"{text}; the rest never changed, such as {', '.join(sorted(same)[:3])}", **facts)
    return passes(text + (f"; {wasted:,} never changed: {', '.join(sorted(same)[:3])}" if same else ""), **facts)


def _useful(session: Session) -> bool:
    """Whether what was saved decides scores though it never changed, as where nothing was to be learned here."""
    return not differences(session.first().scores, session.reloaded().scores) and not session.first().steps


def _differ(one: Tensor | None, other: Tensor) -> bool:
    return one is None or one.shape != other.shape or not torch.equal(one, other)
