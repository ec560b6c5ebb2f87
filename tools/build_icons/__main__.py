"""Make the embedded data set and the small CLIP again: `python -m tools.build_icons`.

Steps: fetch the packs, render them, select and split the data set, pre-train, measure, write. `sheets` writes contact
sheets of the data set in place of that; `measure` prints the accuracies of a model; `check` (or `--check`) compares
what is shipped with the recipe in the code and, given `--out`, with the build there.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from dassl_clip.embedded import CLIP_FOLDER, ICONS_FOLDER

from .check import check_data, check_model, compare_builds
from .corpus import build_corpus, data_icons, rendered
from .merges import restricted_merges, write_merges
from .model import MERGES_NAME, RECORD_NAME, WEIGHTS_NAME, model_config, read_model, write_model
from .packs import check_style
from .pretrain import pretrain
from .recipe import Recipe
from .record import build_record, measure_folder
from .selection import DOMAINS, read_curated
from .sheets import write_sheets
from .store import SPLIT_NAME, write_data_set
from .vocabulary import vocabulary_words

logger = logging.getLogger(__name__)

STEPS = ("build", "check", "measure", "sheets")


def default_cache() -> Path:
    """Folder for downloads and renderings in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dassl-clip" / "embedded"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    recipe = Recipe()
    line = argparse.ArgumentParser("python -m tools.build_icons", description=__doc__.split("\n\n")[0])
    line.add_argument("step", nargs="?", choices=STEPS, default="build", help="what to do (build)")
    line.add_argument("--data-only", action="store_true", help="make the data set and no model")
    line.add_argument("--check", action="store_true", help="the same as the step check")
    line.add_argument("--hold-out-style", default="", metavar="NAME", help=f"leave a style out: {', '.join(DOMAINS)}")
    line.add_argument("--out", type=Path, metavar="DIR", help="folder for icons/ and clip/ (the installed package)")
    line.add_argument("--samples", type=int, default=recipe.samples, help=f"pictures to train on ({recipe.samples})")
    line.add_argument("--seed", type=int, default=recipe.seed, help=f"seed of the pre-training ({recipe.seed})")
    line.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR", help="downloads and renderings")
    line.add_argument("--threads", type=int, default=2, help="threads of the pre-training and renderers (2)")
    return line


def make_data_set(cache: Path, icons: Path, workers: int) -> None:
    """Fetch, render, select, split and write the data set."""
    manifest = write_data_set(read_curated(), rendered(data_icons(cache), "data", cache, workers), icons)
    logger.info("%d pictures written to %s, parts %s", manifest["pictures"], icons, manifest["split"])


def make_model(recipe: Recipe, cache: Path, icons: Path, clip: Path, workers: int) -> None:
    """Pre-train, measure and write the model; an intermediate state is written now and then."""
    corpus = build_corpus(cache, recipe.held_out, workers)
    merges = restricted_merges(vocabulary_words(corpus))
    config = model_config(dict(recipe.architecture), len(merges))
    clip.mkdir(parents=True, exist_ok=True)
    write_merges(merges, clip / MERGES_NAME)
    tokenizer = SimpleTokenizer(
        bpe_path=str(clip / MERGES_NAME), context_length=config["model_cfg"]["text_cfg"]["context_length"]
    )

    def keep(model: CLIP, step: int) -> None:
        write_model(model, config, clip)
        read, tokens, _ = read_model(clip)
        table = measure_folder(read, tokens, config, icons)["val"]
        logger.info("step %d, zero-shot on train and val pictures:\n%s", step, table_text(table))

    started = time.monotonic()
    pretrain(corpus, recipe, config, tokenizer, keep)
    record = build_record(*read_model(clip), recipe, corpus, clip, icons, time.monotonic() - started)
    (clip / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    logger.info("%s: %.1f MB", clip / WEIGHTS_NAME, record["bytes"] / 1e6)


def table_text(table: dict[str, dict[str, float]]) -> str:
    """Accuracies by prompt and domain as lines of text."""
    names = (*DOMAINS, "mean")
    lines = [f"{'prompt':24}" + "".join(f"{name:>8}" for name in names)]
    lines += [f"{prompt:24}" + "".join(f"{row[name]:8.1f}" for name in names) for prompt, row in table.items()]
    return "\n".join(lines)


def say(text: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(text + "\n")


def check(out: Path | None) -> int:
    """Report on the shipped files and, if there is one, on the build in `out`; 1 if something is wrong."""
    problems = check_data(ICONS_FOLDER) + check_model(CLIP_FOLDER, ICONS_FOLDER)
    if out is not None:
        problems += compare_builds(out, ICONS_FOLDER.parent)
    for problem in problems:
        say(f"- {problem}")
    compared = " and with the build in " + str(out) if out is not None else ""
    say(f"{len(problems)} problems" if problems else f"what is shipped agrees with its recipe{compared}")
    return int(bool(problems))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    line = parser()
    options = line.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    root = options.out or ICONS_FOLDER.parent
    icons, clip = root / "icons", root / "clip"
    try:
        if options.check or options.step == "check":
            return check(options.out)
        if options.step == "measure":
            for part, table in measure_folder(*read_model(clip if options.out else CLIP_FOLDER), ICONS_FOLDER).items():
                say(f"{part}\n{table_text(table)}")
            return 0
        if options.step == "sheets":
            pages = write_sheets(ICONS_FOLDER, options.out or options.cache / "sheets")
            say(f"{len(pages)} sheets in {pages[0].parent}")
            return 0
        if options.hold_out_style:
            check_style(options.hold_out_style, DOMAINS)
            if options.out is None:
                raise ValueError("A model without one style is not shipped: give it a folder with --out.")
        if not options.hold_out_style or not (icons / SPLIT_NAME).is_file():
            make_data_set(options.cache, icons, options.threads)
        if not options.data_only:
            recipe = replace(Recipe(), samples=options.samples, seed=options.seed, held_out=options.hold_out_style)
            make_model(recipe, options.cache, icons, clip, options.threads)
    except (ValueError, FileNotFoundError) as error:
        line.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
