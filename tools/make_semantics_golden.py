"""Golden numbers of the paper's code and of LLaMA-Factory: tests/golden/semantics/{paper,llamafactory}.json.

Both are run, not rewritten: their own reading of rows, templates, truncation, label masks, loss and metrics, from
checkouts that you name. What they import and this does not need (trainers of other stages, logging services, audio) is
replaced by stand-ins. The rows are tests/golden/semantics/*.jsonl; the tokenizer is built directly from the model's
GGUF. The loss runs on a tiny model in double, whose weights, adapters and vocabulary tests/peer_semantics_test.cpp
makes too, from the same hash.

    git clone https://github.com/xfactlab/orpo && git clone https://github.com/hiyouga/LLaMA-Factory
    python3 tools/make_semantics_golden.py PAPER_CHECKOUT LLAMAFACTORY_CHECKOUT      (torch, transformers, peft, gguf)
"""

import json
import os
import pathlib
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from unittest import mock

os.environ["DISABLE_VERSION_CHECK"] = "1"

import gguf
import peft
import torch
import transformers

import make_engine_golden as engine
import reference_model

HERE = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "semantics"
LIMITS = (1024, 72)  # --max-length: nothing but long prompts is cut; much is
BETA = 0.4


class StandIns(MetaPathFinder, Loader):
    """Modules whose every name is a mock; a name asked for as a base class is an empty class."""

    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if any(name == n or name.startswith(n + ".") for n in self.names):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        class Module(types.ModuleType):
            def __getattr__(self, name):
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {}) if name[:1].isupper() else mock.MagicMock(name=name)

        return Module(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def load_tokenizers():
    """Instruct and base, as tests/data_golden_test.cpp has them."""
    reader = gguf.GGUFReader(str(reference_model.default_path()))
    instruct, base = (reference_model.load_tokenizer(reader) for _ in range(2))
    base.bos_token = base.eos_token = base.pad_token = "<|endoftext|>"
    base.chat_template = None
    for tokenizer in (instruct, base):  # transformers 4's answer, which both codes were written for
        apply = tokenizer.apply_chat_template
        tokenizer.apply_chat_template = lambda *a, apply=apply, **k: apply(*a, **{"return_dict": False, **k})
    return {"instruct": instruct, "base": base}


def read_rows(name):
    return [json.loads(line) for line in (HERE / (name + ".jsonl")).read_text(encoding="utf-8").splitlines()]


def tiny_model():
    """The tiny model of make_engine_golden.py."""
    return engine.model(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], 3, 6, False)


def folded(tensors):
    """Ids modulo the tiny model's vocabulary; masks as they are. The end token (2) keeps its id, and gets company."""
    fold = lambda k, v: torch.where(v >= 0, v % engine.V, v) if k.endswith(("input_ids", "labels")) else v
    return {k: fold(k, v) for k, v in tensors.items()}


def gradients(net):
    out = {}
    for key, p in net.named_parameters():
        if "lora_" in key:
            flat = p.grad.reshape(-1)
            key = key.replace("base_model.model.", "").replace(".default.weight", "")
            out[key] = {"norm": flat.norm().item(), "first": flat[:3].tolist(), "last": flat[-1].item()}
    return out


# ---- the paper's code ----

class Paper:
    def __init__(self, checkout, tokenizer, max_length):
        sys.path.insert(0, str(checkout))
        import main as paper_main  # its own ORPO class, without its __init__ that fetches models
        from src.orpo_trainer import ORPOTrainer

        self.trainer_class = ORPOTrainer
        self.item = paper_main.ORPO.__new__(paper_main.ORPO)
        self.item.args = types.SimpleNamespace(prompt_max_length=256, response_max_length=max_length)
        self.item.tokenizer = tokenizer
        if tokenizer.chat_template is None:  # the text that its __init__ sets
            source = (pathlib.Path(checkout) / "main.py").read_text(encoding="utf-8")
            literal = source.split("self.tokenizer.chat_template = ")[1].split("\n")[0]
            tokenizer.chat_template = eval(literal)  # a string literal of that file
        tokenizer.pad_token_id = tokenizer.eos_token_id
        tokenizer.padding_side = "right"

    def encode(self, row):
        """The tensors of one row, or None where its filter leaves the row out."""
        if not self.item.filter_dataset(row):
            return None
        return self.item.preprocess_dataset({k: [v] for k, v in row.items()})

    def loss(self, net, batch, scope_response, pad):
        trainer = self.trainer_class.__new__(self.trainer_class)
        trainer.label_smoother, trainer.pad, trainer.alpha = None, pad, BETA
        trainer.disable_prompt_loss = scope_response
        logged = {}
        with mock.patch("src.orpo_trainer.wandb.log", logged.update, create=True):
            loss, positive = trainer.compute_loss(net, dict(batch), return_outputs=True)
        return loss, positive.loss, logged

    def scored(self, tensors, side):
        """[ids, scored positions]: where its mask is not zero, as positions of the targets. The last may be padding."""
        ids = tensors[side + "_input_ids"][0]
        attention = tensors[side + "_attention_mask"][0]
        mask = attention[:-1] - tensors["attention_mask"][0][1:]
        if (mask < 0).any() or mask.sum() == 0:
            return None
        length = int(attention.sum())
        return [ids[:length].tolist(), (mask.nonzero().reshape(-1) + 1).tolist()]


def paper_goldens(checkout):
    golden = {"tokens": [], "losses": []}
    rows = read_rows("paper")
    for name in ("instruct", "base"):
        for limit in LIMITS:
            paper = Paper(checkout, load_tokenizers()[name], limit)
            out = []
            for row in rows:
                tensors = paper.encode(row)
                sides = [paper.scored(tensors, s) for s in ("positive", "negative")] if tensors else [None]
                out.append(None if None in sides else compact(sides))
            golden["tokens"].append({"model": name, "max_length": limit, "rows": out})
    tokenizer = load_tokenizers()["instruct"]
    for limit, chosen_rows, scope_response in ((64, (0, 2, 4), False), (44, (1, 2, 4), False), (96, (0, 3, 15), False),
                                                  (64, (0, 3, 5), True)):
        net = tiny_model()
        paper = Paper(checkout, tokenizer, limit)
        encoded = [paper.encode(rows[i]) for i in chosen_rows]
        batch = {k: torch.cat([e[k] for e in encoded]) for k in encoded[0]}
        loss, nll, logged = paper.loss(net, folded(batch), scope_response, tokenizer.pad_token_id)
        loss.backward()
        golden["losses"].append({
            "rows": chosen_rows, "max_length": limit, "scope": "response" if scope_response else "full", "beta": BETA,
            "loss_bf16": loss.item(), "nll": nll.item(), "x": logged["Positive Geometric Mean"],
            "y": logged["Negative Geometric Mean"], "log_odds_ratio": logged["Log Odds Ratio"],
            "log_odds": logged["Log Odds"], "gradients": gradients(net)})
    return golden


# ---- LLaMA-Factory ----

class Factory:
    def __init__(self, checkout, tokenizer, max_length):
        sys.path.insert(0, str(pathlib.Path(checkout) / "src"))
        from llamafactory.data import converter, parser, template
        from llamafactory.data.processor.pairwise import PairwiseDatasetProcessor

        self.converter, self.parser = converter, parser
        data_args = types.SimpleNamespace(
            template=None, train_on_prompt=False, tool_format=None, default_system=None, enable_thinking=True,
            preserve_thinking=False, cutoff_len=max_length, media_dir="")
        tokenizer.padding_side = "right"
        self.template = template.get_template_and_fix_tokenizer(tokenizer, data_args)
        self.processor = PairwiseDatasetProcessor(self.template, tokenizer, None, data_args)

    def encode(self, row):
        attr = self.parser.DatasetAttr("file", "rows", ranking=True, chosen="chosen", rejected="rejected")
        attr.formatting = "sharegpt" if "conversations" in row else "alpaca"
        attr.history = "history" if "history" in row else None
        attr.system = "system" if "system" in row else None
        attr.query = "input" if "input" in row else None
        aligned = self.converter.DATASET_CONVERTERS[attr.formatting](attr, None)(row)
        out = self.processor.preprocess_dataset({k: [v] for k, v in aligned.items()})
        return {k: v[0] for k, v in out.items()} if out else None

    @staticmethod
    def scored(features, side):
        labels = features[side + "_labels"]
        positions = [i for i, label in enumerate(labels) if label != -100]
        return [features[side + "_input_ids"], positions] if positions else None

    def loss(self, net, features):
        from llamafactory.data.collator import PairwiseDataCollatorWithPadding
        from llamafactory.train.dpo.trainer import CustomDPOTrainer

        collator = PairwiseDataCollatorWithPadding(
            tokenizer=self.processor.tokenizer, template=self.template, pad_to_multiple_of=8, label_pad_token_id=-100)
        batch = collator(features)
        trainer = CustomDPOTrainer.__new__(CustomDPOTrainer)
        trainer.finetuning_args = types.SimpleNamespace(use_ref_model=False)
        trainer.loss_type, trainer.beta, trainer.ftx_gamma, trainer.ld_alpha = "orpo", BETA, 0.0, None
        trainer.accelerator = types.SimpleNamespace(device="cpu")
        batch = {k: v for k, v in batch.items() if torch.is_tensor(v)}
        return trainer.get_batch_loss_metrics(net, folded(batch))


def factory_goldens(checkout):
    golden = {"tokens": [], "losses": []}
    rows = read_rows("llamafactory")
    for name in ("instruct", "base"):
        for limit in LIMITS:
            factory = Factory(checkout, load_tokenizers()[name], limit)
            out = []
            for row in rows:
                features = factory.encode(row)
                sides = [factory.scored(features, s) for s in ("chosen", "rejected")] if features else [None]
                out.append(None if None in sides else compact(sides))
            golden["tokens"].append({"model": name, "max_length": limit, "rows": out})
    tokenizer = load_tokenizers()["instruct"]
    for limit, chosen_rows in ((1024, (0, 2, 4)), (40, (0, 1, 3))):
        net = tiny_model()
        factory = Factory(checkout, tokenizer, limit)
        loss, metrics = factory.loss(net, [factory.encode(rows[i]) for i in chosen_rows])
        loss.backward()
        golden["losses"].append({"rows": chosen_rows, "max_length": limit, "beta": BETA, "loss": loss.item(),
                                 "metrics": metrics, "gradients": gradients(net)})
    return golden


def compact(sides):
    """[chosen ids, first scored, end of the scored, rejected ids, ...]: scored positions stand together."""
    out = []
    for ids, positions in sides:
        assert positions == list(range(positions[0], positions[-1] + 1))
        out += [ids, positions[0], positions[-1] + 1]
    return out


def main():
    paper, factory = sys.argv[1:3]
    sys.meta_path.insert(0, StandIns(
        "wandb", "trl", "torchaudio", "llamafactory.hparams", "llamafactory.model", "llamafactory.train.callbacks"))
    torch.manual_seed(0)
    made_with = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "peft": peft.__version__}
    for name, golden in (("paper", paper_goldens(paper)), ("llamafactory", factory_goldens(factory))):
        text = json.dumps({"made_with": made_with, **golden}, separators=(",", ":"))
        (HERE / (name + ".json")).write_text(text.replace("],[[", "],\n[[").replace('{"', '\n{"') + "\n", encoding="utf-8")
        print(name, [sum(r is not None for r in t["rows"]) for t in golden["tokens"]], len(golden["losses"]))


main()
