"""The world's tokenizer: byte-level BPE in which everything the world writes is one token a word.

Layers, all lossless: 256 bytes; 70 syllables (the only merges, so that a name is the same syllables everywhere); digit pairs;
every word of the templates with its leading space (`ignore_merges`: a whole pre-token found in the vocabulary is that token);
the protocol's tags and fixed phrases as plain added tokens; Qwen's control tokens as special ones. Any other text falls to
bytes and syllables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_mmsr1 import protocol
from megatron_mmsr1.atlas import pages, questions, turns
from megatron_mmsr1.atlas.names import SYLLABLES
from megatron_mmsr1.atlas.picture import COLOURS, SHAPES
from megatron_mmsr1.atlas.world import PLACES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 640  # a multiple of 128: two tensor-parallel ranks split it evenly
MAX_LENGTH = 32768

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = (
    *("<reason>", "</reason>", "<search>", "</search>", "<img>", "<text_search>", "</text_search>"),
    *("<answer>", "</answer>", "<information>", "</information>"),
)
# Fixed text of `protocol`'s messages; a phrase that ends in a space lets a name follow without a token for the space.
PHRASES = (
    "http://atlas.test/",
    "user\n",
    "assistant\n",
    "system\n",
    "Searched results: ",
    protocol.IMAGE_RESULTS,
    protocol.TEXT_RESULTS,
    "\nOriginal user's question:",
    "\ntitle: ",
    *(f"{n}. image: " for n in range(1, 6)),
    *(f"{n}. (" for n in range(1, 6)),
    protocol.SEARCH_FAILED,
)
# What came after the first checkpoints: at the end, so that every token before keeps its id in them.
CROP = ("<crop>", "</crop>", " zoom", "Cropped picture: ", "[Cropped Picture]", " The box does not lie inside the picture.")
# Letters with the space before them, digits in twos from the left, punctuation, white space.
PATTERN = r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}"
    "{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' or 'image' in part or 'image_url' in part %}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def words() -> list[str]:
    """Every pre-token of the templates that is a word or punctuation, with its leading space where it has one; sorted."""
    texts = [f for forms in questions.PHRASINGS.values() for f in forms]
    texts += [*pages.FACT.values(), pages.IS_A, pages.STALE, pages.CONTRADICTION, *pages.NOISE]
    texts += [
        pages.INJECTION.split("<")[0],
        *(turns.REASON[a] for a in (turns.ANSWER, turns.IMAGE, turns.TEXT)),
        turns.UNKNOWN,
        questions.THIS,
    ]
    texts += [*questions.QUERY_WORD.values(), *PLACES, *COLOURS, *SHAPES]
    found: set[str] = set()
    for t in texts:
        # A placeholder is data: it is no word.
        found |= set(re.findall(r" [A-Za-z]+| ?[?.:]", " " + re.sub(r"\{\w*\}", "", t)))
    # What may open a query or a summary has no space before it.
    found |= {"this", "field", "charge", ".", "?", ":", ",", "(", ")"}
    return sorted(found)


def build_tokenizer(more: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """The tokenizer of every Atlas model, whatever the world's seed: exactly VOCAB_SIZE tokens. `more`: tokens of another
    world's, in place of spare ones, so that every other id stays."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte = _byte_letters()
    pieces = [byte[b] for b in range(256)]
    pieces += SYLLABLES
    pieces += [f"{n:02d}" for n in range(100)]
    pieces += ["".join(byte[b] for b in w.encode()) for w in words()]
    vocab = {p: i for i, p in enumerate(dict.fromkeys(pieces))}
    if clash := set(SYLLABLES) & {w for w in words()}:
        raise ValueError(f"these words are syllables of names too: {sorted(clash)}")
    merges = [(s[0], s[1]) for s in SYLLABLES]
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.add_tokens([AddedToken(t, special=False, normalized=False) for t in (*TAGS, *PHRASES, *CROP, *more)])
    # The model's embedding has VOCAB_SIZE rows; naming the spare ones keeps every id that it may sample decodable.
    spare = VOCAB_SIZE - tok.get_vocab_size()
    if spare < 0:
        raise ValueError(f"{tok.get_vocab_size()} tokens do not fit VOCAB_SIZE={VOCAB_SIZE}")
    reserved = [f"<|reserved_{i}|>" for i in range(spare)]
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in reserved])
    out = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[*SPECIAL, *reserved],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )
    out.chat_template = CHAT_TEMPLATE
    return out


def _byte_letters() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself where it prints, else the next letter from U+0100 on."""
    out, spare = [], 0
    for b in range(256):
        if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255:
            out.append(chr(b))
        else:
            out.append(chr(256 + spare))
            spare += 1
    return out
