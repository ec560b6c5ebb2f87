"""DomainBed's seeds, hyper-parameters, selection rules and errors, against figures of its authors' program.

Covers `results/domainbed.py`, `results/selection.py`, and `mean_and_error` of `results/rendering.py`. The golden file
holds what that program printed for seeded accuracies, with ties and missing runs.
"""

import ast
import json
import math
import random
import re
from pathlib import Path

import pytest

from dassl_clip.results import domainbed, selection
from dassl_clip.results.errors import UserError
from dassl_clip.results.groups import MEAN
from dassl_clip.results.published import build_cells
from dassl_clip.results.rendering import mean_and_error
from dassl_clip.results.selection import Validation

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "goldens" / "domainbed_protocol.json").read_text())
NAMES = {"lr": "lr", "weight_decay": "weight_decay", "batch_size": "batch_size", "dropout": "resnet_dropout"}
CASES = [(dataset, key) for dataset, cases in GOLDEN["hparams"].items() for key in cases]
CHOSEN = GOLDEN["selection"]


# --------------------------------------------------------------------------------------------------- seeds and draws


def test_seeds():
    for words, seed in GOLDEN["seed_hash"]:
        arguments = [ast.literal_eval(word) if word[0] in "[0123456789" else word for word in words]
        assert domainbed.seed_hash(*arguments) == seed
    for run in GOLDEN["run_seeds"]:
        assert domainbed.run_seed("PACS", run["test_envs"], run["hparams_seed"], run["trial_seed"]) == run["seed"]


@pytest.mark.parametrize(("dataset", "key"), CASES)
def test_hyperparameters_to_the_digit(dataset, key):
    golden = GOLDEN["hparams"][dataset][key]
    if named := re.fullmatch(r"hparams_seed=(\d+),trial_seed=(\d+)", key):
        number, trial = map(int, named.groups())
        got, golden = domainbed.hyperparameters(dataset, number, trial), golden["drawn"]
    elif key == "default":
        got = domainbed.hyperparameters(dataset, 0, 2)
    else:
        got, golden = domainbed.drawn(dataset, golden["random_seed"]), golden["drawn"]
    assert {name: getattr(got, name) for name in NAMES} == {name: golden[theirs] for name, theirs in NAMES.items()}


def test_a_set_is_another_one_in_each_trial_but_not_for_each_data_set():
    sets = [domainbed.hyperparameters("PACS", 7, trial) for trial in range(3)]
    assert len({each.lr for each in sets}) == 3
    assert domainbed.hyperparameters("DomainNet", 7, 1).lr == sets[1].lr


# ------------------------------------------------------------------------------------------------------ the three rules


def accuracy(trial, number, left_out, step, env, part):
    """One accuracy of the golden runs, None where the run is missing."""
    combo = CHOSEN["combos"].index(sorted(left_out))
    if [trial, number, combo] in CHOSEN["drop"]:
        return None
    return CHOSEN["acc"][trial][number][combo][CHOSEN["steps"].index(step)][env][("in", "out").index(part)]


def choose(rule, trial, target):
    """A choice for one cell of the golden runs, by the functions under test."""
    envs, steps = range(CHOSEN["n_env"]), CHOSEN["steps"]
    sources = [env for env in envs if env != target]
    numbers = [n for n in range(len(CHOSEN["acc"][trial])) if accuracy(trial, n, [target], 0, 0, "in") is not None]
    if rule == selection.TRAINING_DOMAIN:
        runs = {
            n: [Validation(s, {str(e): accuracy(trial, n, [target], s, e, "out") for e in sources}) for s in steps]
            for n in numbers
        }
        return selection.by_source_domains(runs, str(target))
    if rule == selection.ORACLE:
        return selection.by_oracle(
            {n: {s: accuracy(trial, n, [target], s, target, "out") for s in steps} for n in numbers}
        )
    runs = {}
    for n in numbers:
        each = {str(e): {s: accuracy(trial, n, [target, e], s, e, "in") for s in steps} for e in sources}
        runs[n] = {name: values for name, values in each.items() if None not in values.values()}
    return selection.by_domains_left_out(runs, [str(e) for e in sources])


@pytest.mark.parametrize("rule", selection.RULES)
def test_choices_and_tables(rule):
    golden = CHOSEN["rules"][rule]
    cells = {}
    for cell in golden["cells"]:
        trial, target = cell["trial_seed"], cell["test_env"]
        choice = choose(rule, trial, target)
        test = accuracy(trial, choice.number, [target], choice.step, target, "in")  # looked up after the choice
        assert (choice.number, list(choice.ranking)) == (cell["hparams_seed"], cell["ranking"])
        assert choice.validation == pytest.approx(cell["val_acc"], rel=1e-12) and choice.rule == rule
        assert test == cell["test_acc"]
        cells.setdefault(str(target), {})[trial] = 100 * test
    for target, by_trial in cells.items():
        got = mean_and_error(list(by_trial.values()))
        assert got == pytest.approx(tuple(golden["by_env"][target].values()), rel=1e-12)
    got = {("ERM", "test"): {("PACS", target): by_trial for target, by_trial in cells.items()}}
    sheet, _ = build_cells(got, {"PACS": list(cells)}, {}, MEAN)
    overall = mean_and_error(list(sheet["ERM", "test"]["PACS", MEAN].got.values()))  # over the trials' means
    printed = re.search(r"Averages.*\n.*\nERM +([\d.]+) \+/- ([\d.]+)", golden["printed"])
    assert [f"{number:.1f}" for number in overall] == list(printed.groups())


def test_the_first_of_equal_evaluations_and_the_highest_of_equal_sets_count():
    half, more = {"a": 50.0, "b": 70.0}, {"a": 60.0, "b": 60.0}
    runs = {3: [Validation(0, half), Validation(5, more)], 8: [Validation(0, more)], 1: [Validation(0, half)], 9: []}
    choice = selection.by_source_domains(runs, "target")
    assert (choice.number, choice.step, choice.validation, choice.ranking) == (8, 0, 60.0, (8, 3, 1))
    assert selection.by_source_domains({3: runs[3]}, "target").step == 0
    assert selection.by_source_domains({9: []}, "target") is None


def test_source_domains_weigh_the_same_whatever_their_sizes():
    assert Validation(0, {"large": 90.0, "small": 30.0, "other": 30.0}).accuracy == 50.0


def test_a_set_that_only_the_target_would_choose_is_not_chosen():
    """The planted set 2 is by far the best on the target and the worst on the sources: the oracle alone takes it."""
    source = {0: 80.0, 1: 81.0, 2: 40.0}
    on_target = {0: 50.0, 1: 52.0, 2: 99.0}
    runs = {n: [Validation(0, {"a": value, "b": value})] for n, value in source.items()}
    assert selection.by_source_domains(runs, "target").number == 1
    left_out = {n: {name: {0: value} for name in "ab"} for n, value in source.items()}
    assert selection.by_domains_left_out(left_out, ["a", "b"]).number == 1
    oracle = selection.by_oracle({n: {0: value} for n, value in on_target.items()})
    assert oracle.number == 2 and "ORACLE" in selection.RULE_TEXTS[oracle.rule]


def test_numbers_of_the_target_are_refused():
    with pytest.raises(UserError, match="set 4, step 10: an accuracy on line was given to a choice for the target"):
        selection.by_source_domains({4: [Validation(10, {"flat": 1.0, "line": 2.0})]}, "line")
    with pytest.raises(UserError, match="set 4: a run without line was given"):
        selection.by_domains_left_out({4: {"line": {0: 1.0}, "flat": {0: 1.0}}}, ["flat"])


def test_errors_over_trials_against_the_formula():
    values = [random.Random(5).uniform(60, 90) for _ in range(7)]
    mean = math.fsum(values) / 7
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / 7) / math.sqrt(7)
    assert mean_and_error(values) == pytest.approx((mean, error), rel=1e-12)
    assert mean_and_error([61.5]) == (61.5, None)
