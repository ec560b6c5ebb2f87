"""One page of all runs below a folder: `dassl-clip report output` writes `output/report.html`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from dassl_clip.cli.arguments import Parser, command
from dassl_clip.engine import errors
from dassl_clip.results import environment, plot_features, plots, records, report, samples
from dassl_clip.results.documents import CONFIG_NAME
from dassl_clip.results.errors import UserError
from dassl_clip.results.figures import NEEDED, Plot
from dassl_clip.results.files import write_text_atomically
from dassl_clip.results.groups import check_rows, group_records, row_of
from dassl_clip.results.predictions import PREDICTIONS
from dassl_clip.results.scenarios import group_tables

NAME = "report.html"
LOG = "log.txt"
TAIL_LINES = 12
COMMAND = "Command: "
MOST_CONFUSIONS = 4
LINES = ("domains", "shots", "curves")  # the figures that show points
MATPLOTLIB = NEEDED.split(":")[0]


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip report",
        description="Write one self-contained HTML page of runs: tables, figures, images, settings, environment, gaps.",
        epilog="example: dassl-clip report output --out report.html --reference METHOD",
    )
    parser.add_argument("folder", metavar="RUN_OR_FOLDER", help="a run folder, or any folder above run folders")
    parser.add_argument("--out", default="", metavar="FILE", help=f"the page (default: FOLDER/{NAME})")
    parser.add_argument("--reference", default="", metavar="ROW", help="method, or 'Method (config)', for gains")
    parser.add_argument("--title", default="", metavar="TEXT", help="heading (default: the folder's name)")
    parser.add_argument("--no-plots", action="store_true", help="tables and settings alone, no images")
    return parser


def run(args: argparse.Namespace) -> int:
    """Gather, draw and write the page.

    Raises:
        UserError: there is no run at all, or no row is the reference.
    """
    root = Path(args.folder).expanduser()
    found = records.find_records(root)
    complete = [item for item in found if item.record is not None]
    gaps = [gap(item.folder, root, f"{item.state}: {item.reason}") for item in found if item.record is None]
    begun = sorted(path.parent for path in root.rglob(CONFIG_NAME))
    gaps += [gap(folder, root, "not finished") for folder in begun if not (folder / records.RECORD_NAME).exists()]
    if not complete and not gaps:
        raise UserError(f"there is no run at or below {root}: neither {records.RECORD_NAME} nor {CONFIG_NAME}")
    groups = group_records(item.record for item in complete)
    check_rows("--reference", [args.reference] * bool(args.reference), groups)
    made = []
    for group in groups:
        made += group_tables(group, args.reference)
    figures, remarks, numbers = ([], [], []) if args.no_plots or not complete else draw(complete)
    saved = samples.with_predictions((item.folder, item.record) for item in complete)
    images, more = ([], "") if args.no_plots else samples.strips(saved)
    missing = [line for table in made for line in table.below if line.startswith("missing: ")]
    for table in made:
        table.below = [line for line in table.below if not line.startswith("missing: ")]
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    version = environment.package_versions()[environment.DISTRIBUTION]
    content = report.Content(
        title=args.title or f"Runs in {shown(root.resolve().name or root)}",
        summary=[
            f"{len(complete)} finished runs, {len(gaps)} unfinished or broken",
            f"made by dassl-clip {version} on {now}, from {shown(root.resolve())}",
        ],
        tables=made,
        plots=figures,
        numbers=numbers,
        remarks=[*remarks, *([more] if more else [])],
        strips=images,
        pairs=samples.confused(saved),
        runs=[(below(item.folder, root), item.record) for item in complete],
        configs=configs(complete, root),
        gaps=gaps,
        missing=list(dict.fromkeys(missing)),
    )
    out = Path(args.out or root / NAME).expanduser()
    out = out / NAME if out.is_dir() else out
    write_text_atomically(out, report.render(content))
    print(f"{out}: {len(complete)} finished run{'s' * (len(complete) != 1)}, {len(made)} tables, {len(figures)} figures"
          f"{f', {len(gaps)} unfinished or broken' if gaps else ''}")  # fmt: skip
    for remark in remarks:
        print(f"no figure: {remark}", file=sys.stderr)
    return 0


def draw(found: Sequence[records.FoundRecord]) -> tuple[list[Plot], list[str], list[str]]:
    """The figures that these runs have the data for, why others are not there, and the numbers of single points."""
    only_records = [item.record for item in found]
    wanted: list[tuple[str, Callable[..., Plot], Sequence]] = [
        ("domains", plots.domains_plot, only_records),
        ("shots", plots.shots_plot, only_records),
        ("curves", plots.curves_plot, only_records),
    ]
    groups: dict[tuple, list[tuple[Path, dict]]] = {}
    for item in found:
        if (item.folder / PREDICTIONS).is_file():
            record = item.record
            key = (record["dataset"], record["task"], record["class_subset"], record["shots"], row_of(record))
            groups.setdefault(key, []).append((item.folder, record))
    kept = sorted(groups.items(), key=lambda group: str(group[0]))[:MOST_CONFUSIONS]
    wanted += [("confusion", plot_features.confusion_plot, runs) for _, runs in kept]
    made, remarks, numbers = [], [], []
    for name, make, runs in wanted:
        try:
            plot = make(runs)
            if name in LINES and (alone := single_point(plot)):
                numbers.append(alone)
            else:
                made.append(plot)
        except ValueError as error:
            remarks.append(f"{name}: {errors.sentence(error)}")
    if len(groups) > len(kept):
        remarks.append(f"confusion: {len(kept)} of {len(groups)} groups of runs; dassl-clip plot confusion draws any")
    if any(MATPLOTLIB in remark for remark in remarks):
        remarks = [NEEDED]
    return made, remarks, numbers


def single_point(plot: Plot) -> str:
    """The numbers of a figure in which no line or axis has two points, as a sentence; "" of every other figure."""
    texts = []
    for panel in plot.figure.axes:
        points = [(x, y) for line in panel.lines for x, y in zip(line.get_xdata(), line.get_ydata())]
        points = [(x, y) for x, y in dict.fromkeys((float(x), float(y)) for x, y in points) if y == y]
        if len({x for x, _ in points}) > 1:
            return ""
        texts += [f"{panel.get_title() or panel.get_ylabel()}: {y:.4g}" for _, y in points[:1]]
    return f"{plot.caption.splitlines()[0]} {'; '.join(texts)}" if texts else ""


def configs(found: Sequence[records.FoundRecord], root: Path) -> list[tuple[str, str]]:
    """For each method and task the command and configuration of its first run."""
    made: dict[str, str] = {}
    for item in found:
        record, path = item.record, item.folder / CONFIG_NAME
        name = f"{row_of(record).label}, {record['task'] or 'by hand'}, {record['dataset']}"
        if name not in made and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            made[name] = f"# {below(item.folder, root)}\n# {record['command']}\n{text}"
    return list(made.items())


def gap(folder: Path, root: Path, reason: str) -> report.Gap:
    """What is known of a run without a usable record."""
    logs = sorted((path for path in folder.glob(f"{LOG}*") if path.is_file()), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines() if logs else []
    command = next((line.removeprefix(COMMAND) for line in lines if line.startswith(COMMAND)), "")
    return report.Gap(below(folder, root), reason, [line for line in lines if line.strip()][-TAIL_LINES:], command)


def below(folder: Path, root: Path) -> str:
    """A folder as seen from the root."""
    relative = folder.relative_to(root)
    return shown(relative) if relative.parts else shown(folder)


def shown(path: str | Path) -> str:
    """A path as text that can be written, whatever bytes its name has."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


main = command(build_parser, run)
