"""`dassl-clip data`: list, verify, inspect and links.

Covers: exit codes 0, 1 and 2, the table of domains against the published numbers, layouts, classes, findings in their
words, options (--classes, --decode, --duplicates, --make-split, KEY VALUE pairs), names in any spelling and yaml files,
the sheet of images (size, one row per domain, an unreadable image), the prompts by template, the list of data sets and
what a root holds, links with checksums and terms and what is fetched of them, wrong names, flags and keys, nothing
written beside the data.
"""

import functools
import hashlib
import json
import re
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from dassl_clip.cli import data
from dassl_clip.cli.__main__ import main
from dassl_clip.cli.data import open_config
from dassl_clip.cli.data_sheet import MARGIN, TILE
from dassl_clip.datasets.spec import load_spec

COLOURS = {"day": (250, 250, 250), "night": (10, 10, 10)}


@pytest.fixture
def folders(tmp_path):
    """Domains day and night with cats and fire trucks."""
    for domain, colour in COLOURS.items():
        for name in ("cat", "fire_truck"):
            for number in range(5):
                path = tmp_path / "own" / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 30), colour).save(path)
    return tmp_path / "own"


@pytest.fixture
def pacs(tmp_path):
    """PACS with the published number of images in each class."""
    for domain, entry in load_spec("pacs").details.items():
        for name, size in entry["per_class"].items():
            folder = tmp_path / "data/PACS" / domain / name
            folder.mkdir(parents=True)
            for number in range(size):
                (folder / f"{number}.jpg").write_bytes(b"x")
    (tmp_path / "data/PACS/sketch/dog/0.jpg").unlink()
    return tmp_path / "data"


def run(capsys, *words):
    code = data.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def cells(line):
    return re.split(r"\s{2,}", line.strip())


def test_verify_what_fits(pacs, capsys):
    code, out, err = run(capsys, "verify", "pacs", "--root", pacs)
    assert code == 0 and err == ""
    table = {row[0]: row for row in map(cells, out.splitlines())}
    assert table["domain"] == ["domain", "classes", "images", "published", "train", "val"]
    assert table["photo"][:4] == ["photo", "7 of 7", "1,670", "1,670"]
    assert table["sketch"][:4] == ["sketch", "7 of 7", "3,928", "3,928"]
    assert table["all"][:3] == ["all", "9,990", "9,990"]
    assert f"layout: domain/class folders in {pacs}/PACS, no split lists" in out
    assert out.endswith("PACS fits.\n")


def test_verify_what_warns(pacs, capsys):
    (pacs / "PACS/photo/dog/0.jpg").unlink()
    code, out, _ = run(capsys, "verify", "PACS", "--root", pacs, "--classes")
    assert code == 1
    assert "warning: PACS: number of images (published number) differs in photo 1669 (1670)" in out
    assert "warning: PACS: images (published number) of classes of photo: dog 188 (189)" in out
    assert ["0", "dog", "379", "389", "188", "771"] in [cells(line) for line in out.splitlines()]
    assert out.endswith("PACS can be used, with warnings.\n")


def test_verify_what_cannot_be_used(pacs, capsys):
    for file in (pacs / "PACS/photo/dog").iterdir():
        file.unlink()
    (pacs / "PACS/photo/dog").rmdir()
    code, out, _ = run(capsys, "verify", "pacs", "--root", pacs)
    assert code == 2
    assert f"error: PACS: found 6 class folders in {pacs}/PACS/photo, missing: dog" in out
    assert "sketch" in out and "3,928" in out  # the others are counted all the same
    assert ["photo", "not read"] in [cells(line) for line in out.splitlines()]
    code, out, _ = run(capsys, "verify", "office-home", "--root", pacs)
    assert code == 2 and f"error: {pacs} looks like PACS: ask for that data set" in out


def test_verify_looks_into_the_files(folders, capsys):
    code, out, _ = run(capsys, "verify", "folder_domains", "--root", folders, "--decode", "--jobs", 2)
    assert code == 0
    code, out, _ = run(capsys, "verify", "FolderDomains", "--root", folders, "--duplicates")
    assert code == 1 and "warning: 18 files are copies of others, in 2 groups, 2 of which have more" in out
    code, _, err = run(capsys, "verify", "FolderDomains", "--root", folders, "--decode", "--jobs", 0)
    assert code == 2 and "--jobs 0: at least 1 thread must decode" in err
    (folders / "day/cat/3.png").write_bytes(b"no image")
    code, out, _ = run(capsys, "verify", "FolderDomains", "--root", folders, "--decode")
    assert code == 2 and f"error: {folders}/day/cat/3.png cannot be decoded" in out


def test_verify_reads_pairs(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"x")
        (tmp_path / name / "2.jpg").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("path,class,split\na/1.jpg,a,train\nb/1.jpg,b,train\nb/2.jpg,b,test\n")
    code, out, _ = run(capsys, "verify", "manifest", "--root", tmp_path, "DATASET.MANIFEST", "list.csv")
    assert code == 0 and ["test", "1 of 2", "1"] in [cells(line)[:3] for line in out.splitlines()]
    code, _, err = run(capsys, "verify", "manifest", "--root", tmp_path, "DATASET.MANIFSET", "list.csv")
    assert code == 2 and "there is no config key 'DATASET.MANIFSET'. Did you mean 'DATASET.MANIFEST'?" in err
    (tmp_path / "own.yaml").write_text("DATASET:\n  NAME: FolderClasses\n")
    assert run(capsys, "verify", tmp_path / "own.yaml", "--root", tmp_path)[0] == 0


def test_make_split(tmp_path, capsys):
    for folder in load_spec("eurosat").folder_names:
        (tmp_path / "eurosat/2750" / folder).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "eurosat/2750" / folder / f"{folder}_{number}.jpg").write_bytes(b"x")
    code, out, _ = run(capsys, "verify", "eurosat", "--root", tmp_path)
    assert code == 2 and "split_zhou_EuroSAT.json not found" in out
    target = tmp_path / "mine.json"
    code, out, _ = run(capsys, "verify", "eurosat", "--root", tmp_path, "--make-split", target, "--seed", 3)
    assert code == 1 and f"Wrote {target}, to be used by DATASET.SPLIT_FILE {target}; results" in out
    assert {part: len(rows) for part, rows in json.loads(target.read_text()).items()} == {
        "train": 50,
        "val": 20,
        "test": 30,
    }
    code, _, err = run(capsys, "verify", "pacs", "--root", tmp_path, "--make-split")
    assert code == 2 and err.startswith("error: PACS has no split file, so none can be made")


def test_inspect(folders, tmp_path, capsys):
    before = sorted(folders.rglob("*"))
    sheet = tmp_path / "sheet.png"
    code, out, _ = run(capsys, "inspect", "folder_domains", "--root", folders, "--images", 3, "--out", sheet)
    assert code == 0 and sorted(folders.rglob("*")) == before
    assert "FolderDomains: 2 classes in label order, with their prompts" in out
    assert "    0  cat: a photo of a cat.\n    1  fire_truck: a photo of a fire truck.\n" in out
    assert f"Drew 6 images on {sheet}" in out
    with Image.open(sheet) as image:
        assert image.mode == "RGB"
        tile, margin = TILE, MARGIN
        assert image.width == margin + 3 * (tile + margin)
        middle = margin + tile // 2
        colours = [image.getpixel((middle, y)) for y in range(image.height)]
    assert colours.count((250, 250, 250)) >= tile - 20 and colours.count((10, 10, 10)) >= tile - 20
    assert colours.index((250, 250, 250)) < colours.index((10, 10, 10))


def test_inspect_shows_images_that_cannot_be_read(folders, tmp_path, capsys):
    for path in (folders / "day").rglob("*.png"):
        path.write_bytes(b"no image")
    sheet = tmp_path / "sheet.png"
    assert run(capsys, "inspect", "FolderDomains", "--root", folders, "--out", sheet)[0] == 0
    with Image.open(sheet) as image:
        assert (255, 0, 0) in {image.getpixel((8 + i, 23 + i)) for i in range(150)}


def test_inspect_by_template(folders, tmp_path, capsys):
    words = ["inspect", "FolderDomains", "--root", folders, "--out", tmp_path / "s.png", "--templates"]
    assert "0  cat: itap of a cat." in (out := run(capsys, *words, "inmap7")[1]) and "(and 6 more templates)" in out
    assert "1  fire_truck: my fire truck!" in run(capsys, *words, "my {}!")[1]
    code, _, err = run(capsys, *words, "inmap8")
    assert code == 2 and "unknown templates 'inmap8'. Did you mean 'inmap7'" in err


def test_inspect_refuses(folders, tmp_path, capsys):
    code, _, err = run(capsys, "inspect", "FolderDomains", "--root", folders, "--out", tmp_path / "no/s.png")
    assert code == 2 and f"--out: there is no folder {tmp_path}/no" in err
    before = {path: path.stat().st_mtime_ns for path in folders.rglob("*.*")}
    image = min(before)
    for out, told in (
        (image, "is there already, among the images"),
        (image.with_name("s.png"), "lies among the images of"),
    ):
        code, _, err = run(capsys, "inspect", "FolderDomains", "--root", folders, "--out", out)
        assert code == 2 and f"--out {out} {told}" in err
    assert {path: path.stat().st_mtime_ns for path in folders.rglob("*.*")} == before
    code, _, err = run(capsys, "inspect", "FolderDomains", "--root", folders, "--images", 0)
    assert code == 2 and "--images 0: at least one image" in err
    code, out, _ = run(capsys, "inspect", "pacs", "--root", folders)
    assert code == 2 and out.startswith("error: PACS not found in")


def test_list(tmp_path, capsys):
    (tmp_path / "Office-Home").mkdir()
    (tmp_path / "pacs").mkdir()
    code, out, _ = run(capsys, "list", "--root", tmp_path)
    rows = {row[0]: row for row in map(cells, out.splitlines())}
    assert code == 0
    assert rows["PACS"] == ["PACS", "pacs", "art_painting, cartoon, photo, sketch", "7", "9,991", "pacs", "pacs"]
    assert rows["OfficeHome"][-1] == "Office-Home" and rows["miniDomainNet"][3] == "126"
    assert rows["Food101"] == ["Food101", "food101", "none", "101", "101,000", "food-101"]
    assert len(rows) >= 25
    code, _, err = run(capsys, "list", "--root", tmp_path / "none")
    assert code == 2 and f"--root: there is no folder {tmp_path}/none" in err


def test_links(capsys):
    code, out, _ = run(capsys, "links", "imagenet-a", "Food101")
    assert code == 0 and out.count("terms: ") == 2
    assert "imagenet-a.tar (687552512 bytes, md5 c3e55429088dc681f30d81f4726b6595)" in out
    assert "split_zhou_Food101.json\n    https://drive.google.com/file/d/1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl/view" in out
    assert f"  terms: none found\n  - {data.NO_ADDRESS}" in run(capsys, "links", "Office31")[1]
    every = run(capsys, "links")[1]
    assert every.count("terms: ") == 28 and "http" in every
    code, _, err = run(capsys, "links", "food102")
    assert code == 2 and "no links are known for 'food102'. Did you mean 'Food101'?" in err


def test_what_has_to_be_fetched_by_hand_is_named(capsys, tmp_path):
    code, out, _ = run(capsys, "links", "pacs", "--root", tmp_path, "--download")
    told = out.partition("still to be fetched:\n")[2].splitlines()
    assert code == 1 and len(told) == 2 and not any(tmp_path.iterdir())
    assert all(line.startswith("  PACS: ") and line.endswith(f", into {tmp_path}/pacs") for line in told)
    code, out, _ = run(capsys, "links", "digits_dg", "--root", tmp_path, "--download")
    assert code == 1 and "All is there" not in out
    assert out.splitlines()[-1] == f"  DigitsDG: {data.NO_ADDRESS}, into {tmp_path}/digits_dg"
    for words in (["--download", "--root", tmp_path], ["pacs", "--download"], ["pacs", "A.B", "1"]):
        code, _, err = run(capsys, "links", *words)
        assert code == 2 and ("--download needs the names of data sets, and --root DIR" in err or "KEY VALUE" in err)


def test_what_can_be_fetched_is_unpacked_although_something_fails(capsys, tmp_path):
    """From a server on this machine: an archive, a file of another checksum, one that is not there, a plain file."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    Image.new("RGB", (4, 4)).save(shelf / "a.png")
    with tarfile.open(shelf / "pictures.tar", "w") as archive:
        archive.add(shelf / "a.png", "pictures/a.png")
    (shelf / "labels.mat").write_bytes(b"labels")
    (shelf / "torn.zip").write_bytes(b"torn")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(shelf))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        links = [{"what": name, "url": f"{address}/{name}"} for name in ("torn.zip", "none.tar", "pictures.tar")]
        links += [{"what": "labels", "url": f"{address}/labels.mat", "md5": hashlib.md5(b"labels").hexdigest()}]
        left = data.fetch_all({"name": "Own", "folders": ["own"], "links": links}, tmp_path / "root")
        server.shutdown()
    there = tmp_path / "root/own"
    assert (there / "pictures/a.png").read_bytes() == (shelf / "a.png").read_bytes()
    assert (there / "labels.mat").read_bytes() == b"labels"
    out = capsys.readouterr().out
    assert f"{there}/pictures.tar is there, unpacked\n{there}/labels.mat is there\n" in out
    assert [line.partition(": ")[2].split(",")[0] for line in left] == ["torn.zip", "none.tar"]
    assert "HTTP Error 404" in left[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "pasc"], "there is no data set 'pasc'. Did you mean 'PACS'?"),
        (["verify", "pacs", "A.B"], "the key A.B has no value"),
        (["list", "A.B", "1"], "takes no KEY VALUE pairs"),
        (["verify", "pacs"], None),
    ],
)
def test_sentences(words, message, capsys):
    code, out, err = run(capsys, *words)
    assert code == 2
    if message:
        assert message in err and out == ""
    else:
        assert "error: DATASET.ROOT is empty: give the folder that holds PACS (--root)" in out


@pytest.mark.parametrize(
    ("name", "registered"),
    [
        ("office-home", "OfficeHome"),
        ("Flower102", "OxfordFlowers"),
        ("imagenet-adversarial", "ImageNetA"),
        ("DTD", "DescribableTextures"),
        ("domainnet", "DomainNet"),
        ("minidomainnet", "miniDomainNet"),
        ("fgvc-aircraft-2013b", "FGVCAircraft"),
    ],
)
def test_names_in_any_spelling(name, registered):
    loader, cfg = open_config(name, "", [("DATASET.SPLIT_SEED", "3")])
    assert (loader.__name__, cfg.DATASET.NAME, cfg.DATASET.SPLIT_SEED) == (registered, registered, 3)


def test_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        data.main(["verify", "pacs", "--rot", "x"])
    assert stop.value.code == 2 and "unrecognized arguments: --rot x" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["data"])
    assert stop.value.code == 2
    assert main(["--help"]) == 0 and "data " in capsys.readouterr().out


def test_the_embedded_data_set_fits(capsys):
    code, out, _ = run(capsys, "verify", "icons", "--decode")
    assert code == 0 and "Icons in the package" in out and out.endswith("Icons fits.\n")
