"""A book that builds a language model, and the package that falls out of it."""

from importlib import import_module

__version__ = "0.1.0"

# Where each main name lives. A module is imported when one of its names is first used, so that
# `import tinygpt` costs nothing and the command can answer --help before torch is loaded.
_HOMES = {
    "tales": ["Tales"],
    "worlds": ["consistency", "load_rungs", "shipped"],
    "tokenizer": ["BPETokenizer", "ByteTokenizer", "CharTokenizer", "load_tokenizer"],
    "corpus": ["TokenDataset", "prepare"],
    "data": ["get_batch"],
    "model": ["GPT", "GPTConfig", "PRESETS", "profile"],
    "config": ["DataConfig", "OptimConfig", "RunConfig", "TrainConfig", "make_config"],
    "runs": ["load", "load_checkpoint", "save_checkpoint"],
    "optim": ["AdamW", "Muon"],
    "training": ["ProgressBar", "resume", "train"],
    "evaluation": ["evaluate_text"],
    "sampling": ["Sampling", "next_token_probs"],
    "cache": ["KVCache"],
    "decode": ["unjoin"],
    "generation": ["generate", "generate_text", "stream", "stream_text"],
    "quantization": ["quantize"],
    "speculation": ["speculate", "speculate_text"],
    "conversations": ["ChatTemplate", "find_template", "read_conversations"],
    "replies": ["add_tokens"],
    "sft": ["LoraConfig", "TuneConfig", "finetune"],
    "chat": ["Chat"],
    "lora": ["add_lora", "merge", "set_adapter", "unmerge"],
    "adapters": ["load_adapter", "open_model", "save_adapter"],
    "interop": ["from_hf"],
    "explorers": ["AttentionExplorer", "CacheExplorer", "LossMaskView", "RopeExplorer", "SamplingExplorer",
                  "SpeculationStrip", "TokenizerExplorer", "TrainingMonitor"],
}
_MODULES = ("surprise", "tales", "worlds", "byte_pairs", "files", "tokenizer", "sources", "corpus", "data", "layers", "rope", "attention", "model", "optim", "config", "runs", "machine",
            "learning", "folder", "training", "evaluation", "exams", "sampling", "cache", "decode", "generation", "few_bits",
            "quantization", "speculation", "questions", "marking", "conversations", "replies", "sft",
            "chat", "lora", "adapters", "interop", "pictures", "widgets", "explorers", "parsing", "commands",
            "cli", "options", "looking", "telling", "doctor", "chatting", "finetuning")
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name in _HOME_OF: return getattr(import_module(f"tinygpt.{_HOME_OF[name]}"), name)
    if name in _MODULES: return import_module(f"tinygpt.{name}")
    from difflib import get_close_matches
    near = get_close_matches(name, [*_HOME_OF, *_MODULES], n=1)
    hint = f"; did you mean {near[0]}?" if near else "; dir(tinygpt) lists the main names, the others are in its modules"
    raise AttributeError(f"module 'tinygpt' has no attribute {name!r}{hint}")


def __dir__():
    return sorted([*globals(), *_HOME_OF, *_MODULES])
