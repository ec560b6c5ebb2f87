"""From the command line to the configuration: precedence, pairs anywhere, None defaults, a sentence for each mistake.

Covers `engine/config.py`, `engine/overrides.py` and `cli/arguments.py`.
"""

import sys
from pathlib import Path

import pytest

from dassl_clip.cli import train
from dassl_clip.cli.arguments import split_pairs
from dassl_clip.engine import registry
from dassl_clip.engine.config import default_config, merge_file
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.results.errors import UserError

SINGLE = ["--root", "--seed", "--output-dir"]


@pytest.fixture(autouse=True)
def rooms():
    registry.register()


def resolve(*words):
    overrides, _ = train.parse(list(map(str, words)))
    return resolve_config(overrides)


def resolve_in(world, *words):
    return resolve(*world.words(), *words)


@pytest.mark.parametrize(
    ("line", "flags", "pairs"),
    [
        ("--target-domains a b OPTIM.LR 0.1", "--target-domains a b", "OPTIM.LR 0.1"),
        ("OPTIM.LR 0.1 --seed 3", "--seed 3", "OPTIM.LR 0.1"),
        ("--target-domains a SEED 0 --eval-only", "--target-domains a --eval-only", "SEED 0"),
        ("--target-domains CALTECH SUN", "--target-domains CALTECH SUN", ""),
        ("--root DATA.SETS --seed 1", "--root DATA.SETS --seed 1", ""),
        ("DATASET.NUM_SHOTS -1 TRAIN.PRINT_FREQ 5", "", "DATASET.NUM_SHOTS -1 TRAIN.PRINT_FREQ 5"),
        ("--seed 1 -- ODD.KEY --seed", "--seed 1", "ODD.KEY --seed"),
        ("TRAINER.GOPRO.CTX_INIT SEED", "", "TRAINER.GOPRO.CTX_INIT SEED"),
    ],
)
def test_pairs_stand_anywhere(line, flags, pairs):
    assert split_pairs(line.split(), SINGLE) == (flags.split(), pairs.split())


def test_a_key_without_value():
    with pytest.raises(UserError, match=r"the key OPTIM\.LR has no value: write OPTIM\.LR VALUE"):
        split_pairs(["--seed", "1", "OPTIM.LR"], SINGLE)


def test_precedence_from_defaults_to_pairs(world):
    world.dataset.write_text("DATASET: {NAME: FolderDomains, NUM_SHOTS: 1}\nOPTIM: {LR: 0.5, MAX_EPOCH: 5}\n")
    world.config.write_text("OPTIM: {LR: 0.25}\nSEED: 7\n")
    base = [*world.words(), "OPTIM.MAX_EPOCH", "9"]
    base[base.index("--seed") : base.index("--seed") + 2] = []
    cfg = resolve(*base)
    assert (cfg.OPTIM.MOMENTUM, cfg.DATASET.NUM_SHOTS, cfg.OPTIM.LR, cfg.SEED) == (0.9, 1, 0.25, 7)
    assert cfg.OPTIM.MAX_EPOCH == 9
    assert resolve(*base, "--seed", "0").SEED == 0
    assert resolve(*base, "--seed", "3", "SEED", "0").SEED == 0
    assert resolve(*base, "--seed", "-1").SEED == -1


def test_flags_reach_their_keys(world):
    cfg = resolve_in(world, "--transforms", "normalize", "random_flip", "--backbone", "RN50", "--resume", "x")
    assert cfg.INPUT.TRANSFORMS == ("normalize", "random_flip")
    assert (cfg.MODEL.BACKBONE.NAME, cfg.RESUME, cfg.TRAINER.NAME) == ("RN50", "x", "TinyNet")
    assert (cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS) == (("day",), ("night",))
    assert cfg.RUN.TASK == "lodo"
    assert cfg.RUN.CONFIG == "tiny+INPUT.TRANSFORMS=normalize,random_flip+MODEL.BACKBONE.NAME=RN50"


def test_other_trainers_nodes_are_cleaned_by_the_name_in_force(world):
    words = world.words()
    words[words.index("--trainer") : words.index("--trainer") + 2] = []
    cfg = resolve(*words, "TRAINER.NAME", "TinyNet", "TRAINER.TINYNET.WIDTH", "4")
    assert set(cfg.TRAINER) == {"NAME", "TINYNET"}
    assert cfg.TRAINER.TINYNET.WIDTH == 4


def test_numbers_and_lists_fit_their_keys(world):
    cfg = resolve_in(
        world, "OPTIM.LR", "1", "INPUT.SIZE", "(4, 6)", "OPTIM.STEPSIZE", "[3]", "OPTIM.WARMUP_CONS_LR", "1e-3"
    )
    assert (cfg.OPTIM.LR, type(cfg.OPTIM.LR)) == (1.0, float)
    assert cfg.INPUT.SIZE == (4, 6)
    assert cfg.OPTIM.STEPSIZE == (3,)
    assert cfg.OPTIM.WARMUP_CONS_LR == 0.001
    assert resolve_in(world, "INPUT.TRANSFORMS", "normalize").INPUT.TRANSFORMS == ("normalize",)
    texts = "['a {}.', 'the {}.']"
    assert resolve_in(world, "TRAINER.ZEROSHOTCLIP.TEMPLATES", texts, "--trainer", "ZeroshotCLIP")
    world.config.write_text("OPTIM:\n  LR: 1\n  WARMUP_CONS_LR: 1e-5\n")
    assert resolve_in(world).OPTIM.WARMUP_CONS_LR == 1e-5


@pytest.mark.parametrize("words", ["[0, 15]", "(0, '15')", "15", "0.5", "photo"])
def test_4_6_domain_names_may_be_numbers(world, words):
    """`SOURCE_DOMAINS: [0, 15]` was a TypeError (row 4.6)."""
    names = {"15": ("15",), "0.5": ("0.5",), "photo": ("photo",)}.get(words, ("0", "15"))
    cfg = resolve_in(world, "DATASET.SOURCE_DOMAINS", words)
    assert names == cfg.DATASET.SOURCE_DOMAINS
    cfg = default_config()
    world.config.write_text(f"DATASET:\n  TARGET_DOMAINS: {words}\n")
    merge_file(cfg, str(world.config))
    assert names == cfg.DATASET.TARGET_DOMAINS
    for text in ("[on, off]", "[[a]]"):
        world.config.write_text(f"DATASET:\n  TARGET_DOMAINS: {text}\n")
        with pytest.raises(UserError, match=r"tiny\.yaml: DATASET\.TARGET_DOMAINS names domains, but .* is none; put"):
            resolve_in(world)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["OPTIM.LRR", "1"], r"there is no config key 'OPTIM\.LRR'\. Did you mean 'OPTIM\.LR'\?"),
        (["OPTIM.BATCH_SIZE", "1"], r"Did you mean .*'DATALOADER\.TRAIN_X\.BATCH_SIZE'"),
        (["TRAINER.TINYNET.WIDHT", "1"], r"Did you mean 'TRAINER\.TINYNET\.WIDTH'\?"),
        (["OPTIM.LR", "fast"], r"OPTIM\.LR takes a number \(now 0\.1\), but 'fast' was given"),
        (["SEED", "1.5"], r"SEED takes a whole number \(now 1\), but 1\.5 was given"),
        (["USE_CUDA", "no"], r"USE_CUDA takes True or False \(now True\), but 'no' was given"),
        (["OPTIM.MAX_EPOCH", "True"], r"OPTIM\.MAX_EPOCH takes a whole number .*True was given"),
        (["INPUT.SIZE", "8"], r"INPUT\.SIZE takes a tuple such as .* \(now \(8, 8\)\), but 8 was given"),
        (["OPTIM.LR.X", "1"], r"there is no config key 'OPTIM\.LR\.X'"),
        (["TRAINER.TINYNET", "1"], r"TRAINER\.TINYNET is a group of keys \(WIDTH, FAULT"),
        (["--trainer", "TinyNett"], r"there is no trainer 'TinyNett'\. Did you mean 'TinyNet'\? Known: .*GOPro"),
        (["DATASET.NAME", "Folderdomain"], r"there is no data set 'Folderdomain'\. Did you mean 'FolderDomains'\?"),
        (["DATASET.NAME", ""], r"no data set was named: give DATASET\.NAME .*Known: "),
        (["--import", "absent.py"], r"--import: there is no file .*absent\.py"),
        (["--import", "no_such_module_here"], r"--import: there is no module 'no_such_module_here'"),
    ],
)
def test_mistakes_on_the_command_line(world, words, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_in(world, *words)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("OPTIM:\n  LERNRATE: 1\n", r"tiny\.yaml: there is no config key 'OPTIM\.LERNRATE'\."),
        ("OPTIMM:\n  LR: 1\n", r"tiny\.yaml: there is no config key 'OPTIMM'\. Did you mean 'OPTIM'\?"),
        ("OPTIM:\n  LR: fast\n", r"tiny\.yaml: OPTIM\.LR takes a number"),
        ("OPTIM: [1\n", r"tiny\.yaml is not a yaml file"),
        ("- a\n- b\n", r"tiny\.yaml should hold KEY: VALUE lines, but holds a list"),
    ],
)
def test_mistakes_in_a_file_name_the_file(world, text, sentence):
    world.config.write_text(text)
    with pytest.raises(UserError, match=sentence):
        resolve_in(world)


def test_an_absent_config_file_lists_what_is_there(world):
    with pytest.raises(
        UserError, match=r"there is no config file .*tinny\.yaml.*tiny\.yaml.*Did you mean 'tiny\.yaml'\?"
    ):
        resolve(*world.words()[:-2], "--config-file", world.root / "tinny.yaml")


def test_a_name_in_place_of_a_path_is_told_which_files_are_called_so(world):
    told = r"no config file pacs\. Give the path .*configs; of that name: datasets/pacs\.yaml, trainers/CLAP/pacs\."
    with pytest.raises(UserError, match=told):
        resolve(*world.words()[:-2], "--dataset-config-file", "pacs")


def test_unknown_flag(world, capsys):
    with pytest.raises(SystemExit) as stop:
        train.parse(["--sead", "1"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unrecognized arguments: --sead 1. Did you mean '--seed'?")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("registry", "name", "kind", "owner"),
    [
        ("dassl.data.datasets.DATASET_REGISTRY", "PACS", "data set", "dassl_clip.datasets.domain_sets"),
        ("dassl.engine.TRAINER_REGISTRY", "CoOp", "trainer", "dassl_clip.trainers.coop"),
        ("dassl.modeling.backbone.BACKBONE_REGISTRY", "resnet18", "backbone", "something else"),
    ],
)
def test_a_name_of_ours_that_a_file_registers_too_is_named(world, registry, name, kind, owner):
    """Who has it, where, and what to do; with force the file's own takes its place."""
    module, _, table = registry.rpartition(".")
    file = world.root / "mine.py"
    file.write_text(f"from {module} import {table}\n\n\n@{table}.register()\nclass {name}:\n    pass\n")
    with pytest.raises(UserError) as error:
        resolve_in(world, "--import", str(file))
    text = str(error.value)
    assert text.startswith(f"--import: {file} registers a {kind} '{name}' (line 4 of {file}), but {owner}")
    path = "" if owner == "something else" else str(Path(sys.modules[owner].__file__))
    assert path in text and "\n" not in text and "KeyError" not in text and "already registered" not in text
    assert f"rename the class, or register it with {table}.register(force=True)" in text


def test_a_file_is_imported_once(world):
    file = world.root / "counted.py"
    file.write_text("open(__file__ + '.count', 'a').write('x')\n")
    for _ in range(3):
        resolve_in(world, "--import", str(file))
    assert (world.root / "counted.py.count").read_text() == "x"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "tiny"),
        (["OPTIM.LR", "0.1"], "tiny"),  # the file's own value
        (["OPTIM.LR", "0.2", "OPTIM.MAX_EPOCH", "9"], "tiny+OPTIM.LR=0.2+OPTIM.MAX_EPOCH=9"),
        (["--backbone", "ViT-B/16"], "tiny+MODEL.BACKBONE.NAME=ViT-B_16"),
        (["--seed", "9", "DATASET.NUM_SHOTS", "2", "DATALOADER.NUM_WORKERS", "3", "TRAINER.GOPRO.PREC", "amp"], "tiny"),
        (["INPUT.SIZE", "(4, 6)"], "tiny+INPUT.SIZE=4,6"),
    ],
)
def test_the_config_is_named_with_what_was_changed(world, words, name):
    assert name == resolve_in(world, *words).RUN.CONFIG


def test_keys_of_a_plugins_extend_cfg_can_be_set(world):
    file = world.root / "plugin_train.py"
    file.write_text(
        "from yacs.config import CfgNode\n\n\ndef extend_cfg(cfg):\n"
        "    cfg.TRAINER.TINYNET.EXTRA = 0.5\n    cfg.PLUGIN = CfgNode({'DEPTH': 1})\n"
    )
    cfg = resolve_in(world, "--import", str(file), "PLUGIN.DEPTH", "3", "TRAINER.TINYNET.EXTRA", "1")
    assert (cfg.PLUGIN.DEPTH, cfg.TRAINER.TINYNET.EXTRA) == (3, 1.0)
    del registry._IMPORTED[str(file.resolve())]


def test_configurations_of_the_same_files_share_nothing(world):
    first, second = resolve_in(world, "OPTIM.LR", "1"), resolve_in(world, "OPTIM.LR", "2")
    first.defrost()
    first.INPUT.PIXEL_MEAN.append(9.0)
    first.OPTIM.MOMENTUM = 7.0
    third = resolve_in(world, "OPTIM.LR", "3")
    assert len(second.INPUT.PIXEL_MEAN) == len(third.INPUT.PIXEL_MEAN) == 3
    assert 7.0 not in (second.OPTIM.MOMENTUM, third.OPTIM.MOMENTUM)


def test_a_file_that_was_changed_is_read_again(world):
    rates = []
    for rate in (0.25, 0.125):
        world.config.write_text(f"OPTIM: {{LR: {rate}}}\n")
        rates.append(resolve_in(world, "OPTIM.MAX_EPOCH", str(int(1 / rate))).OPTIM.LR)
    assert rates == [0.25, 0.125]
