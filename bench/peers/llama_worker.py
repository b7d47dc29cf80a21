#!/usr/bin/env python3
"""One repetition of llama.cpp: loads a model, reads a prompt, decodes fixed ids, prints the times as JSON. Runs in the virtual environment that setup.sh makes.

Token ids come from a file (every run of digits): the first --pp are the prompt, the next --tg are decoded one at a time, whatever the model would have said.
Times are of llama_decode and of waiting for its logits; loading and one uncounted pass (--warmup) come before.
"""
import argparse
import array
import ctypes
import json
import math
import pathlib
import re
import sys
import time

import llama_cpp
from llama_cpp import llama_cpp as ll


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--pp", type=int, required=True)
    parser.add_argument("--tg", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ctx", type=int, required=True)
    parser.add_argument("--flash", choices=["on", "off"], default="on")
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--no-repack", action="store_true", help="leave the weights in the mapped file: what a model larger than memory needs")
    parser.add_argument("--logits", help="write the float32 logits after the prompt here")
    args = parser.parse_args()

    messages = []

    def listen(level, text, _):
        messages.append(text.decode(errors="replace"))
    callback = ll.llama_log_callback(listen)
    ll.llama_log_set(callback, ctypes.c_void_p(0))
    ll.llama_backend_init()
    ids = [int(number) for number in re.findall(r"\d+", pathlib.Path(args.tokens).read_text())]
    if len(ids) < args.pp + args.tg:
        raise SystemExit(f"{args.tokens} has {len(ids)} ids, {args.pp} + {args.tg} are asked for")

    begin = time.perf_counter()
    model_options = ll.llama_model_default_params()
    model_options.n_gpu_layers = 0
    model_options.load_mode = ll.LLAMA_LOAD_MODE_MMAP
    model_options.use_extra_bufts = not args.no_repack
    model = ll.llama_model_load_from_file(args.file.encode(), model_options)
    if not model:
        raise SystemExit("llama.cpp cannot load the model: " + "".join(messages[-5:]).strip())
    options = ll.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = args.ctx, max(args.pp, 1), args.ubatch
    options.n_threads = options.n_threads_batch = args.threads
    options.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED if args.flash == "on" else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.swa_full = False
    context = ll.llama_init_from_model(model, options)
    if not context:
        raise SystemExit("llama.cpp cannot make a context: " + "".join(messages[-5:]).strip())
    load_s = time.perf_counter() - begin
    n_vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(model))

    def decode(tokens):
        buffer = (ll.llama_token * len(tokens))(*tokens)
        begin = time.perf_counter()
        code = ll.llama_decode(context, ll.llama_batch_get_one(buffer, len(tokens)))
        logits = ll.llama_get_logits_ith(context, -1) if code == 0 else None
        seconds = time.perf_counter() - begin
        if code != 0:
            raise SystemExit(f"llama_decode of {len(tokens)} tokens failed with {code}: " + "".join(messages[-5:]).strip())
        return seconds, logits

    for counted in [False] * args.warmup + [True]:
        ll.llama_memory_clear(ll.llama_get_memory(context), True)
        pp_s, last = 0.0, None
        if args.pp:
            pp_s, logits = decode(ids[:args.pp])
            if counted:
                last = array.array("f", ctypes.string_at(logits, 4 * n_vocab))
        # The uncounted pass decodes enough to start its threads and to touch its buffers.
        tg_s = [decode([i])[0] for i in ids[args.pp:args.pp + (args.tg if counted else min(args.tg, 8))]]

    if args.logits and last is not None:
        pathlib.Path(args.logits).write_bytes(last.tobytes())
    top = max(range(n_vocab), key=last.__getitem__) if last is not None else None
    assert top is None or math.isfinite(last[top])
    json.dump({"load_s": load_s, "pp_s": pp_s, "tg_s": tg_s, "top": top, "version": llama_cpp.__version__,
               "features": ll.llama_print_system_info().decode().strip()}, sys.stdout)


if __name__ == "__main__":
    main()
