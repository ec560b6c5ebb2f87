"""Bad inputs on the real command line: each ends with exit code 2 and its own sentence, without a traceback.

Covered: names of trainers, data sets, domains, backbones, weights, precisions, templates, transforms, optimisers,
schedules; keys, values of a wrong type or range; flags; paths that are missing, of another kind or not writable; files
that are of another kind, damaged or hostile; runs that are not there; arguments of every command.
"""

# ruff: noqa: E501 - a row of the tables is a line

import re

import pytest
import torch

NAMED = [
    # of `train`: name, method, words (with places in braces), expected sentence
    ("trainer", "CoOpp", "", r"there is no trainer 'CoOpp'\. Did you mean 'CoOp'\? Known: .*ZeroshotCLIP"),
    ("data set", "CoOp", "DATASET.NAME Icon", r"there is no data set 'Icon'\. Did you mean 'Icons'\?"),
    ("target domain", "CoOp", "--target-domains sketchy", r"sketchy.*sketch"),
    ("source domain", "CoOp", "--source-domains Phot", r"Phot.*photo"),
    ("no backbone", "CoOp", "MODEL.BACKBONE.NAME ''", r"^error: no backbone is named: set MODEL\.BACKBONE\.NAME, or name a config"),
    ("backbone", "CoOp", "MODEL.BACKBONE.NAME ViT-B/17", r"unknown backbone 'ViT-B/17'\. Did you mean .*ViT-B/16"),
    ("tag", "CoOp", "MODEL.BACKBONE.NAME ViT-B-16:laionx", r"open_clip has no weights 'laionx' for ViT-B-16"),
    ("no tag", "CoOp", "MODEL.BACKBONE.NAME ViT-B-16", r"does not say which weights to take; choose ViT-B-16:"),
    ("backbone's folder", "CoOp", "MODEL.BACKBONE.NAME local-dir:{tmp}/none", r"there is no folder .*/none"),
    ("folder of no backbone", "CoOp", "MODEL.BACKBONE.NAME local-dir:{tmp}", r"has no open_clip_config\.json"),
    ("repository", "CoOp", "MODEL.BACKBONE.NAME hf-hub:name", r"a repository is written hf-hub:ORGANISATION/NAME"),
    ("weights", "CoOp", "MODEL.BACKBONE.WEIGHTS {tmp}/none.pt", r"no weights at .*none\.pt; the folder holds"),
    ("folder as weights", "CoOp", "MODEL.BACKBONE.WEIGHTS {tmp}", r"WEIGHTS must be a file, .* is a folder"),
    ("text as weights", "CoOp", "MODEL.BACKBONE.WEIGHTS {tmp}/text", r"neither safetensors nor a file saved by torch"),
    ("web page as weights", "CoOp", "MODEL.BACKBONE.WEIGHTS {tmp}/page", r"is a web page, not weights"),
    ("pointer as weights", "CoOp", "MODEL.BACKBONE.WEIGHTS {tmp}/pointer", r"is a git-lfs pointer.*git lfs pull"),
    ("torn weights", "CoOp", "MODEL.BACKBONE.WEIGHTS {tmp}/torn", r"cannot be read|neither safetensors nor"),
    ("other weights", "CoOp", "MODEL.BACKBONE.WEIGHTS {tmp}/other", r"does not fit local-dir:.*missing entries"),
    ("empty weights", "CoOp", "MODEL.BACKBONE.WEIGHTS {tmp}/empty", r"\(0 bytes\) is neither safetensors nor"),
    ("precision", "CoOp", "TRAINER.COOP.PREC fp8", r"PREC.*fp8"),
    ("half precision", "CoOp", "TRAINER.COOP.PREC fp16", r"PREC is 'fp16'; expected one of 'fp32' .*'tf32' .*'amp'"),
    ("shots", "CoOp", "DATASET.NUM_SHOTS many", r"DATASET\.NUM_SHOTS takes a whole number .*'many'"),
    ("seed flag", "CoOp", "--seed one", r"argument --seed: 'one' should be one whole number"),
    ("seed key", "CoOp", "SEED 1.5", r"SEED takes a whole number .*1\.5"),
    ("8.1 huge seed", "CoOp", "--seed 4294967296", r"SEED is 4294967296: it should be 4294967295 or less"),
    ("8.1 seed beyond 64 bits", "CoOp", "--seed 99999999999999999999", r"argument --seed: 99999999999999999999 is not a number of 64 bits"),
    ("8.1 split's huge seed", "CoOp", "DATASET.SPLIT_SEED 4294967296", r"SPLIT_SEED is 4294967296: it should be 4294967295 or less"),
    ("8.1 shots beyond 64 bits", "CoOp", "DATASET.NUM_SHOTS 99999999999999999999", r"NUM_SHOTS is 99999999999999999999: the number is too large"),
    ("8.1 endless rate", "CoOp", "OPTIM.LR 1e999", r"OPTIM\.LR is inf: a finite number is expected"),
    ("8.1 endless pull", "LinearProbe", "TRAINER.LINEARPROBE.PULL (1e999,)", r"PULL is \[inf\]: a finite number is expected"),
    ("8.1 root of no text", "CoOp", "--root {tmp}/{latin}", r"DATASET\.ROOT is .*: this is no text in UTF-8; rename the file or folder"),
    ("8.1 output of no text", "CoOp", "--output-dir {tmp}/{latin}", r"OUTPUT_DIR is .*: this is no text in UTF-8"),
    ("8.1 device as output", "CoOp", "--output-dir /dev/null/run", r"the folder /dev/null/run cannot be made \(Not a directory\)"),
    ("seed of nothing", "CoOp", "SEED None", r"SEED takes a whole number .*None"),
    ("key", "CoOp", "OPTIM.LRR 1", r"there is no config key 'OPTIM\.LRR'\. Did you mean"),
    ("key's group", "CoOp", "TRAINER.COP.N_CTX 4", r"there is no config key 'TRAINER\.COP\.N_CTX'\. .*'TRAINER\.COOP\.N_CTX'"),
    ("group as key", "CoOp", "OPTIM.STAGED_LR.X 1", r"there is no config key 'OPTIM\.STAGED_LR\.X'"),
    ("key without value", "CoOp", "OPTIM.LR", r"the key OPTIM\.LR has no value"),
    ("flag", "CoOp", "--traner X", r"unrecognized arguments: --traner.*Did you mean '--trainer'"),
    ("flag without value", "CoOp", "--root", r"argument --root/--data: expected one argument"),
    ("number", "CoOp", "OPTIM.LR fast", r"OPTIM\.LR takes a number .*'fast'"),
    ("truth", "CoOp", "USE_CUDA maybe", r"USE_CUDA takes True or False"),
    ("config file", "CoOp", "--config-file {tmp}/none.yaml", r"there is no config file .*none\.yaml\. .* holds: .*Did you mean 'nine\.yaml'"),
    ("python config", "CoOp", "--config-file {tmp}/config.py", r"a config file is yaml text; python files"),
    ("torn config", "CoOp", "--config-file {tmp}/torn.yaml", r"torn\.yaml is not a yaml file"),
    ("list as config", "CoOp", "--config-file {tmp}/list.yaml", r"should hold KEY: VALUE lines, but holds a list"),
    ("python tag", "CoOp", "--config-file {tmp}/tag.yaml", r"could not determine a constructor for the tag .*python/object"),
    ("alias bomb", "CoOp", "--config-file {tmp}/bomb.yaml", r"its aliases stand for more than 100,000 values"),
    ("config of itself", "CoOp", "--config-file {tmp}/itself.yaml", r"nested more than 40 levels deep, or holds itself"),
    ("config folder", "CoOp", "--config-file {tmp}", r"{tmp} is a folder, not a file; give the path of a yaml file"),
    ("root", "CoOp", "--root {tmp}/none", r"DATASET\.ROOT .*none is not a folder; the part of it that exists"),
    ("file as root", "CoOp", "--root {tmp}/text", r"DATASET\.ROOT .*text is (not a folder|a file)"),
    ("empty root", "CoOp", "--root {tmp}/hollow", r"hollow"),
    ("file as output", "CoOp", "--output-dir {tmp}/text", r"--output-dir: the folder {tmp}/text cannot be made \(File exists\)"),
    ("output below a file", "CoOp", "--output-dir {tmp}/text/run", r"the folder {tmp}/text/run cannot be made \(Not a directory\)"),
    ("read-only output", "CoOp", "--output-dir /proc/run", r"the folder /proc/run cannot be made \("),
    ("long output", "CoOp", "--output-dir {tmp}/{long}", r"cannot be made \(File name too long\)"),
    ("resume", "CoOp", "--resume {tmp}/none", r"--resume: there is no folder {tmp}/none"),
    ("model folder", "CoOp", "--eval-only --model-dir {tmp}/none", r"--model-dir: there is no folder .*/none"),
    ("empty model folder", "CoOp", "--eval-only --model-dir {tmp}/hollow", r"holds no checkpoint \(model\.pth\.tar-EPOCH"),
    ("epoch", "CoOp", "--eval-only --model-dir {trained} --load-epoch 99", r"no checkpoint at .*model\.pth\.tar-99; beside it: .*model\.pth\.tar-1"),
    ("import of a file", "CoOp", "--import {tmp}/none.py", r"--import: there is no file .*none\.py"),
    ("import of a module", "CoOp", "--import no_such_module", r"--import: there is no module 'no_such_module'"),
    ("optimiser", "CoOp", "OPTIM.NAME adamm", r"optim must be one of .*'adam', .*but got adamm"),
    ("schedule", "CoOp", "OPTIM.LR_SCHEDULER cosin", r"cosin.*cosine"),
    ("no epochs", "CoOp", "OPTIM.MAX_EPOCH 0", r"OPTIM\.MAX_EPOCH is 0"),
    ("rate below 0", "CoOp", "OPTIM.LR -1.0", r"OPTIM\.LR is -1\.0: it should be 0\.0 or more"),
    ("batch of nothing", "CoOp", "DATALOADER.TRAIN_X.BATCH_SIZE 0", r"BATCH_SIZE is 0: it should be 1 or more"),
    ("test batch of nothing", "CoOp", "DATALOADER.TEST.BATCH_SIZE 0", r"BATCH_SIZE is 0: it should be 1 or more"),
    ("workers below 0", "CoOp", "DATALOADER.NUM_WORKERS -1", r"NUM_WORKERS is -1: it should be 0 or more"),
    ("sampler", "CoOp", "DATALOADER.TRAIN_X.SAMPLER Sequental", r"(?i)Sequental"),
    ("transform", "CoOp", "--transforms random_flop", r"random_flop.*random_flip"),
    ("templates", "ZeroshotCLIP", "TRAINER.ZEROSHOTCLIP.TEMPLATES singel", r"unknown templates 'singel'\. Did you mean 'single'"),
    ("template's braces", "ZeroshotCLIP", "TRAINER.ZEROSHOTCLIP.TEMPLATES {b}{b}", r"template"),
    ("template's field", "ZeroshotCLIP", "TRAINER.ZEROSHOTCLIP.TEMPLATES {c}", r"template"),
    ("class subset", "CoOp", "DATASET.SUBSAMPLE_CLASSES bass", r"SUBSAMPLE_CLASSES.*bass"),
    ("protocol", "CoOp", "DATASET.PROTOCOL al-images", r"PROTOCOL.*al-images"),
    ("split", "CoOp", "TEST.SPLIT tset", r"TEST\.SPLIT.*tset"),
    ("selection rule", "CoOp", "TEST.FINAL_MODEL best", r"FINAL_MODEL.*best"),
    ("bad-image rule", "CoOp", "DATALOADER.ON_BAD_IMAGE ignore", r"ON_BAD_IMAGE.*ignore"),
    ("context", "CoOp", "TRAINER.COOP.N_CTX 0", r"N_CTX.*0"),
    ("long context", "CoOp", "TRAINER.COOP.N_CTX 500", r"(?i)context|tokens"),
    ("class position", "CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION ende", r"CLASS_TOKEN_POSITION.*ende"),
    ("variant", "GOPro", "TRAINER.GOPRO.VARIANT papers", r"VARIANT.*papers"),
    ("shift", "GOPro", "TRAINER.GOPRO.SHIFT_SCALE auto", r"SHIFT_SCALE.*auto"),
    ("refined run", "InMaP", "TRAINER.INMAP.FROM {tmp}/none", r"FROM: there is no folder .*none"),
    ("hollow refined run", "InMaP", "TRAINER.INMAP.FROM {tmp}/hollow", r"FROM: no finished run in .*hollow"),
    ("temperature", "InMaP", "TRAINER.INMAP.TEXT_TEMPERATURE cold", r"TEXT_TEMPERATURE.*cold"),
    ("readings", "CLAP", "TRAINER.CLAP.EVALUATE ('form',)", r"EVALUATE.*form"),
    ("head's weight", "CLAP", "TRAINER.CLAP.ALPHA large", r"ALPHA.*large"),
    ("attack space", "CLAP", "TRAINER.CLAP.ATTACK_SPACE author", r"ATTACK_SPACE.*author"),
    ("learned weights", "CoOp", "MODEL.INIT_WEIGHTS {tmp}/none.pth", r"no checkpoint at .*none\.pth; beside it"),
    ("text as learned weights", "CoOp", "MODEL.INIT_WEIGHTS {tmp}/text", r"text is not a readable checkpoint"),
    ("other learned weights", "CoOp", "MODEL.INIT_WEIGHTS {tmp}/other", r"does not fit this trainer: missing ctx"),
    ("split file", "CoOp", "DATASET.NAME DescribableTextures DATASET.SOURCE_DOMAINS () DATASET.TARGET_DOMAINS () DATASET.SPLIT_FILE {tmp}/none.json", r"there is no file .*none\.json"),
    ("manifest", "CoOp", "DATASET.NAME Manifest DATASET.MANIFEST {tmp}/none.csv", r"Manifest: there is no file .*none\.csv"),
    ("manifest's columns", "CoOp", "DATASET.NAME Manifest DATASET.MANIFEST {tmp}/text", r"has no column path, class"),
    ("manifest's bytes", "CoOp", "DATASET.NAME Manifest DATASET.MANIFEST {tmp}/torn", r"is not a text in UTF-8|no column"),
    ("selection", "CoOp", "DATASET.SELECTION {tmp}/none.json", r"DATASET\.SELECTION: there is no file"),
]  # fmt: skip


OTHERS = [
    # of the other commands: name, words, expected sentence
    ("command", "tabel", r"there is no command 'tabel'\. Did you mean 'table'"),
    ("task's method", "task GOPrro icons 1", r"there is no method 'GOPrro'\. Did you mean 'GOPro'"),
    ("task's data set", "task GOPro icon 1", r"there is no data set 'icon'\. Did you mean 'icons'"),
    ("task's seed", "task GOPro icons one", r"'one' should be a whole number"),
    ("8.1 task's huge seed", "task ZeroshotCLIP icons 4294967296", r"SEED is 4294967296: it should be 4294967295 or less"),
    ("8.1 task's output", "task ZeroshotCLIP icons 1 --targets line --out /proc/x", r"--out: the folder /proc/x cannot be made"),
    ("8.1 sweep's output", "sweep icons --rows ZeroshotCLIP --out /dev/null", r"nothing was started: --out /dev/null: /dev/null is a file; name another folder"),
    ("8.1 page's place", "report {trained} --no-plots --out /proc/x.html", r"error: /proc/x\.html: "),
    ("8.1 figure's place", "plot curves {trained} --out /proc/x", r"error: /proc/x\.png: "),
    ("8.1 figure's seed", "plot tsne {trained} --seed -1", r"--seed -1: a whole number from 0 to 4294967295 is needed"),
    ("8.1 shots of one number", "plot shots {trained}", r"no method was measured with two or more numbers of shots"),
    ("8.1 answers beyond 64 bits", "predict {picture} --names a,b --top 99999999999999999999", r"--top: 99999999999999999999 is not a number of 64 bits"),
    ("task's name", "task GOPro icons 1 --task lod", r"there is no task 'lod'\. Did you mean 'lodo'"),
    ("targets with a comma", "task CoOp icons 1 --targets line,flat", r"no domain 'line,flat'.* Separate several by spaces\."),
    ("task's target", "task GOPro icons 1 --targets lines", r"Icons has no domain 'lines'\. Did you mean 'line'"),
    ("task's config", "task GOPro:icon icons 1", r"there is no config of GOPro 'icon'\. Did you mean 'icons'"),
    ("task's key", "task GOPro icons 1 OPTIM.LRR 1", r"there is no config key 'OPTIM\.LRR'"),
    ("sweep", "sweep gopro-b2m", r"there is no sweep 'gopro-b2m'\. Did you mean 'gopro-b2n'"),
    ("sweep file", "sweep {tmp}/list.yaml", r"should be a mapping with a list `rows`"),
    ("sweep's key", "sweep {tmp}/sweep.yaml", r"unknown key 'label_'\. Did you mean 'label'"),
    ("table", "table {tmp}/none", r"there is no sweep|no folder"),
    ("table of nothing", "table {tmp}/hollow", r"hollow"),
    ("report", "report {tmp}/none", r"no folder|there is no"),
    ("plot", "plot curve {trained}", r"invalid choice: 'curve'"),
    ("export", "export {tmp}/none --out {tmp}/a.safetensors", r"there is no folder"),
    ("export's ending", "export {trained} --out {tmp}/a.pt", r"its name ends in \.safetensors"),
    ("unpacking", "export {tmp}/text.safetensors --unpack {tmp}/unpacked", r"is not a whole safetensors file"),
    ("interpreting", "interpret {tmp}/none", r"there is no folder"),
    ("words", "interpret {trained} --top 0", r"--top 0: at least 1 is needed"),
    ("cache", "cache rm", r"HASH|--all"),
    ("verified data set", "data verify Icon --root {tmp}", r"Icon.*Did you mean|did you mean"),
    ("pictures", "predict {tmp}/none --names a,b", r"there is no file or folder"),
    ("no pictures", "predict {tmp}/hollow --names a,b", r"there are no images in"),
    ("names", "predict {picture} --names cat", r"at least two classes are needed"),
    ("names twice", "predict {picture} --names cat,cat", r"--names has 'cat' 2 times"),
    ("prediction's run", "predict {picture} --run {tmp}/none", r"there is no folder"),
    ("hollow run", "predict {picture} --run {tmp}/hollow", r"no finished run in"),
    ("prediction's file", "predict {picture} --names a,b --out {tmp}/a.txt", r"the ending says the format"),
    ("folder of the predictions", "predict {picture} --names a,b --out {tmp}/text/a.csv", r"--out: the folder {tmp}/text cannot be made \(File exists\)"),
    ("folder of an export", "export {tmp}/hollow --out {tmp}/text/a.safetensors", r"--out: the folder {tmp}/text cannot be made"),
    ("answers", "predict {picture} --names a,b --top 0", r"--top 0: at least 1"),
    ("text as picture", "predict {tmp}/text --names a,b --backbone IconsCLIP", r"none of the 1 files can be read as an image"),
    ("export as run", "predict {picture} --run {tmp}/text.safetensors", r"is not a whole safetensors file"),
    ("prediction's backbone", "predict {picture} --names a,b --backbone ViT-B/17", r"unknown backbone 'ViT-B/17'"),
    ("prediction's template", "predict {picture} --names a,b --backbone IconsCLIP --templates {b}{b}", r"template"),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory, trained, domain_tree):
    """What stands for the names in braces."""
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "hollow").mkdir()
    (tmp / "text").write_text("some text\n")
    (tmp / "empty").write_bytes(b"")
    (tmp / "page").write_text("<!DOCTYPE html><html>no such file</html>")
    (tmp / "pointer").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    torch.save({"state_dict": {"a": torch.ones(3)}}, tmp / "other")
    (tmp / "torn").write_bytes((tmp / "other").read_bytes()[:300])
    (tmp / "text.safetensors").write_text("some text\n")
    (tmp / "config.py").write_text("raise SystemExit('ran')\n")
    (tmp / "nine.yaml").write_text("SEED: 1\n")
    (tmp / "torn.yaml").write_text("OPTIM: [1\n")
    (tmp / "list.yaml").write_text("- SEED\n- 1\n")
    (tmp / "tag.yaml").write_text(f"SEED: !!python/object/apply:os.system ['touch {tmp}/canary']\n")
    letters = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(9)]
    (tmp / "bomb.yaml").write_text("\n".join(letters))
    (tmp / "itself.yaml").write_text("OPTIM: &a {LR: *a}\n")
    (tmp / "sweep.yaml").write_text("datasets: [icons]\nrows: [{method: CoOp, label_: x}]\n")
    picture = next(domain_tree.rglob("*.png"))
    return {
        "tmp": tmp,
        "long": "n" * 300,
        "latin": "caf\udce9",
        "trained": trained,
        "picture": picture,
        "b": "{}",
        "c": "a_{0.__class__}",
    }


def check(answer, expected, places):
    code, out, err = answer
    told = " ".join(err.split())
    assert code == 2, f"exit code {code}\n{out[-1500:]}\n{err[-3000:]}"
    assert "Traceback" not in err + out, err
    assert re.search(expected.replace("{tmp}", re.escape(str(places["tmp"]))), told), told
    assert not (places["tmp"] / "canary").exists()


@pytest.mark.parametrize(("method", "given", "expected"), [row[1:] for row in NAMED], ids=[row[0] for row in NAMED])
def test_a_run_that_cannot_be(method, given, expected, places, words, call, tmp_path):
    more = [word.format(**places) for word in given.split()]
    check(call(*words(method, tmp_path / "run", *more)), expected, places)


@pytest.mark.parametrize(("given", "expected"), [row[1:] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_a_command_that_cannot_be(given, expected, places, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(call(*(word.format(**places) for word in given.split())), expected, places)


def test_there_are_enough():
    assert len({row[0] for row in NAMED}) + len({row[0] for row in OTHERS}) >= 100
