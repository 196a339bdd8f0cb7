"""Golden tokens of TRL's own data path: tests/golden/data/trl.json.

Runs maybe_extract_prompt, maybe_apply_chat_template and ORPOTrainer.tokenize_row (trl 1.16) over the rows of
tests/golden/data/rows.jsonl, with the tokenizer built directly from the model's GGUF. For every row: the two sequences
and where their responses begin, or null where TRL raises (or leaves an answer empty). For larger files of one's own,
one hash a row; the files themselves are not kept.

    python3 tools/make_data_golden.py [FILE.jsonl ...]        (trl 1.16, transformers 5.23)
"""

import json
import os
import pathlib
import struct
import sys
import types

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import gguf
from accelerate import PartialState
from trl.data_utils import maybe_apply_chat_template, maybe_extract_prompt
from trl.experimental.orpo import ORPOTrainer

import reference_model

HERE = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "data"


def tokenise(row, tokenizer, max_length):
    """[chosen ids, its prompt's length, rejected ids, its prompt's length]"""
    trainer = types.SimpleNamespace(processing_class=tokenizer, is_encoder_decoder=False, max_length=max_length)
    trainer.build_tokenized_answer = types.MethodType(ORPOTrainer.build_tokenized_answer, trainer)
    row = {k: row[k] for k in ("prompt", "chosen", "rejected") if k in row}
    try:
        out = ORPOTrainer.tokenize_row(trainer, maybe_apply_chat_template(maybe_extract_prompt(row), tokenizer))
    except (ValueError, KeyError, IndexError, UnboundLocalError) as error:  # TRL has no error type of its own
        print(f"  undefined: {type(error).__name__}: {str(error)[:70]}")
        return None
    result = []
    for side in ("chosen", "rejected"):
        ids, labels = out[side + "_input_ids"], out[side + "_labels"]
        prompt = sum(label == -100 for label in labels)
        if prompt == len(ids):
            print("  undefined: an empty answer")
            return None
        result += [ids, prompt]
    return result


def fnv1a(data):
    h = 0xCBF29CE484222325
    for c in data:
        h = ((h ^ c) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def row_hash(result):
    """Of little-endian 32-bit numbers: prompt length, length, ids; chosen, then rejected."""
    if result is None:
        return ""
    chosen, n, rejected, m = result
    return f"{fnv1a(struct.pack(f'<{4 + len(chosen) + len(rejected)}i', n, len(chosen), *chosen, m, len(rejected), *rejected)):016x}"


def main():
    PartialState()  # TRL's logger wants it
    tokenizer = reference_model.load_tokenizer(gguf.GGUFReader(str(reference_model.default_path())))
    base = reference_model.load_tokenizer(gguf.GGUFReader(str(reference_model.default_path())))
    base.bos_token = base.eos_token = base.pad_token = "<|endoftext|>"
    base.chat_template = None
    rows = [json.loads(line) for line in open(HERE / "rows.jsonl", encoding="utf-8")]
    golden = {"cases": [], "files": []}
    for name, tok, max_length in [("instruct", tokenizer, 1024), ("instruct", tokenizer, 48), ("base", base, 1024)]:
        print(name, max_length)
        golden["cases"].append({"model": name, "max_length": max_length, "rows": [tokenise(r, tok, max_length) for r in rows]})
    for file in map(pathlib.Path, sys.argv[1:]):
        print(file.name)
        rows = [json.loads(line) for line in open(file, encoding="utf-8")]
        for max_length in (1024, 256):
            golden["files"].append({"file": file.name, "max_length": max_length,
                                    "rows": [row_hash(tokenise(r, tokenizer, max_length)) for r in rows]})
    text = json.dumps(golden, separators=(",", ":")).replace("],[[", "],\n[[").replace('{"', '\n{"')
    (HERE / "trl.json").write_text(text + "\n", encoding="utf-8")


main()
