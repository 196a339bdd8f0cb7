#!/usr/bin/env python3
"""Writes what the reference library makes of every code point, of random strings and of chosen ones.

    pip install tokenizers==0.23.3 gguf jinja2
    python tools/make_tokenizer_goldens.py tokenizer.json OUT.json       # a Hugging Face tokenizer
    python tools/make_tokenizer_goldens.py MODEL.gguf OUT.json [DATA...] # from the arrays of a GGUF file
    python tools/make_tokenizer_goldens.py --train-small data/samples/train.jsonl tokenizer.json

The oracle for a GGUF file is built from its arrays directly: transformers' own conversion of SmolLM2 GGUF files leaves
out the digit splitting and adds byte fallback. Hashes are the first 16 digits of SHA-256 over the ids as little-endian
32-bit numbers, with 0xFFFFFFFF after every text. tests/tokenizer_golden_test.cpp makes the same texts.
"""
import hashlib
import json
import struct
import sys

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

FRAGMENTS = [
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "<|", "|>", "<repo_name>", "<reponame>", "<repo", "<",
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'l", "'r", "'", "don't", "\u2019s", "  ", " ", "   ", "\n",
    "\n\n", "\t", "\r\n", "\x0b", "\x1c", "\u0085", "\u00a0", "\u2003", "\u2028", "\u3000", "\u200b", "\ufeff", "1",
    "23", "2024", "\u00bd", "\u00b2", "\u0664", "\u2167", "\U0001d7d8", "\U00011de3", "\U00016ff5", "a", "hello",
    " the", "World", " I", "ing", " question", "def f(x):", "====", "...", "!?", "_", "\u00e9", "e\u0301",
    "\u65e5\u672c\u8a9e", "\u0421\u043b\u043e\u0432\u043e", "\u0639\u0631\u0628", "\u0939\u093f\u0928\u094d",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\x00", "\x04", "\x7f", "\uffff",
    "\U0010ffff",
]

CHOSEN = [
    "", " ", "a", "Hello, we can use", "The capital of France is",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face", "Hello world! 123",
    "Caf\u00e9 d\u00e9j\u00e0 vu.", "  multiple   spaces", "a  1", "a  b", "a 1", " 1", "  1", "1  2", "x\n1", "x\n\n1",
    "1\n", "3.14159", "1,000,000", "2nd", "x2y", "10\u00bd", "\u00b2\u00b3", "I'm you're he's they've we'll I'd don't",
    "I'M YOU'RE", "'s", " 's", "''s", "'ll'", "it\u2019s", "o'clock", "rock'n'roll", "'", "' s", "\ttab", "a\tb", " \t ",
    " \n", "\n ", "a \n b", "a\n\n\nb", "trailing ", "trailing  ", "trailing\n", "trailing \n", "\r\n", "a\r\nb",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "a<|im_end|>b", " <|im_end|> ",
    "<|im_end|><|im_end|>", "<|im_end", "<|im_end|", "<|IM_END|>", "<<|im_end|>>", "<|<|im_end|>", "<repo_name>x",
    "<reponame>x", "<repo_name", "<|endoftext|>", "<gh_stars>1<issue_start>2", "<empty_output>", "<jupyter_start>",
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < 10; ++i) {}", "https://example.com/a?b=c&d=1#e",
    "user@example.com", "#include <vector>", "a_b __init__ CamelCase", "==== ---- ....", "!!!???", "$5.00 (approx.)",
    "\u65e5\u672c\u8a9e\u306e\u6587", "\u4e2d\u65871\u4e2d", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440",
    "\u0645\u0631\u062d\u0628\u0627", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\uc548\ub155", "\U0001f600\U0001f601", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301 vs \u00e9",
    "\u00a0nbsp\u00a0", "\u3000wide", "\u200bzero", "\ufeffbom", "a\x0bb", "a\x1cb", "a\u0085b", "a\u2028b", "\x00",
    "\x01\x02\x03\x04\x05\x06", "\x13\x14\x16\x1d", "\U00040000", "\U000c0000", "\U0010ffff", "\U00011de3\U00016ff4",
    "1\U00011de3", "\u0660\u0661", "\u2160\u2161", "\U0001d7ce", "\u3007", "\u5341", "\u00aa\u00ba", "\u02b0", "\u0345",
]

LENGTH_OF_BLOCK = 4096
RANDOM_STRINGS, RANDOM_BLOCK = 100000, 1000


class Random:
    """splitmix64 (Steele, Lea, Flood 2014)."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) % n


def random_text(index):
    random = Random(index)
    text = []
    for _ in range(random.below(40)):
        kind = random.below(10)
        if kind < 4:
            text.append(FRAGMENTS[random.below(len(FRAGMENTS))])
            continue
        if kind < 6:
            code = 32 + random.below(95)
        elif kind == 6:
            code = random.below(0x250)
        elif kind == 7:
            code = random.below(0x3100)
        elif kind == 8:
            code = 0x3000 + random.below(0x8000)
        else:
            code = random.below(0x110000)
        text.append("X" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(text)


def contexts(code):
    c = chr(code)
    return [c, "a" + c + "b", "1" + c + "2", " " + c, c + " ."]


# Long runs of one thing: (unit, repetitions).
RUNS = [("a", 1 << 20), ("ab", 1 << 19), (" ", 1 << 20), ("\n", 1 << 20), ("7", 1 << 20), ("<|", 1 << 19), ("<|im_end", 1 << 17),
        ("<|im_end|>", 1 << 16), ("'s", 1 << 19), ("!", 1 << 20), ("\u00e9", 1 << 19), ("\u65e5", 1 << 18), (" a", 1 << 19),
        ("\x04", 1 << 20), ("the", 1 << 18), ("qx", 1 << 19)]


class Hash:
    def __init__(self):
        self.hash = hashlib.sha256()

    def add(self, ids):
        self.hash.update(struct.pack(f"<{len(ids) + 1}I", *ids, 0xFFFFFFFF))

    def text(self):
        return self.hash.hexdigest()[:16]


def from_gguf(path):
    from gguf import GGUFReader

    reader = GGUFReader(path)

    def strings(key):
        field = reader.fields[key]
        return [bytes(field.parts[i]).decode() for i in field.data]

    tokens, merges = strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges")
    types = reader.fields["tokenizer.ggml.token_type"]
    types = [int(types.parts[i][0]) for i in types.data]
    tokenizer = Tokenizer(BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def train_small(data, out):
    """A BPE of 800 tokens over the project's own sample data; a few bytes are left without a token on purpose."""
    texts = []
    for line in open(data, encoding="utf-8"):
        texts.append(line)
    texts += ["\u00e9\u00e8\u00fc \u65e5\u672c\u8a9e \u0421\u043b\u043e\u0432\u043e \U0001f600"] * 50
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<empty_output>"]
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set("\u0104\u0106\u0113\u00f1"))
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    tokenizer.save(out)


def main():
    if sys.argv[1] == "--train-small":
        return train_small(sys.argv[2], sys.argv[3])
    tokenizer = from_gguf(sys.argv[1]) if sys.argv[1].endswith(".gguf") else Tokenizer.from_file(sys.argv[1])

    def encode_all(texts):
        for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
            yield encoding.ids

    code_points = []
    for block in range(0, 0x110000, LENGTH_OF_BLOCK):
        codes = [c for c in range(block, block + LENGTH_OF_BLOCK) if not 0xD800 <= c < 0xE000]
        digest = Hash()
        for ids in encode_all([text for c in codes for text in contexts(c)]):
            digest.add(ids)
        code_points.append(digest.text())

    random = []
    for block in range(0, RANDOM_STRINGS, RANDOM_BLOCK):
        digest = Hash()
        for ids in encode_all([random_text(i) for i in range(block, block + RANDOM_BLOCK)]):
            digest.add(ids)
        random.append(digest.text())

    runs = []
    for unit, count in RUNS:
        digest = Hash()
        digest.add(tokenizer.encode(unit * count, add_special_tokens=False).ids)
        runs.append([unit, count, digest.text()])

    chosen = CHOSEN + [random_text(1000000 + i) for i in range(300 - len(CHOSEN))]
    strings = [[text, ids] for text, ids in zip(chosen, encode_all(chosen))]
    tokenizer.encode_special_tokens = True
    literal = [[text, ids] for text, ids in zip(chosen, encode_all(chosen)) if "<" in text]
    tokenizer.encode_special_tokens = False

    # Ids in an order that text never gives: broken UTF-8 and all.
    decoded = []
    for i in range(60):
        source = Random(2000000 + i)
        ids = [source.below(300 if i % 2 else tokenizer.get_vocab_size()) for _ in range(1 + source.below(12))]
        decoded.append([ids, tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(ids)])

    # Every string of every row of JSON Lines files, in the order of the file.
    data = {}
    for path in sys.argv[3:]:
        digest = Hash()

        def walk(value):
            if isinstance(value, str):
                digest.add(tokenizer.encode(value, add_special_tokens=False).ids)
            elif isinstance(value, list):
                for item in value:
                    walk(item)
            elif isinstance(value, dict):
                for item in value.values():
                    walk(item)

        for line in open(path, encoding="utf-8"):
            walk(json.loads(line))
        data[path.split("/")[-1]] = digest.text()

    golden = {"made_by": f"tools/make_tokenizer_goldens.py, tokenizers {tokenizers.__version__}", "fragments": FRAGMENTS,
              "code_points": code_points, "random": random, "runs": runs, "strings": strings, "literal": literal,
              "decoded": decoded, "data": data}
    with open(sys.argv[2], "w") as out:
        body = ",\n".join(f'"{key}": {json.dumps(value, separators=(",", ":"))}' for key, value in golden.items())
        out.write("{" + body + "}\n")


main()
