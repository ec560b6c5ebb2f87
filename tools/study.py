"""The study of models whose classes are tied to styles: `python -m tools.study`.

`run FOLDER` runs every method on each finished model that `python -m tools.build_icons worlds --out FOLDER` left there,
skips what is finished, and keeps the records in `results/worlds/`. `show` prints the tables of the kept records and
draws the figure, without running anything. `docs/when-they-help.md` explains both.

A kept record lacks what names the machine, and has accuracy on images in the class's own style (`own`) and on the
others (`other`) beside `test`. All figures are accuracies, means over models, domains and seeds; an interval is the
95 % one of the paired bootstrap over classes, and over models and seeds where there are several.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from dassl_clip.results.diagnosis import READ_OFF, TESTS, TIED, TIED_BY_CHANCE, Gain, counts, interval
from dassl_clip.results.predictions import read_predictions
from dassl_clip.results.records import ARCHIVE, find_records, write_archive
from tools.build_icons.captions import STYLE_TEMPLATES, STYLE_WORDS
from tools.build_icons.model import RECORD_NAME
from tools.build_icons.recipe import Recipe
from tools.build_icons.worlds import OWN_STYLES_NAME, study_recipes

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "results" / "worlds"
FIGURE = ROOT / "docs" / "images" / "when-they-help.svg"
WORDS_FILE = "style_words.txt"
REFERENCE = "ZeroshotCLIP (icons)"
BACKBONE = "MODEL.BACKBONE.NAME"
METHODS = {
    "lodo": ("ZeroshotCLIP", "StyleProjection", "CLAP", "CLAP:icons_source_val", "InMaP", "InMaP:icons_paper",
             "InMaP:icons_gamma", "LinearProbe", "CoOp", "GOPro"),
    "fewshot": ("ZeroshotCLIP", "LinearProbe", "CoOp", "GOPro"),
    "styles": ("ZeroshotCLIP",),
}  # fmt: skip
GROUPS = {"all": "test", "own": "own", "other": "other"}
LEFT_OUT = ("history", "training", "solutions")  # long, and in no table


def strength(name: str) -> str:
    """The group of models that a model is averaged with: its s, or the style that it never saw."""
    return name.partition("-seed")[0]


def run_world(name: str, folder: Path, seeds: Sequence[int], jobs: int, chosen: Sequence[str] = ()) -> None:
    """Run the methods on one model, or those chosen; finished runs are skipped."""
    words = folder / WORDS_FILE
    texts = [
        template.replace("{style}", word) for ws in STYLE_WORDS.values() for word in ws for template in STYLE_TEMPLATES
    ]
    words.write_text("\n".join(texts) + "\n", encoding="utf-8")
    model = [BACKBONE, f"local-dir:{folder.name}/{name}"]
    out = ["--out", f"{folder.name}/runs/{name}", "--jobs", str(jobs)]
    numbers = [str(seed) for seed in seeds]
    commands = []
    for task, methods in METHODS.items():
        wanted = [word for word in methods if not chosen or word.partition(":")[0] in chosen]
        if wanted:
            asked = ["--seeds", *numbers, "--tasks", task, "--methods", *wanted]
            commands.append(["compare", "icons", *asked, *out, *model])
    own_words = ["TRAINER.CLAP.SOURCE", f"{folder.name}/{WORDS_FILE}"]
    if not chosen or "CLAP" in chosen:
        commands.append(["task", "CLAP", "icons", ",".join(numbers), "--task", "lodo", *out, *model, *own_words])
    for command in commands:
        subprocess.run([sys.executable, "-m", "dassl_clip.cli", *command], cwd=folder.parent, check=True)


def keep(name: str, folder: Path) -> Path:
    """Write the records of a model's runs to `results/worlds/`; returns the file.

    Records that were kept before of the same weights, and whose runs are not in the folder, stay.
    """
    file = folder / name / OWN_STYLES_NAME
    own = json.loads(file.read_text(encoding="utf-8"))["own_styles"] if file.is_file() else None
    recipe = json.loads((folder / name / RECORD_NAME).read_text(encoding="utf-8"))["recipe"]
    precision = recipe.get("precision", Recipe.precision)
    found = [item for item in find_records(folder / "runs" / name) if item.record is not None]
    records = [kept_record(item.record, item.folder, own, name) | {"pre_trained_in": precision} for item in found]
    run_again = {_cell(record) for record in records}
    weights = {record["backbone"]["weights_hash"] for record in records}
    records += [record for record in read_kept().get(name, [])
                if _cell(record) not in run_again and record["backbone"]["weights_hash"] in weights]  # fmt: skip
    records.sort(key=_cell)
    KEPT.mkdir(exist_ok=True)
    write_archive(records, KEPT / f"{name}{ARCHIVE}")
    return KEPT / f"{name}{ARCHIVE}"


def _cell(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells the runs of a model apart."""
    return record["task"], record["method"], record["config"], tuple(record["target_domains"]), record["seed"]


def kept_record(record: Mapping[str, Any], folder: Path, own: Mapping[str, str] | None, name: str) -> dict[str, Any]:
    """A record without what names the machine, with the metrics of own-style and other images."""
    kept = {key: value for key, value in record.items() if key not in LEFT_OUT}
    kept["command"] = f"python -m tools.study run FOLDER --only {name}"
    changes = [part for part in record["config"].split("+") if not part.startswith(f"{BACKBONE}=")]
    kept["config"] = "+".join("words" if part.startswith("SOURCE=") else part for part in changes)
    kept["backbone"] = record["backbone"] | dict.fromkeys(("name", "architecture"), f"local-dir:worlds/{name}")
    kept["toolbox"] = record["toolbox"] | {"path": ""}
    kept["world"] = name
    predictions = read_predictions(folder)
    right = predictions.top[:, 0] == predictions.labels
    (target,) = record["target_domains"]
    groups = {"test": np.ones(len(right), dtype=bool)}
    if own is not None:
        is_own = np.array([own[predictions.classnames[label]] == target for label in predictions.labels])
        groups |= {"own": is_own, "other": ~is_own}
    metrics = {key: value for key, value in record["metrics"].items() if record["task"] == "styles" or key == "test"}
    for group, chosen in groups.items():
        if chosen.any():
            per_class = [
                100 * float(right[mask].mean()) if (mask := chosen & (predictions.labels == label)).any() else None
                for label in range(len(predictions.classnames))
            ]
            accuracy = 100 * float(right[chosen].mean())
            facts = {"accuracy": accuracy, "error_rate": 100 - accuracy, "per_class_accuracy": per_class}
            facts |= {"correct": int(right[chosen].sum()), "total": int(chosen.sum())}
            facts["per_class_total"] = np.bincount(predictions.labels[chosen], minlength=len(per_class)).tolist()
            metrics[group] = {**metrics.get(group, {}), **facts}
    return kept | {"metrics": metrics}


class Runs(NamedTuple):
    """Right and all images of runs, `[R, C]` each, and which run (model, domains, seed) a row is of."""

    right: np.ndarray
    total: np.ndarray
    names: list[tuple[Any, ...]]


Cells = dict[tuple[str, str], dict[str, Runs]]  # (task, row) -> group of images


def cells_of(records: Sequence[Mapping[str, Any]]) -> Cells:
    """Right and all images by run and class, in the order of model, domain and seed."""
    rows: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for record in sorted(records, key=lambda r: (r["world"], r["target_domains"], r["seed"])):
        row = rows.setdefault((record["task"], f"{record['method']} ({record['config']})"), {})
        for group, split in GROUPS.items():
            if split in record["metrics"]:
                row.setdefault(group, []).append(record)
    return {
        key: {group: Runs(*counts(runs, GROUPS[group]), list(map(_name, runs))) for group, runs in groups.items()}
        for key, groups in rows.items()
    }


def _name(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["world"], tuple(record["target_domains"]), record["seed"]


def gain_of(cells: Cells, task: str, row: str, group: str) -> Gain | None:
    """The gain of a row over the reference, same model, domain and seed, of the runs that both have; None for none."""
    ours, theirs = (cells.get((task, name), {}).get(group) for name in (row, REFERENCE))
    if ours is None or theirs is None:
        return None
    place = {name: number for number, name in enumerate(theirs.names)}
    pairs = [(number, place[name]) for number, name in enumerate(ours.names) if name in place]
    mine, other = ([pair[side] for pair in pairs] for side in (0, 1))
    if not pairs or not np.array_equal(ours.total[mine], theirs.total[other]):
        return None
    groups = [(name[0], name[-1]) for name in (ours.names[number] for number in mine)]
    return interval(ours.right[mine] - theirs.right[other], ours.total[mine], groups=groups)


def tables(archives: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The tables of the study, markdown: one for each task, methods by strengths."""
    recipes = study_recipes()
    ordered = sorted(archives, key=lambda name: (recipes[name].held_out, recipes[name].entangle))
    strengths = list(dict.fromkeys(strength(name) for name in ordered))
    cells = {s: cells_of([r for name in archives if strength(name) == s for r in archives[name]]) for s in strengths}
    made = [tabulate([[s, name, recipe_text(archives[name][0]), archives[name][0]["backbone"]["weights_hash"][:12]]
                      for s in strengths for name in archives if strength(name) == s],
                     ["s", "model", "pre-training", "weights"], tablefmt="pipe")]  # fmt: skip
    for task in ("lodo", "fewshot"):
        rows = list(dict.fromkeys(row for table in cells.values() for t, row in table if t == task))
        body = [["zero-shot accuracy, all / own / other", *(accuracies(cells[s], task) for s in strengths)]]
        body += [[row, *(gain_text(cells[s], task, row) for s in strengths)] for row in rows if row != REFERENCE]
        made.append(f"Task {task}, gains over zero-shot in points: all [95 %], own / other\n\n"
                    + tabulate(body, ["", *strengths], tablefmt="pipe"))  # fmt: skip
    tests = {s: [r for name in archives if strength(name) == s for r in archives[name] if r["task"] == "styles"]
             for s in strengths}  # fmt: skip
    body = [[test, *(style_text(tests[s], test) for s in strengths)] for test in TESTS]
    made.append("Diagnosis on training and validation images: accuracy in %, or share of errors in %\n\n"
                + tabulate(body, ["", *strengths], tablefmt="pipe"))  # fmt: skip
    return made


def recipe_text(record: Mapping[str, Any]) -> str:
    """How the model of a kept record is trained again."""
    precision = record.get("pre_trained_in", Recipe.precision)
    option = f" --precision {precision}" if precision != Recipe.precision else ""
    return f"`python -m tools.build_icons worlds --out FOLDER{option} --only {record['world']}`"


def accuracies(cells: Cells, task: str) -> str:
    """Zero-shot accuracy of a task: all, own, other."""
    table = cells.get((task, REFERENCE), {})
    return " / ".join(f"{interval(*table[group][:2]).mean:.1f}" for group in GROUPS if group in table) or "-"


def gain_text(cells: Cells, task: str, row: str) -> str:
    """`+2.2 [0.2, 5.2], +0.1 / +3.0`."""
    gains = [gain_of(cells, task, row, group) for group in GROUPS]
    if gains[0] is None:
        return "-"
    parts = [f"{gain.mean:+.1f}" for gain in gains[1:] if gain is not None]
    models, every = ({name[0] for name in cells[task, label]["all"].names} for label in (row, REFERENCE))
    fewer = f" ({len(models)} of {len(every)} models)" if len(models) < len(every) else ""
    return str(gains[0]) + (f", {' / '.join(parts)}" if parts else "") + fewer


def style_text(records: Sequence[Mapping[str, Any]], test: str) -> str:
    """A test's figure: the mean over domains and models."""
    values = [record["metrics"][test]["accuracy"] for record in records if test in record["metrics"]]
    digits = 0 if test in (TIED, TIED_BY_CHANCE, READ_OFF) else 1
    return f"{np.mean(values):.{digits}f}" if values else "-"


def draw(archives: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """The figure: gain against s, one panel for each method, own-style and other images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "dassl-clip"
    named = {recipe.entangle: strength(name) for name, recipe in study_recipes().items() if not recipe.held_out}
    shares = sorted(share for share, s in named.items() if any(strength(name) == s for name in archives))
    cells = {
        s: cells_of([r for name in archives if strength(name) == named[s] for r in archives[name]]) for s in shares
    }
    rows = [(task, row) for task in ("lodo", "fewshot")
            for row in dict.fromkeys(row for table in cells.values() for t, row in table if t == task)
            if row != REFERENCE]  # fmt: skip
    figure, panels = plt.subplots(-(-len(rows) // 4), 4, figsize=(13, 3 * -(-len(rows) // 4)), sharey=True, sharex=True)
    for axes in panels.flat[len(rows) :]:
        axes.axis("off")
    for axes, (task, row) in zip(panels.flat, rows, strict=False):
        for group, colour in (("own", "#e07b39"), ("other", "#1b6ca8")):
            gains = [gain_of(cells[s], task, row, group) for s in shares]
            points = [(s, gain) for s, gain in zip(shares, gains) if gain is not None]
            axes.plot([s for s, _ in points], [gain.mean for _, gain in points], "o-", color=colour,
                      label=f"{group} style" + "s" * (group == "other"))  # fmt: skip
            axes.fill_between([s for s, _ in points], [gain.low for _, gain in points],
                              [gain.high for _, gain in points], color=colour, alpha=0.15, linewidth=0)  # fmt: skip
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.set_title(f"{row}, {task}", fontsize=9)
    panels.flat[0].legend(fontsize=8)
    figure.supxlabel("s: share of pre-training pictures of a class in its own style")
    figure.supylabel("gain over zero-shot, points")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def read_kept() -> dict[str, list[dict[str, Any]]]:
    """The kept records of each model, in the study's order."""
    return {
        name: [item.record for item in find_records(KEPT / f"{name}{ARCHIVE}") if item.record is not None]
        for name in study_recipes()
        if (KEPT / f"{name}{ARCHIVE}").is_file()
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser("python -m tools.study", description=__doc__.split("\n\n")[0])
    steps = line.add_subparsers(dest="step", required=True)
    run = steps.add_parser("run", help="run the methods on finished models, and keep the records")
    run.add_argument("folder", type=Path, metavar="FOLDER", help="of `python -m tools.build_icons worlds --out FOLDER`")
    run.add_argument("--only", nargs="+", metavar="NAME", help="these models")
    run.add_argument("--methods", nargs="+", default=[], metavar="TRAINER",
                     help="only these trainers; what was kept of others stays")  # fmt: skip
    run.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="of the methods (1)")
    run.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (2)")
    show = steps.add_parser("show", help="print the tables of the kept records")
    show.add_argument("--draw", action="store_true", help=f"draw {FIGURE.relative_to(ROOT)} too")
    return line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    line = parser()
    options = line.parse_args(arguments)
    if options.step == "run":
        folder = options.folder.resolve()
        names = options.only or [name for name in study_recipes() if (folder / name / RECORD_NAME).is_file()]
        if absent := [name for name in names if not (folder / name / RECORD_NAME).is_file()]:
            line.exit(2, f"no finished model in {folder}: {', '.join(absent)}; `python -m tools.build_icons worlds`\n")
        known = {word.partition(":")[0] for methods in METHODS.values() for word in methods}
        if odd := sorted({*options.methods} - known):
            line.exit(2, f"--methods: the study has no {', '.join(odd)}; its trainers: {', '.join(sorted(known))}\n")
        for name in names:
            try:
                run_world(name, folder, options.seeds, options.jobs, options.methods)
            except subprocess.CalledProcessError as error:
                words = " ".join(map(str, error.cmd[3:6]))
                line.exit(
                    1, f"{name}: `dassl-clip {words} ...` failed, see above; the same command starts what is missing\n"
                )
            print(keep(name, folder).relative_to(ROOT))
        return 0
    archives = read_kept()
    if not archives:
        line.exit(2, f"no records in {KEPT}; `python -m tools.study run FOLDER` makes them\n")
    print("\n\n".join(tables(archives)))
    if options.draw:
        draw(archives, FIGURE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
