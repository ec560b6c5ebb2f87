"""docs/tools.md: every command on the page runs, in the order of the page, on runs as the page makes them.

The first command, which trains for a minute, is parsed; its methods are run on one domain and one seed instead.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dassl_clip.cli import backbones, cache, compare, doctor, plot, predict, report, table, train
from dassl_clip.cli.__main__ import main
from dassl_clip.cli.arguments import split_command

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")
KINDS = {*plot.KINDS, *plot.setting_kinds()}
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("dassl-clip ")
]
MODULES = {"plot": plot, "table": table, "predict": predict, "report": report}
MODULES |= {"backbones": backbones, "doctor": doctor, "cache": cache}


def test_the_page_shows_every_tool_and_kind():
    assert {words[0] for words in COMMANDS} == {*MODULES, "compare"}
    assert {words[1] for words in COMMANDS if words[0] == "plot"} == KINDS
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == KINDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse(words):
    parser = (compare if words[0] == "compare" else MODULES[words[0]]).build_parser()
    args, pairs = split_command(parser, words[1:])
    if words[0] == "compare":
        assert args.dataset == "icons" and args.seeds == (1, 2, 3) and not pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with runs and pictures under the page's names."""
    from dassl_clip.clip.names import embedded_folder

    root = tmp_path_factory.mktemp("page")
    before = os.getcwd()
    os.chdir(root)
    try:
        Path("texts.txt").write_text("a drawing of a {}\nthe outline of one {}\n")
        for line in (
            "compare icons --methods ZeroshotCLIP LinearProbe InMaP --tasks fewshot",
            "task CLAP icons 1 --task fewshot TRAINER.CLAP.MAX_STEPS 20 TRAINER.CLAP.SOURCE texts.txt",
            "task ZeroshotCLIP icons 1 --task lodo",
            "task LinearProbe icons 1 --task fewshot --shots 4",
            "task WiSEFT icons 1 --task lodo TRAINER.WISEFT.STEPS 2 TRAINER.WISEFT.EVALUATE_EVERY 2"
            " TRAINER.WISEFT.PER_DOMAIN 4 TRAINER.WISEFT.ALPHAS '(0.5,)'",
        ):
            planned = io.StringIO()
            with contextlib.redirect_stdout(planned):
                assert main([*shlex.split(line), "--targets", "line", "--dry-run"]) == 0
            for command in planned.getvalue().splitlines():  # in this process, which has torch already
                assert train.main(shlex.split(command.partition("train.py ")[2])) == 0
        (root / "photos" / "more").mkdir(parents=True)
        icons = sorted((embedded_folder().parent / "icons" / "line" / "star").glob("*.png"))
        shutil.copy(icons[0], root / "photos" / "one.png")
        with Image.open(icons[1]) as icon:
            icon.convert("RGB").save(root / "photos" / "more" / "two.jpg")
        (root / "names.txt").write_text("star\ntruck\n")
        yield root
    finally:
        os.chdir(before)


def test_commands_run_as_printed(place, monkeypatch):
    """All of them, in order; a filter that names what these few runs lack is left out."""
    monkeypatch.chdir(place)
    (place / "data").mkdir()
    lacking = {"emoji", "probe"}
    for words in COMMANDS:
        if words[0] == "compare":
            continue
        words = [word.replace("~/data", "data") for word in words if word not in lacking]
        if words[0] == "predict":  # OpenAI's weights are not here
            words = ["IconsCLIP" if word in ("ViT-B/16", "RN50") else word for word in words]
        if words[0] == "cache":  # the page empties it
            monkeypatch.setenv("DASSL_CLIP_CACHE", str(place / "cache"))
        assert MODULES[words[0]].main(words[1:]) == 0, " ".join(words)
        if "--out" in words:
            out = words[words.index("--out") + 1]
            assert Path(out).exists() or {f"{out}.png", f"{out}.svg"} <= {str(p) for p in Path(out).parent.glob("*")}
    assert (place / "output" / "report.html").is_file()
