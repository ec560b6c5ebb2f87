"""One run: `python train.py --trainer NAME --config-file ... --dataset-config-file ... [KEY VALUE ...]`.

The flags are those of Dassl's own tools/train.py; one that is not given leaves the config files' value alone. Any
trainer in Dassl's registry runs, one of this project or one that `--import` loads.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from dassl_clip.cli.arguments import Parser, add_import, check_files, split_command
from dassl_clip.engine.config import FLAGS
from dassl_clip.engine.errors import guarded, safe_console
from dassl_clip.engine.overrides import Overrides, refuse_mistakes, resolve_config
from dassl_clip.engine.paths import leave_checkout
from dassl_clip.experiments.run import Job, start, supervised

AUTO = "auto"  # of --resume: the folder of the run itself


def build_parser() -> Parser:
    """The flags of one run; KEY VALUE pairs are taken off before."""
    parser = Parser(
        prog="train.py",
        description=__doc__,
        usage="%(prog)s [flags] [KEY VALUE ...]",
        epilog="example:\n  python train.py --trainer NAME --config-file configs/trainers/NAME/icons.yaml "
        "--dataset-config-file configs/datasets/icons.yaml --source-domains line --target-domains line --seed 1 "
        "--output-dir output/by-hand",
    )
    parser.add_argument("--trainer", metavar="NAME", help="registry name of the trainer")
    parser.add_argument("--root", "--data", metavar="DIR", help="folder above the data sets")
    parser.add_argument("--output-dir", metavar="DIR", help="the run's folder; a run that stopped here is resumed")
    parser.add_argument("--resume", metavar="DIR",
                        help="resume from the newest whole checkpoint in this folder; 'auto' (the default): in "
                        "--output-dir, from the start if there is none")  # fmt: skip
    parser.add_argument("--seed", type=one_seed, metavar="N", help="negative: unseeded")
    parser.add_argument("--source-domains", nargs="+", metavar="NAME", help="domains to train on")
    parser.add_argument("--target-domains", nargs="+", metavar="NAME", help="domains to test on")
    parser.add_argument("--transforms", nargs="+", metavar="NAME", help="image transforms of the training loader")
    parser.add_argument("--config-file", metavar="FILE", help="the trainer's yaml file")
    parser.add_argument("--dataset-config-file", metavar="FILE", help="the data set's yaml file")
    parser.add_argument("--backbone", metavar="NAME", help="MODEL.BACKBONE.NAME")
    parser.add_argument("--weights", metavar="FILE", help="MODEL.BACKBONE.WEIGHTS")
    parser.add_argument("--head", metavar="NAME", help="MODEL.HEAD.NAME")
    parser.add_argument("--eval-only", action="store_true", help="load --model-dir and test")
    parser.add_argument("--model-dir", metavar="DIR", help="folder of the run to evaluate")
    parser.add_argument("--load-epoch", type=int, metavar="N", help="its epoch; default: the best, else the last one")
    parser.add_argument("--deterministic", action="store_true",
                        help="torch's deterministic algorithms; the record says what held")  # fmt: skip
    parser.add_argument("--no-train", action="store_true", help="build everything, then stop")
    add_import(parser, "a trainer or data set")
    parser.add_argument("--task", metavar="NAME", help="name of the task in the record")
    return parser


def one_seed(text: str) -> int:
    """The seed of the one run that this is."""
    try:
        return int(text)
    except ValueError:
        problem = f"'{text}' should be one whole number; `dassl-clip task METHOD DATASET 1,2,3` makes a run for each"
        raise argparse.ArgumentTypeError(problem) from None


def parse(argv: Sequence[str]) -> tuple[Overrides, Job]:
    """What a command line asks for, and what is to be done with it."""
    args, pairs = split_command(build_parser(), argv)  # a flag that was not given is None
    given = {key: getattr(args, flag.lstrip("-").replace("-", "_")) for key, flag in FLAGS.items()}
    given["RUN.DETERMINISTIC"] = args.deterministic or None
    given["RESUME"] = None if args.resume == AUTO else args.resume
    flags = [(key, tuple(value) if isinstance(value, list) else value) for key, value in given.items()]
    overrides = Overrides(
        dataset_file=args.dataset_config_file or "",
        trainer_file=args.config_file or "",
        flags=tuple((key, value) for key, value in flags if value is not None),
        pairs=pairs,
        imports=tuple(args.imports),
    )
    return overrides, Job(args.eval_only, args.model_dir, args.load_epoch, args.no_train)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code, that of `supervised`."""
    leave_checkout()
    words = list(sys.argv[1:] if argv is None else argv)
    with safe_console(), contextlib.ExitStack() as stack:
        if os.environ.get("RANK", "0") != "0":  # the first of torchrun's processes says what is wrong
            stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
        mistaken = guarded(refuse, words)
        stack.close()
        return mistaken or supervised(lambda: run(words), "--debug" in words)


def refuse(words: Sequence[str]) -> int:
    """Refuse a command line with a mistake, before torch is imported."""
    overrides, _ = parse(words)
    weights = dict(overrides.flags).get("MODEL.BACKBONE.WEIGHTS")
    check_files(argparse.Namespace(imports=overrides.imports, weights=weights))
    refuse_mistakes(overrides)
    return 0


def run(words: Sequence[str]) -> None:
    """Resolve the configuration of a command line, and train or evaluate."""
    overrides, job = parse(words)
    start(resolve_config(overrides), job)


if __name__ == "__main__":
    sys.exit(main())
