"""The checks by name, and what runs them: a verdict, a sentence and numbers for each.

A failure that another one explains is not counted twice: such a check does not apply, and says which one explains it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl_clip.results.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from .session import Session

PASSES, FAILS, NOT_APPLICABLE = "passes", "fails", "does not apply"
GROUPS = ("labels", "images", "classes", "state", "numbers", "contract")


@dataclass(frozen=True)
class Result:
    """The outcome of a check.

    Attributes:
        verdict: passes, fails or does not apply.
        evidence: a sentence with numbers.
        numbers: what was measured.
        name: of the check.
    """

    verdict: str
    evidence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: `group.what`.
        work: does it; its docstring says what is expected.
        explained_by: checks whose failure explains a failure of this one.
    """

    name: str
    work: Callable[[Session], Result]
    explained_by: tuple[str, ...] = ()


CHECKS: dict[str, Check] = {}


def passes(evidence: str, **numbers: Any) -> Result:
    """The method does what is expected."""
    return Result(PASSES, evidence, numbers)


def fails(evidence: str, **numbers: Any) -> Result:
    """It does not."""
    return Result(FAILS, evidence, numbers)


def not_applicable(why: str, **numbers: Any) -> Result:
    """The question does not arise."""
    return Result(NOT_APPLICABLE, why, numbers)


def check(name: str, *explained_by: str) -> Callable[[Callable[[Session], Result]], Callable[[Session], Result]]:
    """Register a function as the check of this name."""

    def register(work: Callable[[Session], Result]) -> Callable[[Session], Result]:
        CHECKS[name] = Check(name, work, explained_by)
        return work

    return register


def load_checks() -> dict[str, Check]:
    """All checks in their order."""
    for group in GROUPS:
        importlib.import_module(f".{group}", __package__)
    return CHECKS


def check_names(only: Sequence[str]) -> None:
    """Refuse words that are no checks and no groups; reads the sources, which import torch.

    Raises:
        UserError: there is no such check.
    """
    files = [Path(__file__).with_name(f"{group}.py").read_text(encoding="utf-8") for group in GROUPS]
    checks = [name for text in files for name in re.findall(r'^@check\("([\w.-]+)"', text, re.MULTILINE)]
    for word in only:
        if word not in checks and word not in GROUPS:
            hint = did_you_mean(word, (*GROUPS, *checks))
            raise UserError(
                f"--only: there is no check '{word}'.{hint} Groups: {', '.join(GROUPS)}; checks: {', '.join(checks)}."
            )


def choose(only: Sequence[str]) -> list[Check]:
    """The checks of these names or groups; all where none is named.

    Raises:
        UserError: there is no such check.
    """
    check_names(only)
    return [one for one in load_checks().values() if not only or one.name in only or one.name.split(".")[0] in only]


def run_checks(session: Session, chosen: Sequence[Check]) -> Iterator[Result]:
    """The results of some checks, one after another.

    Raises:
        ProbeError: the method cannot be run at all.
    """
    session.first()
    failed: set[str] = set()
    for one in chosen:
        result = _run(session, one)
        explanation = next((name for name in one.explained_by if name in failed), "")
        if result.verdict == FAILS and explanation:
            result = not_applicable(f"explained by {explanation}: {result.evidence}", **result.numbers)
        if result.verdict == FAILS:
            failed.add(one.name)
        yield Result(result.verdict, result.evidence, result.numbers, one.name)


def _run(session: Session, one: Check) -> Result:
    from .probe import ProbeError

    try:
        return one.work(session)
    except ProbeError as error:
        return fails(f"raised {'a refusal' if error.refused else 'an error'}: {error.text}")
