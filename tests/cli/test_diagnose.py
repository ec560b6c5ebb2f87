"""`dassl-clip diagnose`: what it tells of the shipped model, of random weights, and of misuse.

Covers: little to repair on the shipped model, no claim on random features, what stands on the screen, plain errors.
"""

import pytest

from dassl_clip.cli import diagnose


def diagnosed(helper, folder, *words):
    """What the command prints."""
    child = helper.start(["diagnose", "icons", "--out", folder, *words], folder)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, out + err
    return out


def test_shipped_model_has_little_to_repair(helper, tmp_path):
    printed = diagnosed(helper, tmp_path)
    assert printed.rstrip().endswith("little to repair")
    assert (
        "read on training and validation images of each domain, which fewshot does not test, but lodo does" in printed
        and "IconsCLIP" in printed
    )
    assert "style words in class names: little to repair" in printed and "CLAP, StyleProjection" in printed


def test_nothing_is_claimed_of_random_features(helper, tmp_path, tiny_clip):
    printed = diagnosed(helper, tmp_path, "--backbone", f"local-dir:{tiny_clip}")
    assert printed.rstrip().endswith("nothing can be said: zero-shot accuracy is not clearly above chance")
    assert "to repair" not in printed


@pytest.mark.parametrize(
    "words, message",
    [
        (["iconz"], "Did you mean 'icons'?"),
        (["dtd"], "styles compares the styles of domains, but DescribableTextures has no domains"),
        (["icons", "--own-styles", "no.json"], "--own-styles: there is no file no.json"),
        (["icons", "--styles", *"abca"], "--styles takes another word for each domain; got a, b, c, a"),
        (["icons", "--styles", "pen"], "one word for each of the domains emoji, flat, line, solid; got pen"),
    ],
)
def test_misuse_is_one_line(words, message, tmp_path, capsys):
    assert diagnose.main([*words, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
