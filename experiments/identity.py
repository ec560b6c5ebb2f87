"""Whose run is this? What lies in a run's folder, compared with the configuration, files and images of today.

A finished run counts, and a checkpoint is resumed, only for the configuration, the content of the files that it names
(weights, prompts, class names), and the images (`results/run_data.py`) that it was made of.
"""

import contextlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl_clip.engine.fingerprint import config_differences, config_facts, config_hash, named_files
from dassl_clip.engine.registry import trainer_class
from dassl_clip.results import records
from dassl_clip.results.documents import CONFIG_NAME, read_config
from dassl_clip.results.errors import UserError
from dassl_clip.results.protocols import flatten_config
from dassl_clip.results.run_data import NOT_RECORDED, RunData, data_of, differences, read_data

logger = logging.getLogger(__name__)


# --------------------------------------------------------------------------------------------- a planned run's folder


def data_now(cfg: Any) -> RunData:
    """The data of a configuration, as its images lie on the disk now; raises what the loader raises.

    Nothing is printed: the run itself makes the loader's remarks.
    """
    from dassl.data.datasets import build_dataset

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return data_of(build_dataset(cfg))
    finally:
        logging.disable(disabled)


_FINGERPRINTS: dict[str, tuple[str, str]] = {}


def _fingerprint_now(cfg: Any) -> tuple[str, str]:
    """Fingerprint of `data_now`, formed once for each configuration of a data set, and why there is none."""
    flat = flatten_config(cfg)
    key = json.dumps({k: v for k, v in flat.items() if k.startswith("DATASET.") or k == "SEED"}, default=str)
    if key not in _FINGERPRINTS:
        try:
            _FINGERPRINTS[key] = data_now(cfg).fingerprint, ""
        except Exception as error:  # loaders of other people raise anything; the run itself says it in full
            _FINGERPRINTS[key] = "", " ".join(str(error).split())[:200]
    return _FINGERPRINTS[key]


def changed_since(record: Mapping[str, Any], folder: Path, cfg: Any) -> tuple[str, str]:
    """What has changed since a finished run of this configuration.

    Returns:
        What differs, as one phrase, "" if the record is of these files and images; and what could not be compared.
    """
    if "data" not in record:
        return "", NOT_RECORDED
    files = named_files(cfg)
    other = [key for key, content in files.items() if record.get("files", {}).get(key, content) != content]
    if other:
        return f"made with another content of the file that {other[0]} names", ""
    trained = record.get("trained") or record.get("refines") or {}
    base = records.read_record(Path(trained["folder"])) if trained.get("folder") else None
    fact = "learned" if trained.get("learned") else "finished_at"  # a run again may learn the same, bit for bit
    if base is not None and trained.get(fact) and base.get(fact) != trained[fact]:
        return f"made of an earlier run in {trained['folder']}, which was run again since", ""
    if not record["data"]:
        return "", ""
    now, why = _fingerprint_now(cfg)
    if why:
        return "", f"its images could not be compared: {why}"
    if now == record["data"]["fingerprint"]:
        return "", ""
    there, what = read_data(folder), "which ones is not known, since the run's list of images is gone"
    if there is not None and there.fingerprint == record["data"]["fingerprint"]:
        what = differences(there, data_now(cfg))
    return f"finished on other images: {what}", ""


def is_finished(folder: Path, cfg: Any) -> bool:
    """Whether a folder holds a finished run of this configuration, of the files and images that are there now."""
    record = records.read_record(folder)
    if record is None or record["config_hash"] != config_hash(cfg):
        return False
    return not changed_since(record, folder, cfg)[0]


def left_by_others(folder: Path, cfg: Any) -> str:
    """Why what lies in a folder cannot be resumed by a run of this configuration, as one phrase; "" if it can."""
    there = read_config(folder)
    changed = config_differences(there, cfg) if there is not None else []
    if changed:
        return f"another configuration ({shortened(changed)})"
    data = read_data(folder)
    if data is None:
        return ""
    now, why = _fingerprint_now(cfg)
    return "" if why or now == data.fingerprint else f"other images ({differences(data, data_now(cfg))})"


def shortened(lines: Sequence[str]) -> str:
    """Differences for a message: the first eight and a count."""
    return "; ".join([*lines[:8], *([f"and {len(lines) - 8} more"] if len(lines) > 8 else [])])


# ------------------------------------------------------------------------------------------------- the run as it starts


def check_previous(cfg: Any, trains: bool) -> None:
    """See what an output folder that is already in use means for a run that starts in it.

    Args:
        cfg: its configuration.
        trains: whether it trains, and so would resume what is there.

    Raises:
        UserError: This run would resume checkpoints there that are of another configuration, or of an unknown one.
    """
    folder = Path(cfg.OUTPUT_DIR)
    previous = read_config(folder)
    resumes = trains and _has_checkpoints(cfg)
    advice = f"give another --output-dir, and --resume {folder} with it to start from these checkpoints"
    if previous is None:
        if resumes and not is_ours(trainer_class(cfg.TRAINER.NAME)):  # those of our own trainers say it themselves
            raise UserError(
                f"{folder} holds checkpoints, but no {CONFIG_NAME} that says of which configuration they are: {advice}"
            )
        return
    changed = config_differences(previous, cfg)
    if not changed:
        return
    # With another end alone, Dassl trains on; what is beyond the end already is refused.
    other_end = len(changed) == 1 and previous["OPTIM"]["MAX_EPOCH"] != cfg.OPTIM.MAX_EPOCH
    names = [path.name.partition("-")[2].split("-")[0] for path in folder.glob("*/*.pth.tar-*")]
    epochs_done = max((int(name) for name in names if name.isdigit()), default=0)
    if resumes and not (other_end and epochs_done < cfg.OPTIM.MAX_EPOCH):
        raise UserError(
            f"{folder} holds checkpoints of another configuration ({shortened(changed)}), which are not mixed with "
            f"this one: {advice}"
        )
    _set_record_aside(folder, f"with another configuration: {shortened(changed)}")


def check_images(cfg: Any, data: RunData, trains: bool) -> None:
    """See whether the folder of a run that starts was used on other images.

    Raises:
        UserError: Checkpoints of a run on other images lie there, and this run would resume them.
    """
    folder = Path(cfg.OUTPUT_DIR)
    there = read_data(folder)
    changed = differences(there, data) if there is not None else ""
    if not changed:
        return
    if trains and _has_checkpoints(cfg):
        raise UserError(
            f"{folder} holds checkpoints of a run on other images ({changed}), which are not resumed: give another "
            f"--output-dir, and --resume {folder} with it to start from these checkpoints"
        )
    _set_record_aside(folder, f"on other images: {changed}")


def _has_checkpoints(cfg: Any) -> bool:
    """Whether the folder holds epochs that a trainer would resume; some solve their problem anew."""
    has_epochs = getattr(trainer_class(cfg.TRAINER.NAME), "has_epochs", True)
    return has_epochs and records.has_checkpoints(Path(cfg.OUTPUT_DIR))


def _set_record_aside(folder: Path, how: str) -> None:
    """A record beside the configuration or images of another run would speak for these."""
    logger.warning("%s was used %s", folder, how)
    record = folder / records.RECORD_NAME
    if record.exists():
        record.rename(free_name(record, "stale"))


def free_name(path: Path, word: str) -> Path:
    """The first name `<path>.<word>-<number>` that does not exist."""
    number = 1
    while path.with_name(f"{path.name}.{word}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{word}-{number}")


def is_ours(kind: type) -> bool:
    """Whether a trainer is of this project's kind; `object`, which stands for one that is not there, counts as such."""
    from dassl_clip.engine.trainer import CLIPTrainer

    return kind is object or issubclass(kind, CLIPTrainer)


# ------------------------------------------------------------------------------------------------------- evaluations


def check_evaluation(cfg: Any, model_dir: str | None) -> None:
    """Refuse (UserError) an evaluation that would write into a run: the one that it evaluates, or another one."""
    out, place = Path(cfg.OUTPUT_DIR), Path(model_dir) if model_dir else None
    advice = "an evaluation has a folder of its own: give another --output-dir"
    if place is not None and out.resolve() in (place.resolve(), *place.resolve().parents):
        raise UserError(f"--output-dir {out} is the folder of the run that is evaluated, or above it; {advice}")
    if place is not None and place.resolve() in out.resolve().parents:
        raise UserError(f"--output-dir {out} lies inside the run that is evaluated; {advice}")
    record = records.read_record(out)
    if records.has_checkpoints(out) or (record is not None and not record.get("evaluated_from") and place is not None):
        found = record and f"{record['method']} on {record['dataset']}, seed {record['seed']}"
        raise UserError(f"--output-dir {out} holds another run ({found or 'unfinished'}); {advice}")


def trained_facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint was trained on, from the record or the configuration of its run (its folder, or an export).

    It is `folder` alone where its run says nothing, such as that of another program.
    """
    if folder.is_file():
        from dassl_clip.engine.export import is_export, load_export

        record, config = load_export(folder).record if is_export(folder) else None, None
    else:
        record, config = records.read_record(folder), read_config(folder)
    if record is not None and record.get("trained"):
        return dict(record["trained"])
    facts: dict[str, Any] = {"folder": str(folder.resolve())}
    source = record if record is not None else config_facts(config) if config is not None else {}
    if record is None:  # a run that has not finished has selected nothing yet
        source.pop("selection_rule", None)
    keys = (
        "method", "config", "task", "dataset", "source_domains", "target_domains", "class_subset", "shots", "seed",
        "config_hash", "data_fingerprint", "num_train", "finished_at", "selection_rule", "transductive", "data",
        "learned", *getattr(trainer_class(str(source.get("method", ""))), "fixed_in_record", {}).values(),
    )  # fmt: skip
    return facts | {key: source[key] for key in keys if key in source}
