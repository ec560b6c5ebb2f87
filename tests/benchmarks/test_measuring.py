"""What the scripts share, the result files and the page.

Covers: repeats and budget of measurements, shares that are counted up, memory and arithmetic in a process of its own
through a real script, result files that keep what is there, the fit of a power law, rows on disk, generated pictures,
and that the page's tables are those of the result files.
"""

import argparse
import json
import sys
import time

import pytest
import torch


class Sleeper:
    """A work whose sides sleep."""

    title, target, extrapolated, alone = "sleep", None, "", False

    def __init__(self, part):
        self.part, self.runs = part, {"ours": 0, "plain": 0}

    def _side(self, side, seconds, times):
        def run():
            self.runs[side] += 1
            time.sleep(seconds)
            return {"result": torch.ones(1)}

        return [self.part(run, times)]

    def ours(self):
        return self._side("ours", 0.01, 1)

    def plain(self):
        return self._side("plain", 0.05, lambda: 10)

    def difference(self, ours, plain):
        return {name: float((ours[name] - plain[name]).abs()) for name in plain}

    def facts(self):
        return {}


def test_sides_are_run_until_repeats_or_budget_and_shares_are_counted_up(script):
    common = script("common")
    work = Sleeper(common.Part)
    entry = common.compare(work, argparse.Namespace(device="cpu", repeats=4, budget=0.12, profile=False))
    assert work.runs == {"ours": 5, "plain": 3}  # a warm-up each; a third run of the plain side would pass its budget
    assert [len(entry["seconds"][side]) for side in ("ours", "plain")] == [4, 2]
    assert 0.5 <= entry["seconds"]["plain"][0] < 2 and 0.01 <= entry["seconds"]["ours"][0] < 0.3
    low, high = entry["spread"]
    assert low <= entry["time_ratio"] <= high


def test_7_13_the_run_with_the_median_ratio_counts_and_the_range_is_told(script):
    """(row 7.13) Of several processes; one that was lucky is not the claim."""
    common = script("common")
    runs = [
        {"time_ratio": r, "spread": [r - 1, r + 1], "seconds": {"ours": [1.0], "plain": [r]}}
        for r in (34.0, 19.0, 22.0)
    ]
    found = common.median_run(runs)
    assert (found["time_ratio"], found["spread"], found["runs"]) == (22.0, [19.0, 34.0], [19.0, 22.0, 34.0])
    assert found["seconds"]["plain"] == [22.0]
    assert common.median_run(runs[:1]) == runs[0] and common.median_run(runs[:2])["time_ratio"] == 19.0
    assert script("text_tower").parse([]).runs == 3


def test_operations_are_those_of_the_matrix_products(script):
    linear = torch.nn.Linear(8, 16)
    x = torch.zeros(3, 8, requires_grad=True)
    common = script("common")
    assert common.operations(lambda: linear(x)) == 2 * 3 * 8 * 16
    assert common.operations(lambda: linear(x).sum().backward()) == 3 * 2 * 3 * 8 * 16
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()  # its fused form is not left out
    with torch.no_grad():
        rows = torch.zeros(1, 3, 8)
        assert common.operations(lambda: attention(rows, rows, rows)) >= 4 * 2 * 3 * 8 * 8
    assert torch.backends.mha.get_fastpath_enabled()


def test_differences_are_relative_and_shapes_have_to_fit(script):
    common = script("common")
    assert common.largest_difference(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 5.0])) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(3,\)"):
        common.largest_difference(torch.ones(2), torch.ones(3))


def test_a_script_from_its_command_line(script, small, tmp_path, monkeypatch, capsys):
    """Memory and arithmetic of each side, and the file that keeps them beside what was there."""
    words = [*small, "--only", "prompts", "--classes", "80", "--runs", "2", "--write", "--results", str(tmp_path)]
    module = script("text_tower")
    (tmp_path / "cpu-1-thread.json").write_text(json.dumps({"other": {"case": 1}}))
    monkeypatch.setattr(sys, "argv", [module.__file__, *words])  # the processes that it starts get these words too
    module.main()
    assert "prompts of 80 classes" in capsys.readouterr().out
    content = json.loads((tmp_path / "cpu-1-thread.json").read_text())
    assert content["other"] == {"case": 1}
    entry = content["text_tower"][f"prompts, {small[1]}"]
    assert entry["arithmetic_ratio"] > 3 and entry["memory_ratio"] > 2
    assert max(entry["difference"].values()) < 1e-4
    assert len(entry["runs"]) == 2 and entry["time_ratio"] == min(entry["runs"])
    assert entry["setting"]["classes"] == 80 and entry["machine"]["device"] == "CPU, 1 thread"


@pytest.mark.parametrize(
    "name",
    ["text_tower", "gopro_step", "gopro_eval", "clap_training", "inmap", "cache", "precision", "datapath", "scaling",
     "disk", "transduction", "mixtures", "page", "run_all"],
)  # fmt: skip
def test_every_script_explains_itself(script, name, capsys, monkeypatch):
    module = script(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "example: python benchmarks/" in shown


def test_unknown_cases_and_devices_are_refused(script, monkeypatch):
    common = script("common")
    options = common.make_parser("").parse_args(["--only", "nothing", "--threads", "1"])
    with pytest.raises(ValueError, match="there is no case nothing; there are 'one'"):
        common.run_cases(options, "section", {"one": None})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="finds no GPU here"):
        common.prepare(common.make_parser("").parse_args(["--device", "cuda"]))


def test_fit_finds_the_exponent_of_a_power_law(script):
    sizes = [10, 20, 40, 80]
    exponent, residual = script("scaling").fit(sizes, [3 * size**1.5 for size in sizes])
    assert exponent == pytest.approx(1.5) and residual == pytest.approx(1)
    _, residual = script("scaling").fit(sizes, [1.0, 2.0, 4.0, 16.0])
    assert residual > 1.1


def test_rows_on_disk_are_those_that_were_written(script, tmp_path):
    disk = script("disk")
    disk.rows_on_disk(tmp_path / "rows", 50, columns=8)
    rows = disk.RowsOnDisk(tmp_path / "rows", 8)
    whole = torch.from_file(str(tmp_path / "rows"), size=400, dtype=torch.float16).view(50, 8)
    assert rows.shape == whole.shape
    for part in (slice(None), slice(3, 17), slice(45, 70), slice(1, None, 7), slice(9, 9)):
        assert torch.equal(rows[part], whole[part])
    torch.testing.assert_close(whole.float().norm(dim=1), torch.ones(50), rtol=0, atol=2e-3)
    assert len(torch.unique(whole, dim=0)) == 50


def test_inmap_on_rows_on_disk(script, tmp_path):
    disk = script("disk")
    disk.rows_on_disk(tmp_path / "rows", 400, columns=16)
    found = disk.measure(tmp_path / "rows", 400, "cpu", columns=16)
    assert found["images"] == 400 and found["a pass of the solver, s"] > 0 and found["peak memory, MB"] > 0
    passes = disk.measure(tmp_path / "rows", 400, "cpu", columns=16, step=False)
    assert set(found) - set(passes) == {"the solver's checks, curvature and first step, s"}


def test_pictures_are_jpeg_files_of_their_classes(script, tmp_path):
    from PIL import Image

    inputs = script("inputs")
    listing = inputs.make_pictures(tmp_path / "p", ["a", "b c"], train_images=3, test_images=4)
    rows = [line.split(",") for line in listing.read_text().splitlines()[1:]]
    assert [row[1:] for row in rows[:3]] == [["a", "0", "train"], ["b c", "1", "train"], ["a", "0", "train"]]
    assert len(rows) == 7
    with Image.open(tmp_path / "p" / rows[0][0]) as image:
        assert image.format == "JPEG" and image.size == inputs.PICTURE
    assert len({(tmp_path / "p" / row[0]).read_bytes() for row in rows}) == 7


def test_class_lists(script):
    names = {file: script("inputs").class_names(file) for file in ("pacs", "office_home", "domainnet", "imagenet")}
    assert [len(own) for own in names.values()] == [7, 65, 345, 1000]
    assert all(len(set(own)) == len(own) and not any("_" in name for name in own) for own in names.values())


def test_the_page_has_the_tables_of_the_result_files(script):
    page = script("page")
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.with_tables(text) == text


def test_tables_of_all_sections(script, tmp_path):
    page = script("page")
    machine = {"device": "X", "processor": "P", "torch": "1", "open_clip": "2", "load": 0.5}
    claim = {
        "machine": machine, "title": "a step", "target": 3.0, "seconds": {"ours": [2.0, 2.2], "plain": [30.0]},
        "time_ratio": 14.3, "spread": [13.6, 15.0], "difference": {"loss": 2e-6, "gradient": 5e-6},
        "extrapolated": "a tenth was run", "memory_mb": {"ours": 10.0, "plain": 2000.0}, "memory_ratio": 200.0,
        "arithmetic_ratio": 16.0, "profile": [["aten::mm", 61.0]], "setting": {},
    }  # fmt: skip
    rates = {
        "machine": machine,
        "setting": {"architecture": "A"},
        "images per second": {"test, 0 workers": 50, "tower": 25},
    }
    sweep = {"machine": machine, "sizes": [1, 2], "seconds": [0.5, 1.0], "exponent": 1.0, "residual": 1.0}
    found = {"images": 3, "image distance": 2e-4, "text distance": 1e-5, "cosine": 1e-3}
    found |= {"changed predictions, %": 0.25, "accuracy, %": 74.5, "accuracy of fp32, %": 74.25}
    lower = {"machine": machine, "model": "M", "precisions": {"amp": found}}
    batches = claim | {"title": "a method", "facts": {"images": 630}}
    content = {"gopro_step": {"1000 classes": claim}, "datapath": {"A": rates}, "scaling": {"cost of x": sweep}}
    content |= {"precision": {"M": lower}, "transduction": {"a method": batches}}
    (tmp_path / "x.json").write_text(json.dumps(content))
    shown = page.tables(tmp_path)
    for text in ("2.1 s (2)", "30 s (1)", "14 x", "2,000", "5.0e-06", "a tenth was run", "`aten::mm` 61 %", "2 x",
                 "cost of x", "a billion images", "463 days", "200,000 steps of 2.1 s", "4.86 days",
                 "2.0e-04", "0.25 %", "74.50 %", "74.25 %", "| 300                 | 21      |"):  # fmt: skip
        assert text in shown, text
    assert page.short_table(tmp_path).splitlines()[2].split("|")[1:3] == [" a step".ljust(33), " 14 x *, memory 1/200 "]
    with pytest.raises(ValueError, match="no tables to renew"):
        page.with_tables("no marks", tmp_path)


def test_plan_of_all_scripts(script):
    run_all = script("run_all")
    for words in ([], ["--quick"], ["--device", "cuda"]):
        lines = run_all.plan(run_all.parse(words))
        assert {line[0] for line in lines} == {f"{name}.py" for name in run_all.page.CLAIMS + run_all.page.OTHERS}
        for name, *rest in lines:
            script(name.removesuffix(".py")).parse([*rest, *run_all.shared(run_all.parse(words))])
