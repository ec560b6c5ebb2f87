"""`dassl-clip completion` and `--help`.

Covers: the script sourced by a real bash, which completes sub-commands, actions, flags, trainers, data sets, tasks,
configs, choices and config keys at the right places and leaves file names to the shell; every flag of every parser; the
tab key itself in a terminal with bash, and with zsh where it is installed; `--help` of every sub-command: exit code 0
and an example that its own parser takes.
"""

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from dassl_clip.cli import completion
from dassl_clip.cli.__main__ import COMMANDS, main
from dassl_clip.engine import catalogue
from dassl_clip.engine.config import split_pairs
from dassl_clip.experiments import plan

PARSERS = completion.parsers()
TRY = """
source "$1"
while IFS= read -r line; do
    IFS=$'\\t' read -r -a COMP_WORDS <<< "$line"
    COMP_WORDS=("${COMP_WORDS[@]/#_empty_/}")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _dassl_clip
    echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """The file that a user sources."""
    path = tmp_path_factory.mktemp("shell") / "completion.bash"
    path.write_text(completion.script("bash"))
    return path


def complete(script, *lines):
    """What bash offers after each line's words; the last word is the one being typed, and may be empty."""
    typed = "".join("\t".join(["dassl-clip", *(word or "_empty_" for word in line)]) + "\n" for line in lines)
    done = subprocess.run(
        ["bash", "--norc", "-uc", TRY, "bash", str(script)], input=typed, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


def test_words_at_their_places(script):
    expected = {
        ("",): [*COMMANDS, "--help", "--version"],
        ("ta",): ["task", "table"],
        ("task", ""): catalogue.trainer_names(),
        ("task", "GO"): ["GOPro"],
        ("task", "GOPro", "ic"): ["icons"],
        ("task", "GOPro", "icons", "1", "--tas"): ["--task"],
        ("task", "GOPro", "icons", "1", "--task", ""): list(plan.TASKS),
        ("task", "GOPro", "icons", "1", "--task", "fewshot", "lo"): ["lodo"],
        ("task", "--shots", "4", "CoOp", "vl"): ["vlcs"],
        ("task", "--dry-run", "CoOp", "vl"): ["vlcs"],
        ("task", "GOPro", "icons", "1", "--config", "icons_no_ce"): ["icons_no_ce"],
        ("task", "GOPro", "icons", "1", "TRAINER.CLAP.ATTACK_E"): ["TRAINER.CLAP.ATTACK_EPSILON"],
        ("compare", "icons", "--methods", "ZeroshotCLIP", "Co"): ["CoOp"],
        ("sweep", "clap-z"): ["clap-zeroshot"],
        ("table", "icons", "clap-at"): ["clap-attacks"],
        ("train", "--trainer", "In"): ["InMaP"],
        ("train", "--config-file", ""): [],
        ("data", "ve"): ["verify"],
        ("data", "verify", "pa"): ["pacs"],
        ("data", "links", "pacs", "vlcs", "office_home_"): ["office_home_dg"],
        ("data", "inspect", "pacs", "--templates", "imagenet8"): ["imagenet80"],
        ("data", "verify", "pacs", "--ma"): ["--make-split"],
        ("completion", ""): list(completion.SHELLS),
        ("predict", "--run", ""): [],
        ("predict", "--run", "x", "--na"): ["--names"],
        ("nothing", ""): [],
    }
    assert dict(zip(expected, complete(script, *expected))) == expected


def test_every_flag_of_every_parser(script):
    names = {name: parser for name, parser in PARSERS.items() if not completion.actions_of(parser)}
    offered = complete(script, *((*name.split(), "--") for name in names))
    for (name, parser), found in zip(names.items(), offered):
        flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
        assert set(found) == flags, name


def test_the_shell_is_told_and_completes_files_elsewhere(script):
    done = subprocess.run(
        ["bash", "--norc", "-c", f"source {shlex.quote(str(script))}; complete -p dassl-clip"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["complete", "-o", "default", "-F", "_dassl_clip", "dassl-clip"]


def test_zsh(capsys):
    assert main(["completion", "zsh"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("#compdef dassl-clip\n") and "bashcompinit && bashcompinit" in out
    assert out.count("_dassl_clip()") == 1 and out.rstrip().endswith("complete -o default -F _dassl_clip dassl-clip")


TYPED = {
    "dassl-clip comp\t": "dassl-clip comp",  # compare, completion
    "dassl-clip task GO\t": "dassl-clip task GOPro ",
    "dassl-clip task GOPro icons 1 --tas\t": "dassl-clip task GOPro icons 1 --task ",
    "dassl-clip task GOPro icons 1 --task few\t": "dassl-clip task GOPro icons 1 --task fewshot ",
    "dassl-clip data verify pac\t": "dassl-clip data verify pacs ",
    "dassl-clip train TRAINER.CLAP.ATTACK_E\t": "dassl-clip train TRAINER.CLAP.ATTACK_EPSILON ",
    "dassl-clip predict --run my_r\t": "dassl-clip predict --run my_run.safetensors ",
}


@pytest.mark.parametrize(("shell", "words"), [("bash", ["--norc", "--noprofile", "-i"]), ("zsh", ["-f", "-i"])])
def test_the_tab_key_in_a_terminal(tmp_path, shell, words):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "completion").write_text(completion.script(shell))
    (tmp_path / "my_run.safetensors").touch()
    terminal = Terminal([program, *words], tmp_path)
    try:
        terminal.type("PS1='ready> '; source ./completion; echo sour''ced\n", "sourced\r\n")
        for keys, line in TYPED.items():
            terminal.type(keys, f"{line}\a" if line == keys.strip() else line)
            terminal.type("\x15", "")  # empties the line
    finally:
        terminal.close()


class Terminal:
    """A shell in a terminal of its own."""

    def __init__(self, command, folder):
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            keep = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "COLUMNS": "400", "LINES": "99"}
            os.execvpe(command[0], command, keep)

    def type(self, keys, expected):
        """Press keys, and wait until the expected text is shown."""
        os.write(self.screen, keys.encode())
        shown, end = "", time.monotonic() + 20
        while expected not in shown:
            ready, _, _ = select.select([self.screen], [], [], max(0, end - time.monotonic()))
            assert ready, f"after {keys!r} the terminal shows {shown!r}, not {expected!r}"
            shown += os.read(self.screen, 65536).decode("utf-8", "replace")

    def close(self):
        """End the shell."""
        os.close(self.screen)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def test_shells_that_are_not_known(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "fish"])
    assert "invalid choice: 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize("name", PARSERS)
def test_help_ends_with_an_example(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    (examples,) = re.findall(r"^examples?: (.+)$", text, re.MULTILINE)
    lines = re.findall(r"(?:dassl-clip|python train\.py) (.+?)(?= dassl-clip | python train\.py |\)\"|; |$)", examples)
    assert lines
    for line in lines:
        words = shlex.split(line)
        words = words if words[0] in COMMANDS else ["train", *words]
        assert words[: len(name.split())] == name.split()
        flags, _ = split_pairs(words[len(name.split()) :], PARSERS[name].single_value_flags())
        PARSERS[name].parse_args(flags)


def test_the_list_of_commands(capsys):
    assert main(["--help"]) == 0
    assert set(COMMANDS) <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
