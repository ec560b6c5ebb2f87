"""DomainBed's search as runs of a sweep: its sets of hyper-parameters, and the choice among them by one of its rules.

A row with `search: domainbed` has, for each trial and target, a run for each of `sets` sets (20 unless given; set 0
holds the defaults). Their seeds, splits and hyper-parameters are DomainBed's (`results/domainbed.py`); a key that the
row's `set` or the command line gives is not searched. `rule` names the rule of choosing (`results/selection.py`):

- `training-domain` (unless given): the runs are tested on validation images of their sources alone, and their records
  hold no number of the target. What is chosen is a run, at its best evaluation; then these weights are tested.
- `leave-one-domain-out`: the runs leave the target and one source domain out and are scored on both; one run serves
  both as the target. What is chosen is a set and a step; then a run without the target alone is made, and its accuracy
  on the target at this step is the result.
- `oracle`: the runs are scored on held-out images of the target after their last step, and then tested on the others.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dassl_clip.engine import registry
from dassl_clip.engine.overrides import Pairs, resolve_config
from dassl_clip.results import records, selection
from dassl_clip.results.domainbed import hyperparameters, run_seed
from dassl_clip.results.errors import UserError, did_you_mean
from dassl_clip.results.protocols import DOMAINBED
from dassl_clip.results.selection import LEAVE_ONE_OUT, ORACLE, RULES, TRAINING_DOMAIN, Choice, Validation

from . import plan, state
from .entries import Entry
from .methods import method_of
from .tasks import TASKS, dataset_domains

DRAWS = "domainbed"  # value of `search`
SETS = 20
SEARCHED = {"lr": "OPTIM.LR", "weight_decay": "OPTIM.WEIGHT_DECAY"}  # hyper-parameter -> key
SEARCHED_OF_METHOD = {"batch_size": "PER_DOMAIN", "dropout": "DROPOUT"}  # of the trainer's own node
SCORED = "EVALUATE_TARGET"  # a method's key: the tested images are scored at every evaluation
NUMBER = "set"  # in the point of an entry
# What the runs of a search ask for besides, by rule, first for which weights; `{node}` is the trainer's own node.
OF_RULE: dict[str, Pairs] = {
    TRAINING_DOMAIN: (("TEST.FINAL_MODEL", "best_val"),),
    LEAVE_ONE_OUT: (("TEST.FINAL_MODEL", "last_step"), ("{node}." + SCORED, "True")),
    ORACLE: (("TEST.FINAL_MODEL", "last_step"), ("{node}." + SCORED, "True"), ("DATASET.TEST_PART", "out")),
}


@dataclass(frozen=True)
class Search:
    """A row that is searched.

    Attributes:
        place: which row of which file it is, for messages.
        label: the row's.
        word: the method, as a command names it.
        pairs: the row's own settings.
        request: what is asked for; its seeds are the trials.
        sets: how many sets there are.
        rule: of choosing, one of `RULES`.
    """

    place: str
    label: str
    word: str
    pairs: Pairs
    request: plan.Request
    sets: int = SETS
    rule: str = TRAINING_DOMAIN

    def entries(self) -> list[Entry]:
        """The runs of every set and, for each target and trial whose runs are finished, the chosen one's test."""
        config = self._checked()
        targets, made = environments(config), dict[plan.Run, Entry]()
        chosen: list[Entry] = []
        for trial in self.request.seeds:
            for target in targets:
                beside = [name for name in targets if name != target] if self.rule == LEAVE_ONE_OUT else [""]
                runs = {
                    number: {name: self._run(config, number, trial, (target, name) if name else (target,))
                             for name in beside}
                    for number in range(self.sets)
                }  # fmt: skip
                for number, of_set in runs.items():
                    for run in of_set.values():
                        made.setdefault(run, self._entry(run, self._point(config, number, trial), searches=True))
                if choice := self._choose(runs, target):
                    chosen.append(self._chosen(config, runs, choice, trial, target))
        return [*made.values(), *chosen]

    def _checked(self) -> Any:
        """The configuration that all runs share.

        Raises:
            UserError: the row asks for what cannot be searched.
        """
        if self.rule not in RULES:
            hint = did_you_mean(self.rule, RULES)
            raise UserError(f"{self.place}: there is no rule '{self.rule}'.{hint} Known: {', '.join(RULES)}.")
        if self.sets < 1:
            raise UserError(f"{self.place}: `sets` should be a whole number, at least 1, not {self.sets}")
        method = method_of(self.word, self.pairs, "", self.request.imports)
        config = resolve_config(self.request.overrides(method))
        (task, *more) = self.request.tasks or ("lodo",)
        if more or not TASKS[task].across:
            raise UserError(f"{self.place}: a search leaves one domain out; its task should be lodo, not {task}")
        if config.DATASET.get("PROTOCOL") != DOMAINBED:
            raise UserError(
                f"{self.place}: `search` is ranked on DomainBed's held-out images of the sources, but DATASET.PROTOCOL "
                f"is {config.DATASET.get('PROTOCOL')}; add DATASET.PROTOCOL: {DOMAINBED} to its `set`"
            )
        if SCORED not in plan.own_settings(config):
            raise UserError(
                f"{self.place}: {config.TRAINER.NAME} does not score its source domains while it trains, which "
                f"`search` ranks by; take a method that has the setting {SCORED}, or a `grid`"
            )
        return config

    def _point(self, config: Any, number: int, trial: int) -> Pairs:
        drawn, keys = hyperparameters(config.DATASET.NAME, number, trial), searched_keys(config, dict(self.pairs))
        return ((NUMBER, str(number)), *((key, repr(getattr(drawn, name))) for name, key in keys.items()))

    def _run(self, config: Any, number: int, trial: int, left_out: Sequence[str], test: Pairs = ()) -> plan.Run:
        """The run of a set that leaves some domains out: one of the search, or with `test` one that is tested."""
        name, order = config.TRAINER.NAME, environments(config)
        places = sorted(order.index(domain) for domain in left_out)
        seed = run_seed(config.DATASET.NAME, places, number, trial, name)
        ours = (("DATASET.TRIAL", str(trial)), *self._point(config, number, trial)[1:])
        asked = test or (*OF_RULE[self.rule], ("TEST.SPLIT", "val"))
        asked = tuple((key.format(node=f"TRAINER.{name.upper()}"), value) for key, value in asked)
        method = method_of(self.word, (*self.pairs, *ours, *asked), "", self.request.imports)
        first, *others = (order[place] for place in places)
        request = replace(self.request, tasks=("lodo",), targets=(first,), beside=tuple(others), seeds=(seed,))
        (run,) = plan.plan_runs(request, method)
        return run

    def _choose(self, runs: Mapping[int, Mapping[str, plan.Run]], target: str) -> Choice | None:
        """The choice for one target and trial, once every run is finished or has failed; failed sets are left out."""
        found: dict[int, dict[str, list[dict[str, Any]]]] = {}
        for number, of_set in runs.items():
            for name, run in of_set.items():
                now = state.state_of(run).name
                if now == state.COMPLETE:
                    found.setdefault(number, {})[name] = _evaluations(run, self.rule)
                elif now != state.FAILED:
                    return None
        if self.rule == TRAINING_DOMAIN:
            on_sources = {
                number: [Validation(int(each["step"]), each["accuracy"]) for each in of_set[""]]
                for number, of_set in found.items()
            }
            return selection.by_source_domains(on_sources, target)
        if self.rule == ORACLE:
            return selection.by_oracle({number: _by_step(of_set[""], target) for number, of_set in found.items()})
        left_out = {
            number: {name: _by_step(evaluations, name) for name, evaluations in of_set.items()}
            for number, of_set in found.items()
        }
        return selection.by_domains_left_out(left_out, list(next(iter(runs.values()))))

    def _chosen(
        self, config: Any, runs: Mapping[int, Mapping[str, plan.Run]], choice: Choice, trial: int, target: str
    ) -> Entry:
        """The test of what was chosen: of the weights of the search, or of a run that is made for it."""
        trains = self.rule == LEAVE_ONE_OUT
        asked = OF_RULE[self.rule] if trains else OF_RULE[self.rule][:1]  # an evaluation asks for the weights alone
        run = self._run(config, choice.number, trial, (target,), asked)
        if not trains:
            (searched,) = runs[choice.number].values()
            run = replace(run, needs=searched.folder, evaluates=True)
        return self._entry(run, self._point(config, choice.number, trial), choice)

    def _entry(self, run: plan.Run, point: Pairs, choice: Choice | None = None, searches: bool = False) -> Entry:
        label = self.label if self.rule == TRAINING_DOMAIN else f"{self.label} ({self.rule})"
        label = f"{label}, {NUMBER} {dict(point)[NUMBER]}" if searches else label
        validation = None if choice is None else choice.validation
        return Entry(label, run, run.config.DATASET.NAME, run.target, True, point, validation, choice)


def environments(config: Any) -> list[str]:
    """All domains of a data set in the order in which DomainBed numbers them; a user's own by name."""
    own = getattr(registry.dataset_class(config.DATASET.NAME), "environments", None)
    return list(own(config)) if own is not None else sorted(dataset_domains(config))


def searched_keys(config: Any, fixed: Iterable[str]) -> dict[str, str]:
    """Hyper-parameter -> config key, of those that the method has and the row does not fix."""
    node = f"TRAINER.{config.TRAINER.NAME.upper()}"
    keys = SEARCHED | {
        name: f"{node}.{key}" for name, key in SEARCHED_OF_METHOD.items() if key in plan.own_settings(config)
    }
    return {name: key for name, key in keys.items() if key not in fixed}


def _evaluations(run: plan.Run, rule: str) -> list[dict[str, Any]]:
    """The evaluations of a finished run of a search.

    Raises:
        UserError: its record holds accuracies of the target, which the rule must not read.
    """
    record = records.read_record(run.folder) or {}
    found: list[dict[str, Any]] = record.get("validation", [])
    if "test" in record.get("metrics", {}) or (rule == TRAINING_DOMAIN and any("target" in each for each in found)):
        raise UserError(
            f"{run.folder} is a run of a search, but its record has numbers of the target: delete the folder, and the "
            "sweep makes the run again"
        )
    return found


def _by_step(evaluations: Iterable[Mapping[str, Any]], domain: str) -> dict[int, float]:
    """Step -> accuracy on one of the tested domains."""
    return {int(each["step"]): float(each["target"][domain]) for each in evaluations}


def unneeded_weights(entries: Sequence[Entry]) -> list[Path]:
    """The files of weights of search runs that nothing tests, once all is finished; records decide every choice."""
    tested = {entry.run.needs for entry in entries}
    searched = {entry.run.folder for entry in entries if entry.searches and entry.is_trial} - tested
    return [file for folder in searched for file in sorted(folder.glob("*/model*.pth.tar*"))]


def target_accuracy(entry: Entry, record: Mapping[str, Any], reading: str) -> float | None:
    """What a finished run says of its target, in percent; None where it says nothing.

    Args:
        entry: the run; where a step was chosen for it, the accuracy is that of this step.
        record: its record.
        reading: the split, or another row of the metrics.
    """
    if entry.choice is not None and entry.choice.rule == LEAVE_ONE_OUT:
        return _by_step(record.get("validation", ()), entry.column).get(entry.choice.step)
    metrics = record["metrics"].get(reading)
    return None if metrics is None else float(metrics.get("mean_of_draws", metrics["accuracy"]))  # of draws as printed


def chosen_lines(entries: Iterable[Entry]) -> list[str]:
    """A line for each row and data set that were searched: the sets that were chosen, and at which steps."""
    lines: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for entry in entries:
        if choice := entry.choice:
            columns = lines.setdefault((entry.label, entry.group, choice.rule), {})
            of = f"set {choice.number} of {len(choice.ranking)} at step {choice.step}, by {choice.validation:.1f} %"
            columns.setdefault(entry.column, []).append(f"trial {entry.repetition}: {of}")
    return [
        f"chosen: {label}, {group}, {rule}: "
        + "; ".join(f"{name}: {', '.join(each)}" for name, each in columns.items())
        for (label, group, rule), columns in lines.items()
    ]
