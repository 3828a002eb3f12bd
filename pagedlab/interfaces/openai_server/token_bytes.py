"""token_bytes: the bytes that one token stands for, which alone need not be text."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece spells a token that is a single byte."""


def token_bytes(tokenizer: Any, token_id: int, text: str) -> bytes:
    """Bytes of a token. An emoji is spread over tokens that each read U+FFFD; a client that joins their bytes gets it.

    Args:
        tokenizer: of a byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) or with byte fallback (Llama 2, Mistral).
        token_id: the token.
        text: what it decodes to by itself.
    """
    if "\ufffd" not in text:
        return text.encode()
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        return text.encode()
    if fallback := BYTE_FALLBACK.fullmatch(token):
        return bytes.fromhex(fallback[1])
    alphabet = byte_level_alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return text.encode()


@lru_cache
def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte: GPT-2's BPE writes a byte that is visible in Latin-1 as itself, the others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(others)}
