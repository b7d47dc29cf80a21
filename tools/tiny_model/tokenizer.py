#!/usr/bin/env python3
"""Trains the byte-level BPE (Qwen2 pre-tokenizer, ChatML special tokens) on generated text.

    python tokenizer.py OUT.json [VOCAB_SIZE]
"""
import random, sys
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
import corpus

QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def prepare(tok):
    """Gives a BPE tokenizer the pre-tokenizer and the decoder."""
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    return tok


def train(path, vocab_size=2048, conversations=60000):
    tok = prepare(Tokenizer(models.BPE()))
    rng = random.Random(7)

    def texts():
        for _ in range(conversations):
            _, prompt, answer = corpus.example(rng)
            yield f"{prompt}\n{answer}\nuser\nassistant\nsystem\n"
        for system in corpus.SYSTEM.values():
            for _ in range(500):
                yield system
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[corpus.EOT, corpus.IM_START, corpus.IM_END], show_progress=False)
    tok.train_from_iterator(texts(), trainer)
    tok.save(path)
    return tok


if __name__ == "__main__":
    tok = train(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2048)
    rng, total = random.Random(1), {}
    for _ in range(4000):
        task, prompt, answer = corpus.example(rng)
        total.setdefault(task, []).append(len(tok.encode(corpus.user_text(prompt) + corpus.answer_text(answer)).ids))
    print("vocabulary", tok.get_vocab_size())
    print({task: round(sum(n) / len(n), 1) for task, n in total.items()})
    print("mean tokens per example", sum(map(sum, total.values())) / 4000)
