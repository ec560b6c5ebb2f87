"""What a finished run learned, tested on other images: `dassl-clip eval RUN --dataset pacs --targets sketch`.

The run (or the file that `dassl-clip export` made of it) says all the rest: trainer, settings, backbone, prompts. Each
target is an evaluation with a folder of its own below `OUT/eval`, whose record says what was trained on what. On the
run's own data set the run's split holds, so nothing that it trained on is tested; of another data set with domains, and
of your own folders, every image is tested; of any other, its published test images.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from dassl_clip.cli.arguments import Parser, add_data, add_import, add_model, command
from dassl_clip.engine import catalogue, registry
from dassl_clip.engine.config import decode, default_config, keys_with, merge_file, set_key
from dassl_clip.engine.overrides import Overrides, Pairs
from dassl_clip.experiments import identity, plan, state, tasks
from dassl_clip.experiments.run import Job, start
from dassl_clip.results import records, tables
from dassl_clip.results.groups import Row, group_records
from dassl_clip.results.protocols import EVALUATION
from dassl_clip.results.rendering import render_tables
from dassl_clip.results.scenarios import has_scenarios, scenario_tables

SUBSETS = ("all", "base", "new")


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip eval",
        description="Test what a finished run learned on other images; the run says all that is not given here.",
        usage="%(prog)s RUN_OR_EXPORT [options] [KEY VALUE ...]",
        epilog="example: dassl-clip eval output/fewshot/icons/METHOD/icons/shots16/line/seed1 --targets flat solid",
    )
    parser.add_argument("run", metavar="RUN_OR_EXPORT", help="folder of a finished run, or a file made by export")
    parser.add_argument("--dataset", default="", metavar="NAME_OR_FILE",
                        help="data set with a config, or a yaml file (default: the run's)")  # fmt: skip
    add_data(parser, "short for DATASET.ROOT (default: the run's)")
    add_model(parser, "the run's")
    parser.add_argument("--targets", nargs="+", default=(), metavar="DOMAIN",
                        help="domains to test (default: the run's; of another data set all)")  # fmt: skip
    parser.add_argument("--classes", choices=SUBSETS, help="DATASET.SUBSAMPLE_CLASSES (default: the run's)")
    parser.add_argument("--load-epoch", type=int, metavar="N", help="default: the best one, else the last one")
    parser.add_argument("--out", default="output", metavar="DIR", help="folder above all runs (default: output)")
    add_import(parser, "a trainer or data set")
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    """Evaluate on each target what is not evaluated yet, and print the table."""
    if args.dataset:
        catalogue.dataset_file(args.dataset)  # refuses an unknown name
    from dassl_clip.engine.open_run import read_run, run_folder

    registry.register()
    for name in args.imports:
        registry.import_user_code(name)
    origin = Path(args.run).expanduser()
    with run_folder(origin) as folder:
        record, tree = read_run(folder)
        if record.get("evaluated_from") and origin.is_dir():  # an evaluation again: of the same run
            return run(argparse.Namespace(**{**vars(args), "run": record["evaluated_from"]}), pairs)
        runs = evaluations(args, pairs, origin, record, tree)
        for each in runs:
            now = state.state_of(each)
            if now.name in (state.COMPLETE, state.REFUSED):
                print(f"skipped, {now.name}: {each.name} ({each.folder}){f': {now.reason}' if now.reason else ''}")
                continue
            state.prepare_folder(each.folder, each.config)
            print(f"evaluating: {each.name}; log: {each.folder / 'log.txt'}", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):  # all of it is in the log
                start(each.config, Job(eval_only=True, model_dir=str(origin), load_epoch=args.load_epoch))
    shown = [records.read_record(each.folder) for each in runs if state.is_complete(each)]
    for group in group_records(record for record in shown if record is not None):
        made = [tables.method_table(group), *(scenario_tables(group) if has_scenarios(group) else ())]
        print(f"\n{render_tables(made)}")
    return 0 if len(shown) == len(runs) else 1


def evaluations(
    args: argparse.Namespace, pairs: Pairs, origin: Path, record: dict[str, Any], tree: dict[str, Any]
) -> list[plan.Run]:
    """One run for each target of the run (or export) at `origin`, of which record and configuration are given.

    Raises:
        UserError: a data set, domain or key that does not exist.
    """
    from dassl.config import clean_cfg
    from dassl_clip.engine.open_run import run_config

    cfg = run_config(tree, record)
    cfg.VERBOSE = True
    clean_cfg(cfg, record["method"])
    trained = cfg.DATASET.NAME
    if args.dataset:  # its file stands in the place of the run's own settings of its data
        node = default_config().DATASET
        for key in (key.removeprefix("DATASET.") for key in keys_with("of_run")):
            node[key] = cfg.DATASET[key]
        cfg.DATASET = node
        merge_file(cfg, str(catalogue.dataset_file(args.dataset)))
    if args.data:
        cfg.DATASET.ROOT = args.data
    if args.classes:
        cfg.DATASET.SUBSAMPLE_CLASSES = args.classes
    for key, value in pairs:
        set_key(cfg, key, decode(value), "the command line")
    cfg.RUN.TASK, cfg.RUN.SOURCE = EVALUATION, trained
    domains = tasks.dataset_domains(cfg)
    foreign = trained != cfg.DATASET.NAME or (bool(args.data) and not _same_images(cfg, record))
    own = [] if foreign else list(cfg.DATASET.TARGET_DOMAINS)
    targets = tasks.targets_of(args.targets or own, domains, cfg.DATASET.NAME)
    name = origin.name if origin.is_file() else str(origin.resolve())
    made_of = json.dumps([name, record["config_hash"], record["finished_at"], args.load_epoch])
    short = hashlib.sha256(made_of.encode()).hexdigest()[:8]
    stem = Path(args.dataset).stem if args.dataset else cfg.DATASET.NAME.lower()
    runs = []
    for target in targets:
        asked = cfg.clone()
        asked.defrost()
        if domains:
            asked.DATASET.TARGET_DOMAINS = (target,)
        if foreign:
            asked.DATASET.SOURCE_DOMAINS = asked.DATASET.TARGET_DOMAINS if domains else ()
            asked.DATASET.TEST_PART, asked.DATASET.TRIAL = "in", 0  # of DomainBed's protocol alone
            asked.DATASET.PROTOCOL = "all-images" if domains or not tasks.publishes_test(asked) else "dassl"
        subset = asked.DATASET.SUBSAMPLE_CLASSES
        column = "-".join(filter(None, (target, subset if subset != "all" or not target else "")))
        below = ("eval", stem, record["method"], f"{record['config'] or 'run'}-of-{short}", f"shots{record['shots']}")
        folder = Path(args.out, *below, column, f"seed{record['seed']}")
        asked.OUTPUT_DIR = str(folder)
        asked.freeze()
        row = Row(record["method"], record["config"])
        runs.append(plan.Run(folder, Overrides(), asked, row, EVALUATION, column, record["seed"]))
    return runs


def _same_images(cfg: Any, record: dict[str, Any]) -> bool:
    """Whether the run's own images lie in the folder that is given."""
    try:
        return identity.data_now(cfg).fingerprint == record.get("data", {}).get("fingerprint")
    except Exception:  # other domains, other classes, no such folder: not the run's images
        return False


main = command(build_parser, run, "interrupted: the same command evaluates what is missing")
