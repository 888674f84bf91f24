"""A vocabulary of CLIP's form, and what transformers makes of thousands of lines with it.

The lines are made from the fragments below and from random code points by a formula that both languages have, so that
only a hash of each line's token ids is stored. The vocabulary is trained here on the fragments: CLIP's own is not ours to
copy. `python -m tools.golden --bpe bpe_simple_vocab_16e6.txt.gz` says whether the lines come out alike with CLIP's.
"""

import collections
import json
import unicodedata

import torch
from transformers import CLIPTokenizerFast

from . import formula

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77
MERGES = 700
LINES = 6000

FRAGMENTS = [
    # what people write
    "a large red circle on a white background", "two small blue squares", "It's", "they'll", "we've", "I'm", "you'd",
    "don't", "'s", "'T", "'RE", "''", "o'clock", "rock'n'roll", "A", "of", "an astronaut riding a horse", "oil painting",
    "4k, trending on artstation", "#hashtag", "@name", "100%", "$3.50", "1,000,000", "2026-11-22", "12:30", "x2", "3D", "R2-D2",
    "U.S.A.", "e.g.", "...", "…", "?!", "-", "--", "—", "_", "a_b", "C++", "<b>bold</b>", "&amp;", "&lt;3", "http://example.org/a?b=c&d=e#f",
    "user@example.org", "\\n", "\\", "/", "|", "~", "`code`", "{x}", "[y]", "(z)", "\"quoted\"", "“curly”", "‘single’", "«guillemets»",
    # languages
    "ein Pferd auf grüner Wiese", "Straße", "ÄÖÜ", "un café près de la forêt", "garçon", "œuvre", "el niño pequeño", "¿qué?", "¡hola!",
    "uma maçã", "żółw i gęś", "Łódź", "příliš žluťoučký kůň", "đường phố", "Việt Nam", "İstanbul", "ıspanak", "IĞDIR", "naïve", "ﬁne ﬂow",
    "красная лошадь", "Ёлка", "їжак", "κόκκινο άλογο", "ΣΊΣΥΦΟΣ", "ὀξύς", "סוס אדום", "שָׁלוֹם", "حصان أحمر", "السَّلَامُ", "می‌خواهم", "اردو",
    "लाल घोड़ा", "हिन्दी", "বাংলা", "தமிழ்", "తెలుగు", "ಕನ್ನಡ", "മലയാളം", "ไทยภาษา", "ລາວ", "မြန်မာ", "ខ្មែរ", "བོད", "አማርኛ", "ქართული", "Ⴀ", "հայերեն",
    "红色的马", "紅色的馬", "赤い馬", "カタカナ", "ﾊﾝｶｸ", "ひらがな", "が", "が", "빨간 말", "한글", "한글", "ㄱ", "〇", "𠮷野家", "ＦＵＬＬ　ｗｉｄｔｈ", "①②③", "Ⅷ", "½", "²", "٣", "४", "௧",
    # pictures
    "😀", "🦀🦀", "❤️", "❤", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇯🇵", "🧑🏿‍🚀", "#️⃣", "©", "™", "№", "☃︎", "♥︎", "★", "🫠", "🪿", "🅰️", "🈂",
    # what breaks things
    START, END, "<|endoftext", "|>", "<|STARTOFTEXT|>", "<|endoftext|>a", "a<|startoftext|>", "</w>", "a</w>", "Ġ", "ĊĊ", "Ã©", "â€™",
    "\t", "\n", "\r\n", "\u000b", "\u000c", "\u0085", "\u00a0", "\u1680", "\u2003", "\u2009", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "  ", "   ",
    "\u0000", "\u0001", "\u0007", "\u001b[31m", "\u007f", "\u0080", "\u009f", "\u00ad", "\u200b", "\u200c", "\u200d", "\u200e", "\u202e", "\u2060", "\ufeff", "\ufffd", "\ufffe", "\uffff",
    "e\u0301", "\u0301", "a\u0300\u0316\u0301", "Z̷͎̓a̸l̴g̵o̶", "\u212b", "\u2126", "\u1e9b\u0323", "\ufb1d", "\u0344", "\u2adc", "\u1100\u1161\u11a8", "ǆ", "ǅ", "ẞ", "ß", "ŉ", "ϓ", "K", "Å",
    "\ue000", "\U000f0000", "\U0010ffff", "\U0001d518\U0001d52b\U0001d526", "𝟙𝟚", "\U000e0041", "a" * 40, "9" * 12, "!" * 20, "é" * 15, "aA" * 9, "ab ab",
]  # fmt: skip


def code_point(word):
    """A character of a random word: often of the blocks that text is made of, never a surrogate, and none of the letters that
    only Unicode 17 has: whether they have a lower case depends on the age of a program's tables."""
    limit = [0x80, 0x300, 0x3000, 0x10000, 0x110000][word % 5]
    value = (word >> 8) % limit
    return 0xFFFD if 0xD800 <= value < 0xE000 or 0x16EA0 <= value < 0x16EE0 else value


def line(index):
    """Up to 19 pieces: fragments, and every eighth line random characters; most are separated by a space."""
    words = [int(word) for word in formula.words(f"line/{index}", 40)]
    count = 1 + words[0] % 19
    if index % 8 == 7:
        return "".join(chr(code_point(word)) for word in words[1 : 1 + count])
    pieces = ""
    for first, second in zip(words[1 : 1 + count], words[20:]):
        piece = FRAGMENTS[first % len(FRAGMENTS)]
        pieces += (piece.upper() if second % 7 == 0 else piece) + ("" if second >> 8 & 3 == 0 else " ")
    return pieces


def symbols():
    """The characters that stand for the 256 bytes, in the order of a CLIP vocabulary."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    others = [b for b in range(256) if b not in printable]
    of_byte = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return of_byte, [of_byte[b] for b in printable + others]


def trained_merges():
    """Byte pairs of the fragments' words, most frequent first; of equals the first in order."""
    of_byte, _ = symbols()
    words = collections.Counter()
    for fragment in FRAGMENTS:
        if "<|" in fragment.lower() or "</w>" in fragment:
            continue  # markers are no words
        for word in unicodedata.normalize("NFC", fragment).lower().split():
            of_word = [of_byte[b] for b in word.encode()]
            words[tuple(of_word[:-1] + [of_word[-1] + "</w>"])] += 1 + len(word) % 3
    merges = []
    while len(merges) < MERGES:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = collections.Counter()
        for word, count in words.items():
            parts, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                parts.append("".join(word[i : i + step]))
                i += step
            merged[tuple(parts)] += count
        words = merged
    return merges


def vocabulary(merges):
    tokens = symbols()[1]
    tokens = tokens + [token + "</w>" for token in tokens] + ["".join(pair) for pair in merges] + [START, END]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def write(folder, merges):
    """The two files that transformers reads, and the one that it writes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = "\n".join(" ".join(pair) for pair in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{pairs}\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.json").unlink(missing_ok=True)  # it would be read instead
    made = CLIPTokenizerFast.from_pretrained(folder, model_max_length=CONTEXT)
    made.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return made


def hash_of_ids(ids):
    """FNV-1a of the ids, two bytes each."""
    value = 0xCBF29CE484222325
    for id in ids:
        for byte in (id & 0xFF, id >> 8):
            value = (value ^ byte) * 0x100000001B3 & formula.MASK
    return value - (1 << 64) if value >> 63 else value


def golden(tokenizer):
    """For each line a hash of its ids as networks get them: cut or padded to the context, between the markers."""
    lines = [line(i) for i in range(LINES)]
    whole = tokenizer(lines, add_special_tokens=False).input_ids
    framed = tokenizer(lines, padding="max_length", max_length=CONTEXT, truncation=True).input_ids
    too_long = sum(len(ids) > CONTEXT - 2 for ids in whole)
    print(f"tokenizer: {len(set(lines))} different lines, {sum(map(len, whole))} tokens, {too_long} lines are cut")
    texts = [formula.hash_of(text) for text in lines]
    signed = lambda value: value - (1 << 64) if value >> 63 else value
    return {
        # Whether the other side made the same lines, before it is asked for their tokens.
        "texts": torch.tensor([signed(value) for value in texts]),
        "ids": torch.tensor([hash_of_ids(ids) for ids in framed]),
        "whole": torch.tensor([hash_of_ids(ids) for ids in whole]),
    }
