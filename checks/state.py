"""What a run depends on beside its data and seed: files, interruptions, workers, caches, precision, processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from .probe import ProbeError, Scores
from .session import EXACT, NOISE, Session, accuracy, changed_classes, differences, most
from .suite import Result, check, fails, not_applicable, passes
from .world import World

SAME = ("state.same-seed", "labels.selection", "labels.scoring")
AMP_SHARE = 0.05  # largest difference of a class share under amp: bfloat16 has 8 bits
HALVES = 2  # processes


def _same(first: Scores, other: Scores, what: str, least: float = EXACT) -> Result:
    gaps = differences(first, other, least)
    text = f"{what}: {len(gaps)} of {len(first)} scores differ{most(gaps)}"
    return (fails if gaps or len(first) != len(other) else passes)(text, scores=len(gaps), images=len(first))


@check("state.twice", *SAME)
def twice(session: Session) -> Result:
    """A second test of one trainer gives the same scores."""
    first = session.first()
    if len(first.passes) < 2:
        return fails(f"{len(first.passes)} tests on the test images were seen, expected 2 or more")
    return _same(first.passes[-2], first.passes[-1], "tested twice")


@check("state.reload", *SAME)
def reload(session: Session) -> Result:
    """What was saved, loaded into a new trainer, gives the same scores."""
    try:
        other = session.reloaded()
    except ProbeError as error:
        return fails(f"what was saved cannot be loaded: {error.text}")
    return _same(session.first().passes[0], other.scores, "saved and loaded", NOISE)


@check("state.resume", *SAME)
def resume(session: Session) -> Result:
    """A run that is interrupted between two epochs and started again gives the same as one that is not."""
    epochs = _epochs(session)
    if epochs < 2:
        return not_applicable(f"it trains {epochs} epochs: nothing is resumed")
    pairs = [("TRAIN.CHECKPOINT_FREQ", "1")]
    before = session.run("interrupted", pairs=pairs, stop_before_epoch=1)
    other = session.resumed("interrupted", pairs)
    if len(before.steps) + len(other.steps) > len(session.first().steps):
        return fails(f"resumed after epoch 1 of {epochs}: {len(other.steps)} steps were made again, of "
                     f"{len(session.first().steps)}", steps=len(other.steps))  # fmt: skip
    return _same(session.first().passes[0], other.scores, f"interrupted after epoch 1 of {epochs} and resumed")


@check("state.seeds", *SAME)
def seeds(session: Session) -> Result:
    """Another seed gives other numbers where something is drawn: orders, views, first weights."""
    first, other = session.first(), session.run("seed-2", seed=2)
    gaps, truth = differences(first.scores, other.scores, EXACT), session.base.labels()
    text = (
        f"with another seed, {changed_classes(first.scores, other.scores)} of {len(truth)} predictions and {len(gaps)} "
    )
    text += f"scores change{most(gaps)}, accuracy {accuracy(first.scores, truth):.1f} -> "
    text += f"{accuracy(other.scores, truth):.1f} %"
    if not gaps and _epochs(session) > 0 and first.steps:
        return fails(f"{text}, though it trains {_epochs(session)} epochs: is a seed of its own fixed?", scores=0)
    return passes(text if gaps else f"{text}: nothing is drawn", scores=len(gaps))


@check("state.workers", *SAME)
def workers(session: Session) -> Result:
    """Two loading workers give the same as none."""
    other = session.run("workers", pairs=[("DATALOADER.NUM_WORKERS", "2")])
    return _same(session.first().passes[0], other.scores, "with 2 workers in place of 0")


@check("state.cache", *SAME)
def cache(session: Session) -> Result:
    """Without the cache of features the scores are the same."""
    if not session.ours:
        return not_applicable("a plain Dassl trainer has no cached features")
    return _same(
        session.first().passes[0], session.run("uncached", cache=False).scores, "without cached features", NOISE
    )


@check("state.precision", *SAME)
def precision(session: Session) -> Result:
    """Mixed precision changes no share of a class by more than bfloat16 explains."""
    key = f"TRAINER.{session.name.upper()}.PREC"
    if not session.ours:
        return not_applicable("a plain Dassl trainer has no PREC that is known here")
    first, other = session.first(), session.run("amp", pairs=[(key, "amp")])
    gap = max(float((first.scores[name].exp() - row.exp()).abs().max()) for name, row in other.scores.items())
    text = f"amp in place of fp32: shares of classes differ by up to {gap:.3f} (allowed {AMP_SHARE}), "
    text += f"{changed_classes(first.scores, other.scores)} of {len(first.scores)} predictions change"
    return (passes if gap <= AMP_SHARE else fails)(text, share=gap)


@check("state.processes", *SAME)
def processes(session: Session) -> Result:
    """Two processes give what one gives, for trainers that can share a batch."""
    if not session.ours:
        return not_applicable("a plain Dassl trainer knows nothing of several processes")
    folder = session.folder / "runs" / "processes"
    refusal = two_processes(session, session.base, folder)
    if refusal:
        return fails(f"two processes: {refusal}")
    first = session.first()
    gaps = differences(first.passes[0], saved_scores(folder, session.base), least=0.05)
    text = f"two processes in place of one: {len(gaps)} of {len(first.scores)} scores differ by 0.05 nats or more"
    return (fails if gaps else passes)(text + most(gaps), scores=len(gaps))


def two_processes(session: Session, world: World, folder: Path) -> str:
    """Train and test in two processes; returns the last line of an error, "" for none."""
    config = session.config(world, "processes")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.json"
        file.write_text(json.dumps({"imports": session.plan.imports, "config": config.dump()}))
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={HALVES}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*words, "-m", "dassl_clip.checks.process", str(file)], capture_output=True, text=True,
                              env=environment)  # fmt: skip
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if "rror" in line and "elastic" not in line]
    return (lines or [f"exit code {done.returncode}"])[0][:300]


def saved_scores(folder: Path, world: World) -> Scores:
    """The scores of a run's `predictions.npz`."""
    names = {picture.path: picture.name for picture in world.test}
    with np.load(folder / "predictions.npz", allow_pickle=False) as file:
        rows = torch.from_numpy(file["scores"].astype(np.float32))
        return {names[str(path)]: row for path, row in zip(file["paths"], rows)}


def _epochs(session: Session) -> int:
    if not getattr(session.kind, "has_epochs", True) or not session.first().learned:
        return 0
    return int(session.config(session.base, "base").OPTIM.MAX_EPOCH)
