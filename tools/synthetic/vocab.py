"""Vocabularies for synthetic models: a small made-up byte-level BPE one, or that of another GGUF file; and the ChatML template."""
from __future__ import annotations

from pathlib import Path

import gguf

SAMPLE_TEXT = """
A small model can run on a machine at home. The router looks at the token before the attention runs, and
names the experts that the layer is going to need. While the attention is computed the weights of these
experts are read from the disk, so that nothing has to wait for them. Some experts are asked for often and
stay in memory; the others are read when they are named. The gate of an expert is often zero, and a row of
the up matrix or of the down matrix that meets a zero need not be read at all. The user asks a question and
the assistant gives an answer: one, two, three, four, five, six, seven, eight, nine, ten. What is the time?
It is ten to five. How many words are there in this text? There are more than a hundred of them here.
"""


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in GPT-2 style vocabularies."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, extra = [], 0
    for byte in range(256):
        if byte in plain:
            table.append(chr(byte))
        else:
            table.append(chr(256 + extra))
            extra += 1
    return table


def learn_merges(text: str, limit: int) -> list[tuple[str, str]]:
    """Plain byte-pair encoding over the words of a text."""
    alphabet = byte_alphabet()
    words = [[alphabet[b] for b in (" " + word).encode()] for word in text.split()]
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        counts: dict[tuple[str, str], int] = {}
        for word in words:
            for pair in zip(word, word[1:]):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges


def synthetic_vocab(n_vocab: int) -> dict:
    if n_vocab < 260:
        raise SystemExit("a byte-level vocabulary needs at least 260 tokens")
    merges = learn_merges(SAMPLE_TEXT, n_vocab - 256 - 3)
    tokens = byte_alphabet()
    for a, b in merges:
        if a + b not in tokens:
            tokens.append(a + b)
    types = [gguf.TokenType.NORMAL] * len(tokens)
    first_special = len(tokens)
    tokens += ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    types += [gguf.TokenType.CONTROL] * 3
    while len(tokens) < n_vocab:
        tokens.append(f"[PAD{len(tokens)}]")
        types.append(gguf.TokenType.UNUSED)
    return dict(pre="qwen2", tokens=tokens, types=types, merges=[f"{a} {b}" for a, b in merges],
                bos=first_special, eos=first_special + 2, pad=first_special)


def copied_vocab(path: Path, n_vocab: int) -> dict:
    """Vocabulary of an existing GGUF file, padded to n_vocab."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    if len(tokens) > n_vocab:
        raise SystemExit(f"{path} has {len(tokens)} tokens, the model only {n_vocab}")
    while len(tokens) < n_vocab:
        types.append(gguf.TokenType.UNUSED)
        tokens.append(f"[PAD{len(tokens)}]")
    bos = tokens.index("<|endoftext|>")
    return dict(pre=fields["tokenizer.ggml.pre"].contents(), tokens=tokens, types=types,
                merges=fields["tokenizer.ggml.merges"].contents(), bos=bos, eos=tokens.index("<|im_end|>"), pad=bos)


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
