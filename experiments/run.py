"""One run in this process: lock its folder, log, train or evaluate, and record.

With several processes of torchrun the main one speaks and writes, the others have log files of their own, and an error
is reported once.
"""

import contextlib
import functools
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dassl_clip.engine import registry
from dassl_clip.engine.config import make_folder
from dassl_clip.engine.errors import INTERRUPTED_EXIT, Console, is_user_error, report
from dassl_clip.results import environment, files, records, run_data
from dassl_clip.results.documents import CONFIG_NAME
from dassl_clip.results.errors import UserError
from dassl_clip.results.escaping import printable
from dassl_clip.results.files import write_text_atomically
from dassl_clip.results.labels import check_labels

from . import identity, locks, state
from .plan import Run, train_program

RESUMES = "the same command resumes from the last checkpoint"
_EPOCH_FILE = re.compile(r"model\.pth\.tar-(\d+)")
_LOGS: list[Any] = []  # upstream's log closes the real stdout when it is collected, so none ever is
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is done with the trainer of a configuration: it is trained and tested, or one of these.

    Attributes:
        eval_only: load what an earlier run learned, and test.
        model_dir: the folder of that run, or an export of it.
        load_epoch: its epoch; None: the best one, else the last.
        no_train: build everything, then stop.
    """

    eval_only: bool = False
    model_dir: str | None = None
    load_epoch: int | None = None
    no_train: bool = False


def run_planned(run: Run) -> int:
    """A run of a plan, in a process of its own; returns its exit code."""
    registry.register()
    for name in run.overrides.imports:
        registry.import_user_code(name)
    with locks.lock(run.folder) as free:
        if not free:
            print(locks.busy_sentence(run.folder), file=sys.stderr)
            return locks.BUSY_EXIT
        if identity.is_finished(run.folder, run.config):  # finished by another process in the meantime
            return 0
        state.prepare_folder(run.folder, run.config)
        sys.argv = [*(word for word in train_program() if word != "python"), *run.words]  # the record's command
        job = Job(eval_only=True, model_dir=str(run.needs)) if run.evaluates else Job()
        return supervised(lambda: start(run.config, job))


def supervised(work: Callable[[], None], debug: bool = False) -> int:
    """Do the work of a run, until SIGTERM at most, and return the exit code.

    0; 1 for a bug; 2 with one sentence for a user's error; 75 if another process works in the folder; 130 after Ctrl-C;
    143 after SIGTERM, with what was trained saved.
    """
    from dassl_clip.engine import distributed, signals

    try:
        with signals.handled():
            work()
        return 0
    except (signals.Terminated, KeyboardInterrupt) as end:
        terminated = isinstance(end, signals.Terminated)
        if distributed.is_main():
            print(f"{end if terminated else 'interrupted'}: {RESUMES}", file=sys.stderr)
        return signals.EXIT_CODE if terminated else INTERRUPTED_EXIT
    except Exception as error:
        if lost := distributed.lost_contact(error):
            error = UserError(lost)
        code = 2 if is_user_error(error) else 1
        if distributed.first_to("report an error"):
            code = report(error, debug)
        return locks.BUSY_EXIT if isinstance(error, locks.BusyError) else code


def start(config: Any, job: Job) -> None:
    """Train or evaluate by a resolved configuration; the registries are filled."""
    from dassl_clip.engine import distributed

    folder = Path(config.OUTPUT_DIR)
    if job.eval_only:
        identity.check_evaluation(config, job.model_dir)
    if config.RESUME and not Path(config.RESUME).is_dir():
        raise UserError(
            f"--resume: there is no folder {config.RESUME}; give the folder of a run that was begun, or auto"
        )
    make_folder(folder, "--output-dir")
    with distributed.process_group(config.USE_CUDA):
        if not distributed.is_main():
            with _rank_log(folder):
                execute(config, job)
            return
        with locks.lock(folder) as free:
            if not free:
                raise locks.BusyError(locks.busy_sentence(folder))
            for left in files.clear_temporaries(folder):
                logger.info("removed %s, left half written by a process that was killed", left)
            with _run_log(folder):
                execute(config, job)


@contextlib.contextmanager
def _run_log(folder: Path) -> Iterator[None]:
    """Within this context everything that is printed is in the run's log too; tracebacks are there alone."""
    from dassl.utils import setup_logger

    console = sys.stdout
    setup_logger(str(folder))
    log: Any = sys.stdout  # Dassl's, which writes into `file` as well
    sys.stdout = Console(log, log.file.name)  # the log is printable, too
    try:
        yield
    except Exception as error:
        log.file.write(printable("".join(traceback.format_exception(error))))
        log.file.flush()
        raise
    finally:
        tee, sys.stdout = sys.stdout, console
        tee.flush()
        _LOGS.append(tee)


@contextlib.contextmanager
def _rank_log(folder: Path) -> Iterator[None]:
    """In a process that is not the main one: what it prints, and python's warnings, go to `log-rankN.txt`."""
    from dassl_clip.engine import distributed

    console, shown = sys.stdout, warnings.showwarning
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"log-rank{distributed.rank()}.txt", "a", buffering=1, encoding="utf-8") as file:
        sys.stdout = Console(file, file.name)
        warnings.showwarning = lambda message, category, name, line, *rest: print(f"{category.__name__}: {message}")
        try:
            yield
        except Exception as error:
            traceback.print_exception(error, file=sys.stdout)
            raise
        finally:
            sys.stdout, warnings.showwarning = console, shown


def execute(config: Any, job: Job) -> None:
    """Build the trainer of a configuration and do the job."""
    from dassl.engine import build_trainer
    from dassl_clip.engine import distributed
    from dassl_clip.engine.data import seed_everything
    from dassl_clip.engine.record import save_predictions
    from dassl_clip.engine.trainer import CLIPTrainer

    from .recording import EvaluationRecorder

    toolbox, place = environment.toolbox_facts(), Path(records.__file__).resolve().parents[1]
    version = environment.package_versions()[environment.DISTRIBUTION]
    served_by = f"the {toolbox['kind']} Dassl toolbox {toolbox['version']} ({toolbox['path']})"
    print(f"dassl-clip {version} ({place}) on {served_by}")
    seed_everything(config)
    trains, config_file = not job.eval_only and not job.no_train, Path(config.OUTPUT_DIR) / CONFIG_NAME
    looks = job.no_train and distributed.from_main(config_file.exists)  # only looks into the folder of another run
    if not looks:
        distributed.from_main(lambda: identity.check_previous(config, trains))
        if distributed.is_main():
            write_text_atomically(config_file, config.dump())
    print(f"Command: {environment.command_line()}")
    print(f"** Config **\n{config}")
    print(f"** Environment **\n{environment_report()}\n")

    if distributed.world_size() > 1 and not identity.is_ours(registry.trainer_class(config.TRAINER.NAME)):
        raise UserError(
            f"{config.TRAINER.NAME} is not a CLIPTrainer of this project and knows nothing of several processes; start "
            "it without torchrun"
        )
    trainer = build_trainer(config)
    dataset = getattr(getattr(trainer, "dm", None), "dataset", None)
    ours = identity.is_ours(type(trainer))  # they see to labels and to training images that are tested
    if trains and not ours and getattr(dataset, "train_overlaps_test", False) and trainer.get_model_names():
        raise UserError(
            f"{config.TRAINER.NAME} trains on labels, but here the training images are test images too "
            f"({getattr(dataset, 'protocol', '')}); take DATASET.PROTOCOL dassl and source images of their own"
        )
    if dataset is not None and not ours:
        try:
            check_labels(dataset, config.DATASET.NAME)
        except ValueError as error:  # a head of its own may do with labels that have gaps
            logger.warning("%s; class names and labels do not go together in what reads both", error)
    if config.TEST.SPLIT == "val" and getattr(trainer, "val_loader", None) is None:
        raise UserError(
            f"TEST.SPLIT is val, but {config.DATASET.NAME} has no validation images here, and the test images do not "
            "stand in for them: use TEST.SPLIT test, or give the data set validation images"
        )
    data = None  # of a trainer without lists of images
    if dataset is not None and hasattr(dataset, "classnames"):
        data = getattr(trainer, "data", None)
        data = data if isinstance(data, run_data.RunData) else run_data.data_of(dataset)
    if data is not None and not looks:
        distributed.from_main(lambda: identity.check_images(config, data, trains))
        if distributed.is_main():
            run_data.write_data(Path(config.OUTPUT_DIR), data)
    if job.no_train and not job.eval_only:
        return
    recorder = EvaluationRecorder(trainer, config, data)
    if job.eval_only:
        if trainer.get_model_names():
            recorder.evaluates(load_run(trainer, job.model_dir, job.load_epoch), job.load_epoch)
        trainer.test()
        if isinstance(trainer, CLIPTrainer):
            save_predictions(trainer)
    else:
        trainer.train()
    if distributed.is_main():
        recorder.write()


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
    names, weights = trainer.get_model_names(), trainer.cfg.MODEL.INIT_WEIGHTS
    if model_dir is None and weights:
        return Path(weights).expanduser()  # loaded when the trainer was built
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
        checkpoints = (path.name for path in (folder / names[0]).glob("model.pth.tar-*"))
        epochs = [int(match[1]) for match in map(_EPOCH_FILE.fullmatch, checkpoints) if match]
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

    return str(collect_env_info())
