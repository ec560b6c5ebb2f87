"""Utilities: files, names, seeds, the log, meters, the registry, layers and initialisation."""

import io
import json
import os
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dassl import utils
from dassl.utils import AverageMeter, Logger, MetricMeter, Registry, setup_logger


class TestTools:
    def test_json_round_trip_and_layout(self, tmp_path, monkeypatch):
        path = tmp_path / "a" / "b.json"
        utils.write_json({"x": [1, 2], "y": "z"}, str(path))
        assert path.read_text() == json.dumps({"x": [1, 2], "y": "z"}, indent=4, separators=(",", ": "))
        assert utils.read_json(str(path)) == {"x": [1, 2], "y": "z"}
        monkeypatch.chdir(tmp_path)
        utils.write_json([1], "bare.json")
        assert utils.read_json("bare.json") == [1]
        assert sorted(os.listdir(tmp_path)) == ["a", "bare.json"]

    def test_failed_json_leaves_the_old_file(self, tmp_path):
        path = str(tmp_path / "a.json")
        utils.write_json({"x": 1}, path)
        with pytest.raises(TypeError):
            utils.write_json({"x": object()}, path)
        assert utils.read_json(path) == {"x": 1} and os.listdir(tmp_path) == ["a.json"]

    def test_folders_and_listings(self, tmp_path):
        utils.mkdir_if_missing(str(tmp_path / "a" / "b"))
        utils.mkdir_if_missing(str(tmp_path / "a" / "b"))
        utils.mkdir_if_missing("")
        for name in ("z", ".hidden", "m", "b"):
            (tmp_path / "a" / "b" / name).touch()
        assert utils.listdir_nohidden(str(tmp_path / "a" / "b")) == ["b", "m", "z"]
        assert utils.listdir_nohidden(str(tmp_path / "a" / "b"), sort=True) == ["b", "m", "z"]

    def test_check_isfile_warns(self, tmp_path):
        (tmp_path / "x").touch()
        assert utils.check_isfile(str(tmp_path / "x"))
        with pytest.warns(UserWarning, match="absent"):
            assert not utils.check_isfile(str(tmp_path / "absent"))

    def test_seed_sets_every_generator(self):
        drawn = []
        for _ in range(2):
            utils.set_random_seed(4)
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
        assert drawn[0] == drawn[1]
        assert drawn[0][0] == random.Random(4).random()
        assert drawn[0][1] == np.random.RandomState(4).rand()

    def test_images_are_rgb(self, tmp_path):
        Image.new("RGBA", (2, 3), (9, 8, 7, 0)).save(tmp_path / "x.png")
        image = utils.read_image(str(tmp_path / "x.png"))
        assert image.mode == "RGB" and image.getpixel((0, 0)) == (9, 8, 7)
        with pytest.raises(FileNotFoundError, match="none"):
            utils.read_image(str(tmp_path / "none.png"))

    def test_similar_names(self):
        assert utils.get_most_similar_str_to_a_from_b("ToyImagse", ["PACS", "ToyImages"]) == "ToyImages"
        assert utils.get_most_similar_str_to_a_from_b("x", []) is None
        utils.check_availability("a", ["a", "b"])
        with pytest.raises(ValueError, match=r"\['aa', 'bb'\].*\[ab\]"):
            utils.check_availability("ab", ["aa", "bb"])

    def test_lists(self):
        items = [1]
        assert utils.tolist_if_not(items) is items
        assert utils.tolist_if_not("ab") == ["ab"] and utils.tolist_if_not((1, 2)) == [(1, 2)]

    def test_download_of_a_url(self, tmp_path, capsys):
        (tmp_path / "source").write_bytes(b"x" * 100000)
        utils.download_url((tmp_path / "source").as_uri(), str(tmp_path / "deep" / "copy"))
        assert (tmp_path / "deep" / "copy").read_bytes() == b"x" * 100000
        assert "destination" in capsys.readouterr().out


class TestLogger:
    def redirect(self, monkeypatch):
        self.stream = io.StringIO()
        monkeypatch.setattr(sys, "stdout", self.stream)

    def test_copies_each_line_at_once(self, tmp_path, monkeypatch):
        self.redirect(monkeypatch)
        setup_logger(str(tmp_path))
        print("first")
        assert (tmp_path / "log.txt").read_text() == "first\n"
        sys.stdout.close()
        sys.stdout.close()
        print("second")
        assert (tmp_path / "log.txt").read_text() == "first\n"
        assert self.stream.getvalue() == "first\nsecond\n" and not self.stream.closed

    def test_names_of_files(self, tmp_path, monkeypatch):
        self.redirect(monkeypatch)
        before = sys.stdout
        setup_logger(None)
        assert sys.stdout is before
        for _ in range(3):
            setup_logger(str(tmp_path / "run.log"))
            print("line")
        names = sorted(os.listdir(tmp_path))
        assert len(names) == 3 and names[0] == "run.log" and all(name.startswith("run.log-20") for name in names[1:])
        assert [(tmp_path / name).read_text() for name in names] == ["line\n"] * 3
        assert self.stream.getvalue() == "line\n" * 3

    def test_is_a_context_and_forwards_attributes(self, tmp_path, monkeypatch):
        self.redirect(monkeypatch)
        monkeypatch.chdir(tmp_path)
        with Logger("bare.txt") as log:
            log.write("x\n")
            log.flush()
            assert log.isatty() is False
            assert log.encoding == self.stream.encoding
        assert (tmp_path / "bare.txt").read_text() == "x\n"
        log.write("y\n")
        del log
        assert self.stream.getvalue() == "x\ny\n" and not self.stream.closed


class TestMeters:
    def test_average(self):
        meter = AverageMeter()
        meter.update(torch.tensor([2.0]))
        meter.update(5, n=3)
        assert (meter.val, meter.sum, meter.count, meter.avg) == (5, 17.0, 4, 4.25)
        meter.reset()
        assert (meter.val, meter.sum, meter.count, meter.avg) == (0, 0, 0, 0)

    def test_exponential_average(self):
        meter = AverageMeter(ema=True)
        meter.update(10.0)
        assert meter.avg == pytest.approx(1.0)
        meter.update(5.0)
        assert meter.avg == pytest.approx(1.4)

    def test_metrics_keep_their_order(self):
        meter = MetricMeter()
        meter.update({"loss": 1.0, "acc": torch.tensor(50.0)})
        meter.update({"acc": 100.0, "loss": 2.0})
        meter.update(None)
        assert str(meter) == "loss 2.0000 (1.5000) acc 100.0000 (75.0000)"
        assert list(meter.meters) == ["loss", "acc"]
        with pytest.raises(TypeError, match="list"):
            meter.update([1.0])
        joined = MetricMeter(delimiter=", ")
        joined.update({"a": 1, "b": 2})
        assert str(joined) == "a 1.0000 (1.0000), b 2.0000 (2.0000)"


class TestRegistry:
    def test_decorator_call_and_errors(self):
        registry = Registry("PART")

        @registry.register()
        class Wheel:
            pass

        def axle():
            pass

        registry.register(axle)
        assert registry.get("Wheel") is Wheel and registry.get("axle") is axle
        assert registry.registered_names() == ["Wheel", "axle"]
        with pytest.raises(KeyError, match="already registered"):
            registry.register(axle)
        with pytest.raises(KeyError, match="Wheel"):
            registry.get("Wheels")

        @registry.register(force=True)
        class Wheel:
            pass

        assert registry.get("Wheel") is Wheel


class TestLayers:
    def make(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))

    def test_counts(self):
        model = self.make()
        assert utils.count_num_param(model) == 16 + 8 + 8
        assert utils.count_num_param(params=model.parameters()) == 32
        assert utils.count_num_param(params=[{"params": model[0].parameters()}, {"params": [model[2].weight]}]) == 24
        with pytest.raises(ValueError, match="None"):
            utils.count_num_param()

    def test_opening_layers(self):
        model = self.make()
        utils.open_specified_layers(model, "1")
        assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, False]
        assert [layer.training for layer in model] == [False, True, False]
        utils.open_specified_layers(model, ["0", "2"])
        assert [layer.training for layer in model] == [True, False, True]
        with pytest.raises(AssertionError, match=r"\['0', '1', '2'\]"):
            utils.open_specified_layers(model, ["head"])
        utils.open_all_layers(model)
        assert all(p.requires_grad for p in model.parameters()) and all(layer.training for layer in model)

    @pytest.mark.parametrize(
        ("kind", "deviation"), [("normal", 0.02), ("xavier", 0.02 * (2 / 600) ** 0.5), ("kaiming", (2 / 300) ** 0.5)]
    )
    def test_initialisation(self, kind, deviation):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300))
        nn.init.constant_(model[1].weight, 5.0)
        utils.init_network_weights(model, init_type=kind)
        assert model[0].weight.std().item() == pytest.approx(deviation, rel=0.02)
        assert not model[0].bias.any() and not model[1].bias.any() and (model[1].weight == 1).all()

    def test_orthogonal_initialisation_and_errors(self):
        model = nn.Linear(5, 5)
        utils.init_network_weights(model, init_type="orthogonal", gain=1.0)
        torch.testing.assert_close(model.weight @ model.weight.t(), torch.eye(5))
        with pytest.raises(NotImplementedError, match="uniform"):
            utils.init_network_weights(model, init_type="uniform")
