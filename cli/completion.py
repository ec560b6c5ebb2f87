"""Tab completion: `dassl-clip completion bash` prints a script that `shtab` makes from the parsers of all sub-commands.

The script holds the words themselves, so that a press of the tab key starts no Python.
"""

from __future__ import annotations

import argparse
import importlib

import shtab

from dassl_clip.cli.arguments import Parser, command, subparsers

# The kind of names that an argument without choices takes, by its name in the parsers.
KINDS = {
    **dict.fromkeys(("trainer", "method", "methods", "reference", "rows"), "trainers"),
    **dict.fromkeys(("dataset", "name", "names"), "datasets"),
    **dict.fromkeys(("task", "tasks"), "tasks"),
    **{"config": "configs", "templates": "templates", "backbone": "backbones"},
}
NAMES = ("NAME_OR_FILE", "NAME_OR_FOLDER")  # metavars; of positional arguments, the names are those of sweeps
FILES = ("FILE", "DIR", "FOLDER", "RUN", "EXPORT")  # endings of other metavars


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip completion",
        description="Print a script that completes sub-commands, flags, trainers, data sets, tasks and config keys.",
        epilog="examples:\n"
        '  eval "$(dassl-clip completion bash)"\n'
        "  dassl-clip completion zsh > ~/.dassl-clip-completion  # for every shell: source it in ~/.zshrc",
    )
    parser.add_argument(
        "shell", choices=shtab.SUPPORTED_SHELLS, metavar="SHELL", help=", ".join(shtab.SUPPORTED_SHELLS)
    )
    return parser


def run(args: argparse.Namespace) -> int:
    parser = whole_parser()
    names = vocabulary()
    parsers = [parser]
    for each in parsers:  # give their arguments the names or files that they take as their choices
        parsers += [inner for _, inner in subparsers(each)]
        for action in each._actions:
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            kind = "sweeps" if metavar in NAMES and not action.option_strings else KINDS.get(action.dest)
            if action.choices is not None or action.nargs == 0:
                continue
            if metavar.endswith(FILES) and metavar not in NAMES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # what shtab reads
            elif kind:
                action.choices = names[kind]
            elif action.dest == "seeds" and not action.option_strings:
                action.nargs = None  # after the first, keys are completed
        if "KEY VALUE" in (each.usage or ""):
            each.add_argument("pairs", nargs="*", choices=names["keys"])
    print(shtab.complete(parser, args.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all sub-commands."""
    from dassl_clip.cli.__main__ import COMMANDS

    whole = argparse.ArgumentParser(prog="dassl-clip", allow_abbrev=False)
    whole.add_argument("--version", action="store_true")
    commands = whole.add_subparsers(parser_class=Parser)
    for name, text in COMMANDS.items():
        parser = importlib.import_module(f"dassl_clip.cli.{name}").build_parser()
        commands.add_parser(name, parents=[parser], add_help=False, usage=parser.usage, help=text)
    return whole


def vocabulary() -> dict[str, list[str]]:
    """The names of all that can be named: trainers, data sets, tasks, configs, templates, backbones, config keys."""
    from dassl_clip.clip.names import ICONS, OPENAI_NAMES
    from dassl_clip.clip.templates import template_names
    from dassl_clip.engine import catalogue, config
    from dassl_clip.experiments import sweeps, tasks

    trainers = catalogue.trainer_names()
    return {
        "trainers": trainers,
        "datasets": catalogue.dataset_names(),
        "tasks": list(tasks.TASKS),
        "sweeps": sweeps.sweep_names(),
        "configs": sorted({name for trainer in trainers for name in catalogue.config_names(trainer)}),
        "templates": template_names(),
        "backbones": [ICONS, *OPENAI_NAMES],
        "keys": config.known_keys(config.declared_config()),
    }


main = command(build_parser, run)
