#!/usr/bin/env python3
"""Writes model/unicode_tables.inc: what the reference tokenizer takes for letters, numbers and white space.

The tables are read off the behaviour of the PyPI package `tokenizers` itself, one code point at a time, for its two
Unicode tables differ from each other (Digits asks Rust, the pattern asks Oniguruma) and from any package's data files.

    pip install tokenizers==0.23.3
    python tools/make_unicode_tables.py model/unicode_tables.inc
"""
import sys

import tokenizers
from tokenizers import pre_tokenizers

# The order is that of CharClass in model/pre_tokenizer.h.
OTHER, LETTER, NUMBER, DIGITS_ONLY, SPACE = range(5)


def classify(code_point, digits, pattern):
    char = chr(code_point)
    together = lambda before: len(pattern.pre_tokenize_str(before + char)) == 1
    letter, number, other, space = (together(before) for before in "a1!\n")
    isolated = len(digits.pre_tokenize_str("a" + char)) == 2
    assert letter + number + other + space == 1, hex(code_point)
    if isolated:
        assert number or other, hex(code_point)
        return NUMBER if number else DIGITS_ONLY
    # A number for the pattern that Digits does not know would need one more class.
    assert not number, hex(code_point)
    return LETTER if letter else SPACE if space else OTHER


def main():
    digits = pre_tokenizers.Digits(individual_digits=True)
    pattern = pre_tokenizers.ByteLevel(add_prefix_space=False)
    runs = []  # (first code point, class)
    for code_point in range(0x110000):
        surrogate = 0xD800 <= code_point < 0xE000
        kind = OTHER if surrogate else classify(code_point, digits, pattern)
        if not runs or runs[-1][1] != kind:
            runs.append((code_point, kind))
    words = [f"0x{first * 8 + kind:x}" for first, kind in runs]
    with open(sys.argv[1], "w") as out:
        out.write(f"// Made by tools/make_unicode_tables.py from tokenizers {tokenizers.__version__}. Do not edit.\n")
        out.write("// Runs of one class: first code point * 8 + class; a run ends where the next begins.\n")
        line = ""
        for word in words:
            if len(line) + len(word) + 2 > 120:
                out.write(line.rstrip() + "\n")
                line = ""
            line += word + ", "
        out.write(line.rstrip() + "\n")


main()
