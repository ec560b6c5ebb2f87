"""Several methods beside each other: `dassl-clip compare icons` runs what is missing and prints the tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dassl_clip.cli import task
from dassl_clip.cli.arguments import Parser, split_command
from dassl_clip.engine import catalogue
from dassl_clip.engine.errors import GOES_ON, guarded
from dassl_clip.experiments import plan, reference, tasks
from dassl_clip.results.documents import read_yaml


def build_parser() -> argparse.ArgumentParser:
    """The arguments of this command; KEY VALUE pairs, which hold for all methods, are taken off before."""
    parser = Parser(
        prog="dassl-clip compare",
        description="Run what is missing of several methods on one data set, and print one table a task.",
        usage="%(prog)s DATASET [--seeds 1 2 3] [options] [KEY VALUE ...]",
        epilog="example: dassl-clip compare icons --seeds 1 2 3 --methods ZeroshotCLIP GOPro:icons GOPro:icons_paper",
    )
    parser.add_argument("dataset", metavar="DATASET", help="data set with a config, such as icons, or a yaml file")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="default: 1")
    parser.add_argument("--methods", nargs="+", default=(), metavar="TRAINER[:CONFIG][+InMaP]",
                        help="rows of the table, the first is the reference (default: every trainer with a config for "
                        "the data set, and the variants of those configs)")  # fmt: skip
    parser.add_argument("--tasks", nargs="+", default=(), metavar="TASK", help="default: the data set's own")
    task.add_run_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; 1 if a run failed, 2 with one sentence for a user's error."""
    return guarded(lambda words: run_compare(*split_command(build_parser(), words)), argv, GOES_ON)


def run_compare(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Run what is missing of the methods, and print the tables."""
    request = task.request_of(args, args.seeds, args.tasks)
    methods = [task.method_of(word, request, pairs) for word in args.methods]
    request = plan.with_tasks(request, plan.Method(reference.REFERENCE))
    methods = methods or all_methods(request, pairs)
    return task.run_methods(request, methods, args.jobs, args.dry_run)


def all_methods(request: plan.Request, pairs: Sequence[str]) -> list[plan.Method]:
    """Every trainer with a config for the data set, the reference first, with their variants on the same backbone.

    Where the reference has no config for the data set, every trainer counts. Where the refiner is among them, the
    default config of every method that it can refine is refined too. Methods that a task has no place for are left out.
    """
    dataset = catalogue.dataset_file(request.dataset)
    trainers = sorted(catalogue.trainer_names(), key=lambda name: (name != reference.REFERENCE, name == "GOPro", name))
    own = [name for name in trainers if catalogue.trainer_file(name, "", dataset.stem).stem == dataset.stem]
    own = [name for name in (own if reference.REFERENCE in own else trainers) if tasks.has_place(name, request.tasks)]
    methods = []
    for trainer in own:
        default, *variants = catalogue.trainer_configs(trainer, dataset.stem)
        methods.append(plan.Method(trainer, default, tuple(pairs)))
        if tasks.REFINER in own and trainer not in (tasks.REFINER, reference.REFERENCE):
            refiner = catalogue.trainer_configs(tasks.REFINER, dataset.stem)[0]
            methods.append(plan.Method(tasks.REFINER, refiner, tuple(pairs), base=methods[-1]))
        same = [name for name in variants if _backbone(trainer, name) == _backbone(trainer, default)]
        methods += [plan.Method(trainer, variant, tuple(pairs)) for variant in same]
    return methods


def _backbone(trainer: str, config: str) -> str:
    """The backbone that a shipped config names."""
    tree = read_yaml(catalogue.trainer_file(trainer, config, ""))
    return tree["MODEL"]["BACKBONE"]["NAME"]
