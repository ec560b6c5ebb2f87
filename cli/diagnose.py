"""Is there something to repair? `dassl-clip diagnose DATASET --backbone B`, before any training.

A frozen CLIP is tested on training and validation images of every domain, which `fewshot` does not test: with the style
words projected out of its texts, with right and wrong style words in its prompts, with scores balanced over classes.
The methods that repair what these show are named, with the points that there are to gain.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dassl_clip.cli import task
from dassl_clip.cli.arguments import Parser, command
from dassl_clip.engine import registry
from dassl_clip.engine.errors import RESUMES
from dassl_clip.engine.overrides import Pairs
from dassl_clip.experiments import methods, plan, state
from dassl_clip.experiments.tasks import dataset_domains
from dassl_clip.results import records
from dassl_clip.results.diagnosis import diagnosis, summary
from dassl_clip.results.errors import MissingFileError, UserError, listed
from dassl_clip.results.extra_tables import test_table

TASK = "styles"


def build_parser() -> Parser:
    """The arguments of this command; KEY VALUE pairs are taken off before."""
    parser = Parser(
        prog="dassl-clip diagnose",
        description="Which methods have something to repair on a data set with domains, without training any.",
        usage="%(prog)s DATASET [--backbone NAME] [options] [KEY VALUE ...]",
        epilog="example: dassl-clip diagnose icons --backbone local-dir:worlds/s0.9-seed1-styles1",
    )
    parser.add_argument("dataset", metavar="DATASET", help="data set with a config, such as icons, or a yaml file")
    parser.add_argument("--styles", nargs="+", default=(), metavar="WORD",
                        help="one style word per domain, in their order (default: the domains' names)")  # fmt: skip
    parser.add_argument("--own-styles", default="", metavar="FILE",
                        help="JSON file with the own style of each class, where it is known")  # fmt: skip
    task.add_run_arguments(parser)
    return parser


def run(args: argparse.Namespace, pairs: Pairs) -> int:
    """Run what is missing of the tests, and print what they say."""
    keys = {
        "DATASET.STYLES": repr(list(args.styles)) if args.styles else "",
        "DATASET.OWN_STYLES": args.own_styles,
    }
    pairs = (*pairs, *((key, value) for key, value in keys.items() if value))
    args.shots, args.seeds = args.shots or 0, [1]
    request = task.request_of(args, args.dataset, [TASK])
    method = methods.Method(methods.reference_name(), "", pairs)
    runs = plan.plan_runs(request, method)
    domains = dataset_domains(runs[0].config)
    if args.styles and len(args.styles) != len(domains):
        raise UserError(
            f"--styles takes one word for each of the domains {', '.join(domains)}; got {listed(args.styles)}"
        )
    if len({*args.styles}) < len(args.styles):
        raise UserError(f"--styles takes another word for each domain; got {listed(args.styles)}")
    if args.own_styles and not Path(args.own_styles).expanduser().is_file():
        raise MissingFileError(f"--own-styles: there is no file {args.own_styles}")
    failed = task.run_methods(request, [method], args.jobs, args.dry_run)
    finished = (records.read_record(run.folder) for run in runs if state.is_complete(run))
    found = [record for record in finished if record is not None]
    if failed or args.dry_run or not found:
        return failed
    kinds = {name: registry.trainer_class(name) for name in registry.trainer_names()}
    repairs = {name: what for name, kind in kinds.items() if (what := getattr(kind, "repairs", ""))}
    print("\n".join(["", test_table(found).render(), "", *diagnosis(found, repairs), "", summary(found)]))
    return 0


main = command(build_parser, run, RESUMES)
