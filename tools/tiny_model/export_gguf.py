#!/usr/bin/env python3
"""Writes a checkpoint as GGUF, with the keys and tensor names of the architecture `smallthinker`, and reads it back.

    python export_gguf.py CHECKPOINT OUT.gguf [f32|f16|q8_0|q4_0]

Norms and routers stay F32.  In Q4_0 files the embedding and the output matrix are Q8_0.
"""
import json, sys
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Q
import model as tiny

CHAT_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
                 " + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}"
                 "{{ '<|im_start|>assistant\\n' }}{% endif %}")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tensors(model):
    """(GGUF name, array) of every tensor; experts are stacked as (expert, out, in)."""
    yield "token_embd.weight", model.embedding
    yield "output_norm.weight", model.norm
    yield "output.weight", model.output
    for i, layer in enumerate(model.layers):
        gate, up = layer.gate_up.chunk(2, dim=1)
        for name, value in [("attn_norm", layer.attn_norm), ("attn_q", layer.q), ("attn_k", layer.k), ("attn_v", layer.v),
                            ("attn_output", layer.o), ("ffn_norm", layer.ffn_norm), ("ffn_gate_inp", layer.router),
                            ("ffn_gate_exps", gate), ("ffn_up_exps", up), ("ffn_down_exps", layer.down)]:
            yield f"blk.{i}.{name}.weight", value


def tensor_type(name, wanted):
    if "norm" in name or "ffn_gate_inp" in name:
        return Q.F32
    if wanted == Q.Q4_0 and name in ("token_embd.weight", "output.weight"):
        return Q.Q8_0
    return wanted


def export(checkpoint, path, wanted):
    model, tokenizer = tiny.load(checkpoint)
    c, tok = model.config, json.loads(tokenizer)
    w = gguf.GGUFWriter(path, "smallthinker")
    w.add_name("Tiny SmallThinker")
    w.add_description("Tiny SmallThinker model trained on generated text by tools/tiny_model")
    w.add_file_type({Q.F32: gguf.LlamaFileType.ALL_F32, Q.F16: gguf.LlamaFileType.MOSTLY_F16,
                     Q.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0, Q.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0}[wanted])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_block_count(c.layers)
    w.add_context_length(c.context)
    w.add_embedding_length(c.hidden)
    w.add_feed_forward_length(c.expert_ffn)
    w.add_head_count(c.heads)
    w.add_head_count_kv(c.kv_heads)
    w.add_key_length(c.head_dim)
    w.add_value_length(c.head_dim)
    w.add_rope_dimension_count(c.head_dim)
    w.add_rope_freq_base(c.rope_theta)
    w.add_layer_norm_rms_eps(c.eps)
    w.add_vocab_size(c.vocab)
    w.add_expert_count(c.experts)
    w.add_expert_used_count(c.top_k)
    w.add_expert_feed_forward_length(c.expert_ffn)
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    w.add_sliding_window(c.window)

    vocab = sorted(tok["model"]["vocab"].items(), key=lambda item: item[1])
    assert [i for _, i in vocab] == list(range(c.vocab)), "the vocabulary has holes"
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list([t for t, _ in vocab])
    w.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t, _ in vocab])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]])
    ids = dict(vocab)
    w.add_bos_token_id(ids["<|endoftext|>"])
    w.add_eos_token_id(ids["<|im_end|>"])
    w.add_pad_token_id(ids["<|endoftext|>"])
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)

    for name, value in tensors(model):
        kind = tensor_type(name, wanted)
        data = np.ascontiguousarray(value.detach().numpy(), dtype=np.float32)
        if kind != Q.F32:
            data = data.astype(np.float16) if kind == Q.F16 else gguf.quants.quantize(data, kind)
        w.add_tensor(name, data, raw_dtype=None if kind in (Q.F32, Q.F16) else kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def read_model(path):
    """(model, Tokenizer) of a GGUF file that `export` wrote; weights are dequantised."""
    import torch
    from tokenizers import Tokenizer, models
    import tokenizer
    reader = gguf.GGUFReader(path)
    get = lambda key: reader.fields[key].contents()
    own = lambda key: get(f"smallthinker.{key}")
    model = tiny.SmallThinker(tiny.Config(
        vocab=own("vocab_size"), hidden=own("embedding_length"), layers=own("block_count"), heads=own("attention.head_count"),
        kv_heads=own("attention.head_count_kv"), head_dim=own("attention.key_length"), experts=own("expert_count"),
        top_k=own("expert_used_count"), expert_ffn=own("expert_feed_forward_length"), window=own("attention.sliding_window"),
        context=own("context_length"), rope_theta=own("rope.freq_base"), eps=own("attention.layer_norm_rms_epsilon")))
    stored = {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type), dtype=np.float32) for t in reader.tensors}
    with torch.no_grad():
        for name, value in tensors(model):
            value.copy_(torch.from_numpy(stored[name].reshape(tuple(value.shape))))
    vocab = {token: i for i, token in enumerate(get("tokenizer.ggml.tokens"))}
    tok = tokenizer.prepare(Tokenizer(models.BPE(vocab, [tuple(m.split(" ")) for m in get("tokenizer.ggml.merges")])))
    tok.add_special_tokens(SPECIAL)
    return model.eval(), tok


if __name__ == "__main__":
    export(sys.argv[1], sys.argv[2], Q[(sys.argv[3] if len(sys.argv) > 3 else "f32").upper()])
