"""What a method was allowed to see, and whether it keeps the rules: `dassl-clip check METHOD`."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dassl_clip.cli.arguments import Parser, add_import, command
from dassl_clip.engine.overrides import Pairs

ALL = "all"


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip check",
        description="Train and test a method many times on a few icons, with labels, images, classes and settings "
        "changed, and say what it reads and which rules it breaks. Any Dassl trainer can be checked.",
        usage="%(prog)s METHOD [options] [KEY VALUE ...]",
        epilog="example: dassl-clip check MyTrainer --import my_trainer.py --only labels images",
    )
    parser.add_argument("method", metavar="METHOD",
                        help=f"registry name of a trainer, or '{ALL}' for every one with a config")  # fmt: skip
    add_import(parser, "a trainer")
    parser.add_argument(
        "--task",
        default="lodo",
        metavar="TASK",
        help="lodo: train on other domains than the tested one (default); fewshot: on the same",
    )
    parser.add_argument("--config", default="", metavar="NAME_OR_FILE",
                        help="config of the method (default: that for the icons, or none)")  # fmt: skip
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="NAME",
        help="only these checks, or groups: labels, images, classes, state, numbers, contract",
    )
    parser.add_argument("--json", default="", metavar="FILE", help="write the results to a file")
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    from dassl_clip.checks.suite import check_names, choose
    from dassl_clip.engine import catalogue, declared

    every = args.method.lower() == ALL
    if not every and not args.imports:
        catalogue.match_trainer(args.method, declared.registered_names("TRAINER"))  # before torch is imported
    check_names(args.only)
    from dassl_clip.clip.sharing import shared_backbones
    from dassl_clip.engine import registry
    from dassl_clip.results.files import write_text_atomically

    registry.register()
    for module in args.imports:
        registry.import_user_code(module)
    chosen = choose(args.only)
    if every:
        known = set(registry.trainer_names())
        names = [name for name in catalogue.trainer_names() if name in known]
    else:
        names = [catalogue.match_trainer(args.method, registry.trainer_names())]
    reports = []
    with shared_backbones():
        for name in names:
            reports.append(_check(name, args, pairs, chosen, short=every))
    if every:
        print(_summary(reports))
    if args.json:
        write_text_atomically(Path(args.json), json.dumps(reports, indent=2) + "\n")
    return int(any(result["verdict"] == "fails" for report in reports for result in report["results"]))


def _check(name: str, args: argparse.Namespace, pairs: Pairs, chosen: Any, short: bool) -> dict[str, Any]:
    """Check one method, print each result when it is there, and return all of them."""
    from dassl_clip.checks.budget import budget
    from dassl_clip.checks.probe import ProbeError
    from dassl_clip.checks.session import Session
    from dassl_clip.checks.suite import FAILS, Result, run_checks
    from dassl_clip.engine.source import decisive_settings, source_hash
    from dassl_clip.results import budgets
    from dassl_clip.results.errors import UserError

    begun, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="dassl-clip-check-") as folder:
        session = Session(name, Path(folder), tuple(args.imports), args.task, args.config, pairs)
        world = session.base
        counts = f"{len(world.train)} training, {len(world.val)} validation and {len(world.test)} test images"
        settings = " ".join(f"{key} {value}" for key, value in session.plan.pairs)
        print(f"{name}: task {args.task}, {len(world.classes)} classes, {counts}; {settings}")
        try:
            for result in run_checks(session, chosen):
                results.append(result)
                if not short or result.verdict == FAILS:
                    print(f"  {result.name:<20} {result.verdict:<14} {result.evidence}", flush=True)
        except ProbeError as error:
            if error.refused:
                raise UserError(f"{name} cannot be checked: {error.text}") from error
            results.append(Result(FAILS, f"the method cannot be run: {error.text}", name="contract.runs"))
            print(f"  {results[-1].name:<20} {FAILS:<14} {results[-1].evidence}")
    reads, seconds = budget(results), time.monotonic() - begun
    counts = Counter(result.verdict for result in results)
    print(f"  {', '.join(f'{count} {verdict}' for verdict, count in counts.items())}; {seconds:.0f} s")
    decisive = decisive_settings(session.kind, session.config(session.base, "base"))
    if reads:
        budgets.store(name, source_hash(session.kind), decisive, {"decisive": decisive, "budget": reads})
        print(f"  budget: {'; '.join(reads)}")
    return {
        "method": name, "source": source_hash(session.kind), "task": args.task, "settings": dict(session.plan.pairs),
        "budget": reads, "seconds": round(seconds, 1),
        "results": [{key: getattr(r, key) for key in ("name", "verdict", "evidence", "numbers")} for r in results],
    }  # fmt: skip


def _summary(reports: list[dict[str, Any]]) -> str:
    """One row for each method: how many checks pass, fail and do not apply, and its budget."""
    from tabulate import tabulate

    rows = []
    for report in reports:
        counts = Counter(result["verdict"] for result in report["results"])
        rows.append([report["method"], counts["passes"], counts["fails"], counts["does not apply"],
                     f"{report['seconds']:.0f}", "; ".join(report["budget"])])  # fmt: skip
    return str(tabulate(rows, ["method", "passes", "fails", "n/a", "s", "reads"]))


main = command(build_parser, run)
