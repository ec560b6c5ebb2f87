"""The command-line tools: training and testing from the shell, and means of results over logs that the engine wrote."""

import importlib.util
import io
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).parents[2] / "toolbox" / "tools"


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"toolbox_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(image_root, monkeypatch):
    """Runs tools/train.py and returns the log."""
    tool = load("train")
    monkeypatch.setattr(tool, "collect_env_info", lambda: "the environment")

    def run(output: Path, *more: str) -> list[str]:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        small = ["INPUT.SIZE", "(8, 8)", "DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False"]
        flags = ["--root", str(image_root), "--trainer", "MiniTrainer", "--output-dir", str(output)]
        tool.main([*flags, *more, *([] if "--" in more else ["--"]), "DATASET.NAME", "ToyImages", *small])
        console = sys.stdout.console.getvalue()
        sys.stdout.close()
        return console.splitlines()

    return run


def test_training_and_evaluation(train, tmp_path):
    lines = train(tmp_path / "a", "--seed", "0", "--transforms", "random_flip", "normalize")
    assert lines[0] == "Setting fixed seed: 0"
    log = (tmp_path / "a" / "log.txt").read_text().splitlines()
    assert log == lines[1:]
    assert log[0] == "** Arguments **" and "+ random flip" in log and "Finish training" in log
    flags = ("--eval-only", "--model-dir", str(tmp_path / "a"), "--load-epoch", "1")
    evaluated = train(tmp_path / "b", "--transforms", "normalize", *flags)
    assert not any(line.startswith("Setting fixed seed") for line in evaluated)
    block = lines[lines.index("=> result") :][:6]
    assert evaluated[evaluated.index("=> result") :][:6] == block
    assert "=> result" not in train(tmp_path / "c", "--no-train")


def test_precedence(tmp_path):
    tool = load("train")
    (tmp_path / "data.yaml").write_text("SEED: 5\nOPTIM:\n  LR: 0.5\n  MAX_EPOCH: 5\nDATASET:\n  NAME: 'Data'\n")
    (tmp_path / "method.yaml").write_text("OPTIM:\n  LR: 0.6\nTRAINER:\n  NAME: 'FixMatch'\n")

    def parse(*more: str):
        files = ["--dataset-config-file", str(tmp_path / "data.yaml"), "--config-file", str(tmp_path / "method.yaml")]
        return tool.setup_cfg(tool.build_parser().parse_args([*files, *more]))

    cfg = parse()
    assert (cfg.SEED, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.DATASET.NAME) == (5, 0.6, 5, "Data")
    assert set(cfg.TRAINER) == {"NAME", "FIXMATCH"} and cfg.is_frozen()
    cfg = parse("--seed", "0", "--trainer", "DDAIG", "--target-domains", "a", "b", "--", "OPTIM.LR", "0.7", "SEED", "3")
    assert (cfg.SEED, cfg.OPTIM.LR, cfg.TRAINER.NAME) == (3, 0.7, "DDAIG")
    assert cfg.DATASET.TARGET_DOMAINS == ("a", "b") and set(cfg.TRAINER) == {"NAME", "DDAIG"}
    assert parse("--seed", "0").SEED == 0


def test_results_of_logs_that_the_engine_wrote(train, tmp_path, monkeypatch, capsys):
    accuracies = []
    for seed in (1, 2, 3):
        lines = train(tmp_path / "experiment" / f"seed{seed}", "--seed", str(seed))
        accuracies += [float(line.split()[-1].rstrip("%")) for line in lines if line.startswith("* accuracy")]
    (tmp_path / "experiment" / ".hidden").mkdir()
    monkeypatch.undo()
    capsys.readouterr()
    parse = load("parse_test_res").main
    mean, deviation = statistics.fmean(accuracies), statistics.pstdev(accuracies)
    for flags, spread in (([], deviation), (["--ci95"], 1.96 * deviation / 3**0.5), (["--test-log"], deviation)):
        parse([str(tmp_path / "experiment"), *flags])
        out = capsys.readouterr().out
        assert out.count("log.txt") == 3
        assert f"* average accuracy: {mean:.2f}% +- {spread:.2f}%" in out.splitlines()
    parse([str(tmp_path), "--multi-exp", "--keyword", "macro_f1"])
    assert re.search(r"^\* macro_f1: [\d.]+%$", capsys.readouterr().out, re.MULTILINE)


def test_only_the_last_result_after_the_signal_counts(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    log = tmp_path / "run" / "log.txt"
    log.write_text(
        "=> result\n* accuracy: 10.0%\n  Finish training  \n* accuracy: 20.5%\nx * accuracy: 81%\n* error: 7%\n"
    )
    parse = load("parse_test_res").main
    parse([str(tmp_path)])
    assert "* average accuracy: 81.00% +- 0.00%" in capsys.readouterr().out
    log.write_text("Finish training.\n* accuracy: 10.0%\n")
    with pytest.raises(ValueError, match="Nothing found"):
        parse([str(tmp_path)])
    log.unlink()
    with pytest.raises(FileNotFoundError, match=r"run/log\.txt"):
        parse([str(tmp_path)])


def test_log_of_per_class_results(train, tmp_path):
    torch.manual_seed(0)
    lines = train(tmp_path / "a", "--", "TEST.PER_CLASS_RESULT", "True")
    rows = [line for line in lines if line.startswith("* class: ")]
    pattern = re.compile(r"\* class: (\d) \((\w+)\)\ttotal: 2\tcorrect: [012]\tacc: [\d.]+%")
    assert [pattern.fullmatch(row).groups() for row in rows] == [("0", "cat"), ("1", "dog"), ("2", "emu")]
