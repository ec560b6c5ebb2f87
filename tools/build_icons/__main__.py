"""Make the embedded data set and the small CLIP again: `python -m tools.build_icons`.

Steps: fetch the packs, render them, select and split the data set, pre-train, measure, write. `worlds` trains the
models of the study in `docs/when-they-help.md`, those that lie complete in `--out` excepted; `sheets` writes contact
sheets of the data set; `measure` prints the accuracies of a model; `check` (or `--check`) compares what is shipped with
the recipe in the code and, given `--out`, with the build there.
"""

import argparse
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock, Timeout
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from dassl_clip.embedded import CLIP_FOLDER, ICONS_FOLDER
from dassl_clip.results.files import cache_dir

from .check import check_data, check_model, compare_builds, read_record
from .corpus import build_corpus, data_icons, rendered
from .merges import restricted_merges, write_merges
from .model import MERGES_NAME, RECORD_NAME, STATE_NAME, WEIGHTS_NAME, model_config, read_model, write_model
from .packs import check_style
from .pretrain import pretrain
from .recipe import Recipe
from .record import RECIPE_FILES, build_record, measure_folder
from .selection import DOMAINS, read_curated
from .sheets import write_sheets
from .store import SPLIT_NAME, write_data_set
from .vocabulary import vocabulary_words
from .worlds import STUDY_SAMPLES, Ties, price, study_recipes, write_own_styles

logger = logging.getLogger(__name__)

STEPS = ("build", "check", "measure", "sheets", "worlds")


def default_cache() -> Path:
    """Folder for downloads and renderings: in the project's cache folder, or where that is off in the user's."""
    return (cache_dir() or Path(platformdirs.user_cache_dir("dassl-clip", appauthor=False))) / "embedded"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    recipe = Recipe()
    line = argparse.ArgumentParser("python -m tools.build_icons", description=__doc__.split("\n\n")[0])
    line.add_argument("step", nargs="?", choices=STEPS, default="build", help="what to do (build)")
    line.add_argument("--data-only", action="store_true", help="make the data set and no model")
    line.add_argument("--check", action="store_true", help="the same as the step check")
    line.add_argument("--hold-out-style", default="", metavar="NAME", help=f"leave a style out: {', '.join(DOMAINS)}")
    line.add_argument("--entangle", type=share, default=0.0, metavar="S", help="draw classes in one style, 0 to 1 (0)")
    line.add_argument("--own-style-seed", type=int, default=recipe.own_style_seed, metavar="N", help="of the ties (1)")
    line.add_argument("--only", nargs="+", metavar="NAME", help="of the models of `worlds`: these, in this order")
    line.add_argument("--out", type=Path, metavar="DIR", help="folder for icons/ and clip/ (the installed package)")
    line.add_argument(
        "--samples", type=int, help=f"pictures to train on ({recipe.samples}; worlds: {STUDY_SAMPLES} each)"
    )
    line.add_argument("--seed", type=int, default=recipe.seed, help=f"seed of the pre-training ({recipe.seed})")
    line.add_argument("--precision", choices=("bfloat16", "float32"), default=recipe.precision,
                      help="of the image tower in pre-training; gives other weights (bfloat16)")  # fmt: skip
    line.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR", help="downloads and renderings")
    line.add_argument("--threads", type=int, default=2, help="threads of the pre-training and renderers (2)")
    return line


def share(text: str) -> float:
    """A probability of the command line."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is given, expected a probability from 0 to 1")
    return value


def make_data_set(cache: Path, icons: Path, workers: int) -> None:
    """Fetch, render, select, split and write the data set."""
    manifest = write_data_set(read_curated(), rendered(data_icons(cache), "data", cache, workers), icons)
    logger.info("%d pictures written to %s, parts %s", manifest["pictures"], icons, manifest["split"])


def make_model(recipe: Recipe, cache: Path, icons: Path, clip: Path, workers: int) -> None:
    """Pre-train, measure and write the model.

    An intermediate model and the training's state are written now and then; an interrupted training continues.
    """
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

    state = clip / STATE_NAME
    trained = pretrain(corpus, recipe, config, tokenizer, keep, state=state)
    if recipe.entangle or not recipe.held_out:
        ties = Ties(corpus, recipe)
        facts = ties.describe(recipe, trained.drawn)
        say(
            f"{facts['mean_own_share']:.3f} of the pictures of a class were drawn in its own style (mean of "
            f"{len(ties.styles)} classes); {write_own_styles(facts, clip)}"
        )
    record = build_record(*read_model(clip), recipe, corpus, clip, icons, trained.seconds)
    (clip / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    state.unlink()
    logger.info("%s: %.1f MB", clip / WEIGHTS_NAME, record["bytes"] / 1e6)


def finished(recipe: Recipe, clip: Path) -> bool:
    """Whether a folder holds the finished model of a recipe.

    Raises:
        ValueError: it holds one of another recipe.
    """
    if not (clip / RECORD_NAME).is_file():
        return False
    if read_record(clip)["recipe_sha256"] != recipe.sha256(*RECIPE_FILES):
        raise ValueError(f"{clip} holds a model of another recipe; give another folder with --out, or remove it.")
    return True


def make_worlds(recipes: Mapping[str, Recipe], cache: Path, out: Path, workers: int) -> None:
    """Train the models of the study that are not finished; several processes may share the work.

    Args:
        recipes: by the name of the model's folder.
        cache: downloads and renderings.
        out: folder of the models.
        workers: threads.
    """
    left = {name: recipe for name, recipe in recipes.items() if not finished(recipe, out / name)}
    hours = price(list(left.values()), read_record(CLIP_FOLDER))
    say(
        f"{len(recipes)} models in {out}, {len(recipes) - len(left)} finished; at the pace of the shipped model (two "
        f"cores) the others take {hours:.1f} hours. An interrupted training continues; a second such command takes "
        "the models that no other trains."
    )
    if any(recipe.precision == "bfloat16" for recipe in left.values()) and emulates_bfloat16():
        say(
            "This processor has no bfloat16 instructions (avx512_bf16, amx_bf16): expect several times these hours, or "
            "fewer with --precision float32, which gives other weights."
        )
    for name, recipe in left.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(out / f"{name}.lock", blocking=False):
                if not finished(recipe, out / name):
                    say(f"{name}: {recipe.samples} pictures")
                    make_model(recipe, cache, ICONS_FOLDER, out / name, workers)
        except Timeout:
            say(f"{name}: trained by another process")


def emulates_bfloat16(facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether a processor is known to compute bfloat16 without instructions for it; False where nothing is known."""
    flags = re.search(r"^flags\s*:(.*)$", facts.read_text(), re.MULTILINE) if facts.is_file() else None
    return flags is not None and not {"avx512_bf16", "amx_bf16"} & set(flags[1].split())


def check_options(options: argparse.Namespace) -> None:
    """Refuse what a step would leave unread.

    Raises:
        ValueError: names it.
    """
    usual = Recipe()
    given = {
        "--entangle": options.entangle,
        "--own-style-seed": options.own_style_seed != usual.own_style_seed,
        "--seed": options.seed != usual.seed,
        "--hold-out-style": options.hold_out_style,
        "--data-only": options.data_only,
    }
    if options.step == "worlds" and (named := [option for option, is_given in given.items() if is_given]):
        raise ValueError(
            f"`worlds` trains the models of the study, each with its own seeds and styles, so it has no place for "
            f"{', '.join(named)}: name models with --only, or train one model without `worlds`."
        )
    if options.only and options.step != "worlds":
        raise ValueError("--only names models of the step `worlds`; without that step one model is trained.")


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
        check_options(options)
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
        if options.step == "worlds":
            recipes = study_recipes(options.samples or STUDY_SAMPLES, options.precision)
            if options.out is None:
                raise ValueError("The models of the study are not shipped: give them a folder with --out.")
            if unknown := [name for name in options.only or [] if name not in recipes]:
                raise ValueError(f"Unknown model {', '.join(unknown)}; there are {', '.join(recipes)}.")
            chosen = {name: recipes[name] for name in options.only or recipes}
            make_worlds(chosen, options.cache, options.out, options.threads)
            return 0
        if options.hold_out_style:
            check_style(options.hold_out_style, DOMAINS)
        if (options.hold_out_style or options.entangle) and options.out is None:
            raise ValueError("A model without one style, or with classes tied to styles, is not shipped: give --out.")
        if not options.hold_out_style or not (icons / SPLIT_NAME).is_file():
            make_data_set(options.cache, icons, options.threads)
        if not options.data_only:
            recipe = Recipe(
                samples=options.samples or Recipe().samples,
                seed=options.seed,
                held_out=options.hold_out_style,
                entangle=options.entangle,
                own_style_seed=options.own_style_seed,
                precision=options.precision,
            )
            make_model(recipe, options.cache, icons, clip, options.threads)
    except (ValueError, FileNotFoundError) as error:
        line.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
