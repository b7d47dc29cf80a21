#!/usr/bin/env python3
"""Writes tokenizer cases: what Hugging Face's `tokenizers` makes of many texts, with the vocabulary of the bundled tiny model.

    python make_cases.py ../../../tools/tiny_model/tiny-smallthinker-q4_0.gguf cases.txt
    python make_cases.py MODEL.gguf OUT.txt --sweep    (every character of Unicode in several surroundings; 200 MB, not kept)

One case a line, separated by tabs: pre-tokenizer, special tokens (parse or as_text), text, byte lengths of its pieces, ids. In the text every
byte but printable ASCII is \\xNN, and so is the backslash. Pieces are given for as_text only: a special token is no piece.
Needs: pip install tokenizers gguf. Same versions, same output; cases.txt was made with tokenizers 0.23.3.
"""
import argparse
import random

from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

# The regular expressions as the tokenizer.json files of Qwen2 and Llama 3 have them.
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def byte_level(regex):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), behavior="isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


FAMILIES = {  # name in tokenizer.ggml.pre: (pre-tokenizer, ignore_merges)
    "qwen2": (byte_level(QWEN2), False),
    "llama-bpe": (byte_level(LLAMA3), True),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2()]), False),
    "gpt-2": (gpt2(), False),
}

PLAIN = """
Hello, world!|The quick brown fox jumps over the lazy dog.|What is 12 + 30?|island|The island and the other islands.
It's I'm you're we've they'll he'd don't|IT'S I'M YOU'RE WE'VE THEY'LL HE'D DON'T|it'S i'M You'Re wE'vE|'s't're've'm'll'd|''s '' 't'' '
'\u017f it'\u017fs \u017f's|\u2019s it\u2019s don\u2019t|o'clock rock'n'roll 'twas|x's1's 's1
1|12|123|1234|12345678901|3.14159|1,000,000|0x1F|a1b2c3|1a 2b 3c|2024-05-06T07:08:09Z|v1.2.3-rc4|5%|$100|1 2 3|1  2   3|x=1;y=22;z=333
\u00bd \u00bc\u00be x\u00b2 \u2460\u2461 \u2167 \u216b|\u0661\u0662\u0663\u0664|\u0967\u0968\u0969 \u09e7|\uff11\uff12\uff13|\U0001d7ce\U0001d7cf\U0001d7d0\U0001d7d1|\u3007\u4e00\u4e8c
foo(bar, baz);|if (a <= b && c != d) { return -1; }|#include <vector>|a_b_c __init__ snake_case|camelCase HTTPServer|</div><p class="x">|{"k": [1, 2]}
... --- *** ### !!! ???|a...b|(((nested)))|hello!!!|e-mail@example.com|https://example.com/a?b=c&d=%20e#f|C++ C# .NET|\\n is not a newline|~`@#$%^&*()_+-=[]{}|;:
\u00c4pfel \u00e9t\u00e9 na\u00efve \u00df\u00d8\u0142|a\u0301e\u0300 o\u0308|\u0915\u094d\u0937\u093f|\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35|\u1112\u1161\u11ab|n\u0303\u0303\u0303
\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002|\u4f60\u597d\uff0c\u4e16\u754c\uff01|\ud55c\uad6d\uc5b4 \ubb38\uc7a5|\u3053\u3093\u306b\u3061\u306f123\u4e16\u754c|\u534a\u89d2\uff76\uff9e
\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645|\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd|\u0441\u043b\u0430\u0432\u0430 \u043c\u0438\u0440\u0443|\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u03ba\u03cc\u03c3\u03bc\u03b5|\u0928\u092e\u0938\u094d\u0924\u0947
\U0001f600 \U0001f600\U0001f600|\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466|\U0001f44d\U0001f3fd ok|\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7|\u2764\ufe0f|a\U0001f600b|1\ufe0f\u20e3|\U0001f999.cpp
\u200b \u200b\u200b x|a\u200db|\ufeffbom|\u00ad\u00adsoft\u00adhyphen|\u2028x\u2029y|\u0085 x|a\u0085\u0085b|\u180e x \u180ey|\u00a0x\u00a0\u00a0y|\u3000\u3000x|\u2003\u2003a 1|\u1680\u202f\u205fz
\u20ac10 \u00a35 \u00a52|\u221a2 \u2248 1.41|\u2200x\u2203y|\u2190\u2191\u2192|\u266b\u266a|\u2500\u2502\u250c|\u00aa \u00ba|\u02bc\u0149|\u01c5 \u01f2|\u00b5m \u2126|\ue000\uf8ff|\ufffd\ufffe\uffff|\U0010fffd\U0010ffff|\U000e0001
\u1c89\u1c8a \ua7cb1|\U00010d40\U00010d4a|\U00010d6f1\U00010d85|\U00016d401\U00016d70|\U0001e4d0\U0001e4f0\U0001e4f1|\U00031350\u4e00\U000323af.|\U0002ebf0\U0002ee5d\U0002ee5e|\U0001e5d0\U0001e5f1 \U0001ccf0\U0001ccf9|\U00011f04 \U00011f50a
"""
SPACE = ["", " ", "  ", "   ", "\t", "\t\t", " \t", "\n", "\n\n", "\n\n\n", "\r", "\r\n", "\r\n\r\n", "\n\r", " \n", "\n ", "  \n  ", " \n \n ", "\t\n", "\n\t",
         "\v", "\f", " \v \f ", "\x1c\x1d\x1e\x1f", "\0", "\0\0 \0", "\x01\x02", "\x7f", "\x80\x9f", "\u00a0\n", "\u2028\n", "\n\u2029"]
SPECIAL = ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "<|im_end|><|im_end|>", " <|im_end|> ", "a<|endoftext|>b", "<|im_start|", "<|im_st<|im_end|>",
           "<<|im_end|>>", "<|im_end|>\n\n", "it's<|im_end|>'s", "1<|im_start|>2"]


def texts(rng):
    plain = [t for line in PLAIN.strip().split("\n") for t in line.split("|") if t]
    out = plain + SPACE
    out += [s + "x" for s in SPACE] + ["x" + s + "1" for s in SPACE] + ["." + s + "'s" for s in SPACE[1:]]
    pools = ["aeinorst THE  ", "0123456789 ,.", " \t\n\r\u00a0", "'sStTdDmMlLrReEvV ", "aZ\u00e9\u0416\u4e2d\u0639 1\u0663\u00bd.,!\U0001f600\u0301\n\t", "<|>im_startend\n "]
    for pool in pools:
        out += ["".join(rng.choice(pool) for _ in range(rng.randrange(2, 40))) for _ in range(12)]
    out += ["".join(chr(rng.choice([rng.randrange(0x80), rng.randrange(0x800), rng.randrange(0x800, 0xd800), rng.randrange(0x10000, 0x20000)]))
                    for _ in range(rng.randrange(1, 16))) for _ in range(24)]
    out += ["".join(rng.choice(plain + SPACE) for _ in range(4)) for _ in range(30)]
    return list(dict.fromkeys(out))


def sweep():
    # All that Unicode 16 assigns; above, private use and nothing, by samples.
    for c in [*range(0x32400), *range(0xe0000, 0xe0200), *range(0x32400, 0x110000, 1009)]:
        if not 0xd800 <= c < 0xe000:
            yield f"{chr(c)}a {chr(c)}1{chr(c)}{chr(c)}  {chr(c)}'{chr(c)}\n{chr(c)} "


def escape(text):
    return "".join(chr(b) if 0x20 <= b < 0x7f and b != 0x5c else f"\\x{b:02x}" for b in text.encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    fields = GGUFReader(args.model).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    cases = list(sweep()) if args.sweep else texts(random.Random(20))
    with open(args.out, "w", encoding="ascii", newline="\n") as out:
        for name, (pre, ignore_merges) in FAMILIES.items():
            tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges, ignore_merges=ignore_merges))
            tok.pre_tokenizer = pre
            tok.add_special_tokens([t for t, kind in zip(tokens, types) if kind == 3])
            for special in ("as_text", "parse"):
                tok.encode_special_tokens = special == "as_text"
                chosen = SPECIAL if special == "parse" else cases + SPECIAL
                for text, encoding in zip(chosen, tok.encode_batch(chosen)):
                    # A piece has one character of the byte alphabet for each byte.
                    pieces = pre.pre_tokenize_str(text) if special == "as_text" else []
                    out.write("\t".join([name, special, escape(text), " ".join(str(len(p)) for p, _ in pieces),
                                         " ".join(map(str, encoding.ids))]) + "\n")


if __name__ == "__main__":
    main()
