"""Tokens that this world's tokenizer has beyond Atlas's (`atlas/tokenizer.py`): everything written here is one token a word."""

from __future__ import annotations

TOKENS = ("<think>", "</think>", " result", " guess")
