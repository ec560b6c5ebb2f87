"""`dassl-clip completion` and `--help`.

Covers: the script sourced by a real bash, which completes sub-commands, actions, flags, trainers, data sets, tasks,
configs, choices and config keys at the right places, and files; the script of every other shell; `--help` of every
sub-command: exit code 0 and an example that its own parser takes.
"""

import re
import shlex
import shutil
import subprocess

import pytest
import shtab

from dassl_clip.cli import completion
from dassl_clip.cli.__main__ import COMMANDS, main
from dassl_clip.cli.arguments import split_pairs
from dassl_clip.engine import catalogue
from dassl_clip.experiments.tasks import TASKS

COMMAND_PARSERS = dict(completion.subparsers(completion.whole_parser()))
PARSERS = COMMAND_PARSERS | {
    f"{name} {action}": inner
    for name, parser in COMMAND_PARSERS.items()
    for action, inner in completion.subparsers(parser)
}
TRY = """
source "$1"
while IFS= read -r line; do
    IFS=$'\\t' read -r -a COMP_WORDS <<< "$line"
    COMP_WORDS=("${COMP_WORDS[@]/#_empty_/}")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _shtab_dassl_clip 2> /dev/null
    echo "${COMPREPLY[*]}"
done
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_words_at_their_places_in_bash(tmp_path, capsys):
    expected = {
        ("",): list(COMMANDS),
        ("--v",): ["--version"],
        ("ta",): ["task", "table"],
        ("task", ""): catalogue.trainer_names(),
        ("task", "GOPro", "ic"): ["icons"],
        ("task", "GOPro", "icons", "1", "--tas"): ["--task"],
        ("task", "GOPro", "icons", "1", "--task", ""): list(TASKS),
        ("task", "--shots", "4", "CoOp", "vl"): ["vlcs"],
        ("task", "--dry-run", "CoOp", "vl"): ["vlcs"],
        ("task", "GOPro", "icons", "1", "--config", "icons_no_ce"): ["icons_no_ce"],
        ("task", "GOPro", "icons", "1", "TRAINER.CLAP.ATTACK_E"): ["TRAINER.CLAP.ATTACK_EPSILON"],
        ("compare", "icons", "--methods", "ZeroshotCLIP", "CoO"): ["CoOp"],
        ("compare", "icons", "--task", "st"): ["styles", "stream"],
        ("sweep", "clap-z"): ["clap-zeroshot"],
        ("sweep", "trans"): ["transduction", "transduction-streams"],
        ("table", "icons", "clap-at"): ["clap-attacks"],
        ("train", "--trainer", "In"): ["InMaP"],
        ("train", "--config-file", ""): ["my.safetensors"],
        ("eval", "run", "--dataset", "pa"): ["pacs"],
        ("data", "ve"): ["verify"],
        ("data", "verify", "pa"): ["pacs"],
        ("data", "links", "pacs", "vlcs", "office_home_"): ["office_home_dg"],
        ("data", "verify", "pacs", "--ma"): ["--make-split"],
        ("completion", ""): list(shtab.SUPPORTED_SHELLS),
        ("predict", "--run", ""): ["my.safetensors"],
        ("predict", "--names", "m"): ["my.safetensors"],
        ("predict", "--run", "x", "--na"): ["--names"],
    }
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "my.safetensors").touch()
    typed = "".join("\t".join(["dassl-clip", *(word or "_empty_" for word in line)]) + "\n" for line in expected)
    shell = ["bash", "--norc", "-c", TRY, "bash", str(tmp_path / "script")]
    done = subprocess.run(shell, input=typed, capture_output=True, text=True, check=True, cwd=folder)
    assert done.stderr == ""
    assert dict(zip(expected, map(str.split, done.stdout.splitlines()))) == expected


@pytest.mark.parametrize("shell", sorted({*shtab.SUPPORTED_SHELLS} - {"bash"}))
def test_other_shells(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("dassl-clip", "doctor", "--make-split", "ViT-B/16"))


def test_shells_that_are_not_known(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "rc"])
    assert "invalid choice: 'rc'" in capsys.readouterr().err


@pytest.mark.parametrize("name", PARSERS)
def test_help_ends_with_examples_one_per_line(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit, match="0"):
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    examples = re.split(r"^examples?:", text, flags=re.MULTILINE)[1].strip().splitlines()
    for line in examples:
        assert len(re.findall(r"dassl-clip |train\.py ", line)) == 1
        words = shlex.split(re.sub(r"^.*?(dassl-clip|python train\.py) |\)\"$| > .*", "", line))
        words = words if words[0] in COMMANDS else ["train", *words]
        assert words[: len(name.split())] == name.split()
        flags, _ = split_pairs(words[len(name.split()) :], PARSERS[name].single_value_flags())
        PARSERS[name].parse_args(flags)


def test_the_list_of_commands(capsys):
    assert main(["--help"]) == 0
    assert set(COMMANDS) <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
