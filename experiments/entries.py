"""One run of a sweep and its place in the sweep's table."""

from dataclasses import dataclass

from dassl_clip.engine.overrides import Pairs
from dassl_clip.results.protocols import DOMAINBED
from dassl_clip.results.selection import Choice

from . import plan
from .tasks import TASKS


@dataclass(frozen=True)
class Entry:
    """One run of a sweep and where it stands in the table: row label, group of columns, column.

    A run that no row asks for, but that one of them refines or evaluates, has no label. `named`: the file gives the row
    a label. `point`: the settings of a grid or search, of a run that searches, and of one that they were chosen for;
    then `validation` is the accuracy in percent by which they were, and `choice` what a rule of DomainBed chose.
    """

    label: str
    run: plan.Run
    group: str
    column: str
    named: bool = False
    point: Pairs = ()
    validation: float | None = None
    choice: Choice | None = None

    @property
    def searches(self) -> bool:
        """Whether it is one of the runs that settings are chosen from."""
        return bool(self.point) and self.validation is None

    @property
    def row_label(self) -> str:
        """The label of its row; that of a run of a search tells its set apart, too."""
        return self.label.rpartition(", ")[0] if self.searches and self.is_trial else self.label

    @property
    def is_trial(self) -> bool:
        """Whether it is of DomainBed's protocol, so that repetitions are its trials."""
        return bool(self.run.config.DATASET.get("PROTOCOL") == DOMAINBED)

    @property
    def repetition(self) -> int:
        """The number of the trial under DomainBed's protocol, else the seed."""
        return int(self.run.config.DATASET.TRIAL) if self.is_trial else self.run.seed

    @property
    def target_names(self) -> tuple[str, ...]:
        """What `--targets` may call the column; other data that are tested also by the name of their configuration."""
        domains = tuple(self.run.config.DATASET.TARGET_DOMAINS)
        if TASKS[self.run.task].tested_on:
            return ("+".join(domains) or self.run.dataset, self.column)
        return (self.column, *domains) if len(domains) > 1 else (self.column,)
