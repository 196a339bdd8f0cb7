"""The real SmolLM2 GGUF in transformers: dequantised weights, rows unpermuted, and the tokenizer built directly.

transformers' own GGUF conversion builds another tokenizer (byte fallback, no digit splitting), so it is no reference.
Needs: torch, transformers, tokenizers, gguf (all on PyPI).
"""

import os
import pathlib

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_path():
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return pathlib.Path(cache) / "orpo" / "models" / NAME


def field(reader, key):
    return reader.fields[key].contents()


def load_tokenizer(reader):
    tokens = field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in field(reader, "tokenizer.ggml.merges")]
    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    types = field(reader, "tokenizer.ggml.token_type")
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == 3])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = field(reader, "tokenizer.chat_template")
    return tokenizer


HF_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}


def hf_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{HF_NAMES[kind]}.weight"


def unpermute(w, heads):
    """llama.cpp pairs neighbouring rows for RoPE; Hugging Face pairs row j with row j + 32 of a head."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def load_model(reader, dtype=torch.float32):
    n = lambda key: field(reader, "llama." + key)
    config = LlamaConfig(
        vocab_size=len(field(reader, "tokenizer.ggml.tokens")), hidden_size=n("embedding_length"),
        intermediate_size=n("feed_forward_length"), num_hidden_layers=n("block_count"),
        num_attention_heads=n("attention.head_count"), num_key_value_heads=n("attention.head_count_kv"),
        max_position_embeddings=n("context_length"), rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_theta": float(n("rope.freq_base")), "rope_type": "default"},
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    state = {}
    for tensor in reader.tensors:
        w = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".attn_q." in tensor.name:
            w = unpermute(w, config.num_attention_heads)
        if ".attn_k." in tensor.name:
            w = unpermute(w, config.num_key_value_heads)
        state[hf_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(w))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    model.tie_weights()
    return model.to(dtype).eval()


def load(path=None):
    """(model in fp32, tokenizer)"""
    reader = gguf.GGUFReader(str(path or default_path()))
    return load_model(reader), load_tokenizer(reader)
