"""One run: `python train.py --trainer GOPro --config-file ... --dataset-config-file ... [KEY VALUE ...]`.

The flags are those of Dassl's own tools/train.py; one that is not given leaves the config files' value alone. Any
trainer in Dassl's registry runs, one of this project or one that `--import` loads.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import random
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl_clip.cli.arguments import Parser, split_command
from dassl_clip.engine.config import resolve_config
from dassl_clip.engine.console import Console, safe_console
from dassl_clip.engine.errors import INTERRUPTED_EXIT, printable
from dassl_clip.engine.paths import leave_checkout
from dassl_clip.engine.ranges import open_folders
from dassl_clip.experiments import identity, locks
from dassl_clip.results import environment, files, records, run_data
from dassl_clip.results.documents import CONFIG_NAME
from dassl_clip.results.errors import UserError

_EPOCH_FILE = re.compile(r"model\.pth\.tar-(\d+)")
_LOGS: list[Any] = []  # upstream's log closes the real stdout when it is collected, so none ever is
logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The flags of one run; KEY VALUE pairs are taken off before."""
    parser = Parser(
        prog="train.py",
        description=__doc__,
        usage="%(prog)s [flags] [KEY VALUE ...]",
        epilog="example: python train.py --trainer CoOp --config-file configs/trainers/CoOp/icons.yaml "
        "--dataset-config-file configs/datasets/icons.yaml --source-domains line --target-domains line --seed 1 "
        "--output-dir output/by-hand",
    )
    parser.add_argument("--trainer", metavar="NAME", help="registry name of the trainer")
    parser.add_argument("--root", metavar="DIR", help="folder above the data sets")
    parser.add_argument("--output-dir", metavar="DIR", help="the run's folder; a run that stopped here goes on")
    parser.add_argument("--resume", metavar="DIR",
                        help="go on from the newest whole checkpoint in this folder; 'auto' (the default): in "
                        "--output-dir, from the start if there is none")  # fmt: skip
    parser.add_argument("--seed", type=int, metavar="N", help="negative: unseeded")
    parser.add_argument("--source-domains", nargs="+", metavar="NAME", help="domains to train on")
    parser.add_argument("--target-domains", nargs="+", metavar="NAME", help="domains to test on")
    parser.add_argument("--transforms", nargs="+", metavar="NAME", help="image transforms of the training loader")
    parser.add_argument("--config-file", metavar="FILE", help="the trainer's yaml file")
    parser.add_argument("--dataset-config-file", metavar="FILE", help="the data set's yaml file")
    parser.add_argument("--backbone", metavar="NAME", help="MODEL.BACKBONE.NAME")
    parser.add_argument("--head", metavar="NAME", help="MODEL.HEAD.NAME")
    parser.add_argument("--eval-only", action="store_true", help="load --model-dir and test")
    parser.add_argument("--model-dir", metavar="DIR", help="folder of the run to evaluate")
    parser.add_argument("--load-epoch", type=int, metavar="N", help="its epoch; default: the best, else the last one")
    parser.add_argument("--deterministic", action="store_true",
                        help="torch's deterministic algorithms; the record says what held")  # fmt: skip
    parser.add_argument("--no-train", action="store_true", help="build everything, then stop")
    parser.add_argument("--import", dest="imports", action="append", metavar="MODULE_OR_FILE",
                        help="load a module or .py file that registers a trainer or data set; repeatable")  # fmt: skip
    parser.add_argument("--task", metavar="NAME", help="name of the task in the record")
    parser.add_argument("--debug", action="store_true", help="tracebacks for every error")
    return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into flags and KEY VALUE pairs."""
    return split_command(build_parser(), argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    0; 1 for a bug; 2 with one sentence for a user's error; 75 if another process works in the folder; 130 after Ctrl-C;
    143 after SIGTERM.
    """
    leave_checkout()
    with safe_console():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    debug = "--debug" in argv
    try:
        with contextlib.ExitStack() as stack:
            if os.environ.get("RANK", "0") != "0":  # the first of torchrun's processes tells what is wrong
                stack.enter_context(contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w"))))
            args, pairs = parse(argv)
        return _run_until_told(args, pairs)
    except locks.BusyError as error:
        from dassl_clip.experiments import ranks

        ranks.report_once(error, debug)
        return locks.BUSY_EXIT
    except KeyboardInterrupt:
        from dassl_clip.experiments import ranks

        ranks.tell("interrupted: the same command goes on from the last checkpoint")
        return INTERRUPTED_EXIT
    except Exception as error:
        from dassl_clip.experiments import ranks

        return ranks.report_once(error, debug)


def _run_until_told(args: argparse.Namespace, pairs: Sequence[str]) -> int:
    """Run to the end, or until SIGTERM: then what was trained is saved, and the exit code is another."""
    from dassl_clip.engine import signals
    from dassl_clip.experiments import ranks

    try:
        with signals.handled():
            run(args, pairs)
    except signals.Terminated as end:
        ranks.tell(f"{end}: the same command goes on from the last checkpoint")
        return signals.EXIT_CODE
    return 0


def run(args: argparse.Namespace, pairs: Sequence[str]) -> None:
    """Resolve the configuration, open the log, and train or evaluate."""
    register()
    start(resolve_config(args, pairs), args)


def start(cfg: Any, args: argparse.Namespace) -> None:
    """Train or evaluate as a resolved configuration and the flags say; `register` has been called."""
    from dassl_clip.engine import distributed
    from dassl_clip.experiments import ranks

    folder = Path(cfg.OUTPUT_DIR)
    if args.eval_only:
        identity.check_evaluation(cfg, args.model_dir)
    open_folders(cfg)
    with distributed.joined(cfg.USE_CUDA):
        if distributed.is_main():
            _run_locked(cfg, args)
        else:
            with ranks.own_log(folder):
                execute(cfg, args)


def _run_locked(cfg: Any, args: argparse.Namespace) -> None:
    """Train or evaluate as the one process that works in the run's folder and writes there."""
    folder = Path(cfg.OUTPUT_DIR)
    with locks.lock(folder) as free:
        if not free:
            raise locks.BusyError(locks.busy_sentence(folder))
        for left in files.clear_temporaries(folder):
            logger.info("removed %s, left half written by a process that was killed", left)
        _run_logged(cfg, args)


def _run_logged(cfg: Any, args: argparse.Namespace) -> None:
    """Train or evaluate, with everything that is printed in the run's log too."""
    from dassl.utils import setup_logger

    console = sys.stdout
    setup_logger(cfg.OUTPUT_DIR)
    sys.stdout = Console(sys.stdout, sys.stdout.file.name)  # the log is printable, too
    try:
        execute(cfg, args)
    except Exception as error:
        _log_only(console, printable("".join(traceback.format_exception(error))))
        raise
    finally:
        tee, sys.stdout = sys.stdout, console
        tee.flush()
        _LOGS.append(tee)


def register() -> None:
    """Import the rooms that register data sets and trainers, and let their log lines reach the console."""
    from dassl_clip import datasets, trainers  # noqa: F401

    logging.disable(logging.NOTSET)  # importing upstream Dassl silences every logger of the process
    for name in ("dassl_clip", "dassl"):
        room = logging.getLogger(name)
        if not any(isinstance(handler, _ConsoleHandler) for handler in room.handlers):
            room.addHandler(_ConsoleHandler())
            room.setLevel(logging.INFO)


class _ConsoleHandler(logging.Handler):
    """Prints to whatever `sys.stdout` is at the moment, so that lines reach the console and the run's log."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        print(f"{level}{printable(record.getMessage())}", flush=True)


def execute(cfg: Any, args: argparse.Namespace) -> None:
    """Build the trainer of a configuration and do what the flags say."""
    import torch

    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed
    from dassl_clip.engine import distributed
    from dassl_clip.engine.trainer import CLIPTrainer
    from dassl_clip.experiments.recording import EvaluationRecorder
    from dassl_clip.results.labels import check_labels

    print(describe_toolbox())
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    elif distributed.world_size() > 1:
        set_random_seed(distributed.from_main(lambda: random.randrange(2**32)))
    if cfg.RUN.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    torch.use_deterministic_algorithms(cfg.RUN.DETERMINISTIC)
    loose = cfg.SEED < 0 and not cfg.RUN.DETERMINISTIC
    torch.backends.cudnn.benchmark = cfg.USE_CUDA and loose and torch.cuda.is_available()
    trains, config_file = not args.eval_only and not args.no_train, Path(cfg.OUTPUT_DIR) / CONFIG_NAME
    looks = args.no_train and distributed.from_main(config_file.exists)  # only looks into the folder of another run
    if not looks:
        distributed.from_main(lambda: identity.check_previous(cfg, trains))
        if distributed.is_main():
            records.write_text_atomically(config_file, cfg.dump())
    print(f"Command: {environment.command_line()}")
    print(f"** Config **\n{cfg}")
    print(f"** Environment **\n{environment_report()}\n")

    if distributed.world_size() > 1:
        _check_knows_processes(cfg.TRAINER.NAME)
    trainer = build_trainer(cfg)
    if not isinstance(trainer, CLIPTrainer) and hasattr(trainer, "dm"):
        try:
            check_labels(trainer.dm.dataset, cfg.DATASET.NAME)
        except ValueError as error:  # a head of its own may do with labels that have gaps
            logger.warning("%s; class names and labels do not go together in what reads both", error)
    if cfg.TEST.SPLIT == "val" and getattr(trainer, "val_loader", None) is None:
        raise UserError(
            f"TEST.SPLIT is val, but {cfg.DATASET.NAME} has no validation images here, and the test images do not "
            "stand in for them: use TEST.SPLIT test, or give the data set validation images"
        )
    data = run_images(trainer)
    if data is not None and not looks:
        distributed.from_main(lambda: identity.check_images(cfg, data, trains))
        if distributed.is_main():
            run_data.write_data(Path(cfg.OUTPUT_DIR), data)
    recorder = EvaluationRecorder(trainer, cfg, data)
    if args.eval_only:
        if trainer.get_model_names():
            recorder.evaluates(load_run(trainer, args.model_dir, args.load_epoch))
        trainer.test()
        if hasattr(trainer, "save_predictions"):
            trainer.save_predictions()
        if distributed.is_main():
            recorder.write()
    elif not args.no_train:
        trainer.train()
        if distributed.is_main():
            recorder.write()


def run_images(trainer: Any) -> run_data.RunData | None:
    """The data of a built trainer, of this project's kind or not; None where it has no lists of images."""
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    if dataset is None or not hasattr(dataset, "classnames"):
        return None
    own = getattr(trainer, "data", None)
    return own if isinstance(own, run_data.RunData) else run_data.data_of(dataset)


def _check_knows_processes(name: str) -> None:
    """Refuse a trainer of which each process would train all by itself.

    Raises:
        UserError: The trainer is not one of this project's kind.
    """
    from dassl.engine import TRAINER_REGISTRY
    from dassl_clip.engine.trainer import CLIPTrainer

    if name in TRAINER_REGISTRY.registered_names() and not issubclass(TRAINER_REGISTRY.get(name), CLIPTrainer):
        raise UserError(
            f"{name} is not a CLIPTrainer of this project and knows nothing of several processes; start it without "
            "torchrun"
        )


def load_run(trainer: Any, model_dir: str | None, epoch: int | None) -> Path:
    """Load the models of an earlier run into a trainer.

    Args:
        trainer: a built Dassl trainer.
        model_dir: the run folder, one of the model folders inside it, the folder of an evaluation of the run, or a file
            that `dassl-clip export` made of it. None: the file `MODEL.INIT_WEIGHTS`, if there is one.
        epoch: the epoch to load; None: the best one if the run kept it, otherwise the last.

    Returns:
        The run folder, or the exported file.

    Raises:
        UserError: no folder is given, or it holds no such checkpoint.
    """
    names, start = trainer.get_model_names(), trainer.cfg.MODEL.INIT_WEIGHTS
    if model_dir is None and start:
        return Path(start).expanduser()  # loaded when the trainer was built
    if not model_dir:
        given = "--model-dir is empty (an unset variable?)" if model_dir == "" else "--eval-only without --model-dir"
        raise UserError(
            f"{given}: {trainer.cfg.TRAINER.NAME} has learned parts ({', '.join(names)}), and untrained ones are not "
            "evaluated; give --model-dir the folder of a finished run, or MODEL.INIT_WEIGHTS a file and no --model-dir"
        )
    folder = Path(model_dir).expanduser()
    if folder.is_file():
        from dassl_clip.engine.open_run import load_learned

        load_learned(trainer, folder)
        return folder
    if not folder.is_dir():
        raise UserError(f"--model-dir: there is no folder {folder}")
    if folder.name in names and not (folder / names[0]).is_dir():
        folder = folder.parent
    origin = records.learned_folder(folder)
    if origin != folder:
        return load_run(trainer, str(origin), epoch)
    if epoch is None and not (folder / names[0] / "model-best.pth.tar").is_file():
        files = (folder / names[0]).glob("model.pth.tar-*")
        epochs = [int(match[1]) for match in map(_EPOCH_FILE.fullmatch, (file.name for file in files)) if match]
        if not epochs:
            raise UserError(
                f"--model-dir: {folder / names[0]} holds no checkpoint (model.pth.tar-EPOCH or model-best.pth.tar); "
                "give the folder of a finished run of this trainer"
            )
        epoch = max(epochs)
    trainer.load_model(str(folder), epoch=epoch)
    return folder


@functools.cache
def environment_report() -> str:
    """Dassl's description of the machine, made once a process: it asks many programs and takes a second or more."""
    from dassl.utils import collect_env_info

    return collect_env_info()


def describe_toolbox() -> str:
    """One line: which dassl-clip and which toolbox serve this run."""
    toolbox = environment.toolbox_facts()
    version = environment.package_versions()[environment.DISTRIBUTION]
    place = Path(records.__file__).resolve().parents[1]
    served_by = f"the {toolbox['kind']} Dassl toolbox {toolbox['version']} ({toolbox['path']})"
    return f"dassl-clip {version} ({place}) on {served_by}"


def _log_only(console: Any, text: str) -> None:
    """Write to the run's log file without repeating it on the console."""
    file = getattr(sys.stdout, "file", None)
    if sys.stdout is not console and file is not None:
        file.write(text)
        file.flush()


if __name__ == "__main__":
    sys.exit(main())
