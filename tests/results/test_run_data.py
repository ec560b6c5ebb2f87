"""The data of a run: what its fingerprint sees and does not see, its list in the run folder, what a difference says.

Covers `results/run_data.py`.
"""

import gzip
import hashlib
import json
import os
import time
from types import SimpleNamespace

import pytest

from dassl_clip.results import run_data


def item(path, label):
    return SimpleNamespace(impath=str(path), label=label)


def data_set(root, train=(), test=(), names=("cat", "dog"), **more):
    """A data set as any Dassl loader gives it: `(name, label)` below `root`."""
    lists = [[item(root / name, label) for name, label in part] for part in (train, test)]
    return SimpleNamespace(train_x=lists[0], val=None, test=lists[1], train_u=None, classnames=list(names), **more)


@pytest.fixture
def tree(tmp_path):
    """Files `cat/k.png` and `dog/k.png` of different sizes, and their triples."""
    files = []
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "a" / name).mkdir(parents=True)
        for number in range(6):
            path = tmp_path / "a" / name / f"{number}.png"
            path.write_bytes(bytes([number]) * (10 + number + 10 * label))
            files.append((f"{name}/{number}.png", label))
    return tmp_path / "a", files


def fingerprint(root, files, names=("cat", "dog"), **more):
    train = [pair for pair in files if pair[0].endswith(("0.png", "1.png"))]
    test = [pair for pair in files if pair not in train]
    return run_data.data_of(data_set(root, train, test, names, **more)).fingerprint


def test_1_4_the_fingerprint_is_the_hash_of_the_list(tree):
    """A plain second program: sorted lines of part, label, size, content and path, after the class names."""
    root, files = tree
    lines = sorted(
        ("test", label, (root / name).stat().st_size, hashlib.sha256((root / name).read_bytes()).hexdigest(), name)
        for name, label in files
    )
    text = json.dumps(["cat", "dog"]) + "".join("\t".join(map(str, line)) + "\n" for line in lines)
    data = run_data.data_of(data_set(root, test=files))
    assert data.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_1_4_what_the_fingerprint_sees(tree):
    root, files = tree
    first = fingerprint(root, files)
    assert fingerprint(root, files) == first
    assert fingerprint(root, files[:-1]) != first  # removed
    assert fingerprint(root, [*files[:-1], (files[-1][0], 0)]) != first  # another label
    assert fingerprint(root, files, names=("dog", "cat")) != first
    stamp = os.stat(root / "cat/3.png").st_mtime_ns
    (root / "cat/3.png").write_bytes(b"?" * 13)  # other content, same size and time
    os.utime(root / "cat/3.png", ns=(stamp, stamp))
    second = fingerprint(root, files)
    assert second != first
    (root / "cat/3.png").write_bytes(b"?" * 14)  # another size
    assert fingerprint(root, files) not in (first, second)


def test_the_folder_above_does_not_count(tree, tmp_path):
    root, files = tree
    first = fingerprint(root, files)
    root.rename(tmp_path / "b c")
    assert fingerprint(tmp_path / "b c", files) == first
    (tmp_path / "link").symlink_to(tmp_path / "b c")
    assert fingerprint(tmp_path / "link", files) == first


def test_names_of_a_loader_take_the_place_of_paths(tree, tmp_path):
    """One data set in two layouts: the loader's canonical names agree, and so do the fingerprints."""
    root, files = tree
    keys = {(str(root / name), label): f"pets/{name}" for name, label in files}
    first = fingerprint(root, files, image_keys=keys)
    (root / "cat").rename(root / "Cats")
    moved = [(name.replace("cat/", "Cats/"), label) for name, label in files]
    keys = {(str(root / new), label): f"pets/{old}" for (new, label), (old, _) in zip(moved, files)}
    assert fingerprint(root, moved, image_keys=keys) == first
    assert fingerprint(root, moved) != first


def test_the_sample_of_a_long_list(tmp_path, monkeypatch):
    """Outside the sample, content of the same size is not seen, as the module says; inside it is."""
    monkeypatch.setattr(run_data, "SAMPLED", 20)
    files = [(f"{number:03}.png", number % 2) for number in range(200)]
    for name, _ in files:
        (tmp_path / name).write_bytes(b"1234")
    data = run_data.data_of(data_set(tmp_path, test=files))
    sampled = [image.path for image in data.images if image.content]
    assert len(sampled) == data.facts()["sampled"] == 20
    places = sorted(int(name[:3]) for name in sampled)
    assert places[0] < 40 and places[-1] >= 160  # spread over the list
    (tmp_path / "extra.png").write_bytes(b"1234")
    more = run_data.data_of(data_set(tmp_path, test=[*files, ("extra.png", 0)]))
    assert len({image.path for image in more.images if image.content} & set(sampled)) >= 19
    others = [name for name, _ in files if name not in sampled]
    for names, seen in ((others, False), (sampled[:1], True)):
        for name in names:
            (tmp_path / name).write_bytes(b"4321")
        assert (run_data.data_of(data_set(tmp_path, test=files)).fingerprint != data.fingerprint) == seen


def test_1_3_draws_of_shots_agree_in_what_is_tested(tmp_path, monkeypatch):
    """Seeds train on different images and test the same ones, whichever of all these the sample holds."""
    monkeypatch.setattr(run_data, "SAMPLED", 20)
    files = [(f"{number:03}.png", number % 2) for number in range(200)]
    for number, (name, _) in enumerate(files):
        (tmp_path / name).write_bytes(b"%04d" % number)
    test = files[100:]
    facts = [run_data.data_of(data_set(tmp_path, files[first : first + 40], test)).facts() for first in (0, 30, 60)]
    assert len({fact["test"] for fact in facts}) == 1 and len({fact["fingerprint"] for fact in facts}) == 3
    assert {fact["sampled"] for fact in facts} == {40}
    (tmp_path / "150.png").write_bytes(b"12345")
    assert run_data.data_of(data_set(tmp_path, files[:40], test)).facts()["test"] != facts[0]["test"]


def test_both_ends_of_a_long_file_count(tmp_path, monkeypatch):
    monkeypatch.setattr(run_data, "EDGE", 10)
    seen = set()
    for content in (b"a" * 30, b"b" + b"a" * 29, b"a" * 29 + b"b", b"a" * 15):
        (tmp_path / "x.png").write_bytes(content)
        seen.add(run_data.data_of(data_set(tmp_path, test=[("x.png", 0)])).fingerprint)
    assert len(seen) == 4


def test_the_list_reads_back(tree, tmp_path):
    root, files = tree
    odd = ["tab\there.png", "line\nfeed.png", "back\\nslash.png", "sm\N{LATIN SMALL LETTER O WITH DIAERESIS}r.png"]
    for name in odd:
        (root / name).write_bytes(b"1")
    absent = [("absent.png", 0)]
    data = run_data.data_of(data_set(root, [*files, *absent], [(name, 1) for name in odd], domains=["x"]))
    run_data.write_data(tmp_path, data)
    assert run_data.read_data(tmp_path) == data
    assert {image.path for image in data.images if image.part == "test"} == set(odd)
    assert [image.size for image in data.images if image.path == "absent.png"] == [-1]
    whole = (tmp_path / run_data.DATA_NAME).read_bytes()
    (tmp_path / run_data.DATA_NAME).write_bytes(whole[: len(whole) // 2])
    assert run_data.read_data(tmp_path) is None
    text = gzip.decompress(whole).replace(b"cat/0.png", b"cat/9.png")
    (tmp_path / run_data.DATA_NAME).write_bytes(gzip.compress(text))
    assert run_data.read_data(tmp_path) is None  # not what the fingerprint says
    (tmp_path / run_data.DATA_NAME).unlink()
    assert run_data.read_data(tmp_path) is None


def test_differences_name_each_kind_with_a_first_example(tree):
    root, files = tree
    before = run_data.data_of(data_set(root, files[:2], files[2:]))
    assert run_data.differences(before, run_data.data_of(data_set(root, files[:2], files[2:]))) == ""
    (root / "dog/5.png").unlink()
    (root / "dog/9.png").write_bytes(b"new")
    (root / "cat/1.png").write_bytes(b"another size")
    now = [*files[:-1], ("dog/9.png", 1)]
    after = run_data.data_of(data_set(root, now[:3], now[3:], names=("cat", "hound")))
    assert run_data.differences(before, after) == (
        "class 1 is 'dog' there and 'hound' now, of 2 there and 2 now, "
        "1 image added (first: dog/9.png), 1 image removed (first: dog/5.png), "
        "1 image changed (first: cat/1.png), 1 image with another label or part (first: cat/2.png)"
    )


@pytest.mark.parametrize(
    ("there", "now", "told"),
    [
        ("abc", "abd", "class 2 is 'c' there and 'd' now, of 3 there and 3 now"),
        ("ab", "abc", "class 2 is absent there and 'c' now, of 2 there and 3 now"),
        ("abc", "a", "class 1 is 'b' there and absent now, of 3 there and 1 now"),
    ],
)
def test_2_6_the_first_difference_of_two_lists(there, now, told):
    assert run_data.first_difference(there, now, "class") == told


def test_1_1_many_images_take_little_time(tmp_path):
    """20,000 images in well under a second a core: 200,000 take under two beside the listing."""
    files = []
    for folder in range(20):
        (tmp_path / f"{folder:02}").mkdir()
        for number in range(1000):
            name = f"{folder:02}/{number:04}.png"
            os.close(os.open(tmp_path / name, os.O_CREAT))
            files.append((name, folder))
    data = data_set(tmp_path, test=files, names=list(map(str, range(20))))
    begin = time.process_time()
    assert run_data.data_of(data).facts()["counts"] == {"test": 20_000}
    assert time.process_time() - begin < 1.0
