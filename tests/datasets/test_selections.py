"""Few-shot selections on the disk.

Covers: place and content of the file (relative paths, no trace beside the data), one file a draw, what tells draws
apart, a selection handed on with DATASET.SELECTION after the data has moved, files that do not fit, a cache folder that
cannot be written, the order of the three places.
"""

import json
import shutil
from pathlib import Path

import pytest

from dassl_clip.datasets import PACS, EuroSAT
from dassl_clip.results.run_data import data_of


def files(items):
    return [item.impath for item in items]


def test_a_draw_is_kept_away_from_the_data(tmp_path, pacs_tree, config, own_cache):
    root = pacs_tree(tmp_path)
    before = sorted(root.rglob("*"))
    data = PACS(config(root, ["photo"], ["sketch"], NUM_SHOTS=2, SEED=3))
    PACS(config(root, ["photo"], ["sketch"], NUM_SHOTS=2, SEED=3))
    assert sorted(root.rglob("*")) == before
    assert [data.selection_file] == list((own_cache / "selections/PACS").iterdir())
    stored = json.loads(data.selection_file.read_text())
    assert (stored["shots"], stored["seed"], stored["sources"]) == (2, 3, ["photo"])
    home = root / "pacs/images"
    assert [str(home / key) for key, _ in stored["train"]] == files(data.train_x)
    assert [label for _, label in stored["val"]] == [item.label for item in data.val]
    for options in ({"SEED": 4}, {"SEED": 3, "PROTOCOL": "holdout"}):
        PACS(config(root, ["photo"], ["sketch"], NUM_SHOTS=2, **options))
    PACS(config(root, ["cartoon"], ["sketch"], NUM_SHOTS=2, SEED=3))
    assert len(list((own_cache / "selections/PACS").iterdir())) == 4
    assert PACS(config(root, ["photo"], ["sketch"])).selection_file is None


def test_a_selection_is_handed_on(tmp_path, coop_tree, config):
    coop_tree(tmp_path / "a", "eurosat")
    drawn = EuroSAT(config(tmp_path / "a", [], [], NUM_SHOTS=2, SEED=-1))
    kept, before = shutil.copy(drawn.selection_file, tmp_path / "kept.json"), data_of(drawn).fingerprint
    shutil.move(tmp_path / "a", tmp_path / "b")
    data = EuroSAT(config(tmp_path / "b", [], [], NUM_SHOTS=2, SELECTION=str(kept)))
    assert data_of(data).fingerprint == before
    assert files(data.train_x) == [path.replace(f"{tmp_path}/a/", f"{tmp_path}/b/") for path in files(drawn.train_x)]
    assert f"selection {kept}" in data.protocol and data.selection_file is None
    base = EuroSAT(config(tmp_path / "b", [], [], NUM_SHOTS=2, SELECTION=str(kept), SUBSAMPLE_CLASSES="base"))
    assert files(base.train_x) == [item.impath for item in data.train_x if item.label < 5]


def test_1_5_a_kept_draw_that_was_changed_is_refused_and_written_again(tmp_path, pacs_tree, config, own_cache):
    """(row 1.5) Another image under the name that ends with the content's hash; under another name it is the user's."""
    options = {"NUM_SHOTS": 2, "SEED": 3}
    root = pacs_tree(tmp_path)
    file = PACS(config(root, ["photo"], ["sketch"], **options)).selection_file
    whole = file.read_text()
    key = json.loads(whole)["train"][0][0]
    other = next(path.name for path in sorted((root / "pacs/images" / key).parent.iterdir()) if path.name not in whole)
    file.write_text(whole.replace(Path(key).name, other))
    with pytest.raises(ValueError, match="is not the one that this program wrote under this name"):
        PACS(config(root, ["photo"], ["sketch"], SELECTION=str(file), **options))
    mine = Path(shutil.copy(file, tmp_path / "mine.json"))
    data = PACS(config(root, ["photo"], ["sketch"], SELECTION=str(mine), **options))
    assert any(path.endswith(other) for path in files(data.train_x))
    assert PACS(config(root, ["photo"], ["sketch"], **options)).selection_file == file and file.read_text() == whole


@pytest.mark.parametrize(
    ("change", "shots", "error", "message"),
    [
        (None, -1, ValueError, r"a few-shot selection, but DATASET.NUM_SHOTS is -1: give the number of its shots"),
        (None, 3, ValueError, r"holds 2 shots of EuroSAT, but 3 shots of EuroSAT are asked for"),
        ({"dataset": "Food101"}, 2, ValueError, r"holds 2 shots of Food101, but 2 shots of EuroSAT"),
        ({"train": [["Forest/none.jpg", 1]]}, 2, ValueError, r"1 of 1 train images .* first: Forest/none.jpg"),
        ({"val": 3}, 2, ValueError, r"is no selection as this program writes them"),
        ("gone", 2, FileNotFoundError, r"DATASET.SELECTION: there is no file"),
    ],
)
def test_selections_that_do_not_fit(change, shots, error, message, tmp_path, coop_tree, config):
    coop_tree(tmp_path, "eurosat")
    path = kept = EuroSAT(config(tmp_path, [], [], NUM_SHOTS=2)).selection_file
    if change == "gone":
        path.unlink()
    elif change:
        path = path.with_name("mine.json")
        path.write_text(json.dumps({**json.loads(kept.read_text()), **change}))
    with pytest.raises(error, match=message):
        EuroSAT(config(tmp_path, [], [], NUM_SHOTS=shots, SELECTION=str(path)))


def test_no_place_to_keep_it(tmp_path, coop_tree, config, monkeypatch, caplog):
    coop_tree(tmp_path, "eurosat")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "file"))
    with caplog.at_level("INFO"):
        data = EuroSAT(config(tmp_path, [], [], NUM_SHOTS=2))
    assert len(data.train_x) == 20 and data.selection_file is None
    assert "the selection is not stored" in caplog.text
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    assert EuroSAT(config(tmp_path, [], [], NUM_SHOTS=2)).selection_file is None
