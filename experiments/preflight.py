"""What the runs of a plan need, checked once before the first one starts: settings, weights, data, shots, output.

All faults are reported in one message, and nothing is started. Each check is one that runs do as well, so it refuses
nothing that would work. What it cannot know (a bug in a data set of the user's own) is left to the runs.
"""

import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.engine import registry
from dassl_clip.engine.config import make_folder
from dassl_clip.engine.errors import is_user_error, sentence
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.files import no_file

from .identity import is_ours
from .plan import Run


def check(runs: Sequence[Run], out: Path) -> None:
    """Check what some runs need, and make the folder that they go to.

    Raises:
        UserError: what is wrong, all of it, with the number of runs that it concerns.
    """
    faults = {} if (fault := _output_fault(out)) is None else {fault: len(runs)}
    ours = [run for run in runs if is_ours(registry.trainer_class(run.config.TRAINER.NAME))]
    checks = _grouped(ours, lambda cfg: (cfg.TRAINER.NAME, str(cfg.TRAINER[cfg.TRAINER.NAME.upper()])), _check_settings)
    checks += _grouped(ours, lambda cfg: (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WEIGHTS), _check_weights)
    # The images are listed as a run would, with their class names and shots, whatever the method and the seed.
    checks += _grouped(runs, lambda cfg: str(cfg.DATASET), lambda cfg: registry.dataset_class(cfg.DATASET.NAME)(cfg))
    for own, work in checks:
        if fault := _fault_of(work, own[0].config):
            faults[fault] = faults.get(fault, 0) + len(own)
    if faults:
        texts = [f"{fault} [{count} of {len(runs)} runs]" for fault, count in faults.items()]
        if len(texts) == 1:
            raise UserError(f"nothing was started: {texts[0]}")
        each = "; ".join(f"({number}) {text}" for number, text in enumerate(texts, 1))
        raise UserError(f"nothing was started, since {len(texts)} things are wrong: {each}")
    make_folder(out, "--out")


def _grouped(
    runs: Iterable[Run], key: Callable[[Any], Hashable], work: Callable[[Any], None]
) -> list[tuple[list[Run], Callable[[Any], None]]]:
    """Runs that need the same, so that it is checked once."""
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run.config), []).append(run)
    return [(own, work) for own in groups.values()]


def _fault_of(work: Callable[[Any], None], config: Any) -> str:
    """What a check of a configuration finds, in one line; "" for nothing."""
    from dassl_clip.engine.open_run import quiet  # with torch, which mistakes in the arguments need not wait for

    try:
        with quiet():
            work(config)
    except Exception as error:
        if is_user_error(error):
            return sentence(error)
    return ""


def _check_settings(config: Any) -> None:
    """Refuse settings of the method that are outside its limits."""
    from dassl_clip.engine.method import check_limits  # with torch

    name = config.TRAINER.NAME
    check_limits(registry.trainer_class(name).limits, config, name.upper())


def _check_weights(config: Any) -> None:
    """Find the weights; those of a hub are fetched here where they may be, once for all runs."""
    from dassl_clip.clip import sources

    name, weights = config.MODEL.BACKBONE.NAME, config.MODEL.BACKBONE.WEIGHTS
    source = sources.resolve(name, has_file=bool(weights))
    if weights:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise MissingFileError(f"MODEL.BACKBONE.WEIGHTS: {no_file(path)}")
    elif source.tag != sources.RANDOM:
        source.weights()


def _output_fault(out: Path) -> str | None:
    """Why a folder cannot be made or written to; None if it can."""
    place = out.expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"--out {out}: {place} is a file; name another folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"--out {out}: {place} cannot be written to; name another folder"
    return None
