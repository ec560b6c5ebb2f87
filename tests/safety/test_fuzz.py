"""Damaged and hostile files, made by mutation: nothing but the documented errors comes out of their readers.

Covered: records (and the tables made of them), configurations and sweeps in YAML, CSV manifests, split files and
selections in JSON, split lists, cached features, checkpoints, weights (safetensors, state dicts,
TorchScript archives), model configurations, exported runs, predictions, images of every format, zip and tar archives.
Examples are the same in every run; what failed once stands in them as `@example` or in `test_bad_inputs.py`.
"""

import contextlib
import copy
import io
import json
import logging
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from dassl.utils import read_image as read_toolbox_image
from dassl_clip.cli import table
from dassl_clip.clip import layouts, sources, weights
from dassl_clip.clip.backbone import load_backbone
from dassl_clip.clip.weights import hash_state
from dassl_clip.datasets import download, fewshot, manifest, splits
from dassl_clip.datasets.class_names import read_names
from dassl_clip.datasets.folders import ImageFile
from dassl_clip.datasets.spec import load_spec
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine import export as released
from dassl_clip.engine import feature_cache as bank
from dassl_clip.engine.config import default_config, merge_file
from dassl_clip.engine.errors import is_user_error, sentence
from dassl_clip.engine.images import read_image
from dassl_clip.experiments import sweeps as sheet
from dassl_clip.experiments.identity import read_config
from dassl_clip.results import records
from dassl_clip.results.documents import read_run_config
from dassl_clip.results.predictions import read_predictions


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """What readers warn of is not the matter here."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def fuzz(examples):
    """The same examples in every run, on a machine of any speed."""
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def refuse_or_read(reader, *arguments):
    """What a reader gives; None where it refuses with a sentence. Any other error is a fault of the reader."""
    try:
        return reader(*arguments)
    except Exception as error:
        if not is_user_error(error):
            raise
        assert len(sentence(error)) > 10
        return None


@contextlib.contextmanager
def file_of(content, name="file"):
    """A file with some content, in a folder of its own."""
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / name
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        yield path
    finally:
        shutil.rmtree(folder)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -1, 0, 2**63, 1e308, -0.0]),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["", "..", "/", "../../x", "\x1b[2J", "a\nb", "{}", "$x$", "\ud800", "nan", "None", "(" * 300]),
    st.lists(st.integers(), max_size=2),
    st.lists(st.lists(st.text(max_size=2), max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@st.composite
def trees(draw, start):
    """A tree of plain values with a few places changed, removed or added."""
    tree = copy.deepcopy(start)
    for _ in range(draw(st.integers(1, 3))):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = node[key]
            if isinstance(inner, (dict, list)) and inner and draw(st.integers(0, 3)):
                node = inner
                continue
            action = draw(st.sampled_from(["change", "change", "remove", "add"]))
            if action == "remove":
                del node[key]
            elif action == "add" and isinstance(node, dict):
                node[draw(st.text(max_size=4))] = draw(ODD)
            else:
                node[key] = draw(ODD)
            break
    return tree


@st.composite
def damaged(draw, whole):
    """Bytes of a file that are cut short, changed, doubled or replaced at some places."""
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        action = draw(st.sampled_from(["cut", "flip", "flip", "flip", "insert", "drop", "fill"]))
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        if action == "cut":
            del content[place:]
        elif action == "flip" and content:
            content[place] = draw(st.integers(0, 255))
        elif action == "insert":
            content[place:place] = draw(st.binary(max_size=9))
        elif action == "drop":
            del content[place : place + draw(st.integers(1, 40))]
        else:
            content[place : place + 8] = bytes([draw(st.sampled_from([0, 255, 127]))]) * 8
    return bytes(content)


# ------------------------------------------------------------------------------------------------- records, tables

RECORD = {
    "schema_version": 1, "method": "CoOp", "config": "icons", "task": "lodo", "dataset": "Icons", "protocol": "one",
    "selection_rule": "last", "source_domains": ["line"], "target_domains": ["solid"], "class_subset": "all",
    "shots": 16, "seed": 1, "split_seed": 1, "prompt": "a photo of a {}.",
    "backbone": {"name": "IconsCLIP", "weights_hash": "ab"}, "num_train": 9,
    "metrics": {"test": {"accuracy": 50.0, "error_rate": 50.0, "total": 4, "correct": 2, "macro_f1": 50.0}},
    "losses": {"loss": 1.0}, "seconds": {"train": 1.0, "test": 1.0, "total": 2.0}, "peak_memory_mb": 1.0,
    "versions": {"torch": "2"}, "toolbox": {"kind": "embedded", "version": "1", "path": "x"}, "device": "cpu",
    "precision": "fp32", "git_revision": "", "config_hash": "ff", "data_fingerprint": "00", "command": "train.py",
    "finished_at": "2026-01-01T00:00:00+00:00", "transductive": False, "classnames": ["a", "b"],
    "learned": {"prompt": {"sha256": "00"}},
}  # fmt: skip


@fuzz(60)
@given(trees(RECORD))
def test_records(tree):
    with file_of(json.dumps(tree), "record.json") as path:
        found = records.inspect_record(path.parent)
        assert found.state in ("complete", "broken")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert table.main([str(path.parent)]) in (0, 2)


@fuzz(80)
@given(damaged(json.dumps(RECORD).encode()))
def test_record_bytes(content):
    with file_of(content, "record.json") as path:
        assert records.inspect_record(path.parent).state in ("complete", "broken")


def test_deep_records(tmp_path):
    for opening in ("[", '{"a":'):
        (tmp_path / "record.json").write_text(opening * 200_000)
        assert records.inspect_record(tmp_path).state == "broken"


# --------------------------------------------------------------------------------------------------- configurations

CONFIG = yaml.safe_load(
    "{OPTIM: {NAME: sgd, LR: 0.002, MAX_EPOCH: 5}, DATALOADER: {NUM_WORKERS: 0, TRAIN_X: {BATCH_SIZE: 4}}, SEED: 1,"
    " INPUT: {SIZE: [32, 32], TRANSFORMS: [normalize]}, TRAINER: {NAME: CoOp, COOP: {N_CTX: 4, CTX_INIT: ''}},"
    " DATASET: {NAME: Icons, SOURCE_DOMAINS: [line], NUM_SHOTS: 4}, MODEL: {BACKBONE: {NAME: IconsCLIP}}}"
)
SWEEP = {
    "title": "a", "published": "clap", "seeds": [1, 2], "datasets": ["icons"], "readings": ["C"], "shots": 4,
    "rows": [{"method": "CoOp:icons", "label": "x", "set": {"OPTIM.LR": 0.1}}, "GOPro"],
}  # fmt: skip


@pytest.fixture(scope="module")
def defaults():
    return default_config()


@fuzz(60)
@given(tree=trees(CONFIG))
def test_configurations(tree, defaults):
    with file_of(yaml.safe_dump(tree), "a.yaml") as path:
        refuse_or_read(merge_file, defaults.clone(), str(path))
        refuse_or_read(read_run_config, path)
        path.rename(path.with_name("config.yaml"))
        read_config(path.parent)


@fuzz(120)
@given(
    content=st.one_of(
        damaged(yaml.safe_dump(CONFIG).encode()), st.text(alphabet="a1:-[]{}&*!#|>?\"' \n,.", max_size=40)
    )
)
def test_configuration_bytes(content, defaults):
    with file_of(content, "a.yaml") as path:
        refuse_or_read(merge_file, defaults.clone(), str(path))
        refuse_or_read(sheet.read_sweep, str(path))


MODEL = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
}


@fuzz(80)
@given(st.one_of(trees(MODEL).map(json.dumps), damaged(json.dumps(MODEL).encode())))
def test_model_configurations(content):
    with file_of(content, "open_clip_config.json") as path:
        source = refuse_or_read(sources.resolve, f"local-dir:{path.parent}")
        assert source is None or isinstance(source.config["text_cfg"], dict)


# ------------------------------------------------------------------------------------------------------- lists of data

TEXTILES = load_spec("dtd")
MANIFEST = b'path,class,label,domain,split\na/1.jpg,dog,0,x,train\na/2.jpg,"cat, big",1,x,test\n'
SPLIT = {part: [[f"{name}/{name}_1{part}.jpg", label, name] for label, name in enumerate(TEXTILES.classes[:3])]
         for part in ("train", "val", "test")}  # fmt: skip


SELECTION = {"version": 1, "dataset": "Icons", "shots": 1, "seed": 1, "train": [["a/1.png", 0]], "val": []}


@fuzz(100)
@given(st.one_of(damaged(MANIFEST), st.text(max_size=80), st.binary(max_size=80)))
def test_manifests(content):
    with file_of(content, "manifest.csv") as path:
        rows = refuse_or_read(manifest.read_rows, path)
        if rows is not None:
            refuse_or_read(manifest.class_list, rows, path)
            refuse_or_read(manifest.locate, rows, path, "", {row.name: 0 for row in rows})


@fuzz(80)
@given(damaged(b"sketch/dog/1.jpg 0\nsketch/elephant/2.jpg 1\n"))
def test_split_lists(content):
    with file_of(content) as path:
        refuse_or_read(splits.read_list, path, path.parent, "sketch", load_spec("pacs"))
        refuse_or_read(read_names, path, load_spec("pacs"))


# --------------------------------------------------------------------------------------------------------------- caches


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@fuzz(100)
@given(st.one_of(damaged(npy(np.ones((4, 3), dtype=np.float32))), st.binary(max_size=40)))
def test_kept_features(content):
    with file_of(content, f"{'0' * 64}.npy") as path:
        found = bank.read_array(path)
        assert found is None or found.dtype == torch.float32


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


PREDICTIONS = npz(paths=np.array(["a"]), labels=np.zeros(1, int), top=np.zeros((1, 2), int), shares=np.ones((1, 2)),
                  classnames=np.array(["a", "b"]))  # fmt: skip


# -------------------------------------------------------------------------------------------- checkpoints and weights


def torch_bytes(content, old=False):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}
CHECKPOINT = {"state_dict": STATE, "epoch": 1, "sha256": hash_state(STATE), "classnames": ["a", "b"],
              "backbone": {"name": "x", "weights_hash": "y"}, "val_result": 1.0}  # fmt: skip


def load_and_use(path):
    content = checkpoint.load_checkpoint(path)
    checkpoint.load_state(nn.Linear(3, 2), content["state_dict"], str(path))
    if content.get("sha256"):
        hash_state(content["state_dict"])


@fuzz(100)
@given(trees({**CHECKPOINT, "state_dict": {name: value.tolist() for name, value in STATE.items()}}))
def test_checkpoint_contents(tree):
    states = tree.get("state_dict")
    for name in list(states) if isinstance(states, dict) else ():
        with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):
            states[name] = torch.tensor(states[name])
    with contextlib.suppress(UnicodeEncodeError), file_of(torch_bytes(tree), "model.pth.tar-1") as path:
        refuse_or_read(load_and_use, path)


def archive_bytes():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 2))), buffer)
    return buffer.getvalue()


def safetensors_of(header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + bytes(24)


HEADER = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"format": "pt"}}


@pytest.mark.filterwarnings("ignore")
@fuzz(150)
@given(st.one_of(
    damaged(torch_bytes(STATE)), damaged(torch_bytes(STATE, old=True)), damaged(archive_bytes()), damaged(save(STATE)),
    trees(HEADER).map(safetensors_of), damaged(json.dumps(HEADER).encode()).map(safetensors_of),
))  # fmt: skip
def test_weights(content):
    with file_of(content) as path:
        found = refuse_or_read(weights.read_weights, path)
        if found is not None:
            refuse_or_read(layouts.load_into, nn.Linear(3, 2), found[0], "the file", "a layer")


def export_metadata():
    tensors = {"learned.prompt.ctx": torch.ones(2, 3), "classifier.weight": torch.ones(2, 3),
               "classifier.logit_scale": torch.ones(())}  # fmt: skip
    facts = {
        "format": released.FORMAT, "version": released.VERSION, "method": "CoOp", "config": CONFIG,
        "classnames": ["a", "b"], "backbone": {"name": "x", "weights_hash": "y", "embed_dim": 3},
        "record": {**RECORD, "learned": {"prompt": {"sha256": hash_state({"ctx": torch.ones(2, 3)})}}},
        "classifier": "none", "sha256": hash_state(tensors),
        "storage": {"precision": "float32", "left_out": {}, "note": ""},
    }  # fmt: skip
    return tensors, facts


TENSORS, METADATA = export_metadata()


def export_of(facts):
    texts = {str(key): json.dumps(value) for key, value in facts.items()}
    return save(TENSORS, {key: value.replace("\x00", "") for key, value in texts.items() if key.isascii()})


def test_the_export_that_is_damaged_is_whole():
    with file_of(export_of(METADATA)) as path:
        assert released.load_export(path).classnames == ["a", "b"]


# ---------------------------------------------------------------------------------------------- readers of one file

POOL = [ImageFile("/x/a/1.png", 0, "a/1.png")]
READERS = {  # number of examples, contents, name of the file, reader
    "sweep": (80, trees(SWEEP).map(yaml.safe_dump), "a.yaml", lambda path: sheet.read_sweep(str(path))),
    "split file": (
        100, st.one_of(trees(SPLIT).map(json.dumps), damaged(json.dumps(SPLIT).encode()), st.just("[" * 100_000)),
        "file", lambda path: splits.read_split_file(path, TEXTILES),
    ),
    "selection": (
        80, st.one_of(trees(SELECTION).map(json.dumps), st.just("[" * 100_000), st.binary(max_size=30)), "file",
        lambda path: fewshot.read_selection(str(path), "Icons", 1, POOL, POOL),
    ),
    "predictions": (100, damaged(PREDICTIONS), "predictions.npz", lambda path: read_predictions(path.parent)),
    "checkpoint": (
        150, st.one_of(*(damaged(torch_bytes(CHECKPOINT, old)) for old in (False, True)), st.binary(max_size=50)),
        "model.pth.tar-1", load_and_use,
    ),
    "export": (
        120, st.one_of(trees(METADATA).map(export_of), damaged(export_of(METADATA))), "run.safetensors",
        released.load_export,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", READERS)
def test_readers(kind):
    examples, contents, name, reader = READERS[kind]

    @fuzz(examples)
    @given(contents)
    def check(content):
        with file_of(content, name) as path:
            refuse_or_read(reader, path)

    check()


# ------------------------------------------------------------------------------------------------- images, archives


def picture(kind):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_images(kind):
    @fuzz(60)
    @given(damaged(picture(kind)))
    def check(content):
        with file_of(content, "a.jpg") as path:
            for reader in (read_image, read_toolbox_image):
                with contextlib.suppress(OSError):
                    assert reader(str(path)).mode == "RGB"

    check()


def zip_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.txt", "one" * 30)
        archive.writestr("b.txt", "two")
    return buffer.getvalue()


def tar_bytes(mode):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name in ("a/1.txt", "b.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"one"))
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "whole"), [
    ("a.zip", zip_bytes()), ("a.tar", tar_bytes("w")), ("a.tar.gz", tar_bytes("w:gz")), ("a.tgz", tar_bytes("w:bz2")),
], ids=["zip", "tar", "gz", "bz2"])  # fmt: skip
def test_archives(name, whole):
    @fuzz(60)
    @given(damaged(whole))
    def check(content):
        with file_of(content, name) as path:
            refuse_or_read(download.unpack, path, path.parent / "out")
            inside = {item for item in path.parent.rglob("*") if item.is_relative_to(path.parent / "out")}
            assert {path, *inside} == set(path.parent.rglob("*"))

    check()


def test_backbones_of_damaged_folders(tiny_clip, tmp_path):
    whole = (tiny_clip / "open_clip_config.json").read_text()
    shutil.copytree(tiny_clip, tmp_path / "clip")

    @fuzz(20)
    @given(trees(json.loads(whole)))
    def check(tree):
        (tmp_path / "clip/open_clip_config.json").write_text(json.dumps(tree))
        refuse_or_read(load_backbone, f"local-dir:{tmp_path / 'clip'}")

    check()
