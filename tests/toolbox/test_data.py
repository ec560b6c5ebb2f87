"""Datum and its pickles, DatasetBase and its draws, the wrapper's items, collation, loaders and the data manager."""

import copy
import pickle
import random
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.utils import set_random_seed


@pytest.fixture
def image(image_root: Path) -> str:
    return str(image_root / "ink" / "cat" / "0.png")


def make_items(image: str, labels: list[int], domains: list[int] | None = None) -> list[Datum]:
    return [Datum(image, label, domain, f"name{label}") for label, domain in zip(labels, domains or [0] * len(labels))]


class TestDatum:
    def test_reads_but_does_not_write(self, image):
        item = Datum(image, 3, 1, "cat")
        assert (item.impath, item.label, item.domain, item.classname) == (image, 3, 1, "cat")
        assert vars(item) == {"_impath": image, "_label": 3, "_domain": 1, "_classname": "cat"}
        with pytest.raises(AttributeError):
            item.label = 4

    @pytest.mark.parametrize("impath", [3, None, Path("x.png")])
    def test_refuses_what_is_no_string(self, impath):
        with pytest.raises(AssertionError, match="str"):
            Datum(impath)

    def test_refuses_a_missing_file_with_its_path(self):
        with pytest.warns(UserWarning, match=r"nowhere/a\.png"), pytest.raises(AssertionError, match=r"nowhere/a\.png"):
            Datum("nowhere/a.png")

    def test_switch_skips_the_look_at_the_disk(self, monkeypatch):
        monkeypatch.setenv("DASSL_SKIP_FILE_CHECK", "1")
        assert Datum("nowhere/a.png").impath == "nowhere/a.png"
        monkeypatch.setenv("DASSL_SKIP_FILE_CHECK", "0")
        with pytest.warns(UserWarning), pytest.raises(AssertionError):
            Datum("nowhere/a.png")

    def test_reads_a_cache_written_elsewhere(self):
        cache = (
            b"(lp0\nccopy_reg\n_reconstructor\np1\n(cdassl.data.datasets.base_dataset\nDatum\np2\nc__builtin__\nobject\np3\n"
            b"Ntp4\nRp5\n(dp6\nV_impath\np7\nV/elsewhere/1.jpg\np8\nsV_label\np9\nI7\nsV_domain\np10\nI0\n"
            b"sV_classname\np11\nVtench\np12\nsba."
        )
        (item,) = pickle.loads(cache)
        assert (item.impath, item.label, item.domain, item.classname) == ("/elsewhere/1.jpg", 7, 0, "tench")

    def test_pickle_names_the_published_class(self, image):
        data = pickle.dumps(Datum(image), protocol=0)
        assert b"dassl.data.datasets.base_dataset" in data and b"Datum" in data


class TestDatasetBase:
    def test_lists_and_names(self, image):
        train = make_items(image, [2, 0, 1, 0])
        dataset = DatasetBase(train_x=train, test=train[:1])
        assert dataset.train_x is train and dataset.train_u is None and dataset.val is None
        assert dataset.num_classes == 3
        assert dataset.lab2cname == {0: "name0", 1: "name1", 2: "name2"}
        assert dataset.classnames == ["name0", "name1", "name2"]
        assert DatasetBase.get_num_classes(train[:1]) == 3
        assert DatasetBase.get_lab2cname(train[1:]) == ({0: "name0", 1: "name1"}, ["name0", "name1"])

    def test_helpers_work_before_the_constructor(self, image):
        dataset = DatasetBase.__new__(DatasetBase)
        items = make_items(image, [1, 0, 1], [2, 0, 2])
        assert list(dataset.split_dataset_by_label(items)) == [1, 0]
        assert list(dataset.split_dataset_by_domain(items)) == [2, 0]
        assert len(dataset.generate_fewshot_dataset(items, num_shots=1)) == 2

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_draw_is_that_of_the_global_generator_in_order_of_appearance(self, image, seed, capsys):
        items = make_items(image, [2, 0, 0, 2, 1, 0, 2, 2, 1, 0, 0, 2])
        random.seed(seed)
        expected = []
        for label in (2, 0, 1):
            group = [item for item in items if item.label == label]
            expected += random.sample(group, 3) if len(group) >= 3 else group
        random.seed(seed)
        drawn = DatasetBase(train_x=items).generate_fewshot_dataset(items, num_shots=3)
        assert [id(item) for item in drawn] == [id(item) for item in expected]
        assert capsys.readouterr().out == "Creating a 3-shot dataset\n"

    def test_draw_with_repetition_fills_up(self, image):
        items = make_items(image, [0, 0, 0, 1])
        random.seed(5)
        expected = [*random.sample(items[:3], 3), *random.choices(items[3:], k=3)]
        random.seed(5)
        drawn = DatasetBase(train_x=items).generate_fewshot_dataset(items, num_shots=3, repeat=True)
        assert [id(item) for item in drawn] == [id(item) for item in expected]

    def test_no_shots_give_the_input_itself(self, image):
        first, second = make_items(image, [0, 1]), make_items(image, [0])
        dataset = DatasetBase(train_x=first)
        assert dataset.generate_fewshot_dataset(first, num_shots=-1) is first
        assert dataset.generate_fewshot_dataset(first, second, num_shots=0) == (first, second)
        several = dataset.generate_fewshot_dataset(first, second, num_shots=1)
        assert isinstance(several, list) and [len(part) for part in several] == [2, 1]

    def test_domains_are_checked(self, image):
        dataset = DatasetBase(train_x=make_items(image, [0]))
        dataset.domains = ["art", "photo"]
        dataset.check_input_domains(["art"], ["photo"])
        with pytest.raises(AssertionError, match="target_domains"):
            dataset.check_input_domains(["art"], [])
        with pytest.raises(ValueError, match=r"art.*\[arts\]"):
            dataset.is_input_domain_valid(["arts"])

    def test_labels_without_images_are_said(self, image):
        train = make_items(image, [0, 2])
        with pytest.warns(UserWarning, match=r"no training image has label 1.*fewer than num_classes \(3\)"):
            dataset = DatasetBase(train_x=train)
        assert dataset.num_classes == 3 and dataset.classnames == ["name0", "name2"]
        with pytest.warns(UserWarning, match=r"test has label 3, 4, which train_x lacks"):
            DatasetBase(train_x=make_items(image, [0, 1]), test=make_items(image, [1, 4, 3]))

    def test_two_names_of_a_label_are_refused(self, image):
        with pytest.raises(ValueError, match=r'Label 1 has two class names, "dog" and "hound"'):
            DatasetBase(train_x=[Datum(image, 0, 0, "cat"), Datum(image, 1, 0, "dog"), Datum(image, 1, 1, "hound")])


class TestWrapper:
    def test_item_has_its_keys(self, make_cfg, image):
        cfg = make_cfg("DATALOADER.RETURN_IMG0", True)
        item = DatasetWrapper(cfg, make_items(image, [0, 2], [0, 1]), transform=lambda picture: picture.size)[1]
        assert set(item) == {"label", "domain", "impath", "index", "img", "img0"}
        assert (item["label"], item["domain"], item["impath"], item["index"]) == (2, 1, image, 1)
        assert item["img"] == (12, 12)

    def test_img0_is_the_resized_normalised_image(self, make_cfg, image):
        from torchvision.transforms import functional as TF

        cfg = make_cfg("DATALOADER.RETURN_IMG0", True, "INPUT.SIZE", (6, 9))
        item = DatasetWrapper(cfg, make_items(image, [0]))[0]
        plain = TF.to_tensor(TF.resize(Image.open(image).convert("RGB"), [6, 9]))
        assert torch.equal(item["img0"], TF.normalize(plain, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
        assert isinstance(item["img"], Image.Image) and item["img"].mode == "RGB"

    def test_several_transforms_and_views(self, make_cfg, image):
        cfg = make_cfg("DATALOADER.K_TRANSFORMS", 2)
        numbers = iter(range(100))
        transforms = [lambda _: next(numbers), lambda _: -1, lambda _: -2]
        item = DatasetWrapper(cfg, make_items(image, [0]), transform=transforms, is_train=True)[0]
        assert (item["img"], item["img2"], item["img3"]) == ([0, 1], [-1, -1], [-2, -2])
        item = DatasetWrapper(cfg, make_items(image, [0]), transform=transforms)[0]
        assert (item["img"], item["img2"], item["img3"]) == (2, -1, -2)

    def test_views_without_transform_are_refused(self, make_cfg, image):
        with pytest.raises(ValueError, match="transform is None"):
            DatasetWrapper(make_cfg("DATALOADER.K_TRANSFORMS", 2), make_items(image, [0]), is_train=True)

    def test_gray_images_become_rgb_and_broken_ones_name_their_path(self, make_cfg, tmp_path):
        Image.new("L", (4, 4)).save(tmp_path / "gray.png")
        (tmp_path / "broken.png").write_bytes(b"no image")
        items = [Datum(str(tmp_path / name)) for name in ("gray.png", "broken.png")]
        wrapper = DatasetWrapper(make_cfg(), items)
        assert wrapper[0]["img"].mode == "RGB"
        with pytest.raises(OSError, match=r"broken\.png"):
            wrapper[1]


class TestLoader:
    def test_is_a_torch_loader_with_plain_batches(self, make_cfg, image):
        loader = build_data_loader(
            make_cfg(), "RandomSampler", make_items(image, [0, 1, 2, 0, 1], [0, 1, 0, 1, 0]), batch_size=2,
            tfm=lambda picture: torch.zeros(3, 2, 2), is_train=False,
        )  # fmt: skip
        assert isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler)
        assert (loader.batch_size, loader.num_workers, loader.pin_memory, loader.drop_last) == (2, 0, False, False)
        batch = next(iter(loader))
        assert batch["img"].shape == (2, 3, 2, 2)
        assert batch["label"].dtype == batch["domain"].dtype == batch["index"].dtype == torch.int64
        assert batch["impath"] == [image, image]

    @pytest.mark.parametrize(("size", "train", "batches"), [(7, True, 1), (7, False, 2), (3, True, 1), (8, True, 2)])
    def test_partial_batches(self, make_cfg, image, size, train, batches):
        items = make_items(image, [0] * size)
        loader = build_data_loader(
            make_cfg(), data_source=items, batch_size=4, tfm=lambda picture: torch.zeros(1), is_train=train
        )
        assert len(loader) == len(list(loader)) == batches

    @pytest.mark.parametrize(
        ("size", "batch", "warns"), [(36, 20, True), (36, 32, False), (19, 10, True), (40, 20, False)]
    )
    def test_large_losses_are_said(self, make_cfg, image, size, batch, warns):
        items = make_items(image, [0] * size)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            build_data_loader(make_cfg(), "RandomSampler", items, batch_size=batch)
            build_data_loader(make_cfg(), "RandomSampler", items, batch_size=batch, is_train=False)
        messages = [str(entry.message) for entry in caught if "leaves out" in str(entry.message)]
        assert len(messages) == warns
        assert all(f"{size % batch} of {size} images" in message for message in messages)

    def test_empty_list_is_refused(self, make_cfg):
        with pytest.raises(AssertionError, match="empty"):
            build_data_loader(make_cfg(), data_source=[])

    def test_copies_and_reassigned_transforms(self, make_cfg, image):
        items = make_items(image, [0, 1, 2, 0])
        loader = build_data_loader(make_cfg(), "RandomSampler", items, batch_size=2, tfm=lambda picture: torch.zeros(1))
        twin = copy.deepcopy(loader)
        twin.dataset.transform = lambda picture: torch.ones(1)
        assert [batch["index"].tolist() for batch in twin] == [batch["index"].tolist() for batch in loader]
        assert all((batch["img"] == 1).all() for batch in twin)
        assert all((batch["img"] == 0).all() for batch in loader)

    def test_custom_wrapper_is_used(self, make_cfg, image):
        class Marked(DatasetWrapper):
            def __getitem__(self, idx):
                return {**super().__getitem__(idx), "mark": 5}

        loader = build_data_loader(
            make_cfg(), data_source=make_items(image, [0]), tfm=lambda _: torch.zeros(1), dataset_wrapper=Marked
        )
        assert next(iter(loader))["mark"].tolist() == [5]


class TestDataManager:
    def test_attributes_and_summary(self, make_cfg, capsys):
        cfg = make_cfg("DATASET.SOURCE_DOMAINS", ("ink", "oil"), "DATASET.TARGET_DOMAINS", ("oil",))
        manager = DataManager(cfg)
        assert manager.num_classes == 3 and manager.num_source_domains == 2
        assert manager.lab2cname == {0: "cat", 1: "dog", 2: "emu"}
        assert manager.train_loader_u is None
        assert isinstance(manager.test_loader.sampler, SequentialSampler)
        out = capsys.readouterr().out
        assert (
            out.index("Loading dataset") < out.index("Building transform_train") < out.index("Building transform_test")
        )
        rows = [
            line.split(maxsplit=1) for line in out.splitlines() if line.startswith(("Dataset", "Source", "Target", "#"))
        ]
        assert rows == [
            ["Dataset", "ToyImages"], ["Source", "['ink', 'oil']"], ["Target", "['oil']"], ["#", "classes  3"],
            ["#", "train_x  36"], ["#", "val      6"], ["#", "test     6"],
        ]  # fmt: skip

    def test_unlabelled_loader_and_missing_val(self, make_cfg):
        manager = DataManager(make_cfg("DATASET.NAME", "ToyUnlabelled"))
        assert manager.train_loader_u.batch_size == 9
        settings = ("DATALOADER.TRAIN_U.SAME_AS_X", False, "DATALOADER.TRAIN_U.BATCH_SIZE", 4)
        manager = DataManager(make_cfg("DATASET.NAME", "ToyUnlabelled", *settings))
        assert (manager.train_loader_x.batch_size, manager.train_loader_u.batch_size) == (9, 4)
        assert DataManager(make_cfg("DATASET.NAME", "ToyWithoutVal")).val_loader is None

    def test_labelled_and_unlabelled_streams_differ(self, make_cfg):
        manager = DataManager(make_cfg("DATASET.NAME", "ToyUnlabelled"))
        orders = [
            torch.cat([batch["index"] for batch in loader]).tolist()
            for loader in (manager.train_loader_x, manager.train_loader_u)
        ]
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(36)) and orders[0] != orders[1]

    def test_custom_transforms(self, make_cfg, capsys):
        cfg = make_cfg("VERBOSE", False)
        manager = DataManager(cfg, custom_tfm_train=[lambda _: torch.zeros(1), lambda _: torch.ones(1)])
        batch = next(iter(manager.train_loader_x))
        assert (batch["img"].sum().item(), batch["img2"].sum().item()) == (0, 9)
        out = capsys.readouterr().out.splitlines()
        assert out[0] == "* Using custom transform for training"
        DataManager(cfg, custom_tfm_test=lambda _: torch.zeros(1))
        assert "* Using custom transform for testing" in capsys.readouterr().out


class TestSeeding:
    def epochs(self, cfg, draws: int = 0) -> list:
        set_random_seed(3)
        manager = DataManager(cfg)
        for _ in range(draws):
            torch.rand(7), random.random()
        return [torch.cat([batch["img"].flatten(1) for batch in manager.train_loader_x]) for _ in range(2)]

    def test_pictures_depend_on_the_seed_alone(self, make_cfg):
        names = ("random_resized_crop", "random_flip", "colorjitter", "randaugment", "cutout", "gaussian_noise")
        first = self.epochs(make_cfg("INPUT.TRANSFORMS", names))
        workers = self.epochs(make_cfg("INPUT.TRANSFORMS", names, "DATALOADER.NUM_WORKERS", 2))
        extra = self.epochs(make_cfg("INPUT.TRANSFORMS", names), draws=3)
        other = self.epochs(make_cfg("INPUT.TRANSFORMS", names, "SEED", 2))
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], other[0])
        for epoch in range(2):
            assert torch.equal(first[epoch], workers[epoch])
            assert torch.equal(first[epoch], extra[epoch])

    def test_global_generators_are_left_alone(self, make_cfg):
        cfg = make_cfg("DATASET.NUM_SHOTS", 2)
        dataset = build_dataset(cfg)
        drawn = random.random()
        set_random_seed(1)
        manager = DataManager(cfg)
        assert [item.impath for item in manager.dataset.train_x] == [item.impath for item in dataset.train_x]
        before = torch.get_rng_state()
        list(manager.train_loader_x)
        assert random.random() == drawn
        assert torch.equal(torch.get_rng_state(), before)

    def test_unseeded_loaders_follow_torch(self, make_cfg):
        cfg = make_cfg("SEED", -1, "INPUT.TRANSFORMS", ())
        orders = []
        for _ in range(2):
            manager = DataManager(cfg)
            torch.manual_seed(11)
            orders.append(torch.cat([batch["index"] for batch in manager.train_loader_x]).tolist())
        assert orders[0] == orders[1]
        assert type(manager.train_loader_x) is DataLoader


def test_collation_keeps_pictures_and_nests(make_cfg, image):
    loader = build_data_loader(make_cfg(), data_source=make_items(image, [0, 1]), batch_size=2)
    batch = next(iter(loader))
    assert [picture.size for picture in batch["img"]] == [(12, 12), (12, 12)]

    class Nested(DatasetWrapper):
        def __getitem__(self, idx):
            return {"views": [torch.zeros(2), torch.ones(2)], "facts": OrderedDict(n=idx)}

    loader = build_data_loader(make_cfg(), data_source=make_items(image, [0, 1]), batch_size=2, dataset_wrapper=Nested)
    batch = next(iter(loader))
    assert [view.shape for view in batch["views"]] == [(2, 2), (2, 2)]
    assert batch["facts"]["n"].tolist() == [0, 1]
