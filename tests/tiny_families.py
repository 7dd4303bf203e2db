"""Tiny checkpoints of models that are not causal, each with a tokenizer of its own kind.

BERT's is WordPiece, RoBERTa's and GPT-2's byte-level BPE, T5's Unigram; all put their own tokens
around a text, as the checkpoints on the hub do.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "the film was good and the music was great. It was great.",
    "a bad film with a terrible story. It was terrible.",
    "a good story, wonderful actors! It was great; the label: positive",
    "play some music by the old band? the label: negative",
    "Text: search creative work Label: good bad great terrible positive negative",
]
ARCHITECTURES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "bert_head": "BertForSequenceClassification",
    "roberta_head": "RobertaForSequenceClassification",
    "gpt2_head": "GPT2ForSequenceClassification",
    "llama_head": "LlamaForSequenceClassification",
    "opt_head": "OPTForSequenceClassification",
    "qwen2_head": "Qwen2ForSequenceClassification",
    "t5": "T5ForConditionalGeneration",
    "t5_gated": "T5ForConditionalGeneration",
}
FAMILIES = tuple(ARCHITECTURES)
VOCABULARY = 320
CONTEXT = 64
LABELS = ("negative", "positive", "neutral")

_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.2,
}
_SIZES: dict[str, dict[str, Any]] = {
    "bert": _COMMON,
    # RoBERTa counts positions from pad_token_id + 1 on.
    "roberta": _COMMON
    | {"pad_token_id": 1, "max_position_embeddings": CONTEXT + 2, "type_vocab_size": 1},
    "llama": _COMMON | {"num_hidden_layers": 1, "num_key_value_heads": 2},
    "qwen2": _COMMON | {"num_hidden_layers": 1, "num_key_value_heads": 2},
    "opt": _COMMON
    | {"num_hidden_layers": 1, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 1,
        "n_head": 4,
        "n_positions": CONTEXT,
        "initializer_range": 0.2,
    },
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "decoder_start_token_id": 0,
        "n_positions": CONTEXT,
    },
}
_OWN: dict[str, dict[str, Any]] = {
    "t5_gated": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_layers": 1,
        "initializer_factor": 0.5,
    },
    "roberta_head": {"pad_token_id": 1},
}


def write_checkpoint(name: str, folder: Path) -> Path:
    """Writes the tiny checkpoint `name`, one of `FAMILIES`, into `folder` and returns it."""
    tiny_family(name).save_pretrained(folder)
    family = name.partition("_")[0]
    backend, tokens = {"bert": _wordpiece, "t5": _unigram}.get(family, _byte_level)()
    if family in ("gpt2", "llama", "opt", "qwen2"):
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens), "utf-8")
    return folder


def tiny_family(name: str) -> Any:
    """Returns the model `name`, one of `FAMILIES`, with weights that depend on nothing else."""
    import torch
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, ARCHITECTURES[name])
    settings: dict[str, Any] = {"vocab_size": VOCABULARY, "attn_implementation": "eager"}
    if name.endswith("head"):
        settings |= {"id2label": dict(enumerate(LABELS)), "pad_token_id": 0}
        settings |= {"label2id": {label: i for i, label in enumerate(LABELS)}}
    model = cls(cls.config_class(**settings | _SIZES[name.partition("_")[0]] | _OWN.get(name, {})))
    # Fresh models have biases of 0 and norms of 1, which would hide a mistake.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def _wordpiece() -> tuple[Backend, dict[str, str]]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    # As on the hub, where older checkpoints leave the names to transformers' own class.
    return backend, {"tokenizer_class": "BertTokenizer"}


def _byte_level() -> tuple[Backend, dict[str, str]]:
    from tokenizers import AddedToken

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return backend, tokens | {"mask_token": "<mask>", "tokenizer_class": "RobertaTokenizer"}


def _unigram() -> tuple[Backend, dict[str, str]]:
    # Training one ends in other pieces every time.
    words = [f"▁{word}" for sentence in SENTENCES for word in sentence.split()]
    counts = Counter(words) + Counter("".join(words))
    total = sum(counts.values())
    pieces = [(piece, math.log(counts[piece] / total)) for piece in sorted(counts)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    backend = Backend(models.Unigram([*special, *pieces], unk_id=2))
    backend.normalizer = normalizers.Replace("\n", " ")
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokens = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return backend, tokens | {"tokenizer_class": "T5Tokenizer"}
