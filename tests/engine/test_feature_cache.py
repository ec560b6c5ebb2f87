"""The feature cache: nothing stale is served, nothing broken is used, nothing is lost when it cannot be kept.

Covers `engine/feature_cache.py` alone, and runs of the command line that share a folder: changed pictures (also under
an old time), weights, input and precision; torn, foreign, swapped and bit-flipped files of every kind; folders that
cannot be written; `off`, and where the folder is.
"""

import hashlib
import json
import os
import random
import shutil
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dassl_clip.engine import extraction, feature_cache
from dassl_clip.engine.feature_cache import cached_rows
from dassl_clip.engine.saved_features import SAVED_FEATURES, SavedFeatures, save_features, saved_features


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tree(tmp_path, domain_tree):
    """A copy of the small tree that a test may change, with the times of the original."""
    shutil.copytree(domain_tree, tmp_path / "tree", copy_function=shutil.copy2)
    return tmp_path / "tree"


class Maker:
    """Computes a tensor and counts how often."""

    def __init__(self, values):
        self.values, self.calls = values, 0

    def __call__(self):
        self.calls += 1
        return self.values.clone()


def arrays(cache):
    return sorted((cache / "features").glob("*.npy"))


def shares(folder):
    kept = np.load(folder / "predictions.npz")
    return dict(zip(kept["paths"], np.sort(kept["shares"], axis=1)[:, ::-1].tolist()))


# ------------------------------------------------------------------------------------------------------- entries


def test_what_is_read_is_what_was_made(cache):
    make = Maker(torch.randn(7, 5))
    facts = {"kind": "a", "n": 7}
    for _ in range(3):
        assert torch.equal(feature_cache.cached(facts, make), make.values)
    assert make.calls == 1
    (array,) = arrays(cache)
    assert np.array_equal(np.load(array, allow_pickle=False), make.values.numpy())
    said = json.loads(array.with_suffix(".json").read_text())
    sums = [zlib.crc32(make.values.numpy().tobytes())]
    assert said.items() >= facts.items() and said.pop("array") == {"shape": [7, 5], "crc32": sums}
    assert hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest() == array.stem
    assert len(list((cache / "features").iterdir())) == 2  # no temporary files


def test_changes_of_a_tensor_stay_out_of_the_file(cache):
    make = Maker(torch.zeros(4, 2))
    feature_cache.cached({}, make)
    feature_cache.cached({}, make).add_(1)
    assert feature_cache.cached({}, make).sum() == 0 and make.calls == 1


@pytest.mark.parametrize("facts", [{"kind": "b"}, {"kind": "a", "n": 8}, {"kind": "a"}, {"kind": "a", "n": "7"}])
def test_other_facts_have_their_own_entry(cache, facts):
    first, other = Maker(torch.zeros(2)), Maker(torch.ones(2))
    feature_cache.cached({"kind": "a", "n": 7}, first)
    assert torch.equal(feature_cache.cached(facts, other), other.values) and other.calls == 1


@pytest.mark.parametrize("harm", ["torn", "empty", "text", "float64", "pickle", "short header"])
def test_what_is_no_whole_array_is_made_again(cache, harm, caplog):
    make = Maker(torch.randn(30, 4))
    feature_cache.cached({}, make)
    (path,) = arrays(cache)
    if harm == "float64":
        np.save(path, np.zeros((30, 4)))
    elif harm == "pickle":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    else:
        data = path.read_bytes()
        path.write_bytes({"torn": data[:-9], "empty": b"", "text": b"no array", "short header": data[:40]}[harm])
    with caplog.at_level("WARNING", logger="dassl_clip"):
        assert torch.equal(feature_cache.cached({}, make), make.values)
    assert make.calls == 2 and "is made again" in caplog.text
    assert torch.equal(feature_cache.cached({}, make), make.values) and make.calls == 2


def test_a_folder_that_cannot_be_made_warns_and_goes_on(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "file" / "cache"))
    make = Maker(torch.ones(3))
    with caplog.at_level("WARNING", logger="dassl_clip"):
        assert torch.equal(feature_cache.cached({}, make), make.values)
    assert "features are not cached" in caplog.text and "DASSL_CLIP_CACHE" in caplog.text


def test_off_keeps_and_reads_nothing(cache, monkeypatch):
    make = Maker(torch.ones(3))
    feature_cache.cached({}, make)
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    feature_cache.cached({}, make)
    assert make.calls == 2


def test_images_are_named_by_place_size_and_time_in_their_order(tmp_path):
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    for number, path in enumerate((one, two)):
        path.write_bytes(b"abc")
        os.utime(path, ns=(10**18, 10**18 + number))
    base = feature_cache.image_facts([str(one), str(two)])
    assert feature_cache.image_facts([str(one), str(two)]) == base and base["images"] == 2
    seen = [base, feature_cache.image_facts([str(two), str(one)]), feature_cache.image_facts([str(one)])]
    os.utime(two, ns=(10**18, 10**18 + 5))
    seen.append(feature_cache.image_facts([str(one), str(two)]))
    two.write_bytes(b"abcd")
    os.utime(two, ns=(10**18, 10**18 + 1))
    seen.append(feature_cache.image_facts([str(one), str(two)]))
    assert len({facts["files"] for facts in seen}) == len(seen)


def put_in_place(path, data):
    path.write_bytes(data)


def put_another_file(path, data):
    other = path.with_name("other")
    other.write_bytes(data)
    os.replace(other, path)


@pytest.mark.parametrize("put", [put_in_place, put_another_file])
def test_1_4_other_bytes_of_the_same_size_under_the_same_time_are_seen(tmp_path, put):
    """(row 1.4) The time is 0, as archives give it that are made to be reproducible."""
    path = tmp_path / "1.png"
    path.write_bytes(b"abc")
    os.utime(path, ns=(0, 0))
    before = feature_cache.image_facts([str(path)])
    put(path, b"xyz")
    os.utime(path, ns=(0, 0))
    assert path.stat().st_size == 3 and path.stat().st_mtime_ns == 0
    assert feature_cache.image_facts([str(path)]) != before


def flip(path, positions):
    """Turn over bits of a file, by their number."""
    data = bytearray(path.read_bytes())
    for position in positions:
        data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


def entries_by_both(values, facts=None):
    """The two ways to keep an array, as functions that give it."""
    facts = facts or {"kind": "a", "n": 7}

    def rows(start):
        yield from values[start:].split(50)

    return {
        "whole": lambda: feature_cache.cached(facts, values.clone),
        "rows": lambda: cached_rows(facts, len(values), rows, lambda: True),
    }


@pytest.mark.parametrize("how", ["whole", "rows"])
def test_1_5_no_bit_of_an_entry_can_change_unseen(cache, how, monkeypatch, caplog):
    """(row 1.5) Each of many single bits, and 600 at once, in the array, its header, the facts and the checksums."""
    monkeypatch.setattr(extraction, "BLOCK_BYTES", 4 * 16 * 9)  # several blocks, the last one short
    values = torch.randn(200, 16, generator=torch.Generator().manual_seed(5))
    get, draw = entries_by_both(values)[how], random.Random(1)
    get()
    (path,) = arrays(cache)
    for file in (path, path.with_suffix(".json")):
        bits = 8 * file.stat().st_size
        for count in (1,) * 40 + (2, 600):
            flip(file, draw.sample(range(min(bits, 8 * 128) if count == 1 and draw.random() < 0.5 else bits), count))
            caplog.clear()
            assert torch.equal(get(), values)
            assert caplog.text.count("is made again") <= 1
            assert torch.equal(get(), values) and caplog.text.count("is made again") <= 1
    assert sorted(f.name for f in (cache / "features").iterdir()) == sorted([path.name, path.with_suffix(".json").name])


@pytest.mark.parametrize(
    "harm", ["first half zero", "other rows", "NaN", "facts gone", "facts empty", "swapped", "shape"]
)
def test_1_5_an_entry_of_other_content_is_made_again(cache, harm, caplog):
    """(row 1.5) Whole files with something else in them, such as another entry's of the same shape."""
    values, others = torch.randn(60, 4), torch.randn(60, 4)
    get, other = entries_by_both(values)["rows"], entries_by_both(others, {"kind": "b"})["whole"]
    get()
    (path,) = arrays(cache)
    array, facts = np.load(path), path.with_suffix(".json")
    other()
    (second,) = set(arrays(cache)) - {path}
    if harm == "first half zero":
        data = path.read_bytes()
        path.write_bytes(b"\0" * (len(data) // 2) + data[len(data) // 2 :])
    elif harm == "facts gone":
        facts.unlink()
    elif harm == "facts empty":
        facts.write_bytes(b"")
    elif harm == "swapped":  # both files of both entries: each pair is whole, under the other's name
        for one, two in ((path, second), (facts, second.with_suffix(".json"))):
            first, last = one.read_bytes(), two.read_bytes()
            one.write_bytes(last), two.write_bytes(first)
    else:
        array[10:20] = array[20:30] if harm == "other rows" else np.nan
        np.save(path, array.reshape(30, 8) if harm == "shape" else array)
    with caplog.at_level("WARNING", logger="dassl_clip"):
        assert torch.equal(get(), values)
    assert caplog.text.count(f"{path} is damaged and is made again") == 1
    assert torch.equal(other(), others) and torch.equal(get(), values)


def test_an_array_that_comes_while_it_is_looked_for_stays(cache, monkeypatch, caplog):
    """The maker of an entry ends between another's look at its file and what that concludes from it."""
    facts, load, calls = {"kind": "head"}, np.load, []

    def load_too_early(path, **options):
        monkeypatch.setattr(np, "load", load)
        try:
            return load(path, **options)
        finally:
            feature_cache.cached(facts, lambda: calls.append("first") or torch.arange(6.0))

    monkeypatch.setattr(np, "load", load_too_early)
    values = feature_cache.cached(facts, lambda: calls.append("second") or torch.arange(6.0))
    assert torch.equal(values, torch.arange(6.0)) and calls == ["first"] and "damaged" not in caplog.text


def test_1_7_two_makers_of_a_whole_array_take_turns(cache):
    """The second waits, and reads what the first has made: a head, or text features, are made once."""
    begun, go = threading.Event(), threading.Event()
    calls, found = [], []

    def make():
        calls.append(1)
        begun.set()
        assert go.wait(10)
        return torch.arange(6.0)

    def work():
        found.append(feature_cache.cached({"kind": "head"}, make))

    makers = [threading.Thread(target=work) for _ in range(3)]
    makers[0].start()
    assert begun.wait(10)
    for maker in makers[1:]:
        maker.start()
    go.set()
    for maker in makers:
        maker.join()
    assert len(calls) == 1 and all(torch.equal(values, torch.arange(6.0)) for values in found) and len(found) == 3
    assert len(list((cache / "features").iterdir())) == 2  # the lock's file is gone


def test_1_5_what_a_run_says_of_its_features_is_read_whole_or_not_at_all(tmp_path):
    """(row 1.5) Flipped bits in `features.npz` of a run's folder; such a file is no hindrance to writing a new one."""
    entry = SavedFeatures("a" * 64, np.arange(200), np.arange(200) % 3)
    save_features(tmp_path, {"test": entry})
    file, draw = tmp_path / SAVED_FEATURES, random.Random(4)
    whole = file.read_bytes()
    for _ in range(150):
        file.write_bytes(whole)
        flip(file, draw.sample(range(8 * len(whole)), 3))
        for found in saved_features(tmp_path).values():
            assert found.entry == entry.entry and np.array_equal(found.labels, entry.labels)
            assert np.array_equal(found.domains, entry.domains)
    file.write_bytes(whole[:100])
    save_features(tmp_path, {"val": entry})
    assert list(saved_features(tmp_path)) == ["val"]


def test_texts_are_named_by_their_words_and_borders():
    seen = [
        feature_cache.text_facts(texts)["words"]
        for texts in (["a b", "c"], ["a", "b c"], ["c", "a b"], ["a b"], ["a bc"])
    ]
    assert len(set(seen)) == len(seen)


# ------------------------------------------------------------------------------------------------- runs that share it


def test_the_second_run_encodes_nothing_and_equals_the_first(run, cache):
    first, record, _ = run("ZeroshotCLIP", name="first")
    kept = {path: path.read_bytes() for path in arrays(cache)}
    second, again, output = run("ZeroshotCLIP", name="second")
    assert len(kept) == 1 and "features [30, 16] read from" in output.out
    assert {path: path.read_bytes() for path in arrays(cache)} == kept
    assert shares(first) == shares(second) and record["metrics"] == again["metrics"]


def test_a_changed_picture_is_never_served_stale(run, cache, plain, tree):
    """One picture is drawn anew, with the same number of bytes in the file; another gets another's content."""
    first, _, _ = run("ZeroshotCLIP", name="first", root=tree)
    victim, other = tree / "sketch" / "dog" / "003.png", tree / "sketch" / "dog" / "004.png"
    before = victim.stat()
    pixels = np.asarray(Image.open(victim)).copy()[::-1, ::-1]
    Image.fromarray(pixels).save(victim)
    data = victim.read_bytes()
    victim.write_bytes(data[: before.st_size] + b"\0" * max(0, before.st_size - len(data)))
    shutil.copy2(tree / "sketch" / "house" / "000.png", other)
    second, _, _ = run("ZeroshotCLIP", name="second", root=tree)
    text = plain.texts([f"a photo of a {name}." for name in ("dog", "fire truck", "house")])
    for folder in (first, second):
        found = shares(folder)
        for path in (victim, other):
            if folder == first:
                continue
            image = plain.images([path])
            scores = plain.scale * torch.nn.functional.cosine_similarity(image, text)
            np.testing.assert_allclose(found[str(path)], scores.softmax(0).sort(descending=True).values, atol=2e-5)
    changed = [path for path in shares(first) if not np.allclose(shares(first)[path], shares(second)[path], atol=1e-6)]
    assert sorted(changed) == sorted(map(str, (victim, other)))


def test_1_4_pictures_that_change_places_under_the_time_0(run, cache, tree):
    """(row 1.4) Equal sizes, mtime 0 before and after: the second run sees what is there."""
    files = sorted((tree / "sketch").rglob("*.png"))
    size = max(path.stat().st_size for path in files)
    for path in files:
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, ns=(0, 0))
    first, _, _ = run("ZeroshotCLIP", name="first", root=tree)
    dog, house = (tree / "sketch" / name / "001.png" for name in ("dog", "house"))
    pixels = dog.read_bytes(), house.read_bytes()
    for path, data in zip((house, dog), pixels):
        path.write_bytes(data)
        os.utime(path, ns=(0, 0))
    second, _, _ = run("ZeroshotCLIP", name="second", root=tree)
    before, after = shares(first), shares(second)
    assert before[str(dog)] != before[str(house)]
    np.testing.assert_allclose(after[str(dog)], before[str(house)], atol=1e-6)
    np.testing.assert_allclose(after[str(house)], before[str(dog)], atol=1e-6)


KINDS = {  # what is cached: statistics of blocks, and image features, text features and a trained head
    "GOPro": ("OPTIM.MAX_EPOCH", 1),
    "CLAP": ("TRAINER.CLAP.MAX_STEPS", 8, "TRAINER.CLAP.CHECK_EVERY", 4, "TRAINER.CLAP.BATCH_SIZE", 4),
}


@pytest.mark.parametrize("method", KINDS)
def test_1_5_flipped_bits_in_any_file_of_the_cache_change_no_number(run, cache, method, monkeypatch):
    """(row 1.5) 600 random bits in one file after the other."""
    keys = KINDS[method]
    first, record, _ = run(method, *keys, name="first")
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    assert {path.parent.name for path in files} >= {"features"}
    draw = random.Random(method)
    for file in files:
        bits = 8 * file.stat().st_size
        flip(file, draw.sample(range(bits), min(600, bits // 3)))
    second, again, output = run(method, *keys, name="second")
    assert shares(first) == shares(second) and record["metrics"] == again["metrics"]
    assert record["losses"] == again["losses"] and "cannot be decoded" not in output.out
    assert "is damaged and is made again" in output.out


def test_other_weights_input_or_precision_have_their_own_features(run, cache, other_clip, tiny_clip, tmp_path):
    base, _, _ = run("ZeroshotCLIP", name="base")
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())
    folders = {"weights": other_clip}
    for key, value in {"mean": [0.5, 0.5, 0.5], "interpolation": "bilinear"}.items():
        folders[key] = tmp_path / key
        shutil.copytree(tiny_clip, folders[key])
        changed = {**config, "preprocess_cfg": {**config["preprocess_cfg"], key: value}}
        (folders[key] / "open_clip_config.json").write_text(json.dumps(changed))
    folders["one number"] = tmp_path / "number"
    shutil.copytree(tiny_clip, folders["one number"])
    state = load_file(tiny_clip / "open_clip_model.safetensors")
    state["visual.proj"][0, 0] += 0.5
    save_file(state, folders["one number"] / "open_clip_model.safetensors")
    for key, value in {
        "quick_gelu": True,
        "vision_cfg": {**config["model_cfg"]["vision_cfg"], "head_width": 8},
    }.items():
        folders[key] = tmp_path / key  # the same weights, read in another way
        shutil.copytree(tiny_clip, folders[key])
        changed = {**config, "model_cfg": {**config["model_cfg"], key: value}}
        (folders[key] / "open_clip_config.json").write_text(json.dumps(changed))
    found = {"base": shares(base)}
    for name, clip in folders.items():
        folder, _, _ = run("ZeroshotCLIP", "MODEL.BACKBONE.NAME", f"local-dir:{clip}", name=name)
        found[name] = shares(folder)
    folder, _, _ = run("ZeroshotCLIP", "TRAINER.ZEROSHOTCLIP.PREC", "amp", name="amp")
    found["amp"] = shares(folder)
    assert len(arrays(cache)) == len(found) == 8
    path = next(iter(found["base"]))
    assert len({tuple(np.round(own[path], 7)) for own in found.values()}) == 8
    again, _, output = run("ZeroshotCLIP", name="again")
    assert shares(again) == found["base"] and "read from" in output.out


def test_features_are_shared_by_methods_and_seeds(run, cache):
    run("ZeroshotCLIP", name="a")
    run("ZeroshotCLIP", "SEED", 4, name="b")  # another hold-out: the same images in another order
    run("InMaP", name="c")
    assert len(arrays(cache)) == 1


def test_damaged_features_are_made_again_by_a_run(run, cache):
    first, record, _ = run("ZeroshotCLIP", name="first")
    (path,) = arrays(cache)
    whole, torn = np.load(path), path.read_bytes()[:-100]
    for harm in (lambda: path.write_bytes(torn), lambda: np.save(path, whole[1:]), lambda: np.save(path, whole.sum())):
        harm()
        second, again, output = run("ZeroshotCLIP", name="second", flags=("--eval-only",))
        assert output.out.count("is damaged and is made again") == 1
        assert shares(first) == shares(second) and record["metrics"] == again["metrics"]


def test_a_run_goes_on_where_nothing_can_be_kept(run, cache, monkeypatch, tmp_path):
    first, _, _ = run("ZeroshotCLIP", name="first")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "file"))
    second, _, output = run("ZeroshotCLIP", name="second")
    assert "WARNING: features are not cached" in output.out
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    third, _, output = run("ZeroshotCLIP", name="third")
    assert "features" not in output.out
    assert shares(first) == shares(second) == shares(third)
