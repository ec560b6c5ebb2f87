"""Which program a checkpoint is of, from the names in it."""

from collections.abc import Iterable

# A part of some name in the checkpoints of a program -> the program; the first that fits counts.
PROGRAMS = {
    "prompt_learner.style": "GOPro's authors",
    "compound_prompts_text": "MaPLe",
    "VPT": "PromptSRC",
    "bias_vectors": "KgCoOp",
    "meta_net": "CoCoOp",
    "text_feature_residuals": "TaskRes",
    "network_beta": "CLAP's authors",
    "w_lora_": "CLIP-LoRA",
    "generator.": "GOPro",
    "prompt_learner.": "a prompt learner of another program",
}


def program_of(names: Iterable[str]) -> str:
    """The program that such names are typical of, or ""."""
    names = list(names)
    return next((program for part, program in PROGRAMS.items() if any(part in name for name in names)), "")
