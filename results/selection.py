"""DomainBed's rules of choosing among sets of hyper-parameters.

What ranks (`by_source_domains`, `by_domains_left_out`) is given numbers of source domains and nothing else: there is no
argument for a number of the target. The accuracy on the target is looked up afterwards, with the choice in hand.
`by_oracle` breaks this by its nature, and every choice that it makes says so.

Source: Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021, section 3, and its authors'
program (facebookresearch/DomainBed @b93c22a). All accuracies of one call have one unit, percent or shares.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UserError

TRAINING_DOMAIN, LEAVE_ONE_OUT, ORACLE = RULES = ("training-domain", "leave-one-domain-out", "oracle")
RULE_TEXTS = {
    TRAINING_DOMAIN: "training-domain validation: mean over the source domains of their held-out images",
    LEAVE_ONE_OUT: "leave-one-domain-out validation: mean over the source domains, each scored by a run without it",
    ORACLE: "ORACLE: chosen on images of the target domain, which no user has",
}


@dataclass(frozen=True)
class Validation:
    """One evaluation of a run on its source domains.

    Attributes:
        step: the number of the step after which it was made.
        accuracies: source domain -> accuracy on its held-out images.
    """

    step: int
    accuracies: Mapping[str, float]

    @property
    def accuracy(self) -> float:
        """The plain mean over source domains, however many images they have."""
        return _mean(self.accuracies.values())


@dataclass(frozen=True)
class Choice:
    """What a rule chose.

    Attributes:
        number: of the set of hyper-parameters.
        step: of the run with this set.
        validation: the accuracy that it was chosen by.
        ranking: all sets that could be chosen, the best first.
        rule: one of `RULES`.
    """

    number: int
    step: int
    validation: float
    ranking: tuple[int, ...]
    rule: str


def by_source_domains(runs: Mapping[int, Sequence[Validation]], target: str) -> Choice | None:
    """Training-domain validation: the evaluation with the highest mean over source domains, of any run.

    Args:
        runs: number of the set -> the evaluations of its run in the order of their steps. Of equal evaluations of a run
            the first counts; sets without any are left out.
        target: the domain that no evaluation may be of.

    Returns:
        The choice; None where no set has an evaluation.

    Raises:
        UserError: an evaluation holds a number of the target.
    """
    best = {}
    for number, evaluations in runs.items():
        for evaluation in evaluations:
            if target in evaluation.accuracies:
                raise UserError(
                    f"set {number}, step {evaluation.step}: an accuracy on {target} was given to a choice for the "
                    f"target {target}; expected source domains alone"
                )
        if evaluations:
            first = max(evaluations, key=lambda evaluation: evaluation.accuracy)
            best[number] = (first.accuracy, first.step)
    return _choose(best, TRAINING_DOMAIN)


def by_domains_left_out(runs: Mapping[int, Mapping[str, Mapping[int, float]]], sources: Sequence[str]) -> Choice | None:
    """Leave-one-domain-out validation: each source domain is scored by a run trained without it and the target.

    Args:
        runs: number of the set -> source domain -> step -> accuracy, on this domain's training part, of the run that
            left it and the target out. A step counts where every source has it, a set where some step does.
        sources: all source domains.

    Returns:
        The choice; None where no set is whole.

    Raises:
        UserError: a run is of a domain that is no source.
    """
    best = {}
    for number, by_source in runs.items():
        if others := set(by_source) - set(sources):
            raise UserError(
                f"set {number}: a run without {', '.join(sorted(others))} was given to a choice whose source domains "
                f"are {', '.join(sources)}"
            )
        if set(by_source) != set(sources):
            continue
        steps = sorted(set.intersection(*(set(each) for each in by_source.values())))
        means = {step: _mean(by_source[name][step] for name in sources) for step in steps}
        if means:
            step = max(means, key=lambda step: means[step])
            best[number] = (means[step], step)
    return _choose(best, LEAVE_ONE_OUT)


def by_oracle(runs: Mapping[int, Mapping[int, float]]) -> Choice | None:
    """The oracle: the highest accuracy on held-out images of the target, of the last step of each run.

    Args:
        runs: number of the set -> step -> accuracy on the target's held-out images.

    Returns:
        The choice; None where no set has a run.
    """
    return _choose({number: (by_step[max(by_step)], max(by_step)) for number, by_step in runs.items() if by_step},
                   ORACLE)  # fmt: skip


def _choose(best: Mapping[int, tuple[float, int]], rule: str) -> Choice | None:
    """The set with the highest number; among equals the one with the highest number of its set."""
    if not best:
        return None
    ranking = sorted(best, key=lambda number: (best[number][0], number), reverse=True)
    validation, step = best[ranking[0]]
    return Choice(ranking[0], step, validation, tuple(ranking), rule)


def _mean(values: Iterable[float]) -> float:
    """NumPy's mean: ties between sets are decided by its last bit."""
    return float(np.mean(list(values)))
