"""The names that prompts say: of wnids, numbers, counters, files of names; never two classes with one prompt.

Covers: wnids in FolderClasses, FolderDomains and Manifest, also unknown ones; bare numbers; each form of
`classnames.txt` and of DATASET.CLASSNAMES, in loaders with folders, split files and lists; everything that does not
fit; spellings of one class; counters before names; the shipped lists.
"""

import logging
import unicodedata

import pytest

from dassl_clip.datasets import PACS, DescribableTextures, FolderClasses, FolderDomains, ImageNetA, Manifest
from dassl_clip.datasets.class_names import check_prompts, without_counters
from dassl_clip.datasets.spec import load_spec
from dassl_clip.datasets.verify import NOTE, WARNING, verify
from dassl_clip.results.data_sets import entries
from dassl_clip.results.labels import display_name, prompt_key
from dassl_clip.results.run_data import data_of

WNIDS = {"n01440764": "tench", "n01443537": "goldfish", "n01514668": "rooster"}  # WordNet's name of the last is cock


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def make(kind, root, grow, names):
    """A user's own data set of a kind with class folders of these names: its loader and its domains."""
    if kind == "domains":
        grow(root, *(f"{domain}/{name}" for domain in ("day", "night") for name in names))
        return FolderDomains, (["day"], ["night"])
    grow(root, *(f"train/{name}" for name in names), *(f"test/{name}" for name in names))
    if kind == "classes":
        return FolderClasses, ([], [])
    lines = [
        f"{part}/{name}/{number}.jpg,{name},{part}" for part in ("train", "test") for name in names for number in "01"
    ]
    (root / "manifest.csv").write_text("\n".join(["path,class,split", *lines]))
    return Manifest, ([], [])


KINDS = pytest.mark.parametrize("kind", ["classes", "domains", "manifest"])


@KINDS
def test_4_1_wnids_have_their_names(kind, tmp_path, grow, config, told):
    """Prompts said "a photo of a n01440764." (row 4.1)."""
    loader, domains = make(kind, tmp_path, grow, list(WNIDS))
    data = loader(config(tmp_path, *domains))
    assert data.classnames == list(WNIDS.values())
    assert {item.classname for item in data.test} == {*WNIDS.values()}
    assert "class names of ImageNet's published list for 3 wnids" in data.protocol
    assert any("3 wnids: n01440764 = tench, n01443537 = goldfish" in text for text in told.messages)
    report = verify(loader, config(tmp_path, [], []))
    assert report.classes == tuple(WNIDS.values()) and report.verdict == 0
    assert any(finding.level == NOTE and "wnids" in finding.text for finding in report.findings)


def test_4_1_wnids_that_the_list_lacks_warn(tmp_path, grow, config, told):
    loader, domains = make("classes", tmp_path, grow, [*WNIDS, "n00007846"])
    assert loader(config(tmp_path, *domains)).classnames == ["n00007846", *WNIDS.values()]
    assert "1 class folders are wnids that ImageNet's list of 1000 classes does not name (n00007846)" in told.text


@KINDS
def test_4_1_bare_numbers_warn(kind, tmp_path, grow, config, told):
    loader, domains = make(kind, tmp_path, grow, [str(number) for number in range(12)])
    data = loader(config(tmp_path, *domains))
    assert data.classnames == [str(number) for number in range(12)]  # 2 before 10
    assert (
        '12 of 12 class names are bare numbers (0, 1, 2, 3 and 8 more), so that prompts such as "a photo' in told.text
    )
    report = verify(loader, config(tmp_path, [], []))
    assert [finding.level for finding in report.findings] == [WARNING]


FORMS = {
    "tabs": "n01514668\ta bird\nn01440764\ta fish\nn01443537\tgold fish\n",
    "CoOp": "n01440764 a fish\r\nn01443537 gold fish\r\nn01514668 a bird\r\n",
    "CoOp's whole list": "n01440764 a fish\nn01443537 gold fish\nn01514668 a bird\nn01518878 ostrich\n",
    "plain": "\ufeffa fish\ngold fish\n\na bird",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", [True, False])
@KINDS
def test_4_1_files_of_names(kind, asked, form, tmp_path, grow, config, told):
    root = tmp_path / "data"
    loader, domains = make(kind, root, grow, list(WNIDS))
    path = tmp_path / "names.txt" if asked else root / "classnames.txt"
    path.write_bytes(FORMS[form].encode())
    data = loader(config(root, *domains, CLASSNAMES=str(path) if asked else ""))
    assert data.classnames == ["a fish", "gold fish", "a bird"]
    assert {(item.label, item.classname) for item in data.test} == set(enumerate(data.classnames))
    assert f"class names of {path}" in data.protocol and f"{path}: n01440764 = a fish" in told.text
    report = verify(loader, config(root, [], [], CLASSNAMES=str(path) if asked else ""))
    assert report.classes == ("a fish", "gold fish", "a bird") and report.verdict == 0


@KINDS
def test_4_1_plain_names_of_numbered_folders(kind, tmp_path, grow, config):
    loader, domains = make(kind, tmp_path, grow, [str(number) for number in range(12)])
    names = [f"thing {letter}" for letter in "abcdefghijkl"]
    (tmp_path / "classnames.txt").write_text("\n".join(names))
    data = loader(config(tmp_path, *domains))
    assert data.classnames == names
    assert all(item.impath.split("/")[-2] == str(item.label) for item in data.test)
    (tmp_path / "classnames.txt").write_text("\n".join(f"{k} {name}" for k, name in reversed(list(enumerate(names)))))
    assert loader(config(tmp_path, *domains)).classnames == names


def test_4_1_names_beside_the_class_folders(tmp_path, grow, config):
    loader, domains = make("classes", tmp_path, grow, ["a", "b"])
    (tmp_path / "train/classnames.txt").write_text("apple\nbread")
    assert loader(config(tmp_path, *domains)).classnames == ["apple", "bread"]
    (tmp_path / "test/classnames.txt").write_text("apple\nbutter")
    with pytest.raises(
        ValueError, match=r"train/classnames.txt and .*test/classnames.txt name the classes differently"
    ):
        loader(config(tmp_path, *domains))
    (tmp_path / "own.txt").write_text("ant\nbee")
    assert loader(config(tmp_path, *domains, CLASSNAMES="own.txt")).classnames == ["ant", "bee"]  # below the root


def test_4_1_some_names_may_be_those_of_the_folders(tmp_path, grow, config):
    loader, domains = make("classes", tmp_path, grow, ["cat", "dog", "tv"])
    (tmp_path / "classnames.txt").write_text("cat\ndog\ntelevision")
    assert loader(config(tmp_path, *domains)).classnames == ["cat", "dog", "television"]
    (tmp_path / "classnames.txt").write_text("tv\ndog\ncat")  # the folders themselves: their order
    data = loader(config(tmp_path, *domains))
    assert data.classnames == ["tv", "dog", "cat"] and {item.label for item in data.test if "/tv/" in item.impath} == {
        0
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", r"holds 2 names, but there are 3 classes \(n01440764, n01443537, n01514668\)"),
        ("a\nb\na\n", r'names the class "a" twice'),
        ("n01440764 a\nn01443537 b\n", r"does not name the class folders n01514668; add them"),
        ("n01440764 a\nn01443537 b\nn01514669 c\n", r'there is no class folder "n01514669".* Did you mean .n0'),
        ("n01440764 a\nn01443537 b\nn01440764 c\n", r'the class folder "n01440764" twice: "a" and "c"'),
        ("n01440764\ta\nn01443537 b\n", r'name 2: expected "folder<TAB>name" as in other lines, found "n01443537 b"'),
        ("n01440764\ta\nn01443537\tb\nowl\tc\n", r'there is no class folder "owl"'),
        (
            "n01440764 crane\nn01443537 Crane\nn01514668 x\n",
            r'"n01440764" and "n01443537" have one prompt, by .*"Crane"',
        ),
        ("\n\n", r"is empty"),
    ],
)
@KINDS
def test_4_1_files_that_do_not_fit(kind, text, message, tmp_path, grow, config):
    loader, domains = make(kind, tmp_path, grow, list(WNIDS))
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        loader(config(tmp_path, *domains, CLASSNAMES="names.txt"))
    with pytest.raises(FileNotFoundError, match=r"DATASET.CLASSNAMES: there is no file .*nams.txt"):
        loader(config(tmp_path, *domains, CLASSNAMES="nams.txt"))


def test_4_1_names_for_published_data_sets(tmp_path, pacs_tree, coop_tree, config):
    root = pacs_tree(tmp_path / "pacs")
    plain = PACS(config(root, ["photo"], ["sketch"]))
    (root / "names.txt").write_text("\n".join(f"{name} drawing" for name in plain.classnames))
    data = PACS(config(root, ["photo"], ["sketch"], CLASSNAMES="names.txt"))
    assert data.classnames[0] == "dog drawing" and data.listing == plain.listing
    assert data_of(data).images == data_of(plain).images and data_of(data).fingerprint != data_of(plain).fingerprint
    (root / "names.txt").write_text("\n".join(reversed(plain.classnames)))
    with pytest.raises(ValueError, match=r'name 1 is "person", expected "dog": the labels of PACS have a fixed order'):
        PACS(config(root, ["photo"], ["sketch"], CLASSNAMES="names.txt"))
    (root / "names.txt").write_text(
        "house\thome\n" + "".join(f"{n}\tthe {n}\n" for n in plain.classnames if n != "house")
    )
    assert PACS(config(root, ["photo"], ["sketch"], CLASSNAMES="names.txt")).classnames[5] == "home"
    coop_tree(tmp_path, "dtd")
    (tmp_path / "names.txt").write_text("\n".join(f"{k}th texture" for k in range(47)))
    data = DescribableTextures(config(tmp_path, [], [], CLASSNAMES="names.txt", SUBSAMPLE_CLASSES="new"))
    assert data.classnames[0] == "24th texture"
    assert {(item.label, item.classname) for item in data.test} == set(enumerate(data.classnames))


def test_4_1_the_whole_list_for_a_part_of_imagenet(tmp_path, config):
    spec, whole = load_spec("imagenet_a"), load_spec("imagenet")
    for wnid in spec.folder_names:
        (tmp_path / "imagenet-a" / wnid).mkdir(parents=True)
        (tmp_path / "imagenet-a" / wnid / "1.jpg").touch()
    (tmp_path / "names.txt").write_text("\n".join(f"{w} {n}, seen" for w, n in zip(whole.folder_names, whole.classes)))
    data = ImageNetA(config(tmp_path, [], [], CLASSNAMES="names.txt"))
    assert data.classnames == [f"{name}, seen" for name in spec.classes]


# ------------------------------------------------------------------------------------------------ one class, one prompt


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("Drinking Glass", "drinking_glass"),
        (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")),
        ("Mug", "mug"),
        ("black  tea", "black tea"),
        ("salt &amp; pepper", "salt & pepper"),
        ("ﬁsh", "fish"),
        ("c\u00ada\u200et\u200b", "cat"),
    ],
)
def test_4_2_two_spellings_of_one_class(one, two, tmp_path, grow, config, told):
    """Five classes for four, two equal prompts (row 4.2)."""
    assert prompt_key(one) == prompt_key(two) == prompt_key(display_name(one))
    assert display_name(one).isprintable()
    root = grow(tmp_path / "domains", f"day/{one}", "day/owl", f"night/{two}", "night/owl")
    data = FolderDomains(config(root, ["day"], ["night"]))
    assert len(data.classnames) == 2 and len(data.test) == 10
    assert sorted(item.label for item in data.test) == [0] * 5 + [1] * 5
    assert "folders that are spellings of one class are one class: " in told.text
    root = grow(tmp_path / "classes", f"train/{one}", "train/owl", f"test/{two}", "test/owl")
    assert FolderClasses(config(root, [], [])).num_classes == 2
    with pytest.raises(ValueError, match=r"are one name when letter case"):
        FolderClasses(config(grow(root, f"train/{two}"), [], []))
    lines = [f"day/{one}/{k}.jpg,{one if k < 3 else two},{'test' if k > 3 else 'train'}" for k in range(5)]
    lines += [f"day/owl/{k}.jpg,owl,{'test' if k > 3 else 'train'}" for k in range(5)]
    (tmp_path / "domains/manifest.csv").write_text("\n".join(["path,class,split", *lines]), encoding="utf-8")
    data = Manifest(config(tmp_path / "domains", [], []))
    assert data.num_classes == 2 and "classes with one prompt are one class" in told.text


def test_4_2_the_shipped_lists_pass():
    for entry in entries():
        spec = load_spec(entry)
        check_prompts(spec.classes, spec, spec.name)


# ------------------------------------------------------------------------------------------------------------ counters


@KINDS
def test_4_6_counters_are_not_said(kind, tmp_path, grow, config, told):
    """Prompts said "a photo of a 001.Black footed Albatross." (row 4.6)."""
    loader, domains = make(kind, tmp_path, grow, ["001.Black_footed_Albatross", "002.Laysan_Albatross", "017.Cardinal"])
    data = loader(config(tmp_path, *domains))
    assert data.classnames == ["Black_footed_Albatross", "Laysan_Albatross", "Cardinal"]
    assert "class names without the counter before them" in data.protocol
    assert "001.Black_footed_Albatross = Black_footed_Albatross" in told.text


def test_4_6_counters_in_one_domain(tmp_path, grow, config):
    root = grow(tmp_path, "day/000_Alarm_Clock", "day/001_Bike", "night/Alarm_Clock", "night/bike", "night/TV")
    data = FolderDomains(config(root, ["day"], ["night"]))
    assert data.classnames == ["Alarm_Clock", "Bike", "TV"]
    assert sorted(item.label for item in data.test) == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["n02086646-Blenheim_spaniel", "n02085620-Chihuahua"], ["Blenheim_spaniel", "Chihuahua"]),
        (["1_cat", "2_dog"], ["cat", "dog"]),
        (["12.a b", "15. c"], ["a b", "c"]),
        (["2012 Audi TTS", "1994 Audi V8"], None),
        (["7_segment", "8_ball"], None),
        (["001.cat", "dog"], None),
        (["707-320", "727-200"], None),
        (["01 story", "02 story"], None),
        (["3D", "2D"], None),
    ],
)
def test_4_6_what_is_a_counter(names, said):
    assert list(without_counters(names).values()) == (said or names)
