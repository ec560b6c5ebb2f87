"""Text towers of Hugging Face transformers in open_clip's models: roberta, xlm-roberta, bert, nllb and mt5.

Covers: the context length of open_clip's tokenizer in place of the position table; rows cut at the longest text, equal
in float64 to rows of full length, with gradients; long texts; class tokens and learned contexts; tokenizer and text
model from a local folder (`MODEL.BACKBONE.TOKENIZER`, `local-dir:`), without network; what is said where files lack.
All models are made here; needs the extra `hf`.
"""

import json
import logging
import time
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from dassl_clip.clip.backbone import FrozenCLIP, load_backbone

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'dassl-clip[hf]'")

WORDS = ["a", "photo", "sketch", "of", "the", "dog", "cat", "great", "white", "shark", "in", "front", "house", "small",
         "red", "wow", ".", "!"]  # fmt: skip
TEXTS = ["a photo of a dog .", "wow", "a small red sketch of the great white shark in front of a house !"]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
SMALL = {"vocab_size": 40, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BERT = {**SMALL, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KINDS = {
    "roberta": lambda: transformers.RobertaConfig(**BERT, max_position_embeddings=514),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**BERT, max_position_embeddings=514),
    "bert": lambda: transformers.BertConfig(**BERT, max_position_embeddings=514),
    "m2m_100": lambda: transformers.M2M100Config(
        **SMALL, d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=1024, decoder_start_token_id=2,
    ),
    "mt5": lambda: transformers.MT5Config(
        **SMALL, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=1, num_heads=2, decoder_start_token_id=0
    ),
}  # fmt: skip


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of whole words with roberta's special tokens, in Hugging Face's form."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "X", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)


def model_config(kind: str, **text) -> dict:
    pooler = "cls_pooler" if kind in ("bert", "m2m_100") else "mean_pooler"
    return {
        "embed_dim": 24,
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32},
        "text_cfg": {"hf_model_name": f"nobody/{kind}", "hf_tokenizer_name": f"nobody/{kind}", "hf_proj_type": "mlp",
                     "hf_pooler_type": pooler, **text},
    }  # fmt: skip


def folder_of(kind: str, folder: Path, **text) -> Path:
    """A `local-dir:` of a tiny model: both configurations, tokenizer and weights."""
    folder.mkdir(exist_ok=True)
    KINDS[kind]().save_pretrained(folder)
    write_tokenizer(folder)
    config = model_config(kind, **text)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    config = deepcopy(config)
    config["text_cfg"] |= {"hf_model_pretrained": False, "hf_model_name": str(folder)}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.randn(value.shape)
    state = {name: value.clone() for name, value in model.state_dict().items()}  # T5 names one table twice
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def opened(kind: str, tmp_path: Path, **text) -> FrozenCLIP:
    return load_backbone(f"local-dir:{folder_of(kind, tmp_path / kind, **text)}")


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No hub; caches are empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("kind", KINDS)
def test_6_2_rows_end_with_the_longest_text_and_nothing_changes(kind, tmp_path):
    """Row 6.2: against open_clip's own pass over rows of 77 tokens, in float64."""
    frozen = opened(kind, tmp_path)
    frozen.model.double()
    assert frozen.context_length == 77 and frozen.text.masks_padding
    assert frozen.describe()["context_length"] == 77
    ids = frozen.text.tokenize(TEXTS)
    assert ids.shape == (3, 77)
    seen = []
    frozen.text.token_embedding.register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    features = frozen.text.encode(TEXTS)
    assert seen == [len(TEXTS[2].split()) + 2]
    with torch.no_grad():
        torch.testing.assert_close(features, frozen.model.encode_text(ids), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_6_2_prompts_with_a_context_equal_whole_sentences(kind, tmp_path):
    """Rows 6.2 and 6.3: embeddings of the words "a photo of" as the context; features, and gradients to them."""
    frozen = opened(kind, tmp_path)
    frozen.model.double()
    text, names = frozen.text, ["dog", "great white shark", "cat"]
    context = text.embed(text.tokens.inner("a photo of")).detach().requires_grad_()
    features = text.encode_prompts(context, text.class_tokens(names, suffix=" ."))
    sentences = text.tokenize([f"a photo of {name} ." for name in names])
    with torch.no_grad():
        torch.testing.assert_close(features, frozen.model.encode_text(sentences), rtol=1e-9, atol=1e-10)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (features * weights).sum().backward()
    first = len(text.tokens.head)

    def full(moved: torch.Tensor) -> torch.Tensor:
        """The same objective over rows of 77 tokens, the context's rows replaced by hand."""
        table = text.token_embedding
        rows = table(sentences).detach()
        rows = torch.cat([rows[:, :first], moved.expand(len(names), -1, -1), rows[:, first + len(moved) :]], dim=1)
        handle = table.register_forward_hook(lambda *_: rows)
        try:
            return (frozen.model.encode_text(sentences) * weights).sum()
        finally:
            handle.remove()

    again = context.detach().clone().requires_grad_()
    full(again).backward()
    torch.testing.assert_close(context.grad, again.grad, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind, length", [("roberta", 256), ("mt5", 64), ("xlm-roberta", 700)])
def test_6_2_a_length_that_the_configuration_states_counts(kind, length, tmp_path):
    frozen = opened(kind, tmp_path, context_length=length)
    assert frozen.context_length == min(length, 512)  # roberta's first two positions serve no token
    assert frozen.text.tokenize(["dog"]).shape == (1, frozen.context_length)
    assert bool(frozen.text.encode(["dog " * 800]).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_6_3_long_texts_are_cut_and_warned_about(kind, tmp_path, caplog):
    """Row 6.3: no endless loop, no division by zero, a true sentence."""
    frozen, start = opened(kind, tmp_path), time.monotonic()
    with caplog.at_level(logging.WARNING):
        features = frozen.text.encode(["dog " * 200, "dog"])
    assert features.shape == (2, 24) and bool(features.isfinite().all())
    assert "1 of 2 texts are longer than the text tower's 77 tokens" in caplog.text
    assert time.monotonic() - start < 20


def test_6_4_a_folder_of_the_tokenizer_serves_a_name_with_a_file(tmp_path):
    """Row 6.4: `MODEL.BACKBONE.TOKENIZER`; without it the sentence says what is missing and what to do."""
    place = folder_of("roberta", tmp_path / "m")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/tiny-hf-clip.json").write_text(json.dumps(model_config("roberta")))
    open_clip.add_model_config(tmp_path / "configs")
    weights = tmp_path / "weights.safetensors"
    (place / "open_clip_model.safetensors").rename(weights)
    frozen = load_backbone("tiny-hf-clip", weights=str(weights), tokenizer=str(place))
    (tmp_path / "n").mkdir()
    same = opened("roberta", tmp_path / "n")
    torch.testing.assert_close(frozen.text.encode(TEXTS), same.text.encode(TEXTS))
    with pytest.raises(
        FileNotFoundError, match=r"'nobody/roberta' .* a folder with its files as MODEL.BACKBONE.TOKENIZER"
    ):
        load_backbone("tiny-hf-clip", weights=str(weights))
    with pytest.raises(FileNotFoundError, match=r"MODEL.BACKBONE.TOKENIZER: there is no folder"):
        load_backbone("tiny-hf-clip", weights=str(weights), tokenizer=str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no tokenizer that can be read"):
        load_backbone("tiny-hf-clip", weights=str(weights), tokenizer=str(tmp_path / "empty"))
    (place / "config.json").unlink()
    with pytest.raises(ValueError, match=r"transformers' nobody/roberta: .*config.json .* MODEL.BACKBONE.TOKENIZER"):
        load_backbone("tiny-hf-clip", weights=str(weights), tokenizer=str(place))
