"""Named tables: ours beside what was published, from the records alone; what is missing; checks; formats; folders.

Covers `cli/table.py` for sweeps and the making of sheets in `experiments/sweeps.py`. Records are planted in the
folders of a sweep's own runs, with accuracies that the tests choose; the tables are read back and compared with plain
calculations and with the shipped published numbers.
"""

import csv
import io
import json
import random
import re
import shlex
import statistics

import pytest
import yaml

from dassl_clip.cli import __main__ as door
from dassl_clip.cli import table, train
from dassl_clip.engine import registry
from dassl_clip.engine.fingerprint import config_facts, config_hash
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.experiments import plan
from dassl_clip.experiments import sweeps as sheet
from dassl_clip.results import published as sheets
from dassl_clip.results import records

FORMS = ("C", "CP", "PC", "NC")
GROUPS = ("PACS", "VLCS", "OfficeHome", "DomainNet")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory; runs go to `output` in it."""
    monkeypatch.chdir(tmp_path)
    registry.register()
    return tmp_path


def entries_of(name, rows=(), seeds=()):
    return sheet.expand(sheet.read_sweep(name), plan.Request("", tuple(seeds), out="output"), (), rows)


def first_seed(name):
    """The first seed (or trial) of a sweep's rows; the runs of the others differ in it alone."""
    return sheet.read_sweep(name).rows[-1]["seeds"][0]


def metrics(accuracy):
    return {"accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": 50.0, "total": 10**6, "correct": 5}


def plant(run, values, **changes):
    """A finished run: a record in its folder with these readings."""
    record = config_facts(run.config) | {
        "prompt": "a photo of a {}.", "backbone": {"name": run.config.MODEL.BACKBONE.NAME, "weights_hash": "ab" * 32},
        "num_train": 0, "metrics": {name: metrics(value) for name, value in values.items()}, "losses": {},
        "seconds": {"train": 1.0, "test": 1.0, "total": 2.0}, "peak_memory_mb": 1.0, "versions": {}, "toolbox": {},
        "device": "cpu", "precision": "fp32", "git_revision": "", "data_fingerprint": "", "command": run.command,
        "finished_at": "2024-01-01T00:00:00+00:00",
    }  # fmt: skip
    records.write_record(run.folder, record | changes)


def show(capsys, *words, code=0):
    assert door.main(["table", *map(str, words)]) == code
    told = capsys.readouterr()
    return told.out if code == 0 else told


def rows_of(text):
    """(group, label) -> column -> text of a text sheet."""
    found, head = {}, None
    for line in text.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) < 2 or line.startswith(("missing: ", "note: ", "ours: ", "published: ")):
            head = None
        elif set("".join(cells)) == {"-"} and head is not None and len(head) == len(cells):
            continue
        elif head is None:
            head = cells
        else:
            found.setdefault((head[0], cells[0]), {}).update(zip(head[1:], cells[1:]))
    return found


def missing_in(text):
    """What is missing, line by line; continued lines are one."""
    lines = text.replace("\n  ", " ").splitlines()
    return [line.removeprefix("missing: ") for line in lines if line.startswith("missing: ")]


def commands_of(capsys, *words):
    """Arguments of `train.py` of each missing run."""
    lines = show(capsys, *words, "--dry-run").splitlines()
    return [shlex.split(re.fullmatch(r"missing: python \S*train\.py (.*)", line)[1]) for line in lines]


def cells_in(text):
    """(method, reading, data, column) -> cell of a JSON sheet."""
    return {(c["method"], c["reading"], c["data"], c["column"]): c for c in json.loads(text)["cells"]}


# -------------------------------------------------------------------------------------------------- without records


def test_clap_zeroshot_without_records_is_the_published_table_and_the_command_that_fills_it(place, capsys):
    out = show(capsys, "clap-zeroshot")
    assert out.startswith("0 of 72 cells run; `dassl-clip sweep clap-zeroshot` runs the others\n\n")
    assert not missing_in(out)  # the first line says it
    rows, published = rows_of(out), sheets.read_published("clap-zeroshot")
    shown = 0
    for method, readings in published["cells"].items():
        for reading, places in readings.items():
            for where, value in places.items():
                group, _, column = where.partition("/")
                assert rows[group, f"{reading}: {method}, published"][column] == str(value)
                shown += 1
    assert shown == 3 * (4 * 23 + 3 * 5) + 2 * 4 * 22
    assert not any(label.endswith(", difference") or not label.endswith(", published") for _, label in rows)

    entries = entries_of("clap-zeroshot")
    commands = commands_of(capsys, "clap-zeroshot")
    assert len(commands) == len(entries) == 72
    for entry, command in zip(entries, commands):
        overrides, _ = train.parse(command)
        flags = dict(overrides.flags)
        assert flags["OUTPUT_DIR"] == str(entry.run.folder)
        assert flags["DATASET.SOURCE_DOMAINS"] == flags["DATASET.TARGET_DOMAINS"] == (entry.column,)
        assert config_hash(resolve_config(overrides)) == config_hash(entry.run.config)
    assert not (place / "output").exists()


def test_the_header_says_how_numbers_were_taken_and_where_the_printed_ones_are_from(place, capsys):
    out = " ".join(show(capsys, "clap-zeroshot").split())  # lines are wrapped
    published = sheets.read_published("clap-zeroshot")
    for part in (
        f"published: {published['paper']}; {published['source']}; backbone {published['backbone']}",
        "ours: protocol: every image of a domain is tested, no label is trained on",
        "ours: backbone: ViT-B/16; ViT-L/14; training images per class: none",
        "ours: selection rule: ",
        "templates: clap_pc",
        "ours: seeds: 2024; tolerance of a check: 1 points",
        *(f"note: {note}" for note in published["footnotes"]),
    ):
        assert part in out.replace("\n  ", " "), part
    b2n = show(capsys, "gopro-b2n", "--datasets", "eurosat").replace("\n  ", " ")
    assert (
        "training images per class: 16" in b2n and "ours: seeds: 1; 2; 3; 4; 5 (CLIP: one seed; CoOp: 1, 2, 3; " in b2n
    )
    assert "base to new: trained on the base classes, tested on base and on new classes" in b2n


CLAP_CONFIGS = ("pacs", "vlcs", "office_home", "domainnet")
CONFIGS = {  # (row 7.1) of the rows of some tables
    "gopro-b2n": {"CoOp": {"vit_b16_ctxv1", "vit_b16_ep50_ctxv1"}, "GOPro": {"vit_b16"}},
    "clap-zeroshot": {"CLAP": {*CLAP_CONFIGS, *(f"{name}_vit_l14" for name in CLAP_CONFIGS)}},
    "clap-attacks": {"CLAP": {*CLAP_CONFIGS}},
}


@pytest.mark.parametrize("name", [*sheets.published_names()])
def test_every_command_of_every_named_table_parses(place, capsys, name):
    seed = first_seed(name)
    entries, commands = entries_of(name, seeds=[seed]), commands_of(capsys, name, "--seeds", seed)
    assert len(commands) == len(entries)
    for entry, command in list(zip(entries, commands))[:: max(1, len(entries) // 12)]:
        overrides, job = train.parse(command)
        assert config_hash(resolve_config(overrides)) == config_hash(entry.run.config)
        assert job.eval_only == (entry.run.needs is not None)
        assert job.model_dir == (str(entry.run.needs) if entry.run.needs else None)
    files = re.findall(r"configs/trainers/(\w+)/(\w+)\.yaml", "\n".join(map(" ".join, commands)))
    for method, configs in CONFIGS.get(name, {}).items():
        assert {stem for other, stem in files if other == method} == configs
    if name.startswith("clap"):
        assert {command[command.index("--seed") + 1] for command in commands} == {"2024"}
    assert not (place / "output").exists()  # nothing was run


def test_batches_stand_beside_the_published_means_over_draws(place, capsys):
    """Ours is the mean over draws, not the accuracy over all their images; the gaps are the planted ones."""
    for entry in entries_of("transduction", ["StatA"]):
        readings = sheet.read_sweep("transduction").readings
        found = {name: metrics(40.0) | {"mean_of_draws": 70.0} for name in readings}
        plant(entry.run, {}, metrics=found)
    rows = rows_of(show(capsys, "transduction"))
    cells = {name: rows["Overall", f"{name}: StatA, difference"]["mean"] for name in ("B64 K1-4", "B1000 K50-100")}
    assert cells == {"B64 K1-4": "-0.4", "B1000 K50-100": "+1.0"}
    assert rows["Overall", "B64 K1-4: ZLaP, published"]["mean"] == "27.5"


def test_misprints_and_gaps_of_the_papers_are_told(place, capsys):
    assert "printed 22.5" in show(capsys, "clap-attacks") and "43.59" in show(capsys, "clap-attacks")
    assert "printed 71.15" in show(capsys, "gopro-b2n")
    rows = rows_of(show(capsys, "gopro-dg"))
    assert rows["accuracy (%)", "GOPro, published"]["mean of targets"] == "-"  # the paper prints none


# ------------------------------------------------------------------------------------------------------ with records


def test_clap_zeroshot_with_planted_records(place, capsys):
    draw, got = random.Random(0), {}
    for entry in entries_of("clap-zeroshot", ["CLIP", "CLAP"]):
        values = {form: draw.uniform(30, 95) for form in FORMS}
        plant(entry.run, {**values, "test": 1.0})
        got[entry.label, entry.group, entry.column] = values
    printed = sheets.read_published("clap-zeroshot")["cells"]
    out = show(capsys, "clap-zeroshot")
    rows, cells = rows_of(out), cells_in(show(capsys, "clap-zeroshot", "--format", "json"))
    columns = ("clipart, infograph, painting, quickdraw, real, sketch", "art_painting, cartoon, photo, sketch")
    assert len(missing_in(out)) == 8  # ViT-L/14: two rows on four data sets
    for line in (
        f"CLAP ViT-L/14, zeroshot, {group}: {names} (seed 2024)" for group, names in zip(("DomainNet", "PACS"), columns)
    ):
        assert line in missing_in(out)
    assert out.startswith("36 of 72 cells run; `dassl-clip sweep clap-zeroshot` runs the others\n")
    assert "templates: a photo of a {}." in out

    plain = {
        "R": lambda f: max(f[:3]) - min(f[:3]),
        "delta": lambda f: (sum((x - sum(f[:3]) / 3) ** 2 for x in f[:3]) / 3) ** 0.5,
        "Delta_NC": lambda f: f[0] - f[3],
    }
    for label in ("CLIP", "CLAP"):
        names = {g: [c for (m, group, c) in got if (m, group) == (label, g)] for g in GROUPS}
        means = {g: [statistics.fmean(got[label, g, c][form] for c in names[g]) for form in FORMS] for g in GROUPS}
        for index, form in enumerate(FORMS):
            for group in GROUPS:
                shown = rows[group, f"{form}: {label}"]
                apart = rows[group, f"{form}: {label}, difference"]
                for column in names[group]:
                    value = got[label, group, column][form]
                    assert float(shown[column]) == pytest.approx(value, abs=0.0501)
                    wanted = value - printed[label][form][f"{group}/{column}"]
                    assert float(apart[column]) == pytest.approx(wanted, abs=0.0501)
                    assert cells[label, form, group, column]["difference"] == pytest.approx(wanted)
                assert float(shown["mean"]) == pytest.approx(means[group][index], abs=0.0501)
                assert float(rows["Overall", f"{form}: {label}"][group]) == pytest.approx(means[group][index], abs=0.06)
            overall = statistics.fmean(means[group][index] for group in GROUPS)
            assert cells[label, form, "Overall", "mean"]["mean"] == pytest.approx(overall)
            wanted = overall - printed[label][form]["Overall/mean"]
            assert cells[label, form, "Overall", "mean"]["difference"] == pytest.approx(wanted)
        for measure, calculate in plain.items():
            each = {group: calculate(means[group]) for group in GROUPS}
            for group, value in each.items():
                cell = cells[label, measure, group, "mean"]
                assert cell["mean"] == pytest.approx(value)
                assert cell["difference"] == pytest.approx(value - printed[label][measure][f"{group}/mean"])
                assert float(rows[group, f"{measure}: {label}"]["mean"]) == pytest.approx(value, abs=0.0501)
            assert cells[label, measure, "Overall", "mean"]["mean"] == pytest.approx(statistics.fmean(each.values()))


def test_gopro_b2n_with_planted_records(place, capsys):
    draw, got = random.Random(1), {}
    for entry in entries_of("gopro-b2n", ["CoOp", "GOPro"]):
        if (entry.label, entry.group, entry.column, entry.run.seed) == ("GOPro", "EuroSAT", "new", 3):
            continue
        value = draw.uniform(30, 95)
        plant(entry.run, {"test": value}, selection_rule="last")
        got[entry.label, entry.group, entry.column, entry.run.seed] = value
    printed = sheets.read_published("gopro-b2n")["cells"]
    out = show(capsys, "gopro-b2n")
    cells = cells_in(show(capsys, "gopro-b2n", "--format", "json"))
    rows = rows_of(out)
    names = sorted({group for _, group, _, _ in got})
    assert len(names) == 11
    all_seeds = {"CoOp": (1, 2, 3), "GOPro": (1, 2, 3, 4, 5)}

    def harmonic(x, y):
        return 2 * x * y / (x + y)

    for label, seeds in all_seeds.items():
        for group in names:
            whole = [s for s in seeds if (label, group, "new", s) in got]
            hm = [harmonic(got[label, group, "base", s], got[label, group, "new", s]) for s in whole]
            cell = cells[label, "test", group, "HM"]
            assert list(cell["by_seed"]) == [str(s) for s in whole]
            assert cell["mean"] == pytest.approx(statistics.fmean(hm))
            assert cell["std"] == pytest.approx(statistics.stdev(hm))
            assert cell["difference"] == pytest.approx(statistics.fmean(hm) - printed[label]["test"][f"{group}/HM"])
        whole = [s for s in seeds if label == "CoOp" or s != 3]
        base = {s: statistics.fmean(got[label, g, "base", s] for g in names) for s in seeds}
        new = {s: statistics.fmean(got[label, g, "new", s] for g in names) for s in whole}
        hm = statistics.fmean(harmonic(base[s], new[s]) for s in whole)
        assert cells[label, "test", "Average", "HM"]["mean"] == pytest.approx(hm)
        assert cells[label, "test", "Average", "base"]["mean"] == pytest.approx(statistics.fmean(base.values()))
        difference = hm - printed[label]["test"]["Average/HM"]
        assert cells[label, "test", "Average", "HM"]["difference"] == pytest.approx(difference)
    assert "(n=4)" in rows["EuroSAT", "GOPro"]["new"] and "(n=4)" in rows["EuroSAT", "GOPro"]["HM"]
    assert " +/- " in rows["EuroSAT", "CoOp"]["new"]
    assert rows["Average", "CLIP, published"] == {"base": "69.34", "new": "74.22", "HM": "71.7"}
    ours = [what for what in missing_in(out) if not what.startswith(("CLIP", "CoCoOp", "MaPLe"))]
    assert ours == ["GOPro, b2n, EuroSAT: new (seed 3)"]


@pytest.mark.parametrize("name", ["gopro-b2n", "gopro-xd", "gopro-dg"])
def test_the_coop_rows_of_gopros_tables_are_runs_from_words(place, name):
    """(row 7.1) "a photo of a", 4 tokens, 200 epochs, but 50 on ImageNet; seeds 1 to 3, batches of 32."""
    entries = entries_of(name, ["CoOp"])
    configs = [entry.run.config for entry in entries]
    trained = [cfg for cfg in configs if cfg.DATASET.NAME == "ImageNet" or name == "gopro-b2n"]
    assert {entry.run.seed for entry in entries} == {1, 2, 3} and trained
    for cfg in trained:
        node, short = cfg.TRAINER.COOP, cfg.DATASET.NAME == "ImageNet" or name != "gopro-b2n"
        assert (node.CTX_INIT, node.CSC, node.CLASS_TOKEN_POSITION) == ("a photo of a", False, "end")
        made = cfg.OPTIM.MAX_EPOCH, cfg.RUN.CONFIG
        assert made == ((50, "vit_b16_ep50_ctxv1") if short else (200, "vit_b16_ctxv1"))
        assert (cfg.OPTIM.LR, cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.DATASET.NUM_SHOTS) == (0.002, 32, 16)
    assert len({cfg.DATASET.NAME for cfg in trained}) == (11 if name == "gopro-b2n" else 1)


def test_configurations_of_coop_by_shots(place):
    """(row 7.1) CoOp's own few-shot setting: 50 epochs for 1 shot and ImageNet, 100 for 2 and 4, 200 for 8 and 16."""
    for words in ("", "_ctxv1"):
        for name, epochs in (("vit_b16", 200), ("vit_b16_ep100", 100), ("vit_b16_ep50", 50)):
            tree = {"task": "fewshot", "datasets": ["pacs"], "rows": [f"CoOp:{name}{words}"]}
            (place / "mine.yaml").write_text(yaml.safe_dump(tree))
            cfg = entries_of("mine.yaml")[0].run.config
            made = cfg.OPTIM.MAX_EPOCH, cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.CTX_INIT
            assert made == ((epochs, 4, "a photo of a") if words else (epochs, 16, ""))


def test_a_method_for_a_data_set_that_the_row_has_not_is_refused(place, capsys):
    tree = {"task": "fewshot", "datasets": ["pacs"], "rows": [{"method": "CoOp", "method_for": {"imagenet": "CoOp"}}]}
    (place / "mine.yaml").write_text(yaml.safe_dump(tree))
    err = show(capsys, "mine.yaml", code=2).err
    assert "`method_for` names 'imagenet', but its data sets are pacs" in err and err.count("\n") == 1


def test_gopro_xd_leaves_imagenet_out_of_the_mean(place, capsys):
    got = {}
    for index, entry in enumerate(entries_of("gopro-xd", ["GOPro"], [1])):
        got[entry.column] = 40.0 + index
        plant(entry.run, {"test": got[entry.column]})
    cells = cells_in(show(capsys, "gopro-xd", "--seeds", "1", "--format", "json"))
    targets = statistics.fmean(value for name, value in got.items() if name != "ImageNet")
    cell = cells["GOPro", "test", "", "mean of targets"]
    assert cell["mean"] == pytest.approx(targets)
    assert cell["difference"] == pytest.approx(targets - 67.86)
    assert cells["GOPro", "test", "", "ImageNet"]["difference"] == pytest.approx(got["ImageNet"] - 73.27)


def test_transductive_runs_are_named(place, capsys):
    for entry in entries_of("inmap-imagenet"):
        inmap = entry.label == "InMaP"
        plant(entry.run, {"test": 80.0 if inmap else 77.0}, transductive=inmap)
    out = show(capsys, "inmap-imagenet")
    assert "transductive (uses unlabelled test images): InMaP" in out
    rows = rows_of(out)
    assert rows["ImageNet", "InMaP, difference"]["all"] == "-0.2"
    assert rows["ImageNet", "CLIP, difference"]["all"] == "+0.0"


def test_a_record_of_another_configuration_or_a_broken_one_fills_no_cell(place, capsys):
    first, second = entries_of("inmap-imagenet")
    plant(first.run, {"test": 12.0}, config_hash="0" * 64)
    second.run.folder.mkdir(parents=True)
    (second.run.folder / "record.json").write_text("{")
    out = show(capsys, "inmap-imagenet")
    assert "12.0" not in out
    line = r"refused: CLIP, zeroshot, ImageNet/all, seed 1: .* holds a finished run of another config"
    assert re.search(line, out.replace("\n  ", " "))
    assert out.startswith("0 of 2 cells run; `dassl-clip sweep inmap-imagenet` runs the others\n")


# ------------------------------------------------------------------------------------------------ checks and formats


def plant_all(name, apart=0.0, rows=()):
    """Records with exactly the printed numbers, or `apart` from them."""
    printed = sheets.read_published(name)["cells"]
    readings = sheet.read_sweep(name).readings or ("test",)
    for entry in entries_of(name, rows):
        where = f"{entry.group}/{entry.column}"
        plant(entry.run, {r: min(100.0, max(0.0, printed[entry.label][r][where] + apart)) for r in readings})


def test_check_says_which_cells_leave_their_tolerance(place, capsys):
    plant_all("inmap-imagenet", 0.4)
    assert "tolerance of a check: 0.5 points" in show(capsys, "inmap-imagenet", "--check")
    (entry,) = entries_of("inmap-imagenet", ["InMaP"])
    plant(entry.run, {"test": 79.5})
    told = show(capsys, "inmap-imagenet", "--check", code=1)
    assert told.err.splitlines() == [
        "outside: InMaP, test, ImageNet/all: 79.50, published 80.21, difference -0.71, tolerance 0.5",
        "2 of 2 published cells checked, 1 outside their tolerance",
    ]
    assert "79.5" in told.out  # the table is printed all the same
    show(capsys, "inmap-imagenet")  # without --check it is no failure


def test_a_faithful_reproduction_passes_the_check_whatever_the_paper_misprints(place, capsys):
    """Runs that give each printed domain accuracy: means, measures and the misprinted mean included."""
    plant_all("clap-attacks")
    rows = rows_of(show(capsys, "clap-attacks", "--check"))
    assert rows["DomainNet", "FGSM / C: CLIP, difference"]["mean"] == "+21.1"  # 43.6 to the misprint 22.5


def test_check_counts_what_it_compared_and_refuses_to_compare_nothing(place, capsys):
    told = show(capsys, "clap-attacks", "--check", code=2)
    numbers = sheets.read_published("clap-attacks")
    printed = sum(len(cells) for readings in numbers["cells"].values() for cells in readings.values())
    wrong = sum(len(cells) for readings in numbers["misprints"].values() for cells in readings.values())
    sentence = f"error: --check: 0 of {printed - wrong} published cells checked, since no run of these is finished here"
    assert told.err == f"{sentence}: dassl-clip sweep clap-attacks\n"
    entry = next(entry for entry in entries_of("clap-attacks", ["CLAP"]) if entry.group == "PACS")
    value = numbers["cells"]["CLAP"]["FGSM / C"][f"PACS/{entry.column}"]
    plant(entry.run, {"FGSM / C": value})
    assert door.main(["table", "clap-attacks", "--check"]) == 0
    assert capsys.readouterr().err == f"1 of {printed - wrong} published cells checked, 0 outside their tolerance\n"


def test_check_of_what_has_no_published_numbers_is_refused(place, capsys):
    told = show(capsys, "icons", "--rows", "CLAP", "--check", code=2)
    assert told.err == "error: --check: the sweep icons has no published table to check against\n"
    (place / "runs").mkdir()
    told = show(capsys, "runs", "--check", code=2)
    assert told.err.startswith("error: --check needs published numbers, so it is for sweeps: clap-attacks, ")


def test_other_formats(place, capsys):
    plant_all("inmap-imagenet", 0.4)
    table_of = {style: show(capsys, "inmap-imagenet", "--format", style) for style in ("csv", "latex", "markdown")}
    rows = {(row["method"], row["column"]): row for row in csv.DictReader(io.StringIO(table_of["csv"]))}
    cell = [float(rows["InMaP", "all"][key]) for key in ("mean", "published", "difference")]
    assert cell == pytest.approx([80.61, 80.21, 0.4])
    out = table_of["latex"]
    assert "\\begin{tabular}" in out and "InMaP, published" in out and "80.21" in out
    assert all(line.startswith("%") or "\\" in line or not line for line in out.splitlines()), out
    assert "&" in out[out.index("\\begin") : out.index("\\end")]
    assert re.search(r"\| InMaP, published +\| +80.21 \| +- \|", table_of["markdown"])


def test_rows_and_seeds_can_be_chosen(place, capsys):
    words = ["gopro-b2n", "--rows", "GOPro", "--seeds", "7"]
    commands = commands_of(capsys, *words)
    assert len(commands) == 22
    assert all(dict(train.parse(command)[0].flags)["SEED"] == 7 for command in commands)
    out = show(capsys, *words)
    assert out.startswith("0 of 22 cells run; `dassl-clip sweep gopro-b2n --seeds 7 --rows GOPro` runs the others\n")
    assert {label for _, label in rows_of(out)} == {"GOPro, published"}


def test_a_published_table_can_be_narrowed_to_one_cell(place, capsys):
    """Rows, data sets and targets; what is averaged over others is left out, or it would stand beside another mean."""
    for index, entry in enumerate(entries_of("clap-zeroshot", ["CLAP"])):
        plant(entry.run, dict.fromkeys(FORMS, 20.0 + index))
    words = ["clap-zeroshot", "--rows", "CLAP", "--datasets", "pacs", "--targets", "photo"]
    printed = sheets.read_published("clap-zeroshot")["cells"]["CLAP"]
    got = {f: show(capsys, *words, "--format", f) for f in ("json", "text")}
    cells = cells_in(got["json"])
    assert set(cells) == {("CLAP", form, "PACS", "photo") for form in FORMS} | {
        ("CLAP", measure, "PACS", "photo") for measure in ("R", "delta", "Delta_NC")
    }
    for form in FORMS:
        assert cells["CLAP", form, "PACS", "photo"]["published"] == printed[form]["PACS/photo"]
        assert cells["CLAP", form, "PACS", "photo"]["mean"] == pytest.approx(22.0)
    rows = rows_of(got["text"])
    assert rows["PACS", "C: CLAP"] == {"photo": "22.0"} and "cells run" not in got["text"]
    two = cells_in(show(capsys, "clap-zeroshot", "--rows", "CLAP", "--datasets", "pacs", "vlcs", "--format", "json"))
    assert {key[2] for key in two} == {"PACS", "VLCS"}  # and no Overall, whose printed mean is over four
    assert two["CLAP", "C", "PACS", "mean"]["mean"] == pytest.approx(21.5)


def test_a_transfer_can_be_narrowed_to_one_tested_data_set(place, capsys):
    """The run that it evaluates is brought along, but is no cell; a target has two names."""
    for name in ("eurosat", "EuroSAT"):
        entries = sheet.expand(
            sheet.read_sweep("gopro-xd"), plan.Request("", (1,), out="output", targets=(name,)), (), ["GOPro"]
        )
        assert [(entry.label, entry.column) for entry in entries] == [("", "ImageNet"), ("GOPro", "EuroSAT")]
        assert entries[1].run.needs == entries[0].run.folder
    out = show(capsys, "gopro-xd", "--rows", "GOPro", "--targets", "eurosat")
    assert out.startswith("0 of 5 cells run; ") and rows_of(out)["accuracy (%)", "GOPro, published"].keys() == {
        "EuroSAT"
    }


@pytest.mark.parametrize("name", [*sheets.published_names()])
def test_a_table_fits_a_terminal(place, capsys, name):
    entry = entries_of(name, seeds=[first_seed(name)])[-1]
    plant(entry.run, dict.fromkeys(sheet.read_sweep(name).readings or ("test",), 50.0))
    out = show(capsys, name, "--seeds", first_seed(name))
    assert max(map(len, out.splitlines())) <= 120
    whole, cells = sheets.read_published(name)["cells"], rows_of(out)
    if name == "gopro-xd":  # wider than 120 columns: in two parts, each with the rows' names
        shown = {(label, column): text for (_, label), row in cells.items() for column, text in row.items()}
        for label, readings in whole.items():
            for where, value in readings["test"].items():
                assert shown[f"{label}, published", where.partition("/")[2]] == str(value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["clap-zero"], "there is no sweep 'clap-zero'. Did you mean 'clap-zeroshot'? Known: "),
        (
            ["gopro-xd", "--targets", "eurosta"],
            "gopro-xd has no target 'eurosta'. Did you mean 'eurosat'? Its targets: ",
        ),
        (["clap-zeroshot", "--datasets", "pac"], "clap-zeroshot has no data set 'pac'. Did you mean 'pacs'? Its data "),
        (
            ["clap-zeroshot", "--datasets", "vlcs", "--targets", "photo"],
            "clap-zeroshot has no target 'photo'. Its targ",
        ),
        (["icons"], "0 of 240 cells run; `dassl-clip sweep icons` runs the others; so there is no table"),
        (["absent/runs"], "no folder absent/runs"),
    ],
)
def test_mistakes_are_sentences(place, capsys, words, sentence):
    told = show(capsys, *words, code=2)
    assert told.err.startswith(f"error: {sentence}") and told.err.count("\n") == 1
    assert told.out == ""


def test_a_file_with_a_published_table_that_is_not_there(place, capsys):
    (place / "mine.yaml").write_text(yaml.safe_dump({"published": "gopro-b2", "datasets": ["icons"], "rows": ["CoOp"]}))
    told = show(capsys, "mine.yaml", code=2)
    assert told.err.startswith("error: there is no published table 'gopro-b2'; known: clap-attacks, ")


# ---------------------------------------------------------------------------------------- sweeps without published ones


def test_icons_shows_methods_by_domains_with_gains_and_commands(place, capsys):
    draw, got = random.Random(2), {}
    for entry in entries_of("icons", seeds=[1, 2]):
        if entry.run.needs is None and (entry.label, entry.run.task, entry.column, entry.run.seed) != (
            "GOPro", "lodo", "line", 2,
        ):  # fmt: skip
            got[entry.label, entry.run.task, entry.column, entry.run.seed] = value = draw.uniform(30, 90)
            plant(entry.run, {"test": value})
    out = show(capsys, "icons", "--seeds", "1", "2", "--rows", "ZeroshotCLIP", "GOPro")
    assert out.count("Icons, task fewshot") == out.count("Icons, task lodo") == 1
    lodo = rows_of(out[out.index("Icons, task lodo") :])
    columns = ("emoji", "flat", "line", "solid")
    shown = lodo["accuracy (%)", "ZeroshotCLIP (icons)"]
    for column in columns:
        values = [got["ZeroshotCLIP", "lodo", column, seed] for seed in (1, 2)]
        assert float(shown[column].split()[0]) == pytest.approx(statistics.fmean(values), abs=0.0501)
        gains = [
            got["GOPro", "lodo", column, seed] - got["ZeroshotCLIP", "lodo", column, seed]
            for seed in (1, 2)
            if ("GOPro", "lodo", column, seed) in got
        ]
        cell = lodo["accuracy (%)", "gain of GOPro (icons)"][column]
        assert float(cell.split()[0]) == pytest.approx(statistics.fmean(gains), abs=0.0501)
    assert missing_in(out) == ["GOPro, lodo, Icons: line (seed 2)"]
    shown = show(capsys, "icons", "--seeds", "1", "2", "--rows", "ZeroshotCLIP", "GOPro", "--dry-run")
    (line,) = [line for line in shown.splitlines() if line.startswith("missing: ")]
    overrides, _ = train.parse(shlex.split(line.partition("train.py ")[2]))
    assert dict(overrides.flags).items() >= {"DATASET.TARGET_DOMAINS": ("line",), "SEED": 2}.items()
    lines = show(capsys, "icons", "--seeds", "1", "--rows", "GOPro", "--format", "csv").splitlines()
    cells = [(line["task"], line["column"]) for line in csv.DictReader(lines)]
    assert cells == [(task, column) for task in ("fewshot", "lodo") for column in (*columns, "mean")]


def test_a_file_over_two_data_sets_has_a_table_for_each(place, capsys):
    tree = {"task": "lodo", "datasets": ["pacs", "vlcs"], "rows": ["ZeroshotCLIP:vit_b16", "CoOp:vit_b16"]}
    (place / "mine.yaml").write_text(yaml.safe_dump(tree))
    registry.register()
    for index, entry in enumerate(sheet.expand(sheet.read_sweep("mine.yaml"), plan.Request("", (), out="output"), ())):
        plant(entry.run, {"test": 30.0 + index})
    out = show(capsys, "mine.yaml")
    assert out.index("PACS, task lodo") < out.index("VLCS, task lodo")
    pacs, vlcs = (rows_of(part) for part in (out[: out.index("VLCS, task")], out[out.index("VLCS, task") :]))
    assert set(pacs["accuracy (%)", "CoOp (vit_b16)"]) == {"art_painting", "cartoon", "photo", "sketch", "mean"}
    assert set(vlcs["accuracy (%)", "CoOp (vit_b16)"]) == {"caltech", "labelme", "pascal", "sun", "mean"}
    assert "missing" not in out and "-" not in pacs["accuracy (%)", "CoOp (vit_b16)"].values()
    assert float(pacs["accuracy (%)", "ZeroshotCLIP (vit_b16)"]["mean"]) == 31.5


def test_folders_still_have_their_tables(place, capsys):
    for entry in entries_of("icons", ["ZeroshotCLIP", "CoOp"], [1]):
        plant(entry.run, {"test": 50.0 if entry.label == "CoOp" else 40.0})
    out = show(capsys, "output/lodo", "--reference", "ZeroshotCLIP")
    rows = rows_of(out)
    assert rows["accuracy (%)", "gain of CoOp (icons)"] == dict.fromkeys(
        ("emoji", "flat", "line", "solid", "mean"), "+10.0"
    )
    assert "task fewshot" not in out
    lines = show(capsys, "output", "--rows", "CoOp", "--format", "csv").splitlines()
    assert [line["mean"] for line in csv.DictReader(lines) if line["row"] == "CoOp (icons)"] == ["50.0"] * 10
    (place / "icons").symlink_to("output")  # a folder comes before a sweep of that name
    assert table.is_sweep(["gopro-xd"]) and not table.is_sweep(["icons"])
    assert show(capsys, "icons", "--rows", "CoOp", "--format", "csv").splitlines() == lines
