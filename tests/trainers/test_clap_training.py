"""CLAP's batches, loss and stopping rule.

Covers: shuffled batches (each text once per pass, how many classes a batch has, what that does to the loss); batches in
turn against loops (class order, texts in turn, ragged classes); forms of the right text at the right rates;
batches as functions of seed and step; noise prompts against a plain full-length reading by the model's own transformer,
for all three places, on a causal and a plain tower, and how places and noise are drawn; views of images; the loss
against a float64 rewriting; the fit against a rewriting with Adam, its stopping rule and the weights that it keeps,
resuming from a saved state, and what it does to content and style; refusals.
"""

import io
import math

import open_clip
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.clip.text_tower import TextTower
from dassl_clip.trainers.clap.head import ContentHead
from dassl_clip.trainers.clap.texts import Augmentation, WordDropping, source_tables, template_tables
from dassl_clip.trainers.clap.training import (
    STEPS_AT_ONCE,
    FitReport,
    ImagePairs,
    PromptNoise,
    TextPairs,
    content_loss,
    fit_content_head,
    last_drop,
)

NAMES = ["dog", "fire_truck", "house"]
COLOURS = ["red", "blue", "green", "yellow", "purple", "orange", "black", "white", "brown", "multicolored"]
TOKENIZER = open_clip.SimpleTokenizer()


def places(tables, width=1):
    """Features that are the texts' own places, so that a batch can be read back."""
    return torch.arange(len(tables.texts), dtype=torch.float32)[:, None].expand(-1, width)


def texts_of(tables, part):
    return [tables.texts[int(k)] for k in part[:, 0]]


# --------------------------------------------------------------------------------------------------------- batches


def test_shuffled_batches_take_every_text_once_per_pass():
    """(row 7.5) All texts of all classes, in another order in each pass, whatever the sizes of the classes."""
    texts = [["a dog", "my dog runs"], ["the cat"], ["one cow", "two cow", "three cow", "four cow"]]
    for tables in (template_tables(NAMES), source_tables(["dog", "cat", "cow"], texts, WordDropping(forms=4))):
        pairs, total = TextPairs(tables, places(tables), batch_size=5, seed=1), len(tables.prompts)
        steps = -(-3 * total // 5)
        batches = [pairs.batch(step) for step in range(steps)]
        prompts, forms, names = (torch.cat([batch[part][:, 0] for batch in batches]).long() for part in range(3))
        orders = prompts[: 3 * total].view(3, total)
        for order in orders:
            assert sorted(order.tolist()) == sorted(tables.prompts.tolist())
        assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[1], orders[2])
        classes = tables.names.repeat_interleave(tables.counts).tolist()
        owner = {int(k): (classes[place], place) for place, k in enumerate(tables.prompts)}
        for prompt, form, name in zip(prompts.tolist(), forms.tolist(), names.tolist()):
            assert name == owner[prompt][0] and form in tables.augmented[owner[prompt][1]]
        other = TextPairs(tables, places(tables), batch_size=5, seed=2)
        assert any(not torch.equal(other.batch(step)[0], batches[step][0]) for step in range(5))


@pytest.mark.parametrize(("classes", "size"), [(5, 8), (7, 8), (65, 96)])
def test_shuffled_batches_have_as_many_classes_as_drawing_without_replacement(classes, size):
    """(row 7.5) VLCS: 4.16 distinct classes in a batch of 8 (of 5 classes); in turn it is always all 5."""
    tables = source_tables(
        [f"c{k}" for k in range(classes)], [[f"{n} c{k}" for n in range(480)] for k in range(classes)]
    )
    pairs = TextPairs(tables, places(tables), size, seed=1)
    steps = 480 * classes // size
    distinct = [len(set(pairs.batch(step)[2][:, 0].tolist())) for step in range(steps)]
    missing = math.comb(480 * (classes - 1), size) / math.comb(480 * classes, size)  # a batch without a given class
    expected = classes * (1 - missing)
    assert sum(distinct) / steps == pytest.approx(expected, rel=0.02)
    if classes == 5:
        assert expected == pytest.approx(4.16, abs=0.01)
    turn = TextPairs(tables, places(tables), size, seed=1, order="in-turn")
    assert {len(set(turn.batch(step)[2][:, 0].tolist())) for step in range(40)} == {min(classes, size)}


def test_shuffled_batches_end_at_a_higher_loss_than_classes_in_turn():
    """(row 7.5) Texts of the own class are negatives that a head cannot tell apart: they set the level of the loss.

    A head that is perfect (all texts of a class at one place, classes orthogonal) has a loss in closed form: over the
    sixteen rows of a batch, the log of the sum of exp(cos / tau) over all other rows, less 1 / tau.
    """
    names = [f"c{k}" for k in range(7)]
    tables = source_tables(names, [[f"{n} {name}" for n in range(480)] for name in names])
    owner = torch.tensor([int(text.split("c")[-1].split()[0]) for text in tables.texts])
    perfect = torch.eye(7, dtype=torch.float64)[owner]
    head, levels = a_head(7, 2), {}
    for order in ("shuffled", "in-turn"):
        pairs = TextPairs(tables, perfect, 8, seed=1, order=order)
        found, expected = [], []
        for step in range(420):
            batch = pairs.batch(step)
            found.append(content_loss(head, batch, 0.5, 1.0).item())
            rows = batch[2].argmax(1).repeat(2)
            alike = (rows[:, None] == rows).sum(1).double() - 1
            parts = [(alike * math.exp(1 / t) + (15 - alike)).log() - 1 / t for t in (0.5, 1.0)]
            expected.append(sum(parts).mean().item())
        assert found == pytest.approx(expected, rel=1e-9)
        levels[order] = sum(found) / len(found)
    assert levels["shuffled"] > levels["in-turn"] + 0.2


def test_batches_walk_the_classes_and_their_texts_in_turn():
    tables = template_tables(NAMES)
    pairs = TextPairs(tables, places(tables), batch_size=8, seed=1, order="in-turn")
    order = [[text.replace("dog", name.replace("_", " ")) for text in DOG_TEXTS] for name in NAMES]
    for step in (0, 1, STEPS_AT_ONCE - 1, STEPS_AT_ONCE, 179, 180, 2000):
        prompts, _, names = pairs.batch(step)
        positions = range(8 * step, 8 * step + 8)
        assert texts_of(tables, names) == [NAMES[p % 3].replace("_", " ") for p in positions]
        assert texts_of(tables, prompts) == [order[p % 3][p // 3 % 480] for p in positions]


DOG_TEXTS = [
    f"{style} {kind} of {size} {colour} dog"
    for kind in ("painting", "sketch", "cartoon", "clipart", "photograph", "infograph", "mosaic art", "sculpture")
    for size in ("a large", "a normal sized", "a small")
    for style in ("a realistic", "an impressionistic")
    for colour in COLOURS
]


def test_batches_of_classes_with_different_numbers_of_texts():
    texts = [["a dog", "my dog runs"], ["the cat"], ["one cow", "two cow", "three cow"]]
    tables = source_tables(["dog", "cat", "cow"], texts, WordDropping(forms=4))
    pairs = TextPairs(tables, places(tables), batch_size=5, seed=0, order="in-turn")
    for step in range(STEPS_AT_ONCE + 3):
        prompts, augmented, names = (texts_of(tables, part) for part in pairs.batch(step))
        for p, prompt, form, name in zip(range(5 * step, 5 * step + 5), prompts, augmented, names):
            own = texts[p % 3]
            assert name == ("dog", "cat", "cow")[p % 3] and prompt == own[p // 3 % len(own)]
            assert form in WordDropping(forms=4).augmented(prompt, name)


def test_forms_are_drawn_at_their_rates():
    tables = template_tables(NAMES, Augmentation(drop_size=0.8, drop_colour=0.5, drop_type_style=0.1, swap=0.3))
    pairs = TextPairs(tables, places(tables), batch_size=64, seed=3)
    total = sized = coloured = pictured = swapped = 0
    for step in range(150):
        prompts, augmented, _ = (texts_of(tables, part) for part in pairs.batch(step))
        for prompt, form in zip(prompts, augmented):
            picture, thing = prompt.split(" of ")
            size = thing.split()[1]
            assert set(form.split()) <= {*prompt.split(), "in", "style"}
            total, sized = total + 1, sized + (f" {size} " in form)
            coloured += any(f" {colour} " in form for colour in COLOURS if f" {colour} " in prompt)
            if picture in form:
                pictured, swapped = pictured + 1, swapped + form.endswith(" style")
    rates = [sized / total, coloured / total, pictured / total, swapped / pictured]
    assert rates == pytest.approx([0.2, 0.5, 0.9, 0.3], abs=0.025)


@pytest.mark.parametrize(("order", "steps"), [("shuffled", 600), ("in-turn", 40)])  # 600: more than two passes
def test_batches_are_functions_of_seed_and_step(order, steps):
    tables = template_tables(NAMES)
    features = torch.randn(len(tables.texts), 4)
    one, two, other = (TextPairs(tables, features, 6, seed=seed, order=order) for seed in (1, 1, 2))
    forwards = [one.batch(step) for step in range(steps)]
    for step in reversed(range(0, steps, 7)):
        assert all(map(torch.equal, forwards[step], two.batch(step)))
    assert not torch.equal(forwards[5][1], other.batch(5)[1])
    assert torch.equal(forwards[5][0], other.batch(5)[0]) == (order == "in-turn")
    if order == "in-turn":  # the same prompts (720 * 6 = 3 * 3 * 480) get other forms each time
        rounds = [one.batch(step) for step in (0, 720, 1440)]
        assert all(torch.equal(prompts, forwards[0][0]) for prompts, _, _ in rounds)
        assert len({tuple(forms[:, 0].tolist()) for _, forms, _ in rounds}) == 3


def test_switched_off_augmentation_gives_the_prompts_themselves():
    tables = template_tables(NAMES, Augmentation(0, 0, 0, 0))
    prompts, augmented, _ = TextPairs(tables, places(tables, 2), 7, seed=1).batch(3)
    assert torch.equal(prompts, augmented) and prompts.shape == (7, 2)


def test_pairs_refuse_what_does_not_fit():
    tables = template_tables(NAMES)
    for wrong in (places(tables)[:-1], places(tables)[:, 0]):
        with pytest.raises(ValueError, match=rf"need features \[{len(tables.texts)}, E\]"):
            TextPairs(tables, wrong, 8, 1)
    with pytest.raises(ValueError, match="at least 2 pairs, got 1"):
        TextPairs(tables, places(tables), 1, 1)
    broken = places(tables).clone()
    broken[7] = float("inf")
    with pytest.raises(ValueError, match="text features have entries that are not finite"):
        TextPairs(tables, broken, 8, 1)
    assert TextPairs(tables, places(tables).half(), 8, 1).batch(0)[0].dtype == torch.float32
    assert TextPairs(tables, places(tables).double(), 8, 1).batch(0)[0].dtype == torch.float64


# ----------------------------------------------------------------------------------------------------------- noise


@pytest.fixture(scope="module", params=["causal", "plain"])
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
        text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
        text["no_causal_mask"] = request.param == "plain"
        built = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
        built = built.double().eval().requires_grad_(False)
        for parameter in built.text.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return built


def plain_noise_feature(model, text, noise, position):
    """One text with noise rows, read at full length by the model's own transformer."""
    owner, words = model.text, TOKENIZER.encode(text)
    m = len(noise)
    ids = torch.zeros(1, owner.context_length, dtype=torch.long)
    ids[0, : len(words) + m + 2] = torch.tensor([49406, *([49405] * (len(words) + m)), 49407])
    x = owner.token_embedding(ids)
    own = owner.token_embedding(torch.tensor(words))
    first = {"before": m, "around": m // 2, "after": 0}[position]
    x[0, 1 : 1 + m + len(words)] = torch.cat([noise[:first], own, noise[first:]])
    mask = owner.attn_mask
    x = owner.ln_final(owner.transformer(x + owner.positional_embedding, attn_mask=mask))
    return x[0, ids[0].argmax()] @ owner.text_projection


@pytest.mark.parametrize("n_tokens", [4, 3])
def test_noise_prompts_equal_a_plain_reading_of_full_rows(model, n_tokens):
    tables = source_tables(["dog", "fire truck"], [["a red dog", "my dog"], ["the large blue fire truck"]])
    tower = TextTower(model, TOKENIZER)
    noise = PromptNoise(tower, tables, n_tokens=n_tokens, std=0.5)
    drawn, positions = torch.randn(6, n_tokens, 32).double(), torch.tensor([2, 0, 1, 1, 2, 0])
    index = tables.augmented[:, 0].repeat(6, 1)
    features = noise.encode(index, drawn, positions)
    assert features.shape == (6, 3, 16) and not features.requires_grad
    for step, place in enumerate(positions.tolist()):
        for row, k in enumerate(index[step].tolist()):
            expected = plain_noise_feature(model, tables.texts[k], drawn[step], ("before", "around", "after")[place])
            torch.testing.assert_close(features[step, row], expected, rtol=1e-8, atol=1e-10)


def test_noise_in_batches_is_shared_redrawn_and_repeatable(model):
    tables = template_tables(["dog", "cat"], Augmentation(0, 0, 0, 0))
    tower = TextTower(model, TOKENIZER)
    features = tower.encode(list(tables.texts))

    def pairs(std=0.02, seed=1):
        return TextPairs(tables, features, 4, seed, PromptNoise(tower, tables, std=std))

    one, again = pairs(), pairs()
    first = one.batch(2)
    assert all(map(torch.equal, first, one.batch(2))) and all(map(torch.equal, one.batch(20), again.batch(20)))
    assert all(map(torch.equal, first, again.batch(2)))
    assert torch.equal(first[0], TextPairs(tables, features, 4, 1).batch(2)[0])
    assert not torch.equal(first[1], first[0]) and not torch.equal(first[1], pairs(seed=2).batch(2)[1])


def test_a_batch_has_one_noise_and_one_place(model):
    tables = template_tables(["dog", "cat"], Augmentation(0, 0, 0, 0))
    tower = TextTower(model, TOKENIZER)
    noise = PromptNoise(tower, tables, std=0.5)
    drawn, encode = [], noise.encode
    noise.encode = lambda *arguments: drawn.append(arguments) or encode(*arguments)
    pairs = TextPairs(tables, tower.encode(list(tables.texts)), 4, 1, noise, order="in-turn")
    batches = [pairs.batch(step) for step in (2, 5, 11)]
    ((_, noises, positions),) = drawn
    assert len(noises) == len(positions) == STEPS_AT_ONCE and positions.unique().tolist() == [0, 1, 2]
    for step, (_, augmented, _) in zip((2, 5, 11), batches):
        place = ("before", "around", "after")[positions[step]]
        for row, feature in enumerate(augmented):
            class_number, text_number = (4 * step + row) % 2, (4 * step + row) // 2
            text = DOG_TEXTS[text_number].replace("dog", ("dog", "cat")[class_number])
            expected = plain_noise_feature(model, text, noises[step].double(), place)
            torch.testing.assert_close(feature, expected, rtol=1e-8, atol=1e-10)


def test_places_of_noise_are_drawn_with_equal_chance(model):
    tables = source_tables(["dog"], [["a dog"]])
    noise = PromptNoise(TextTower(model, TOKENIZER), tables)
    drawn, positions = noise.draw(3000, torch.Generator().manual_seed(0))
    assert drawn.shape == (3000, 4, 32) and drawn.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.bincount(positions).div(3000).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_text_without_room_for_noise_is_refused(model):
    tables = source_tables(["dog"], [["dog " * 72]], WordDropping(0, 0))
    with pytest.raises(ValueError, match="77 tokens"):
        PromptNoise(TextTower(model, TOKENIZER), tables)


# ---------------------------------------------------------------------------------------------------------- images


def test_image_pairs_are_the_plain_and_an_augmented_view_of_one_image():
    """(row 7.6) Im.Aug: no pair of two augmented views, no class name."""
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    image, view = torch.arange(6.0)[:, None].expand(6, 3), torch.arange(3.0).expand(6, 3)
    features = torch.stack([image, view], -1)
    counts = torch.bincount(labels)
    pairs, turn = (ImagePairs(features, counts, 6, seed=1, order=order) for order in ("shuffled", "in-turn"))
    views, orders = set(), set()
    for step in range(STEPS_AT_ONCE * 3):
        plain, augmented, again = pairs.batch(step)
        assert torch.equal(plain[:, 0], augmented[:, 0]) and torch.equal(plain, again)
        assert (plain[:, 1] == 0).all() and (augmented[:, 1] > 0).all()
        assert sorted(plain[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]  # a pass is as long as a batch here
        views |= set(augmented[:, 1].tolist())
        orders.add(tuple(plain[:, 0].tolist()))
        classes = [p % 3 for p in range(6 * step, 6 * step + 6)]
        assert labels[turn.batch(step)[0][:, 0].long()].tolist() == classes
    assert views == {1, 2} and len(orders) > 40
    again = ImagePairs(features, counts, 6, seed=1)
    assert all(map(torch.equal, again.batch(17), pairs.batch(17)))


def test_image_pairs_refuse_what_does_not_fit():
    features = torch.randn(4, 2, 3)
    for wrong in (features[:, :1], features[:, 0]):
        with pytest.raises(ValueError, match=r"features \[N, V, E\] with a plain view and at least 1 augmented"):
            ImagePairs(wrong, torch.tensor([2, 2]), 4, 0)
    for counts in ([4, 0], [2, 3]):
        with pytest.raises(ValueError, match="each class needs an image, 4 in all"):
            ImagePairs(features, torch.tensor(counts), 4, 0)


# ------------------------------------------------------------------------------------------------------- loss, fit


def naive_nt_xent(a, b, temperature):
    rows = [row / row.norm() for row in torch.cat([a, b])]
    n, total = len(a), 0.0
    for i, row in enumerate(rows):
        others = torch.stack([row @ other / temperature for k, other in enumerate(rows) if k != i])
        total = total + torch.logsumexp(others, 0) - row @ rows[(i + n) % (2 * n)] / temperature
    return total / (2 * n)


def naive_loss(head, batch, tau, weight):
    def read(x):
        return x + (x * torch.sigmoid(x) @ head.linear.weight.T + head.linear.bias) @ head.projection.weight.T

    prompts, augmented, names = (read(part) for part in batch)
    return naive_nt_xent(prompts, augmented, tau) + weight * naive_nt_xent(augmented, names, 1.0)


def a_head(embed_dim=6, latent=4, dtype=torch.float64, alpha=0.1):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return ContentHead(embed_dim, latent, alpha).to(dtype)


@pytest.mark.parametrize("weight", [0.0, 1e-4, 1.0])
def test_loss_equals_a_rewriting_and_ignores_the_heads_alpha(weight):
    head, batch = a_head(), torch.randn(3, 5, 6, dtype=torch.float64)
    head.projection.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    loss = content_loss(head, batch, 0.3, weight)
    assert loss.item() == pytest.approx(naive_loss(head, batch, 0.3, weight).item(), rel=1e-12)


def some_pairs(dtype=torch.float64, batch=6, seed=3):
    tables = template_tables(NAMES)
    generator = torch.Generator().manual_seed(0)
    return TextPairs(tables, torch.randn(len(tables.texts), 6, generator=generator).to(dtype), batch, seed)


def test_fit_equals_a_rewriting_with_adam():
    head, twin, pairs = a_head(), a_head(), some_pairs()
    report = fit_content_head(
        head, pairs, tau=0.5, weight=0.5, learning_rate=1e-2, max_steps=25, check_every=10, patience=9,
        keep="last-step",
    )  # fmt: skip
    optimizer, losses = torch.optim.Adam(twin.parameters(), lr=1e-2), []
    for step in range(25):
        loss = naive_loss(twin, pairs.batch(step), 0.5, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-7, atol=1e-9)
    means = [sum(losses[:10]) / 10, sum(losses[10:20]) / 10, sum(losses[20:]) / 5]
    assert [step for step, _ in report.checks] == [10, 20, 25] and not report.stopped_early and report.steps == 25
    assert [loss for _, loss in report.checks] == pytest.approx(means, rel=1e-9)


class Scripted:
    """Pairs with a first term of a known size, whatever the head does (its learning rate is 0 in these tests)."""

    def __init__(self, losses):
        self.losses = losses

    def batch(self, step):
        """Two pairs whose cosines with each other make the wanted loss at temperature 1."""
        return cosine_pairs(self.losses[step])


def cosine_pairs(loss):
    """Rows a, -a and, at a cosine c with each, their partners: loss = log(exp(-1 - c) + 1 + exp(-2 c))."""
    c = -math.log((math.sqrt(math.exp(-2) + 4 * math.expm1(loss)) - math.exp(-1)) / 2)
    s = math.sqrt(1 - c * c)
    one, other = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[c, s], [-c, -s]]], dtype=torch.float64)
    return one, other, one


def naive_stop(means, patience, min_drop):
    """Number of checks done: stops at the first check that ends `patience` checks without a drop."""
    for last in range(1, len(means) + 1):
        best, since = math.inf, 0
        for mean in means[:last]:
            best, since = (mean, 0) if best - mean >= min_drop else (best, since + 1)
        if since == patience:
            return last
    return len(means)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("patience, min_drop", [(2, 0.1), (3, 0.02), (1, 0.3)])
def test_stopping_rule_equals_a_rewriting(seed, patience, min_drop):
    generator = torch.Generator().manual_seed(seed)
    losses = (0.8 + torch.rand(36, generator=generator, dtype=torch.float64) - torch.linspace(0, 0.2, 36)).tolist()
    means = [sum(losses[k : k + 3]) / 3 for k in range(0, 36, 3)]
    head = a_head(2, 2)
    settings = {"max_steps": 36, "check_every": 3, "patience": patience, "min_drop": min_drop}
    report = fit_content_head(head, Scripted(losses), tau=1.0, weight=0.0, learning_rate=0.0, **settings)
    done = naive_stop(means, patience, min_drop)
    assert report.steps == 3 * done and report.stopped_early == (done < 12)
    assert [loss for _, loss in report.checks] == pytest.approx(means[:done], rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_steps", [36, 35, 2])
def test_the_weights_of_the_last_check_with_a_drop_are_kept(seed, max_steps):
    """(row 7.3) Those of the last step by name, and where there was no check."""
    generator = torch.Generator().manual_seed(seed)
    losses = (0.8 + torch.rand(36, generator=generator, dtype=torch.float64)).tolist()
    settings = {"tau": 1.0, "weight": 0.0, "learning_rate": 0.01, "check_every": 3, "patience": 4, "min_drop": 0.02}
    settings |= {"max_steps": max_steps}
    weights = {}

    def note(step, make_state):
        weights[step] = make_state()["head"]

    head, last = a_head(2, 2), a_head(2, 2)
    report = fit_content_head(head, Scripted(losses), after_step=note, **settings)
    other = fit_content_head(last, Scripted(losses), keep="last-step", **settings)
    best, kept = math.inf, report.steps
    for step, mean in report.checks:
        if step % 3 == 0 and best - mean >= 0.02:
            best, kept = mean, step
    assert (report.kept_step, other.kept_step) == (kept, report.steps) and other.checks == report.checks
    for name, value in head.state_dict().items():
        assert torch.equal(value, weights[kept][name]) and torch.equal(
            last.state_dict()[name], weights[report.steps][name]
        )
    assert last_drop(report.checks, 3, 0.02) == (kept if max_steps > 2 else 0)
    assert kept < report.steps or (max_steps, seed) != (35, 0)  # some fits end without a drop


def test_a_fit_that_goes_on_equals_an_undisturbed_one():
    pairs = some_pairs(torch.float32)
    settings = {"tau": 0.3, "weight": 0.1, "learning_rate": 1e-2, "max_steps": 50, "check_every": 12, "min_drop": 0.3}
    saved = []

    def save(step, make_state):
        if step in (1, 11, 12, 13, 47, 48, 50):  # at checks and between them
            file = io.BytesIO()
            torch.save(make_state(), file)
            saved.append(file)

    whole, told = a_head(dtype=torch.float32), []
    noted = {"on_check": lambda step, loss: told.append((step, loss)), "after_step": save}
    report = fit_content_head(whole, pairs, patience=9, **noted, **settings)
    assert [step for step, _ in report.checks] == [12, 24, 36, 48, 50] and len(saved) == 7
    assert report.checks == tuple(told)
    for file in saved:
        file.seek(0)
        state, late = torch.load(file, weights_only=True), ContentHead(6, 4)
        again = fit_content_head(late, some_pairs(torch.float32), state=state, patience=9, **settings)
        assert again == report
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in late.state_dict().items())


def test_states_are_copies_and_stopped_fits_stay_stopped():
    states, head = [], a_head(2, 2)
    losses = [1.0] * 30
    settings = {"tau": 1.0, "weight": 0.0, "learning_rate": 0.05, "check_every": 2, "patience": 2, "min_drop": 9.0}

    def save(step, make_state):
        states.append(make_state())

    report = fit_content_head(head, Scripted(losses), after_step=save, max_steps=30, **settings)
    assert report == FitReport(6, report.checks, True, 2)  # the first check counts as a drop from infinity
    assert [state["step"] for state in states] == [1, 2, 3, 4, 5, 6]
    assert [state["waited"] for state in states] == [0, 0, 0, 1, 1, 2]
    assert [len(state["losses"]) for state in states] == [1, 0, 1, 0, 1, 0]
    weights = [state["head"]["projection.weight"] for state in states]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert fit_content_head(head, Scripted(losses), state=states[-1], max_steps=30, **settings) == report


def test_a_loss_that_is_not_a_number_names_its_step():
    class Broken(Scripted):
        def batch(self, step):
            one, other, names = super().batch(0)
            return (one * float("nan"), other, names) if step >= 17 else (one, other, names)

    with pytest.raises(FloatingPointError, match="loss of step 17 is nan"):
        fit_content_head(a_head(2, 2), Broken([1.0]), tau=1.0, weight=1.0, max_steps=40, check_every=10)


def test_fit_runs_inside_no_grad_and_autocast_as_outside():
    heads = [a_head(dtype=torch.float32) for _ in range(2)]
    settings = {"tau": 0.5, "weight": 1.0, "max_steps": 20, "check_every": 10}
    fit_content_head(heads[0], some_pairs(torch.float32), **settings)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        fit_content_head(heads[1], some_pairs(torch.float32), **settings)
    assert torch.equal(heads[0].linear.weight, heads[1].linear.weight)
    assert heads[0].projection.weight.abs().max() > 0


def test_fit_refuses_settings_out_of_range():
    for wrong in ("max_steps", "check_every", "patience"):
        with pytest.raises(ValueError, match="must be at least 1"):
            fit_content_head(a_head(), some_pairs(), tau=0.5, weight=1.0, **{wrong: 0})


def test_training_turns_features_to_content_and_away_from_style():
    """Features made of a content vector a class and a vector a word: the trained head must read the class better."""
    generator = torch.Generator().manual_seed(0)
    tables = template_tables(["dog", "cat", "cow", "ant"])
    words = sorted({word for text in tables.texts for word in text.split()})
    vectors = dict(zip(words, torch.randn(len(words), 32, generator=generator)))
    features = torch.stack([sum(vectors[word] for word in text.split()) for text in tables.texts])
    head, pairs = ContentHead(32, 32), TextPairs(tables, features, 32, seed=0)

    def spread(z):
        """Mean cosine of texts of one class, less that of texts of different classes."""
        z = F.normalize(z, dim=1)
        cosines, same = z @ z.T, torch.arange(4).repeat_interleave(480)
        same = same[:, None] == same
        return (cosines[same].mean() - cosines[~same].mean()).item()

    before = spread(head(features[tables.prompts]))
    report = fit_content_head(head, pairs, tau=0.5, weight=1.0, learning_rate=1e-3, max_steps=300, check_every=50)
    with torch.no_grad():
        after = spread(head(features[tables.prompts], 1.0))
    assert report.checks[-1][1] < report.checks[0][1] - 0.1
    assert after > before + 0.2
