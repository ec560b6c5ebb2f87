"""Command lines as people type them: `cli/arguments.py`, and what each command and script makes of its words.

Covers: `KEY=VALUE` and `KEY VALUE` mixed, with values that hold `=` or blanks; `--root` and `--data` in every command
that has a data folder; seeds with commas and with blanks; data set and method in the other order; other names of
methods, and names of methods that are not here; `--backbone` and `--weights` as pairs, and flags against keys;
`--help` of every script.
"""

import shlex
import subprocess
from pathlib import Path

import pytest

from dassl_clip.cli import compare, completion, eval, plot, sweep, table, task, train
from dassl_clip.cli.__main__ import main
from dassl_clip.cli.arguments import split_command, split_pairs
from dassl_clip.engine import catalogue
from dassl_clip.results.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "scripts").rglob("*.sh"))
COMMAND_PARSERS = dict(completion.subparsers(completion.whole_parser()))
PARSERS = COMMAND_PARSERS | {
    f"{name} {action}": inner
    for name, parser in COMMAND_PARSERS.items()
    for action, inner in completion.subparsers(parser)
}
DATA_FLAGS = [name for name, parser in PARSERS.items() if {"--data", "--root"} & set(parser._option_string_actions)]
CONFIG = "configs/trainers/LinearProbe/icons.yaml"
DATA = ["--dataset-config-file", "configs/datasets/icons.yaml"]


@pytest.mark.parametrize(
    ("line", "flags", "pairs"),
    [
        ("--seed 1 OPTIM.LR=0.1 TRAIN.PRINT_FREQ 5 SEED=0", "--seed 1", "OPTIM.LR 0.1 TRAIN.PRINT_FREQ 5 SEED 0"),
        ("A.B=c=d A.C e=f A.D= --flag", "--flag", "A.B c=d A.C e=f A.D ''"),
        ("'A.B=a photo of a {}, x=1.' A.C 'two words'", "", "A.B 'a photo of a {}, x=1.' A.C 'two words'"),
        ("A.B='one\ntwo' --targets a b A.C=1", "--targets a b", "A.B 'one\ntwo' A.C 1"),
        ("A.B = 0.1 A.C =", "", "A.B 0.1 A.C ="),
        ("--out A.B=C slurm_partition=gpu --out=A.B=C", "--out A.B=C slurm_partition=gpu --out=A.B=C", ""),
        ("--targets a -- odd.key=1 ODD --out", "--targets a", "odd.key 1 ODD --out"),
    ],
)
def test_pairs_with_and_without_an_equals_sign(line, flags, pairs):
    assert split_pairs(shlex.split(line), ["--seed", "--out"]) == (shlex.split(flags), shlex.split(pairs))


def test_a_key_at_the_end_has_no_value():
    with pytest.raises(UserError, match=r"the key OPTIM\.LR has no value: write OPTIM\.LR VALUE or OPTIM\.LR=VALUE"):
        split_pairs(["SEED=1", "OPTIM.LR"], [])


def test_commands_with_a_data_folder():
    expected = ["train", "task", "compare", "diagnose", "eval", "sweep", "table", "doctor"]
    expected += [f"data {action}" for action in ("list", "verify", "inspect", "links")]
    assert {*expected, "plot tsne"} <= set(DATA_FLAGS)


@pytest.mark.parametrize("name", DATA_FLAGS)
def test_the_data_folder_has_both_names(name):
    actions = PARSERS[name]._option_string_actions
    assert actions["--data"] is actions["--root"]


@pytest.mark.parametrize("typed", ["1 2 3", "1,2,3", "1, 2, 3", "1 2,3 1"])
@pytest.mark.parametrize(
    ("module", "line"),
    [
        (task, "GOPro icons {} --shots 4"),
        (compare, "icons --seeds {} --shots 4"),
        (sweep, "icons --seeds {} --rows a"),
        (table, "icons --seeds {} --rows a"),
        (plot, "domains output --seeds {}"),
    ],
)
def test_seeds_with_commas_and_with_blanks(module, line, typed):
    assert module.build_parser().parse_args(line.format(typed).split()).seeds == (1, 2, 3)


def test_one_run_has_one_seed(capsys):
    assert train.build_parser().parse_args(["--seed", "-1"]).seed == -1
    with pytest.raises(SystemExit, match="2"):
        train.main(["--seed", "1,2"])
    assert "'1,2' should be one whole number; `dassl-clip task METHOD DATASET 1,2,3` makes" in capsys.readouterr().err


def planned(capsys, *words):
    """The lines of a dry run, and stderr."""
    assert main([*words, "--targets", "line", "--dry-run"]) == 0
    done = capsys.readouterr()
    return done.out.splitlines(), done.err


@pytest.mark.parametrize(
    "names", ["LinearProbe icons", "icons LinearProbe", "Icons lp", "configs/datasets/icons.yaml lp"]
)
def test_method_and_data_set_in_either_order(names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    first = names.split()[0]
    lines, err = planned(capsys, "task", *names.split(), "1", "--task", "fewshot", "--out", str(tmp_path))
    (words,) = map(shlex.split, lines)
    assert words[2:8] == ["--trainer", "LinearProbe", *DATA, "--config-file", CONFIG]
    note = f"read as METHOD {names.split()[1]} and DATASET {first}: the method comes first\n"
    assert err == ("" if first == "LinearProbe" else note)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("gopro", "GOPro"), ("go-pro", "GOPro"), ("inmap", "InMaP"), ("zeroshot", "ZeroshotCLIP"),
     ("clip", "ZeroshotCLIP"), ("zero-shot", "ZeroshotCLIP"), ("Zeroshot_CLIP", "ZeroshotCLIP"),
     ("linearprobe", "LinearProbe"), ("linear_probe", "LinearProbe"), ("LP", "LinearProbe"), ("coop", "CoOp")],
)  # fmt: skip
def test_other_names_of_methods(typed, meant):
    assert catalogue.match_trainer(typed, catalogue.trainer_names()) == meant


@pytest.mark.parametrize(
    ("typed", "said"),
    [("MaPLe", "MaPLe"), ("cocoop", "CoCoOp"), ("PromptSRC", "PromptSRC"), ("tip_adapter", "Tip-Adapter"),
     ("TaskRes", "TaskRes")],
)  # fmt: skip
def test_methods_that_are_not_here(typed, said, capsys, monkeypatch):
    monkeypatch.setattr(catalogue, "trainer_names", lambda: ["CLAP", "CoOp", "GOPro"])  # whatever else there is by now
    assert main(["task", typed, "icons", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: there is no method '{typed}'. {said} is published, but not among the methods here. "
    )
    assert "Known: CLAP, CoOp, GOPro. " in line and "docs/adding-a-trainer.md" in line and "--import FILE.py" in line
    assert (ROOT / "docs" / "adding-a-trainer.md").is_file()


def test_a_method_with_a_typing_error(capsys):
    assert main(["task", "linearprob", "icons", "1"]) == 2
    assert "Did you mean 'LinearProbe'?" in capsys.readouterr().err


SHORT = ["--backbone", "RN50", "--weights", "w.pt"]
LONG = (("OPTIM.LR", "1"), ("MODEL.BACKBONE.NAME", "RN50"), ("MODEL.BACKBONE.WEIGHTS", "w.pt"))


@pytest.mark.parametrize(
    ("module", "line"),
    [(task, "GOPro icons 1"), (compare, "icons"), (sweep, "icons"), (eval, "run"), (table, "icons")],
)
def test_short_flags_of_the_model_become_pairs(module, line):
    parser, words = module.build_parser(), [*line.split(), "OPTIM.LR=1"]
    assert split_command(parser, [*words, *SHORT])[1] == LONG
    assert split_command(parser, [*words, *SHORT, "MODEL.BACKBONE.NAME", "RN50"])[1] == (LONG[0], LONG[1], LONG[2])
    for more, said in (
        (
            "--backbone RN50 MODEL.BACKBONE.NAME=RN101",
            "--backbone RN50 and MODEL.BACKBONE.NAME RN101 ask for different",
        ),
        ("MODEL.BACKBONE.WEIGHTS a --weights b", "--weights b and MODEL.BACKBONE.WEIGHTS a ask for different"),
        ("--root /a DATASET.ROOT /b", "--data /a and DATASET.ROOT /b ask for different things: give one of the two"),
    ):
        with pytest.raises(UserError, match=said):
            split_command(parser, [*words, *more.split()])


def test_shots_against_their_key():
    with pytest.raises(UserError, match=r"--shots 4 and DATASET\.NUM_SHOTS 8 ask for different things"):
        split_command(task.build_parser(), shlex.split("GOPro icons 1 --shots 4 DATASET.NUM_SHOTS=8"))


def test_short_flags_reach_the_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "w.pt").touch()
    words = ["--task", "fewshot", "--out", str(tmp_path), "--backbone", "RN50", "--weights", str(tmp_path / "w.pt")]
    short, _ = planned(capsys, "task", "lp", "icons", "1", "--reference", "clip", *words)
    keys = [f"MODEL.BACKBONE.NAME={words[5]}", f"MODEL.BACKBONE.WEIGHTS={words[7]}"]
    long, _ = planned(capsys, "task", "lp", "icons", "1", "--reference", "clip", *words[:4], *keys)
    assert short == long and len(short) == 2
    for line in short:  # the reference stands on the same model
        pairs = dict(zip(shlex.split(line), shlex.split(line)[1:]))
        assert (pairs["MODEL.BACKBONE.NAME"], pairs["MODEL.BACKBONE.WEIGHTS"]) == (words[5], words[7])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_script(script, flag):
    name = str(script.relative_to(ROOT))
    settings = {"PATH": "/usr/bin:/bin"}  # no Python is needed
    done = subprocess.run(["bash", name, flag], capture_output=True, text=True, env=settings, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith(f"usage: bash {name} ")


def test_a_script_takes_words_as_a_task_does(tmp_path, capsys):
    words = "icons 1 2 --targets line --dry-run --root /data OPTIM.LR=0.5 --backbone RN50 --shots 3"
    echo = tmp_path / "echo"
    echo.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    settings = ["TASK=lodo,fewshot", "SHOTS=4", "REFERENCE=none", f"OUT={tmp_path}", f"PYTHON={echo}"]
    command = ["env", *settings, "bash", "scripts/linear_probe/main.sh", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[:2] == ["-m", "dassl_clip.cli"] and main(done.stdout.splitlines()[2:]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("--task ")[1].split()[:3] for line in lines] == [
        [name, "--seed", seed] for name in ("lodo", "fewshot") for seed in ("1", "2")
    ]
    pairs = "OPTIM.LR 0.5 MODEL.BACKBONE.NAME RN50 DATASET.NUM_SHOTS 3"
    assert all("--root /data" in line and line.endswith(pairs) for line in lines)
