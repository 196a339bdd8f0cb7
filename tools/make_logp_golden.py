"""Golden sums of log-probabilities of the real 135M: tests/golden/logp.json.

transformers in fp32, on the weights that the program reads (dequantised from the GGUF), for a few pairs of
data/samples: of the prompt's tokens (from the second on), of chosen and of rejected. Each answer is scored in a sequence
of its own, unpadded, as the chat template renders it and up to its <|im_end|>. logp_test.cpp asks `orpo eval --records`
for the same. The same model in double says how much of a difference is fp32's own.

    python3 tools/make_logp_golden.py      (torch 2.15, transformers 5.23, gguf)
"""

import json
import pathlib

import torch

import reference_model

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = {"eval": (1, 2, 3, 23, 59), "train": (7, 101, 240)}  # lines of data/samples


def sums(model, prompt, answer):
    """(sum over the prompt's tokens from the second on, sum over the answer's)"""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0]
    logp = torch.log_softmax(logits.double(), -1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return logp[: len(prompt) - 1].sum().item(), logp[len(prompt) - 1 :].sum().item()


def main():
    model, tokenizer = reference_model.load()
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    rows, parts = [], []
    for name, lines in ROWS.items():
        text = (ROOT / "data" / "samples" / (name + ".jsonl")).read_text(encoding="utf-8").splitlines()
        for line in lines:
            row = json.loads(text[line - 1])
            head = tokenizer.apply_chat_template(
                [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False)
            prompt = encode(head)
            answers = []
            for side in ("chosen", "rejected"):
                whole = encode(head + row[side] + "<|im_end|>")
                assert whole[: len(prompt)] == prompt
                answers.append(whole[len(prompt) :])
            rows.append({"file": name, "line": line, "prompt_tokens": len(prompt) - 1,
                         "chosen_tokens": len(answers[0]), "rejected_tokens": len(answers[1])})
            parts.append((prompt, answers))
    for precision in ("fp32", "fp64"):
        if precision == "fp64":
            model = model.double()
        for row, (prompt, answers) in zip(rows, parts):
            (head, chosen), (_, rejected) = (sums(model, prompt, a) for a in answers)
            row[precision] = {"prompt_logp": head, "chosen_logp": chosen, "rejected_logp": rejected}
    for row in rows:
        print(row["file"], row["line"], row["chosen_tokens"], row["fp32"],
              {k: f"{row['fp32'][k] - row['fp64'][k]:.1e}" for k in row["fp32"]})
    (ROOT / "tests" / "golden" / "logp.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")


main()
