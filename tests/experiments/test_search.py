"""DomainBed's search: its runs, the choice on source images alone, the table over trials, and the price.

Covers `experiments/search.py`, `experiments/price.py` and what `experiments/tables.py` makes of them. Records are
planted with accuracies that the tests choose; the last test makes a small search to its last cell.
"""

import json
import math
import re
import shutil
import statistics
from pathlib import Path

import pytest
import yaml

from dassl_clip import embedded
from dassl_clip.cli.__main__ import main
from dassl_clip.engine import registry
from dassl_clip.engine.fingerprint import config_facts
from dassl_clip.experiments import plan, price, state, sweeps
from dassl_clip.results import records
from dassl_clip.results.domainbed import hyperparameters, run_seed
from dassl_clip.results.errors import UserError

DOMAINS = ("emoji", "flat", "line", "solid")
STEPS = (4, 9)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry.register()
    return tmp_path


def write(**changes):
    row = {"method": "ERM:icons", "label": "ERM", "search": "domainbed", "sets": 3,
           "set": {"DATASET.PROTOCOL": "domainbed", "TRAINER.ERM.STEPS": 10, "TRAINER.ERM.EVALUATE_EVERY": 5},
           **changes}  # fmt: skip
    tree = {"title": "mine", "task": "lodo", "datasets": ["icons"], "seeds": [0, 1], "shots": 0, "rows": [row]}
    Path("mine.yaml").write_text(yaml.safe_dump(tree))


def entries(rule=""):
    return sweeps.expand(sweeps.read_sweep("mine.yaml"), plan.Request("", (), out="output"), rule=rule)


def plant(run, metrics, evaluations=()):
    """A finished run; `evaluations` are pairs of accuracies by source domain and by tested domain."""
    found = {
        split: {"accuracy": value, "error_rate": 100 - value, "macro_f1": 50.0, "total": 100, "correct": 5}
        for split, value in metrics.items()
    }
    validation = [
        {"step": step, "accuracy": sources, "mean": 0.0, "loss": 1.0, **({"target": tested} if tested else {})}
        for step, (sources, tested) in zip(STEPS, evaluations)
    ]
    record = config_facts(run.config) | {
        "prompt": "a {}.", "backbone": {"name": "IconsCLIP", "weights_hash": "ab" * 32}, "num_train": 0, "losses": {},
        "metrics": found, "seconds": {"train": 1.0, "test": 1.0, "total": 2.0}, "peak_memory_mb": 1.0, "versions": {},
        "toolbox": {}, "device": "cpu", "precision": "fp32", "git_revision": "", "data_fingerprint": "", "command": "",
        "finished_at": "2024-01-01T00:00:00+00:00", "validation": validation,
    }  # fmt: skip
    records.write_record(run.folder, record)


def number_of(entry):
    return int(dict(entry.point)["set"])


def sources_of(entry):
    return entry.run.config.DATASET.SOURCE_DOMAINS


# ------------------------------------------------------------------------------------------------------ what is planned


def test_every_set_of_every_trial_and_target_is_a_run_with_domainbeds_settings_and_seed(place):
    write()
    made = entries()
    assert len(made) == 3 * 2 * 4 == len({entry.run.folder for entry in made})
    assert all(entry.searches and entry.run.config.TEST.SPLIT == "val" for entry in made)
    for entry in made:
        config, number, trial = entry.run.config, number_of(entry), entry.repetition
        wanted = hyperparameters("Icons", number, trial)
        node = config.TRAINER.ERM
        got = (config.OPTIM.LR, config.OPTIM.WEIGHT_DECAY, node.PER_DOMAIN, node.DROPOUT)
        assert got == (wanted.lr, wanted.weight_decay, wanted.batch_size, wanted.dropout)
        assert run_seed("Icons", [DOMAINS.index(entry.column)], number, trial) == config.SEED
        assert trial == config.DATASET.TRIAL and config.DATASET.NUM_SHOTS < 1 and not node.EVALUATE_TARGET
        assert config.TEST.FINAL_MODEL == "best_val" and entry.label == f"ERM, set {number}"
    assert {(number_of(e), e.repetition, e.column) for e in made} == {
        (number, trial, target) for number in range(3) for trial in (0, 1) for target in DOMAINS
    }


def test_a_key_that_the_row_gives_is_not_searched(place):
    write(set={"DATASET.PROTOCOL": "domainbed", "TRAINER.ERM.PER_DOMAIN": 2, "TRAINER.ERM.STEPS": 10})
    made = entries()
    assert {entry.run.config.TRAINER.ERM.PER_DOMAIN for entry in made} == {2}
    assert len({entry.run.config.OPTIM.LR for entry in made}) == 1 + 2 * 2  # the default, two draws in each trial


def test_in_a_task_the_seed_is_the_trial_under_domainbeds_protocol(place):
    request = plan.Request("icons", (0, 2), ("lodo",), shots=0)
    for pairs, trials in (((), [0, 2]), ((("DATASET.TRIAL", "1"),), [1, 1])):
        method = sweeps.method_of("ZeroshotCLIP:icons", (("DATASET.PROTOCOL", "domainbed"), *pairs))
        runs = [run for run in plan.plan_runs(request, method) if run.target == "line"]
        assert [(run.seed, run.config.DATASET.TRIAL) for run in runs] == [(0, trials[0]), (2, trials[1])]
    other = plan.plan_runs(request, sweeps.method_of("ZeroshotCLIP:icons"))
    assert {run.config.DATASET.TRIAL for run in other} == {0}


def test_a_task_takes_all_images_under_domainbeds_protocol_unless_shots_are_given(place):
    method = sweeps.method_of("ZeroshotCLIP:icons", (("DATASET.PROTOCOL", "domainbed"),))
    for asked, taken in ((None, -1), (4, 4), (0, -1)):
        request = plan.Request("icons", (0,), ("lodo",), shots=asked)
        assert {run.config.DATASET.NUM_SHOTS for run in plan.plan_runs(request, method)} == {taken}
    usual = plan.plan_runs(plan.Request("icons", (0,), ("lodo",)), sweeps.method_of("ZeroshotCLIP:icons"))
    assert {run.config.DATASET.NUM_SHOTS for run in usual} == {plan.DEFAULT_SHOTS}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"search": "random"}, "`search` should be domainbed, not 'random'"),
        ({"sets": 0}, "`sets` should be a whole number, at least 1, not 0"),
        ({"rule": "oracles"}, "there is no rule 'oracles'. Did you mean 'oracle'? Known: training-domain, "),
        ({"set": {"TRAINER.ERM.STEPS": 10}}, "DATASET.PROTOCOL is dassl; add DATASET.PROTOCOL: domainbed"),
        ({"method": "CoOp:icons", "set": {"DATASET.PROTOCOL": "domainbed"}}, "CoOp does not score its source domains"),
        ({"task": "fewshot"}, "its task should be lodo, not fewshot"),
    ],
)
def test_mistakes_are_sentences(place, capsys, changes, sentence):
    write(**changes)
    assert main(["sweep", "mine.yaml", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1


# ----------------------------------------------------------------------------------------------------------- the choice


def plant_search(made, best):
    """Search runs whose source accuracies, at the second evaluation, are highest for the set `best[target, trial]`."""
    for entry in made:
        high = 80.0 if number_of(entry) == best[entry.column, entry.repetition] else 70.0
        first = dict.fromkeys(sources_of(entry), 60.0)
        plant(entry.run, {"val": 50.0}, [(first, {}), (dict.fromkeys(sources_of(entry), high), {})])


def test_sets_are_chosen_by_source_domains_alone_and_the_table_has_domainbeds_errors(place, capsys):
    write()
    made = entries()
    best = {(target, trial): (place + trial) % 3 for place, target in enumerate(DOMAINS) for trial in (0, 1)}
    plant_search(made[:-1], best)
    assert len([e for e in entries() if e.choice]) == 7  # of the cell that lacks a run nothing is chosen
    plant_search(made[-1:], best)
    chosen = [entry for entry in entries() if entry.choice]
    assert {(e.column, e.repetition): e.choice.number for e in chosen} == best
    assert all((e.choice.step, e.validation, e.label) == (9, 80.0, "ERM") for e in chosen)
    by_cell = {(e.column, e.repetition, number_of(e)): e.run.folder for e in made}
    for entry in chosen:  # the weights of the search are tested: nothing is trained again
        assert entry.run.needs == by_cell[entry.column, entry.repetition, entry.choice.number]
        assert entry.run.evaluates and entry.run.config.TEST.SPLIT == "test" and entry.run.folder != entry.run.needs

    accuracies = {(e.column, e.repetition): 10.0 + 7 * number for number, e in enumerate(chosen)}
    for entry in chosen:  # a set that only the target would choose: whatever the tests give, the choice stays
        plant(entry.run, {"test": accuracies[entry.column, entry.repetition]})
    assert [e.choice for e in entries() if e.choice] == [e.choice for e in chosen]

    assert main(["table", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("ERM  ")]
    shown = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) \+/- ([\d.]+)", row)]
    each = [[accuracies[target, trial] for trial in (0, 1)] for target in DOMAINS]
    each.append([statistics.fmean(cell[trial] for cell in each) for trial in (0, 1)])  # the error over trials' means
    for (mean, error), values in zip(shown, each, strict=True):
        assert mean == pytest.approx(statistics.fmean(values), abs=0.0501)
        assert error == pytest.approx(statistics.pstdev(values) / math.sqrt(2), abs=0.0501)
    flat = " ".join(out.split())
    assert "deviation with divisor n, / sqrt(trials)" in flat and "ours: trials: 0; 1" in flat
    assert "selection rule: training-domain validation: mean over the source domains" in flat
    assert (
        "chosen: ERM, Icons, training-domain: emoji: trial 0: set 0 of 3 at step 9, by 80.0 %, trial 1: set 1" in flat
    )
    assert main(["table", "mine.yaml", "--spread", "deviation"]) == 0
    assert "deviation with divisor n" not in capsys.readouterr().out


def test_failed_runs_leave_their_sets_out(place):
    write(sets=2)
    made = entries()
    plant_search(made, dict.fromkeys(((t, trial) for t in DOMAINS for trial in (0, 1)), 1))
    cell = [e for e in made if (e.column, e.repetition) == ("line", 0)]
    shutil.rmtree(cell[1].run.folder)
    assert not [e for e in entries() if e.choice and (e.column, e.repetition) == ("line", 0)]
    cell[1].run.folder.mkdir()
    state.note_failure(cell[1].run.folder, 1, ["the loss is not finite"])
    (choice,) = [e.choice for e in entries() if e.choice and (e.column, e.repetition) == ("line", 0)]
    assert (choice.number, choice.ranking) == (0, (0,))


def test_a_search_whose_records_hold_numbers_of_the_target_is_refused(place):
    write(sets=1)
    made = entries()
    for entry in made:
        plant(entry.run, {"val": 50.0}, [(dict.fromkeys(sources_of(entry), 60.0), {entry.column: 99.0})])
    with pytest.raises(UserError, match="is a run of a search, but its record has numbers of the target"):
        entries()


def test_the_oracle_is_there_if_asked_for_and_every_row_says_so(place, capsys):
    write(sets=2)
    made = entries("oracle")
    assert all(e.run.config.DATASET.TEST_PART == "out" and e.run.config.TRAINER.ERM.EVALUATE_TARGET for e in made)
    for entry in made:  # set 1 is better at first, set 0 at the last step, which counts
        last = 40.0 - number_of(entry)
        plant(entry.run, {"val": 50.0}, [({}, {entry.column: 90.0 * number_of(entry)}), ({}, {entry.column: last})])
    chosen = [entry for entry in entries("oracle") if entry.choice]
    assert {(e.choice.number, e.choice.step, e.validation, e.label) for e in chosen} == {(0, 9, 40.0, "ERM (oracle)")}
    assert {e.run.config.DATASET.TEST_PART for e in chosen} == {"in"} and all(e.run.evaluates for e in chosen)
    assert not any(e.run.config.TRAINER.ERM.EVALUATE_TARGET for e in chosen)  # in no folder of another rule's runs
    for entry in chosen:
        plant(entry.run, {"test": 55.0})
    assert main(["table", "mine.yaml", "--rule", "oracle"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "ERM (oracle) 55.0" in out and "ORACLE: chosen on images of the target domain" in out
    assert 'tested on the "in" part (80 %)' in out and 'tested on the "out"' not in out


def test_leave_one_domain_out_plans_runs_without_two_domains_and_takes_the_step_from_them(place, capsys):
    write(sets=2)
    made = entries("leave-one-domain-out")
    assert len(made) == 2 * 2 * 6  # sets, trials, pairs of domains: one run serves both as the target
    assert {len(e.run.config.DATASET.TARGET_DOMAINS) for e in made} == {2}
    assert all(
        len(sources_of(e)) == 2 and not set(sources_of(e)) & set(e.run.config.DATASET.TARGET_DOMAINS) for e in made
    )
    for entry in made:
        pair = entry.run.config.DATASET.TARGET_DOMAINS
        seed = run_seed("Icons", [DOMAINS.index(name) for name in pair], number_of(entry), entry.repetition)
        assert seed == entry.run.config.SEED
        high = dict.fromkeys(pair, 60.0 + 10 * number_of(entry))
        plant(entry.run, {"val": 50.0}, [({}, high), ({}, dict.fromkeys(pair, 20.0))])
    chosen = [entry for entry in entries("leave-one-domain-out") if entry.choice]
    assert {(e.choice.number, e.choice.step, e.validation) for e in chosen} == {(1, 4, 70.0)}
    assert {len(sources_of(e)) for e in chosen} == {3} and not any(e.run.evaluates for e in chosen)
    assert all(e.run.config.TRAINER.ERM.EVALUATE_TARGET for e in chosen)
    for entry in chosen:
        plant(entry.run, {"test": 99.0}, [({}, {entry.column: 44.0}), ({}, {entry.column: 99.0})])
    assert main(["table", "mine.yaml", "--rule", "leave-one-domain-out"]) == 0
    assert re.search(r"ERM \(leave-one-domain-out\) +44.0", capsys.readouterr().out)


def test_the_published_table_says_of_ours_what_it_says_of_the_sources(place, capsys):
    words = ["domainbed-clip", "--datasets", "vlcs", "--rows", "ERM", "CLIPood", "SWAD", "--seeds", "1"]
    assert main(["table", *words, "--format", "json"]) == 0
    sources = json.loads(capsys.readouterr().out)["sources"]
    ours = {source["method"]: source for source in sources if source["source"] == "ours"}
    facts = ("test part", "input statistics", "head", "steps", "weights")
    assert {name: [source[fact] for fact in facts] for name, source in ours.items()} == {
        "ERM": ["in (80 %)", "CLIP's", "fresh, learned, unnormalised", "5,001, searched", "ViT-B/16"],
        "SWAD": ["in (80 %)", "ImageNet's", "fresh, learned, unnormalised", "5,001", "ViT-B/16"],
        "CLIPood": ["in (80 %)", "CLIP's", "texts", "5,000", "ViT-B/16"],
    }
    read = {(s["method"], s["source"], s["published"]) for s in sources if s.get("data") == "VLCS"}
    assert {("ERM", "DPL", 82.7), ("ERM", "MoE2", 78.5), ("ERM", "DISAM", 83.0), ("SWAD", "SBGen", 79.4)} < read


# ------------------------------------------------------------------------------------------------------------ the price


def test_the_price_is_counted_from_timed_steps(place):
    write(set={"DATASET.PROTOCOL": "domainbed", "TRAINER.ERM.STEPS": 5001, "TRAINER.ERM.EVALUATE_EVERY": 300,
               "TRAINER.ERM.EVALUATE_FIRST": True})  # fmt: skip
    runs = sweeps.runs_of(entries())
    assert price.plan_line(runs) == f"search: 24 runs, {24 * 5001:,} steps, {24 * 18} evaluations"  # 0, 300, ..., 5000
    measured = price.Measured(step=0.5, images=40, evaluation=6.0, memory=2048.0, disk=512.0)
    of_set = {run.config.TRAINER.ERM.PER_DOMAIN: price.seconds_of(run, measured) for run in runs}
    assert of_set == pytest.approx({b: 5001 * 0.5 * b / 40 + 18 * 6.0 for b in of_set}) and 32 in of_set
    total = sum(price.seconds_of(run, measured) for run in runs) / 3600
    lines = price.price_lines(runs, {"Icons": measured})
    assert f"24 runs, {24 * 5001:,} steps: {total:.1f} h; timed: 0.5 s a step of 40 images" in lines[0]
    assert "memory 2.0 GB, disk 0.50 GB a run" in lines[0]
    assert lines[1] == f"price: in all 24 runs, one after another {total:.1f} h; disk 12.0 GB"


def test_a_small_search_runs_to_its_last_cell_and_tells_its_price_first(place, helper):
    """Real runs, on a few icons in folders of a user's own."""
    icons = Path(embedded.__file__).parent / "icons"
    for domain in ("emoji", "flat", "line"):
        for name in ("fish", "key"):
            files = sorted((icons / domain / name).iterdir())[:5]
            (place / "few" / domain / name).mkdir(parents=True)
            for file in files:
                shutil.copy(file, place / "few" / domain / name)
    settings = {"DATASET.PROTOCOL": "domainbed", "TRAINER.ERM.STEPS": 2, "TRAINER.ERM.EVALUATE_EVERY": 1,
                "TRAINER.ERM.PER_DOMAIN": 1}  # fmt: skip
    row = {"method": "ERM:icons", "label": "ERM", "search": "domainbed", "sets": 2, "set": settings}
    tree = {"title": "few", "task": "lodo", "datasets": ["folder_domains"], "seeds": [0], "shots": 0, "rows": [row]}
    Path("few.yaml").write_text(yaml.safe_dump(tree))
    words = ["few.yaml", "--data", "few", "--targets", "line"]

    def run(*more):
        child = helper.start([*more[:1], *words, *more[1:]], place)
        out, err = child.communicate()
        assert child.returncode == 0, err
        return out

    out = run("sweep", "--jobs", "1")
    counted, timed = out.index("search: 2 runs, 4 steps, 4 evaluations"), out.index("price: in all 2 runs")
    assert counted < timed < out.index("2 runs, 1 at a time")
    assert "chosen by training-domain: 1 run to test" in out and "3 complete" in out
    weights = {file.parents[1] for file in Path("output").rglob("model*.pth.tar*")}
    out = run("sweep", "--jobs", "1", "--delete-weights")
    (kept,) = {file.parents[1] for file in Path("output").rglob("model*.pth.tar*")}
    (chosen,) = [entry.run.needs for entry in sweeps.expand(sweeps.read_sweep("few.yaml"), plan.Request(
        "", (), out="output", data="few", targets=("line",))) if entry.choice]  # fmt: skip
    assert kept == chosen and len(weights) == 2 and "of weights of runs that were not chosen; their records stay" in out
    assert "3 runs: 3 complete" in run("sweep", "--jobs", "1")
    found = [item.record for item in records.find_records("output")]
    tested = [record for record in found if "test" in record["metrics"]]
    searched = [record for record in found if record["metrics"].keys() == {"val"}]
    assert len(tested) == 1 and len(searched) == 2 and all("target" not in v for r in searched for v in r["validation"])
    assert (tested[0]["trial"], tested[0]["test_part"]) == (0, "in")
    assert f"ERM{tested[0]['metrics']['test']['accuracy']:.1f}" in run("table").replace(" ", "")
