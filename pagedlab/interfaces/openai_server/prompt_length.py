"""Texts that cannot fit the model, refused by their characters: to tokenize 4 MB takes ten seconds."""

from __future__ import annotations

from typing import Any


def most_characters(tokenizer: Any) -> int | None:
    """Characters of text that one token can stand for at most; None where nothing bounds them.

    A byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) loses nothing: each token is one entry of its vocabulary, whose
    letters are the text's bytes, and no character has less than one. A normalizer may shrink the text before that, a
    word that is unknown to another kind of tokenizer may have any length, and so may the spaces that an added token
    takes with it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or type(backend.model).__name__ != "BPE":
        return None
    if "ByteLevel" not in repr(backend.pre_tokenizer):
        return None
    if any(token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values()):
        return None
    return max(map(len, tokenizer.get_vocab()))
