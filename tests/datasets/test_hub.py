"""Copies in the forms of the Hugging Face hub are read as they lie, and give what the folders give.

Covers: parquet in one file and in shards, arrow folders of `save_to_disk`, `imagefolder` with metadata.csv and
metadata.jsonl, beside a tree of the same images: order, labels, draws, fingerprints; class names by ClassLabel in
another order, by label texts, by `classnames.txt`, by the published order; PACS, VLCS, OfficeHome, DomainNet and
ImageNet; parts by file and by folder, hidden labels; every copy that cannot be read; a missing pyarrow; `verify`.
"""

import json
import re
import shutil
import sys

import pytest

import dassl_clip.trainers  # noqa: F401  # whose class says that it reads rows
from dassl_clip.datasets import (
    PACS,
    VLCS,
    DomainNet,
    FolderClasses,
    FolderDomains,
    ImageNet,
    Manifest,
    OfficeHome,
    OfficeHomeDG,
    tables,
)
from dassl_clip.datasets.spec import load_spec
from dassl_clip.datasets.verify import ERROR, FITS, verify
from dassl_clip.engine.images import inspect_image
from dassl_clip.results import image_rows
from dassl_clip.results.run_data import data_of

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

DOMAINS, CLASSES = ("day", "night"), ("Table", "TV", "cat_flap")
NAMES = ("cat_flap", "Table", "TV")  # by number, in no sorted order
PACS_NAMES = load_spec("pacs").classes
JPEG, PNG = (b"\xff\xd8\xff", b"\x89PNG")


def a_table(rows, names=NAMES, paths=True, domain=True):
    """Rows of (bytes, file name, domain, label) by the hub's schema."""
    kinds = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("domain", pa.string())]
    features = {"image": {"_type": "Image"}, "domain": {"dtype": "string", "_type": "Value"}}
    if names:
        features["label"] = {"names": list(names), "_type": "ClassLabel"}
    first = next((row[3] for row in rows if row[3] is not None), 0)
    schema = pa.schema([*kinds, ("label", pa.string() if isinstance(first, str) else pa.int64())])
    schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    data = {
        "image": [{"bytes": content, "path": name if paths else None} for content, name, _, _ in rows],
        "domain": [row[2] for row in rows],
        "label": [row[3] for row in rows],
    }
    table = pa.table(data, schema=schema)
    return table if domain else table.drop_columns("domain")


def write(folder, rows, shards=1, stem="train", arrow=False, **options):
    """The rows in files of the hub's names; few rows in a row group."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for shard in range(shards):
        table = a_table(rows[shard * size : (shard + 1) * size], **options)
        name = f"{stem}-{shard:05d}-of-{shards:05d}"
        if not arrow:
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=4)
            continue
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=4)
    return folder.parent if folder.name == "data" else folder


def tree_rows(root, number=NAMES.index, domains=DOMAINS, classes=CLASSES, size=6):
    """A tree domain/class/image below `root`, every image of another length, and its rows in a mixed order."""
    rows = []
    for domain in domains:
        for name in classes:
            for k in range(size):
                content = JPEG + f"{domain} {name} {k}".encode() * (k + 1)
                path = root / domain / name / f"{name}_{k}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                rows.append((content, path.name, domain, number(name)))
    return rows[1::2] + rows[::2]


def in_metadata(root, rows, ending, names=NAMES):
    """The same rows as `imagefolder`: files without folders, and what they show beside them."""
    root.mkdir(parents=True)
    lines = []
    for k, (content, name, domain, label) in enumerate(rows):
        (root / f"{domain}_{name}").write_bytes(content)
        lines.append({"file_name": f"{domain}_{name}", "label": names[label], "domain": domain, "note": k})
    if ending == "jsonl":
        text = "".join(json.dumps(line) + "\n" for line in lines)
    else:
        text = "\n".join([",".join(lines[0]), *(",".join(map(str, line.values())) for line in lines)])
    (root / f"metadata.{ending}").write_text(text)
    return root


def copies(root, rows):
    yield write(root / "one" / "data", rows)
    yield write(root / "shards" / "data", rows, shards=3)
    yield write(root / "arrow" / "train", rows, shards=2, stem="data", arrow=True).parent
    yield in_metadata(root / "csv", rows, "csv")
    yield in_metadata(root / "jsonl", rows, "jsonl")


def seen(data):
    """Label, domain, class and content of all images in their order."""
    lists = (data.train_x, data.val or [], data.test)
    return [
        [(x.label, x.domain, x.classname, image_rows.open_image(x.impath).read()) for x in items] for items in lists
    ]


@pytest.mark.parametrize("options", [{}, {"NUM_SHOTS": 2}, {"PROTOCOL": "holdout"}])
def test_copies_give_what_the_folders_give(options, tmp_path, config):
    rows = tree_rows(tmp_path / "tree")
    expected = FolderDomains(config(tmp_path / "tree", ["day"], ["night"], **options))
    assert {x.classname for x in expected.test} == {*CLASSES}
    for number, root in enumerate(copies(tmp_path, rows)):
        data = FolderDomains(config(root, ["day"], ["night"], **options))
        assert data.classnames == expected.classnames == sorted(CLASSES)
        assert seen(data) == seen(expected)
        if number < 3:  # names of files in rows are those of the folders, so the data are the same data
            assert all("#" in x.impath for x in data.test)
            assert data.listing == expected.listing
            assert data_of(data).fingerprint == data_of(expected).fingerprint


def test_rows_without_file_names_are_in_the_order_of_the_file(tmp_path, config):
    rows = sorted(tree_rows(tmp_path / "tree"), key=lambda row: (row[3], row[0]), reverse=True)
    data = FolderDomains(config(write(tmp_path / "copy", rows, paths=False), ["day"], ["night"]))
    held = {image_rows.open_image(x.impath).read() for x in data.val}
    expected = [row for name in sorted(CLASSES) for row in rows if row[2] == "day" and NAMES[row[3]] == name]
    expected = [row for row in expected if row[0] not in held]
    assert [image_rows.open_image(x.impath).read() for x in data.train_x] == [row[0] for row in expected]
    assert [x.impath.rpartition("#")[2] for x in data.train_x] == [f"{rows.index(row):02d}" for row in expected]


def test_bare_numbers_need_names(tmp_path, config):
    rows = tree_rows(tmp_path / "tree")
    expected = FolderDomains(config(tmp_path / "tree", ["day"], ["night"]))
    root = write(tmp_path / "copy", rows, names=None)
    with pytest.raises(ValueError, match=r"are numbers from 0 to 2 without class names: put classnames.txt") as caught:
        FolderDomains(config(root, ["day"], ["night"]))
    assert "\n" not in str(caught.value)
    (root / "classnames.txt").write_text("\n".join(NAMES))
    data = FolderDomains(config(root, ["day"], ["night"]))
    assert data.classnames == list(NAMES)
    by_name = [{(x.classname, image_rows.open_image(x.impath).read()) for x in data.test} for data in (data, expected)]
    assert by_name[0] == by_name[1]
    (root / "classnames.txt").write_text("\n".join(NAMES[:2]))
    with pytest.raises(ValueError, match=r"names 2 classes, but .* has the label 2, counted from 0"):
        FolderDomains(config(root, ["day"], ["night"]))


def test_labels_may_be_texts(tmp_path, config):
    rows = tree_rows(tmp_path / "tree", number=str)
    data = FolderDomains(config(write(tmp_path / "copy", rows, names=None), ["day"], ["night"]))
    assert seen(data) == seen(FolderDomains(config(tmp_path / "tree", ["day"], ["night"])))


def published_rows(root, name, domains, number=None):
    """A tree of a published data set, an image a class and domain, and its rows by the numbers of `number`."""
    spec = load_spec(name)
    folders = sorted(spec.folder_names)
    number = number or folders.index
    return tree_rows(root, number, domains, folders, size=2), folders


@pytest.mark.parametrize("loader, name, domains", [(PACS, "pacs", ["photo", "sketch"]),
                                                   (OfficeHome, "office_home", ["Art", "Real World"]),
                                                   (VLCS, "vlcs", ["SUN09", "VOC2007"]),
                                                   (DomainNet, "domainnet", ["clipart", "real"])])  # fmt: skip
def test_published_sets_go_by_name(loader, name, domains, tmp_path, config, monkeypatch):
    """Numbers in any order, domains in any spelling: the labels are those of the folders."""
    spec = load_spec(name)
    rows, folders = published_rows(tmp_path / "tree", name, domains, lambda folder: len(folder) * 0)
    order = folders[::-1]
    rows = [(content, file, domain, order.index(file.rpartition("_")[0])) for content, file, domain, _ in rows]
    source, target = (spec.domain_keys()[re.sub(r"[ _-]", "", domain).lower()] for domain in domains)
    expected = loader(config(tmp_path / "tree", [source], [target], NUM_SHOTS=1))
    root = write(tmp_path / f"datasets--x--{spec.folders[0]}/snapshots/0a1b2c/data", rows, names=order)
    assert root.name == "0a1b2c"
    data = loader(config(tmp_path, [source], [target], NUM_SHOTS=1))
    assert seen(data) == seen(expected) and data.listing == expected.listing
    assert f"{tmp_path}/datasets--" in data.protocol and "classes by name" in data.protocol


def test_office_homes_published_numbers(tmp_path, config):
    """Without class names the order is that of the published copy, in which TV stands before Table."""
    rows, folders = published_rows(tmp_path / "tree", "office_home", ["Art", "Product"])
    assert folders.index("TV") == folders.index("Table") - 1
    data = OfficeHome(config(write(tmp_path / "copy", rows, names=None), ["art"], ["product"]))
    assert seen(data) == seen(OfficeHome(config(tmp_path / "tree", ["art"], ["product"])))
    assert "positions in the case-sensitive class list" in data.protocol


def test_pacs_bad_image_and_count(tmp_path, config, caplog):
    rows, _ = published_rows(tmp_path / "tree", "pacs", ["photo", "sketch"])
    bad = (PNG, "n02103406_4068-1.png", "sketch", 0)
    data = PACS(config(write(tmp_path / "named", [*rows, bad], names=PACS_NAMES), ["photo"], ["sketch"]))
    assert len(data.test) == 14 and "damaged" not in caplog.text
    data = PACS(config(write(tmp_path / "bare", [*rows, bad], names=PACS_NAMES, paths=False), ["photo"], ["sketch"]))
    assert len(data.test) == 15 and "has no names of files, so that sketch/dog/n02103406_4068-1.png" in caplog.text


def imagenet_copy(root, label=lambda k: k, names=None, val=True):
    rows = [(b"%d" % k, f"n{k}.JPEG", "", label(k)) for k in range(1000)]
    write(root, rows, names=names, domain=False)
    if val:
        write(root, rows, stem="validation", names=names, domain=False)
    write(root, [(b"?", "t.JPEG", "", -1)], stem="test", names=names, domain=False)
    return root


def test_imagenet_numbers_are_sorted_wnids(tmp_path, config, imagenet_tree):
    spec = load_spec("imagenet")
    synsets = [f"{name.split('(')[0]}, some other words" for name in spec.classes]
    for names in (None, synsets, spec.class_spellings):
        root = imagenet_copy(tmp_path / f"{len(str(names))}", names=names)
        data = ImageNet(config(root, [], []))
        assert [x.label for x in data.test] == list(range(1000)) == [x.label for x in data.train_x]
        assert image_rows.open_image(data.test[517].impath).read() == b"517" and "validation" in data.test[0].impath
        assert next(iter(data.image_keys.values())) == "train/n01440764/n0.JPEG"
    with pytest.raises(ValueError, match="which is none of the 1000 classes"):
        ImageNet(config(imagenet_copy(tmp_path / "other", names=synsets[::-1]), [], []))
    with pytest.raises(FileNotFoundError, match=r"no part val .*validation-00000|no part val .*val-00000"):
        ImageNet(config(imagenet_copy(tmp_path / "alone", val=False), [], []))


def test_parts(tmp_path, config):
    """By the names of files and of folders; a held-out target is tested on its test."""
    tree = tmp_path / "tree"
    halves = [tree_rows(tree / part, size=size) for part, size in (("train", 5), ("test", 2))]
    expected = FolderDomains(config(tree, ["day"], ["night"], NUM_SHOTS=2))
    for part, rows in zip(("train", "test"), halves):
        write(tmp_path / "files/data", rows, stem=part)
        write(tmp_path / "folders" / part, rows, stem="data", arrow=True)
    for root in (tmp_path / "files", tmp_path / "folders"):
        data = FolderDomains(config(root, ["day"], ["night"], NUM_SHOTS=2))
        assert seen(data) == seen(expected) and data.listing == expected.listing and len(data.test) == 6
        data = FolderClasses(config(root, [], []))
        assert (len(data.train_x), len(data.test)) == (30, 12)
    with pytest.raises(FileNotFoundError, match=r"no part val .*it has train, test"):
        OfficeHomeDG(config(home_dg(tmp_path / "dg", ("train", "test")), ["art"], ["product"]))
    data = OfficeHomeDG(config(home_dg(tmp_path / "dg2", ("train", "validation")), ["art"], ["product"]))
    assert (len(data.train_x), len(data.val), len(data.test)) == (130, 130, 260)


def home_dg(root, parts):
    for part in parts:
        rows, folders = published_rows(root / "made", "office_home_dg", ["art", "product"])
        write(root / "data", rows, stem=part, names=folders)
    return root


def test_domains_are_not_lost_unsaid(tmp_path, config, caplog):
    rows = tree_rows(tmp_path / "tree")
    root = write(tmp_path / "copy", rows)
    FolderClasses(config(root, [], []))
    assert "the domains of 1 parquet file in" in caplog.text
    root = write(tmp_path / "plain", rows, domain=False)
    with pytest.raises(ValueError, match=r"columns image, label, and no domain: it is read by DATASET.NAME FolderC"):
        FolderDomains(config(root, ["day"], ["night"]))
    with pytest.raises(ValueError, match=r"PACS: .* and no domain"):
        rows = [(*row[:3], k % 7) for k, row in enumerate(rows)]
        PACS(config(write(tmp_path / "p", rows, names=PACS_NAMES, domain=False), ["photo"], ["sketch"]))


def cut(path, last):
    path.write_bytes(path.read_bytes()[:last])


def only(content):
    """What a download leaves in place of a parquet file."""
    return lambda root, rows: (root.mkdir(), (root / "train.parquet").write_bytes(content))


def no_label(root, rows):
    path = write(root, rows) / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).drop_columns("label"), path)


def bad_json(root, rows):
    with (in_metadata(root, rows, "jsonl") / "metadata.jsonl").open("a") as file:
        file.write("{file_name: 3}\n")


def more(label):
    return lambda root, rows: write(root, [*rows, (JPEG, "x.jpg", "day", label)])


BAD = [
    (lambda root, rows: cut(write(root, rows) / "train-00000-of-00001.parquet", -20),
     r"train-00000-of-00001.parquet is not a whole parquet file \(.*\); get it again"),
    (only(b"<!doctype html><html>not found</html>"), r"train.parquet is a web page: the download failed; get it again"),
    (only(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
     r"train.parquet is the pointer of git-lfs to a file that was not fetched"),
    (lambda root, rows: cut(write(root, rows, arrow=True) / "train-00000-of-00001.arrow", 100),
     r"is not a whole arrow file \(.*\); get it again"),
    (lambda root, rows: (write(root, rows, shards=3) / "train-00001-of-00003.parquet").unlink(),
     r"1 of 3 files are missing: train-00001-of-00003.parquet"),
    (no_label, r"has the columns image, domain; expected are image \(a struct of bytes and path\) and label"),
    (more(3), r"parquet#36: its label is 3; it must be one of the 3 numbers from 0 on"),
    (more(-1), r"parquet#36 has no label, while other images do"),
    (lambda root, rows: [write(root / name, rows) for name in "ab"],
     r"holds 2 copies .*: .*/a \(parquet\), .*/b \(parquet\)\. Set DATASET.ROOT"),
    (lambda root, rows: write(write(root, rows), rows, stem="test", names=CLASSES),
     r"differ in their columns or class names"),
    (lambda root, rows: write(write(root, rows), rows, stem="more"),
     r"more-00000-of-00001.parquet belong to no part of a split, while other files do \(train\)"),
    (lambda root, rows: (in_metadata(root, rows, "jsonl") / f"day_{rows[0][1]}").unlink(),
     r"metadata.jsonl: 1 of 36 images are missing, first: day_.* \(line 1\)"),
    (bad_json, r"metadata.jsonl, line 37 is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize("make, said", BAD)
def test_what_cannot_be_read(make, said, tmp_path, config):
    make(tmp_path / "copy", tree_rows(tmp_path / "tree"))
    with pytest.raises(ValueError, match=said) as caught:
        FolderDomains(config(tmp_path / "copy", ["day"], ["night"]))
    assert "\n" not in str(caught.value)
    report = verify(FolderDomains, config(tmp_path / "copy", [], []))
    assert report.verdict == 2 and any(re.search(said, finding.text) for finding in report.findings)


def test_wrong_classes_and_domains_of_a_published_set(tmp_path, config):
    rows = tree_rows(tmp_path / "tree")
    with pytest.raises(ValueError, match=r'PACS: .* has the class "cat_flap", which is none of the 7 .*another data'):
        PACS(config(write(tmp_path / "a", rows), ["photo"], ["sketch"]))
    with pytest.raises(ValueError, match=r"VLCS: the labels of .* are numbers, and nothing says which class each of"):
        VLCS(config(write(tmp_path / "b", rows, names=None), ["sun"], ["pascal"]))
    with pytest.raises(ValueError, match=r'PACS: .* has the domain "day"; expected are art_painting, cartoon, photo'):
        PACS(config(write(tmp_path / "c", rows, names=PACS_NAMES), ["photo"], ["sketch"]))
    rows = [(*row[:2], "photo", row[3]) for row in rows]
    with pytest.raises(ValueError, match=r"PACS: .* has no train images of guitar, horse, house, person of ph"):
        PACS(config(write(tmp_path / "d", rows, names=PACS_NAMES), ["photo"], ["photo"]))
    rows, folders = published_rows(tmp_path / "t", "pacs", ["photo"])
    with pytest.raises(ValueError, match=r"PACS: .* has no images of sketch; it has photo"):
        PACS(config(write(tmp_path / "e", rows, names=folders), ["photo"], ["sketch"]))


def test_folders_come_first(tmp_path, config):
    rows = tree_rows(tmp_path / "tree")
    write(tmp_path / "tree" / "data", rows[:3])
    data = FolderDomains(config(tmp_path / "tree", ["day"], ["night"]))
    assert len(data.test) == 18 and not any("#" in x.impath for x in data.test)


def test_json_lines_as_a_manifest(tmp_path, config):
    root = in_metadata(tmp_path / "copy", tree_rows(tmp_path / "tree"), "jsonl")
    data = Manifest(config(root, ["day"], ["night"]))
    assert data.classnames == sorted(CLASSES) and len(data.test) == 18
    assert all(f"/night_{x.classname}_" in x.impath for x in data.test)


def test_without_pyarrow(tmp_path, config, monkeypatch):
    root = write(tmp_path / "copy", tree_rows(tmp_path / "tree"))
    image_rows.forget()
    tables.read_copy.cache_clear()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"is read with the package pyarrow, which is not installed: pip install pya"):
        FolderDomains(config(root, ["day"], ["night"]))


def test_a_trainer_that_opens_files_is_refused(tmp_path, config):
    copy = write(tmp_path / "copy", tree_rows(tmp_path / "tree"))
    for root, name in ((tmp_path / "tree", "ZeroshotCLIP"), (tmp_path / "tree", "Vanilla"), (copy, "ZeroshotCLIP")):
        assert len(FolderDomains(config(root, ["day"], ["night"], TRAINER=name)).test) == 18
    with pytest.raises(ValueError, match=r"parquet, but Vanilla reads them by Dassl's own loader"):
        FolderDomains(config(copy, ["day"], ["night"], TRAINER="Vanilla"))


def test_verify_counts_and_decodes(tmp_path, draw, config):
    content = draw(tmp_path / "a.jpg").read_bytes()
    rows = [(content, f"{k}.jpg", domain, k % 3) for domain in DOMAINS for k in range(6)]
    root = write(tmp_path / "copy", rows)
    report = verify(FolderDomains, config(root, [], []), inspect_image, duplicates=True)
    assert [(count.name, sum(count.images.values())) for count in report.counts] == [("day", 6), ("night", 6)]
    assert any(re.search("1[01] files are copies of others", finding.text) for finding in report.findings)
    rows[4] = (b"", *rows[4][1:])
    rows[7] = (content[:100], *rows[7][1:])
    rows[9] = (None, *rows[9][1:])
    shutil.rmtree(root)
    report = verify(FolderDomains, config(write(root, rows), [], []), inspect_image)
    told = [finding.text.replace(str(root), "") for finding in report.findings if finding.level == ERROR]
    assert [text.split(" ", 1)[0] for text in told] == [
        f"/train-00000-of-00001.parquet#{row}" for row in ("04", "09", "07")
    ]
    assert "is empty (0 bytes)" in told[0] and "is empty (0 bytes)" in told[1] and "cannot be decoded" in told[2]
    assert report.verdict != FITS
