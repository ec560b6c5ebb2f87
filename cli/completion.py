"""Tab completion: `dassl-clip completion bash` prints a script that is made from the parsers of all sub-commands.

The script holds the words themselves, so that a press of the tab key starts no Python. Where nothing is known, the
shell completes file names.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dassl_clip.cli.arguments import Parser
from dassl_clip.engine.errors import guarded

SHELLS = ("bash", "zsh")
MORE = "more"  # places after the last that has a number of its own
TAKES_PAIRS = "KEY VALUE"  # in the usage of a command
# What is meant by an argument without choices, by its name in the parsers.
BY_NAME = {
    **dict.fromkeys(("trainer", "method", "methods", "reference", "rows"), "trainers"),
    **dict.fromkeys(("dataset", "name", "names"), "datasets"),
    **dict.fromkeys(("task", "tasks"), "tasks"),
    **{"templates": "templates", "backbone": "backbones"},
}
BY_METAVAR = dict.fromkeys(("NAME_OR_FILE", "NAME_OR_FOLDER"), "sweeps")
FILES = (
    "FILE",
    "DIR",
    "FOLDER",
    "NAMES_OR_FILE",
    "RUN",
)  # endings of metavars: the shell's own completion serves these

DRIVER = r"""
_dassl_clip() {
    local current="${COMP_WORDS[COMP_CWORD]}" name="" place=0 expect="" word="" found="" start=2 index=0
    local actions="" switches="" singles="" lists="" keys=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "$_dassl_clip_commands" -- "$current"))
        return 0
    fi
    name="${COMP_WORDS[1]}"
    _dassl_clip_parser "$name"
    if [ -n "$actions" ]; then
        if [ "$COMP_CWORD" -eq 2 ]; then
            COMPREPLY=($(compgen -W "$actions --help" -- "$current"))
            return 0
        fi
        name="$name ${COMP_WORDS[2]}"
        start=3
        _dassl_clip_parser "$name"
    fi
    index=$start
    while [ "$index" -lt "$COMP_CWORD" ]; do
        word="${COMP_WORDS[index]}"
        index=$((index + 1))
        case "$word" in
        --*)
            case " $singles " in *" $word "*) expect="one $word" && continue ;; esac
            case " $lists " in *" $word "*) expect="many $word" && continue ;; esac
            expect=""
            ;;
        *)
            case "$expect" in
            one*) expect="" ;;
            many*) ;;
            *) place=$((place + 1)) ;;
            esac
            ;;
        esac
    done
    case "$current" in -*) expect="flag" ;; esac
    case "$expect" in
    flag) found="$switches $singles $lists" ;;
    one*|many*) found="$(_dassl_clip_values "$name ${expect#* }")" ;;
    *)
        found="$(_dassl_clip_values "$name $((place + 1))")"
        [ -n "$found" ] || found="$(_dassl_clip_values "$name more")"
        ;;
    esac
    case "$current" in
    [A-Z]*) if [ -n "$keys" ]; then found="$found $_dassl_clip_keys"; fi ;;
    esac
    COMPREPLY=($(compgen -W "$found" -- "$current"))
}
complete -o default -F _dassl_clip dassl-clip
"""
FOR_ZSH = "#compdef dassl-clip\nautoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass
class Words:
    """The words of one parser.

    Attributes:
        actions: names of its sub-commands.
        switches: flags without a value.
        singles: flags with one value.
        lists: flags with several values.
        values: what may follow a flag, or stand at a place among the positional arguments (`1`, `2`, ...).
        pairs: whether KEY VALUE pairs may follow.
    """

    actions: list[str] = field(default_factory=list)
    switches: list[str] = field(default_factory=list)
    singles: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    pairs: bool = False


def build_parser() -> argparse.ArgumentParser:
    """The arguments of this command."""
    parser = Parser(
        prog="dassl-clip completion",
        description="Print a script that completes sub-commands, flags, trainers, data sets, tasks and config keys.",
        epilog='example: eval "$(dassl-clip completion bash)"; it takes seconds to make, so for every shell keep it in '
        "a file that your ~/.bashrc or ~/.zshrc sources",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=" or ".join(SHELLS))
    parser.add_argument("--debug", action="store_true", help="tracebacks for every error")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script; 2 with one sentence for a user's error."""
    return guarded(lambda words: run(build_parser().parse_args(words)), argv)


def run(args: argparse.Namespace) -> int:
    """Print the script of a shell."""
    print(script(args.shell), end="")
    return 0


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each sub-command, and of each action of one, by the words that lead to it."""
    from dassl_clip.cli.__main__ import COMMANDS

    found: dict[str, argparse.ArgumentParser] = {}
    for name in COMMANDS:
        parser = importlib.import_module(f"dassl_clip.cli.{name}").build_parser()
        found[name] = parser
        found |= {f"{name} {action}": inner for action, inner in actions_of(parser).items()}
    return found


def actions_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a parser's sub-commands."""
    nested = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: inner for choices in nested for name, inner in choices.items()}


def vocabulary() -> dict[str, list[str]]:
    """The names of all that can be named: trainers, data sets, tasks, configs, templates, backbones, config keys."""
    from dassl_clip.cli import train
    from dassl_clip.clip.sources import ICONS, OPENAI_NAMES
    from dassl_clip.clip.templates import template_names
    from dassl_clip.engine import catalogue, config
    from dassl_clip.experiments import plan
    from dassl_clip.experiments import sweeps as sheet

    train.register()
    trainers = catalogue.trainer_names()
    configs = {name for trainer in trainers for name in catalogue.config_names(trainer)}
    return {
        "trainers": trainers,
        "datasets": catalogue.dataset_names(),
        "tasks": list(plan.TASKS),
        "sweeps": sheet.sweep_names(),
        "configs": sorted(configs),
        "templates": template_names(),
        "backbones": [ICONS, *OPENAI_NAMES],
        "keys": config.known_keys(config.default_config()),
    }


def words_of(parser: argparse.ArgumentParser, names: dict[str, list[str]]) -> Words:
    """The words of a parser."""
    words, place = Words(list(actions_of(parser)), pairs=TAKES_PAIRS in (parser.usage or "")), 0
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        known = [str(choice) for choice in action.choices or names.get(_kind(action), ())]
        if not action.option_strings:
            place += 1
            words.values[str(place)] = known
            words.values |= {MORE: known} if action.nargs in ("*", "+") else {}
            continue
        long = [flag for flag in action.option_strings if flag.startswith("--")]
        group = words.switches if action.nargs == 0 else words.lists if action.nargs in ("*", "+") else words.singles
        group += long
        words.values |= {flag: known for flag in long if action.nargs != 0}
    return words


def _kind(action: argparse.Action) -> str:
    """The kind of names that an argument without choices takes, or an empty text."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if metavar in BY_METAVAR:
        return "configs" if action.dest == "config" else BY_METAVAR[metavar]
    return "" if metavar.endswith(FILES) else BY_NAME.get(action.dest, "")


def script(shell: str) -> str:
    """The whole script for a shell."""
    names = vocabulary()
    all_words = {name: words_of(parser, names) for name, parser in parsers().items()}
    commands = [name for name in all_words if " " not in name]
    lines = [f"# {shell} completion of dassl-clip, as `dassl-clip completion {shell}` prints it"]
    lines += [f'_dassl_clip_commands="{" ".join(commands)} --help --version"']
    lines += [f'_dassl_clip_keys="{" ".join(names["keys"])}"', "", *_parser_function(all_words), ""]
    lines += _values_function(all_words)
    return (FOR_ZSH if shell == "zsh" else "") + "\n".join(lines) + "\n" + DRIVER


def _parser_function(all_words: dict[str, Words]) -> Iterator[str]:
    yield "_dassl_clip_parser() {"
    yield '    actions="" switches="" singles="" lists="" keys=""'
    yield '    case "$1" in'
    for name, words in all_words.items():
        yield f'    "{name}")'
        for key in ("actions", "switches", "singles", "lists"):
            if getattr(words, key):
                yield f'        {key}="{" ".join(getattr(words, key))}"'
        if words.pairs:
            yield '        keys="yes"'
        yield "        ;;"
    yield "    esac"
    yield "}"


def _values_function(all_words: dict[str, Words]) -> Iterator[str]:
    places: dict[str, list[str]] = {}
    for name, words in all_words.items():
        for place, known in words.values.items():
            if known:
                places.setdefault(" ".join(known), []).append(f'"{name} {place}"')
    yield "_dassl_clip_values() {"
    yield '    case "$1" in'
    for known, where in places.items():
        yield f'    {" | ".join(where)}) echo "{known}" ;;'
    yield "    esac"
    yield "}"
