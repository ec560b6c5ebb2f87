"""Which labels reach what: those of training, validation and test images are shuffled, one after another.

The test labels are asked for twice: whether they decide what is learned or selected, and whether they decide how
pictures are scored by what was learned.
"""

from __future__ import annotations

from typing import Any

from .probe import ProbeError
from .session import EXACT, NOISE, Session, accuracy, changed_classes, differences, distance_of_states, nll
from .suite import Result, check, fails, not_applicable, passes


@check("state.same-seed")
def same_seed(session: Session) -> Result:
    """The same run twice gives the same numbers: without that, no other difference says anything."""
    first, again = session.first(), session.run("again", root="base")
    gaps = differences(first.passes[0], again.passes[0], EXACT)
    most = max(gaps.values(), default=0.0)
    facts: dict[str, Any] = {"images": len(first.scores), "differ": len(gaps), "most": most}
    if gaps:
        return fails(
            f"the scores of {len(gaps)} of {len(first.scores)} images differ between two runs of one seed, by up to "
            f"{most:.2g} nats",
            **facts,
        )
    return passes(f"{len(first.scores)} images have the same scores in two runs of one seed", **facts)


@check("labels.selection", "state.same-seed")
def selection(session: Session) -> Result:
    """Test labels decide nothing that is learned or selected."""
    first, other = session.first(), _test_labels_shuffled(session)
    if not first.learned:
        return not_applicable("nothing is learned that is kept")
    gap = distance_of_states(first.learned, other.learned)
    if gap > 0:
        return fails(
            f"with the test labels shuffled, other parts were learned or selected: they differ by up to {gap:.2g}",
            distance=gap,
        )
    return passes("with the test labels shuffled, the same parts were learned to the last bit", distance=gap)


@check("labels.scoring", "state.same-seed", "labels.selection")
def scoring(session: Session) -> Result:
    """Test labels change no score."""
    first, other = session.first(), _test_labels_shuffled(session)
    gaps = differences(first.passes[0], other.scores, EXACT)
    moved, count = changed_classes(first.scores, other.scores), len(first.scores)
    text = f"with the test labels shuffled, {moved} of {count} predictions and {len(gaps)} scores change"
    return (fails if gaps else passes)(text, predictions=moved, scores=len(gaps), images=count)


@check("labels.val", "state.same-seed", "labels.selection", "labels.scoring")
def validation(session: Session) -> Result:
    """Validation labels decide nothing, or the selection rule of the record says what they select."""
    if not session.base.val:
        return not_applicable("the world has no validation images")
    last = (("TEST.FINAL_MODEL", "last_step"),)
    shuffled = session.base.shuffled_labels("val")
    first = session.run("last-step", pairs=last)
    other = session.run("val-shuffled", shuffled, pairs=last)
    gaps = differences(first.scores, other.scores, EXACT)
    moved, rule = changed_classes(first.scores, other.scores), str(first.facts.get("selection_rule", ""))
    epoch, text = _epoch_is_selected(session, shuffled), f"{moved} of {len(first.scores)} predictions"
    facts = {"predictions": moved, "scores": len(gaps), "rule": rule, "settings": bool(gaps), "epoch": epoch}
    facts["final"] = str(session.first().facts.get("selection_rule", ""))  # under the settings that are checked
    more = {True: "; with best_val, another epoch is selected", False: "; with best_val, the same epoch is selected",
            None: ""}[epoch]  # fmt: skip
    if gaps and "validation" not in rule:
        return fails(
            f"with the validation labels shuffled, {text} and {len(gaps)} scores of the last step change, but the "
            f"record's selection rule is '{rule}'{more}",
            **facts,
        )
    if gaps or (epoch is not None and "validation" in rule):
        return passes(f"with the validation labels shuffled, {text} change, as the rule '{rule}' says{more}", **facts)
    if _selects_settings(rule):
        return passes(f"the rule is '{rule}'; here the shuffled labels select the same, {text} change{more}", **facts)
    return passes(f"with the validation labels shuffled, {text} of the last step change{more}", **facts)


def _selects_settings(rule: str) -> bool:
    return "validation" in rule


def _epoch_is_selected(session: Session, shuffled: Any) -> bool | None:
    """Whether best_val takes another epoch under shuffled validation labels; None where there is nothing to take."""
    if not getattr(session.kind, "has_epochs", True) or not session.first().learned:
        return None
    best = (("TEST.FINAL_MODEL", "best_val"),)
    try:
        one = session.run("best-val", pairs=best)
        other = session.run("best-val-shuffled", shuffled, pairs=best)
    except ProbeError:
        return None
    return distance_of_states(one.learned, other.learned) > 0


@check("labels.train", "state.same-seed", "labels.selection")
def training(session: Session) -> Result:
    """Training labels matter to a method that says that it reads them, shuffled ones do not help, and else nothing."""
    first, world = session.first(), session.base.shuffled_labels("train")
    other = session.run("train-shuffled", world)
    truth, gaps = session.base.labels(), differences(first.passes[0], other.scores, EXACT)
    declared = session.declares_labels
    learns = bool(first.facts.get("num_train"))  # a method that learns nothing reads none, whatever its class says
    before, after = accuracy(first.scores, truth), accuracy(other.scores, truth)
    losses = nll(first.scores, truth), nll(other.scores, truth)
    facts = {"reads": bool(gaps), "declared": declared, "accuracy": [before, after], "nll": list(losses)}
    text = (
        f"with the training labels shuffled, {changed_classes(first.scores, other.scores)} of {len(truth)} predictions "
        f"change, accuracy {before:.1f} -> {after:.1f} %, NLL {losses[0]:.3f} -> {losses[1]:.3f} nats"
    )
    if gaps and declared is False:
        return fails(f"{text}, but the method says that it reads none (trains_on_labels False)", **facts)
    if not gaps and declared and learns:
        return fails(f"{text}, but the method says that it reads them (trains_on_labels)", **facts)
    error = 100 * (max(before * (100 - before), 100) / 1e4 / len(truth)) ** 0.5
    if gaps and after > before + 2 * error and losses[1] < losses[0] - NOISE:
        return fails(f"{text}: shuffled labels help by more than chance", **facts)
    return passes(text, **facts)


def _test_labels_shuffled(session: Session) -> Any:
    return session.run("test-shuffled", session.base.shuffled_labels("test"))
