"""Files made to do harm: none has any effect, and each is refused with its sentence.

Covered: pickles that run a program, as checkpoint (learned weights, model folder, resume, pickles of old toolboxes),
backbone weights, exported run, kept features and predictions; TorchScript archives whose `__setstate__` writes a file;
archives of torch's oldest format; exported runs whose parts are paths; model configurations that ask for code; tar and
zip archives (paths out, links, devices, sizes, letter case, control characters), in the plugin and in the toolbox; YAML
(objects, aliases) and python files as configuration; images (bombs by pixels, by strips and by text, EPS, SVG and HTML
in disguise, polyglots, truncated); hostile file and class names on the console, in the log, in CSV, JSON and HTML.
"""

import io
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
import types
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from dassl.utils import load_checkpoint as load_toolbox_checkpoint
from dassl.utils import read_image as read_toolbox_image
from dassl.utils.archives import unpack_archive
from dassl_clip.clip import sources
from dassl_clip.clip.weights import hash_state, read_weights
from dassl_clip.datasets.download import unpack
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine import export as released
from dassl_clip.engine import feature_cache as bank
from dassl_clip.engine.errors import printable
from dassl_clip.engine.images import inspect_image, read_image
from dassl_clip.results.documents import read_yaml
from dassl_clip.results.predictions import read_predictions


@pytest.fixture
def canary(tmp_path):
    """A file that every attack tries to write; none may."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


class Attack:
    """Unpickling this writes a file."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (os.system, (f"touch {self.canary}",))


class Writer(nn.Module):
    """A module that writes a file while TorchScript loads it."""

    def __init__(self, canary):
        super().__init__()
        self.canary = canary
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.canary, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]):
        self.canary = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.save(state[1], state[0])


def pickles(canary, folder):
    """The attack in every form that a pickle may have."""
    torch.save({"state_dict": {"ctx": torch.ones(4, 8)}, "x": Attack(canary)}, folder / "zip.pth")
    torch.save({"x": Attack(canary)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "plain.pth").write_bytes(pickle.dumps(Attack(canary), 2))
    (folder / "text.pth").write_bytes(pickle.dumps(Attack(canary), 0))
    with tarfile.open(folder / "tar.pth", "w") as archive:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            content = pickle.dumps(Attack(canary), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return sorted(folder.glob("*.pth"))


def test_the_attacks_work_where_nothing_is_refused(tmp_path):
    (path,) = [path for path in pickles(tmp_path / "ran", tmp_path) if path.name == "zip.pth"]
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Writer(str(tmp_path / "written"))).save(str(tmp_path / "a.pt"))
        assert not (tmp_path / "written").exists()
        torch.jit.load(str(tmp_path / "a.pt"))
    assert (tmp_path / "written").exists()


NAMED = (  # the refusal of a file that torch opens as a pickle names the function that it asks for
    r"was refused: it holds pickled objects besides tensors \(posix\.system\)",
    r"was refused: it holds Python objects besides tensors \(posix\.system\)",
    r"is refused: besides tensors and numbers it holds Python objects \(posix\.system\)",
)
UNREAD = (  # and one in a form that is not opened at all
    r"is not a readable checkpoint",
    r"is neither safetensors nor a file saved by torch",
    r"is damaged; remove it",
)
PICKLES = {"zip": NAMED, "old": NAMED, "plain": NAMED, "text": UNREAD, "tar": UNREAD}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_are_refused_by_every_reader(tmp_path, canary, kind):
    (path,) = [path for path in pickles(canary, tmp_path) if path.stem == kind]
    ours, weights, toolbox = PICKLES[kind]
    with pytest.raises(ValueError, match=ours):
        checkpoint.load_checkpoint(path)
    with pytest.raises(ValueError, match=weights):
        read_weights(path)
    with pytest.raises((RuntimeError, pickle.UnpicklingError), match=toolbox):
        load_toolbox_checkpoint(str(path))
    with pytest.raises(ValueError, match=r"is not a whole safetensors file"):
        released.load_export(path)


@pytest.mark.parametrize(
    "kind", ["MODEL.INIT_WEIGHTS", "MODEL.BACKBONE.WEIGHTS", "--eval-only --model-dir", "--resume", "predict"]
)
def test_pickles_on_the_command_line(kind, tmp_path, canary, words, call, trained, domain_tree):
    torch.save({"state_dict": {"ctx": torch.ones(4, 8)}, "x": Attack(canary)}, tmp_path / "bad.pth")
    shutil.copytree(trained, tmp_path / "copy")
    for path in (tmp_path / "copy").glob("*/model*.pth.tar*"):
        shutil.copy(tmp_path / "bad.pth", path)
    given = words("CoOp", tmp_path / "run", *kind.split(), tmp_path / ("bad.pth" if "WEIGHTS" in kind else "copy"))
    if kind == "predict":
        given = ["predict", next(domain_tree.rglob("*.png")), "--run", tmp_path / "copy"]
    code, _, err = call(*given)
    assert code == 2 and "Traceback" not in err
    assert "refused" in err and ("posix.system" in err or "could run code" in err)


def test_kept_arrays_of_objects(tmp_path, canary):
    array = np.array([Attack(canary)], dtype=object)
    np.save(tmp_path / "a.npy", array)
    assert bank.read_array(tmp_path / "a.npy") is None
    names = ("paths", "labels", "top", "shares", "classnames")
    np.savez(tmp_path / "predictions.npz", **dict.fromkeys(names, array))
    with pytest.raises(ValueError, match=r"predictions\.npz is damaged"):
        read_predictions(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_archives_of_torchscript_run_nothing(tmp_path, canary):
    torch.jit.script(Writer(str(canary))).save(str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match=r"a module has a state of its own making"):
        read_weights(tmp_path / "a.pt")
    layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.jit.script(layer).save(str(tmp_path / "b.pt"))
    state, form = read_weights(tmp_path / "b.pt")
    assert form == "OpenAI JIT archive" and state.keys() == layer.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_archives_that_name_more_than_weights(tmp_path, canary):
    names = {"archive/constants.pkl": b"", "archive/version": b"3"}
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, content in {**names, "archive/data.pkl": pickle.dumps(Attack(canary), 2)}.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"it names posix\.system, which is no part of weights"):
        read_weights(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/data/0", bytes(100 << 20))
    with pytest.raises(ValueError, match=r"would grow to 104,857,600"):
        read_weights(tmp_path / "b.pt")


def test_parts_of_exported_runs_are_no_paths(tmp_path, canary):
    name = f"learned.{canary}.weight"
    tensors = {name: torch.ones(2)}
    facts = {"format": released.FORMAT, "version": released.VERSION, "method": "CoOp", "config": {},
             "classnames": ["a"], "backbone": {"name": "x", "weights_hash": "y"}, "record": {}, "classifier": "none",
             "sha256": hash_state(tensors)}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors", {key: json.dumps(value) for key, value in facts.items()})
    with pytest.raises(ValueError, match=r"is no name of a learned part"):
        released.load_export(tmp_path / "a.safetensors")


def test_model_configurations_run_no_code(tiny_clip, tmp_path, monkeypatch):
    shutil.copytree(tiny_clip, tmp_path / "clip")
    path = tmp_path / "clip/open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"trust_remote_code": True}}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"asks for trust_remote_code.*refused"):
        sources.resolve(f"local-dir:{tmp_path / 'clip'}").tokenizer()
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {}
    path.write_text(json.dumps(config))
    asked = {}
    transformers = types.ModuleType("transformers")
    transformers.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda name, **options: asked.update(options))
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    sources.resolve(f"local-dir:{tmp_path / 'clip'}").tokenizer()
    assert asked["trust_remote_code"] is False


# ------------------------------------------------------------------------------------------------------------- archives

UNPACKERS = (unpack, lambda path, folder: unpack_archive(str(path), str(folder)))
BAD_MEMBERS = {
    "absolute": ("/{out}", None, r"would leave"),
    "above": ("../{name}", None, r"would leave"),
    "above inside": ("a/../../{name}", None, r"would leave"),
    "drive": ("C:/{name}", None, r"would leave"),
    "line feed": ("a\n{name}", None, r"control characters"),
    "escape": ("a\x1b[2J", None, r"control characters"),
    "symlink": ("link", tarfile.SYMTYPE, r"is no plain file or folder"),
    "hardlink": ("link", tarfile.LNKTYPE, r"is no plain file or folder"),
    "device": ("null", tarfile.CHRTYPE, r"is no plain file or folder"),
    "pipe": ("pipe", tarfile.FIFOTYPE, r"is no plain file or folder"),
}


def tar_with(path, name, kind):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("first"), io.BytesIO(b""))
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind or tarfile.REGTYPE, "/etc/passwd", 0 if kind else 3
        archive.addfile(entry, io.BytesIO(b"bad"))


@pytest.mark.parametrize(("name", "kind", "expected"), list(BAD_MEMBERS.values()), ids=list(BAD_MEMBERS))
def test_members_of_tar_archives(name, kind, expected, tmp_path, canary):
    tar_with(tmp_path / "a.tar", name.format(out=canary, name=canary.name), kind)
    (tmp_path / "in").mkdir()
    for refuse in UNPACKERS:
        with pytest.raises(ValueError, match=expected):
            refuse(tmp_path / "a.tar", tmp_path / "in")
        assert not list((tmp_path / "in").iterdir())


@pytest.mark.parametrize("case", ["absolute", "above", "above inside", "drive", "line feed", "escape", "symlink"])
def test_members_of_zip_archives(case, tmp_path, canary):
    name, kind, expected = BAD_MEMBERS[case]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("first", b"")
        entry = zipfile.ZipInfo(name.format(out=canary, name=canary.name))
        entry.external_attr = (0o120777 if kind else 0o100644) << 16
        archive.writestr(entry, "/etc/passwd")
    (tmp_path / "in").mkdir()
    for refuse in UNPACKERS:
        with pytest.raises(ValueError, match=expected):
            refuse(tmp_path / "a.zip", tmp_path / "in")
        assert not list((tmp_path / "in").iterdir())


def test_archives_that_declare_more_than_the_disk_holds(tmp_path):
    entry = tarfile.TarInfo("huge")
    entry.size = 1 << 60
    (tmp_path / "a.tar").write_bytes(entry.tobuf() + bytes(1024))
    (tmp_path / "in").mkdir()
    for refuse in UNPACKERS:
        with pytest.raises(ValueError, match=r"unpacks to 1,152,921,504,606,846,976 bytes|cannot be unpacked"):
            refuse(tmp_path / "a.tar", tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("huge", b"abc")
        archive.infolist()[0].file_size = 1 << 60  # as the directory at the end will say
    for refuse in UNPACKERS:
        with pytest.raises(ValueError, match=r"unpacks to 1,152,921,504,606,846,976 bytes"):
            refuse(tmp_path / "a.zip", tmp_path / "in")


def test_members_that_differ_in_letter_case_alone(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/Image.jpg", b"one")
        archive.writestr("A/image.JPG", b"two")
    with pytest.raises(ValueError, match=r"differ in letter case alone"):
        unpack(tmp_path / "a.zip", tmp_path / "in")
    assert not (tmp_path / "in").exists()


# ----------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize("text", [
    "a: !!python/object/apply:os.system ['touch {canary}']",
    "a: !!python/object/new:os.system ['touch {canary}']",
    "a: !!python/name:os.system ''",
    "a: !!python/module:os ''",
    "!!python/object/apply:subprocess.check_output [[touch, {canary}]]",
])  # fmt: skip
def test_yaml_makes_no_objects(text, tmp_path, canary):
    (tmp_path / "a.yaml").write_text(text.format(canary=canary))
    with pytest.raises(ValueError, match=r"a\.yaml is not a yaml file: could not determine a constructor"):
        read_yaml(tmp_path / "a.yaml")


def test_yaml_bombs(tmp_path):
    bomb = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]" for n in range(12))
    texts = {bomb: r"aliases stand for more", "a: &a [*a]": r"holds itself", "[" * 3000: r"nested"}
    texts[f"a: {'x' * (5 << 20)}"] = r"more than .* characters"
    for text, expected in texts.items():
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=expected):
            read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("base: &b {x: 1}\none: {<<: *b, y: 2}\n")  # ordinary sharing is read
    assert read_yaml(tmp_path / "a.yaml")["one"] == {"x": 1, "y": 2}


def test_a_run_folder_of_a_stranger(tmp_path, canary, trained, call, domain_tree):
    shutil.copytree(trained, tmp_path / "copy")
    config = yaml.safe_load((tmp_path / "copy/config.yaml").read_text())
    (tmp_path / "copy/config.yaml").write_text(f"TRAINER: !!python/object/apply:os.system ['touch {canary}']\n")
    code, _, err = call("predict", next(domain_tree.rglob("*.png")), "--run", tmp_path / "copy")
    assert code == 2 and "no readable config.yaml" in err
    for changed in ({"MODEL": 3}, {"OPTIM": [1]}, {"SEED": "x"}, {"DATALOADER": {"TEST": {"BATCH_SIZE": "many"}}}):
        (tmp_path / "copy/config.yaml").write_text(yaml.safe_dump(config | changed))
        code, _, err = call("predict", next(domain_tree.rglob("*.png")), "--run", tmp_path / "copy")
        assert code == 2 and "Traceback" not in err and "config.yaml" in err


# --------------------------------------------------------------------------------------------------------------- images


def png_header(width, height):
    """A PNG that declares a size and holds next to nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def text_bomb():
    """A small PNG with a text that unpacks to 100 MB."""
    text = b"a\x00\x00" + zlib.compress(b"x" * (100 << 20))
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    whole = png_header(4, 4)
    return whole[:33] + chunk + whole[33:]


def jpeg():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "JPEG")
    return buffer.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) (w) file closefile\n%%EOF\n"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
IMAGES = {
    "bomb": (png_header(60_000, 60_000), r"60000 x 60000 pixels are more than the 89,478,485|exceeds limit"),
    "smaller bomb": (png_header(10_000, 9_000), r"its 10000 x 9000 pixels are more than the 89,478,485"),
    "strip": (png_header(1, 65_000), r"its 1 x 65000 pixels are a strip"),
    "text bomb": (text_bomb(), r"."),
    "nothing": (b"", r"cannot identify"),
    "truncated": (jpeg()[:400], r"[tT]runcated|cannot identify"),
    "svg": (SVG, r"cannot identify"),
    "html": (b"<!DOCTYPE html><html>not found</html>", r"cannot identify"),
    "eps": (EPS, r"cannot identify"),
    "pickle": (pickle.dumps(Attack("/tmp/never"), 2), r"cannot identify"),
}


@pytest.mark.parametrize(("content", "expected"), list(IMAGES.values()), ids=list(IMAGES))
def test_images_that_are_refused(content, expected, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OSError, match=expected):
            read_image(path)
        with pytest.raises(OSError, match=rf'Cannot read the image "{path}": .*({expected})'):
            read_toolbox_image(str(path))
        assert inspect_image(str(path))[0]


def test_polyglots_are_the_picture_that_they_are(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg() + b"<script>alert(1)</script>" + zip_of("x"))
    assert read_image(tmp_path / "a.jpg").size == (40, 30)


def zip_of(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"")
    return buffer.getvalue()


def test_a_bomb_among_the_images_of_a_run(tmp_path, domain_tree, words, call):
    shutil.copytree(domain_tree, tmp_path / "tree")
    bomb = tmp_path / "tree/sketch/dog/000.png"
    bomb.write_bytes(png_header(60_000, 60_000))
    code, _, err = call(*words("ZeroshotCLIP", tmp_path / "run", "--root", tmp_path / "tree"))
    told = " ".join(err.split())
    assert code == 2 and f"cannot decode the image {bomb}: " in told and "ON_BAD_IMAGE skip" in told
    code, _, err = call(
        "predict", bomb, tmp_path / "tree/sketch/dog/001.png", "--names", "dog,cat", "--backbone", "IconsCLIP"
    )
    assert code == 1 and str(bomb) in err and "pixels" in err


# ----------------------------------------------------------------------------------------------------------- file names

NAMES = [
    "line\nfeed.png", "<script>alert(1)<script>.png", "\x1b[31mred\x1b]0;owned\x07.png", "$(touch canary).png",
    "-rf.png", "`touch canary`.png", "a;touch canary.png", "\u202egnp.png", "=1+1.png", "%n%s{}.png",
    "n" * 240 + ".png",
]  # fmt: skip
BYTES, BAD = b"\xff\xfe.png", b"bad\x1b[2J\xff.png"  # no text at all


@pytest.fixture
def named(tmp_path):
    """A folder of pictures with hostile names."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in [*map(os.fsencode, NAMES), BYTES, BAD]:
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(b"no picture" if name == BAD else jpeg())
    return folder


CONTROL = ("\x1b", "\x07", "\u202e", "\udcff")


@pytest.mark.parametrize("ending", ["", ".csv", ".json"])
def test_names_of_pictures(named, ending, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = [] if not ending else ["--out", tmp_path / f"answers{ending}"]
    code, shown, err = call("predict", named, "--names", "dog,cat", "--backbone", "IconsCLIP", *out)
    assert code == 1 and "1 files could not be read" in err  # the one that is no picture
    assert not any(mark in shown + err for mark in CONTROL)
    shown.encode(), err.encode()
    assert not list(tmp_path.rglob("canary*"))
    if ending == ".json":
        content = json.loads((tmp_path / "answers.json").read_text())
        assert len({row["path"] for row in content["predictions"]}) == len(NAMES) + 1


def test_class_and_domain_folders_with_hostile_names(tmp_path, domain_tree, words, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(domain_tree, tmp_path / "tree")
    for domain in ("art", "photo", "sketch"):
        (tmp_path / f"tree/{domain}/dog").rename(tmp_path / f"tree/{domain}/\x1b[31m<b>dog$(touch canary)")
    code, out, err = call(*words("ZeroshotCLIP", tmp_path / "run", "--root", tmp_path / "tree"))
    assert code in (0, 2) and "Traceback" not in err
    assert not any(mark in out + err for mark in CONTROL)
    assert not list(tmp_path.rglob("canary*"))
    if code == 0:
        code, _, err = call("report", tmp_path / "run", "--out", tmp_path / "page.html")
        assert code == 0 and "<b>dog" not in (tmp_path / "page.html").read_text()


def test_printable():
    assert printable("a\tb\nc é 漢 \u3000\xa0") == "a\tb\nc é 漢 \u3000\xa0"
    assert printable("\x1b[2J\r\x00\x9b\x7f") == r"\x1b[2J\r\x00\x9b\x7f"
    assert printable("\u202e\udcff") == r"\u202e\udcff"
