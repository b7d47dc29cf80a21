#!/usr/bin/env python3
"""Evaluates the tiny model in PyTorch: the program's tests are judged by these figures.

    python evaluate.py tasks   MODEL EVAL.jsonl [REPORT.json]
    python evaluate.py refs    MODEL OUT_DIR                      reference logits (npy + JSON)
    python evaluate.py samples MODEL

MODEL is a checkpoint of train.py or a GGUF file, whose weights are dequantised.
A task answer is right when greedy decoding yields exactly the expected tokens.  That is
decided with one forward pass: the expected token must be the arg max at every position
of the answer, its end token included.  Stories are generated and checked by their grammar.
"""
import collections, json, pathlib, sys
import numpy as np
import torch
from tokenizers import Tokenizer
import corpus, export_gguf, model as tiny

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def load(path):
    if str(path).endswith(".gguf"):
        return export_gguf.read_model(path)
    model, tokenizer = tiny.load(path)
    return model, Tokenizer.from_str(tokenizer)


def batches(rows, tok, size=32):
    """Rows sorted by length and padded on the right: (rows, prompt ids, answer ids, ids)."""
    items = [(r, tok.encode(r["text"]).ids, tok.encode(r["answer"] + corpus.IM_END).ids) for r in rows]
    items.sort(key=lambda x: len(x[1]) + len(x[2]))
    for i in range(0, len(items), size):
        part = items[i:i + size]
        width = max(len(p) + len(a) for _, p, a in part)
        yield part, torch.tensor([p + a + [0] * (width - len(p) - len(a)) for _, p, a in part])


class Statistics:
    """Experts of every real token: frequencies per task, temporal locality, ReLU sparsity."""

    def __init__(self, model):
        self.model, c = model, model.config
        self.frequency = collections.defaultdict(lambda: torch.zeros(c.layers, c.experts))
        self.zero, self.neurons = torch.zeros(c.layers), torch.zeros(c.layers)
        self.top1, self.shared, self.pairs = torch.zeros(c.layers), torch.zeros(c.layers), 0
        self.lru = {size: [0, 0] for size in (4, 6, 8, 10, 12)}

    def batch(self, part, ids):
        """Runs the model and returns its logits."""
        c, shape = self.model.config, ids.shape
        length = torch.tensor([len(p) + len(a) for _, p, a in part])
        real = torch.arange(shape[1])[None, :] < length[:, None]
        pair = real[:, 1:]

        def record(layer, experts, logits, normed):
            gate = self.model.layers[layer].gate_up[:, :c.expert_ffn]
            flat = real.reshape(-1)
            for e in range(c.experts):
                rows = normed[flat & (experts == e).any(1)]
                self.zero[layer] += (rows @ gate[e].t() <= 0).sum()
                self.neurons[layer] += rows.shape[0] * c.expert_ffn
            chosen = experts.view(*shape, c.top_k)
            self.top1[layer] += (chosen[:, 1:, 0] == chosen[:, :-1, 0])[pair].sum()
            both = (chosen[:, 1:, :, None] == chosen[:, :-1, None, :]).any(-1).float().mean(-1)
            self.shared[layer] += both[pair].sum()
            for b, (row, _, _) in enumerate(part):
                used = chosen[b, :length[b]]
                self.frequency[row["task"]][layer] += torch.bincount(used.reshape(-1), minlength=c.experts)
                if b % 8 == 0:
                    self.cache(used.tolist())
        logits = self.model(ids, record=record)
        self.pairs += int(pair.sum())
        return logits

    def cache(self, used):
        """Hit rate of an LRU cache of some experts per layer, over one conversation from a cold start."""
        for size, count in self.lru.items():
            held = []
            for token in used:
                for e in token:
                    count[0] += e in held
                    count[1] += 1
                    if e in held:
                        held.remove(e)
                    held.append(e)
                del held[:-size]

    def summary(self):
        c = self.model.config
        share = {t: f / f.sum(1, keepdim=True) for t, f in self.frequency.items()}
        overall = sum(share.values()) / len(share)
        hot = lambda n: {t: round(float(s.sort(1, descending=True)[0][:, :n].sum(1).mean()), 3) for t, s in share.items()}
        return {
            "relu_sparsity_per_layer": [round(x, 3) for x in (self.zero / self.neurons).tolist()],
            "relu_sparsity": round(float(self.zero.sum() / self.neurons.sum()), 3),
            "top1_same_as_previous_token": [round(x / self.pairs, 3) for x in self.top1.tolist()],
            "experts_shared_with_previous_token": [round(x / self.pairs, 3) for x in self.shared.tolist()],
            "uniform_chance": {"top1": 1 / c.experts, "shared": c.top_k / c.experts},
            "lru_hit_rate_by_experts_kept": {n: round(h / t, 3) for n, (h, t) in self.lru.items()},
            "share_of_4_hottest_experts_per_task": hot(4), "share_of_8_hottest_experts_per_task": hot(8),
            "distance_of_task_from_mean_frequency": {t: round(float((s - overall).abs().sum(1).mean() / 2), 3) for t, s in share.items()},
            "max_frequency_per_layer": [round(x, 3) for x in overall.max(1)[0].tolist()],
            "min_frequency_per_layer": [round(x, 4) for x in overall.min(1)[0].tolist()],
            "frequency": {t: [[round(x, 4) for x in row] for row in s.tolist()] for t, s in share.items()},
        }


def tasks(path, eval_path, report_path=None):
    model, tok = load(path)
    rows = [json.loads(line) for line in open(eval_path)]
    right, total, misses = collections.Counter(), collections.Counter(), []
    statistics = Statistics(model)
    for part, ids in batches([r for r in rows if r["task"] != "story"], tok):
        best = statistics.batch(part, ids).argmax(-1)
        for b, (row, prompt, answer) in enumerate(part):
            got = best[b, len(prompt) - 1:len(prompt) - 1 + len(answer)].tolist()
            total[row["task"]] += 1
            right[row["task"]] += got == answer
            if got != answer:
                misses.append((row["task"], row["prompt"], row["answer"], tok.decode(got)))
    stories = [r for r in rows if r["task"] == "story"]
    for row in stories[:24]:
        ids = tok.encode(row["text"]).ids
        out = model.generate(ids, {tok.token_to_id(corpus.IM_END)})
        text = tok.decode(out)
        total["story"] += 1
        good = corpus.story_ok(row["prompt"], text)
        right["story"] += good
        if not good:
            misses.append(("story", row["prompt"], "(coherent story)", text))
        part = [(row, ids, out)]
        statistics.batch(part, torch.tensor([ids + out]))
    accuracy = {t: round(right[t] / total[t], 3) for t in corpus.TASKS if total[t]}
    report = {"accuracy": accuracy, "mean_accuracy": round(sum(accuracy.values()) / len(accuracy), 4),
              "all_prompts": [sum(right.values()), sum(total.values())]} | statistics.summary()
    if report_path:
        pathlib.Path(report_path).write_text(json.dumps(report, indent=1))
    for key, value in report.items():
        if key != "frequency":
            print(key, value)
    for miss in misses[:40]:
        print("MISS", miss)


def long_conversation(tok, tokens=400):
    """Several turns in one conversation, longer than the sliding window."""
    text, ids = "", []
    for row in corpus.eval_set(2, seed=5):
        if row["task"] in ("add", "extract", "en_fr", "sensor", "sort", "fact", "summarise", "command"):
            text += corpus.user_text(row["prompt"]) + corpus.answer_text(row["answer"])
            if len(tok.encode(text).ids) > tokens:
                break
    return text + corpus.user_text("What is 46 + 37?")


def reference_prompts(tok):
    first = {r["task"]: r for r in reversed(corpus.eval_set(3, seed=3))}
    return {"arithmetic": corpus.user_text(first["add"]["prompt"]),
            "translation": corpus.system_text("en_de") + corpus.user_text(first["en_de"]["prompt"]),
            "long": long_conversation(tok)}


def refs(path, out_dir):
    """Per prompt: ids, text, greedy continuation, and the logits of prompt + continuation, one row per token."""
    model, tok = load(path)
    out = pathlib.Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in reference_prompts(tok).items():
        ids = tok.encode(text).ids
        reply = model.generate(ids, {tok.token_to_id(corpus.IM_END)})
        gaps = []                                                # distance of the k-th from the next router logit
        def record(layer, experts, z, _):
            top = z.sort(-1, descending=True)[0]
            gaps.append(top[:, model.config.top_k - 1] - top[:, model.config.top_k])
        logits = model(torch.tensor([ids + reply]), record=record)[0].numpy()
        np.save(out / f"{name}.npy", logits.astype(np.float32))
        (out / f"{name}.json").write_text(json.dumps(dict(
            text=text, prompt_ids=ids, reply=tok.decode(reply), reply_ids=reply, logits=f"{name}.npy",
            shape=list(logits.shape), router_gap=[float(f"{g:.2g}") for g in torch.stack(gaps).min(0)[0].tolist()], note=f"row i: logits after token i of prompt_ids + reply_ids; weights of {pathlib.Path(path).name}, window "
            f"{model.config.window}; router_gap: least distance over the layers of the last chosen expert's logit from the next, "
            "below about 1e-4 another rounding may choose another expert for that token"), ensure_ascii=False, indent=1))
        print(name, len(ids), "tokens ->", tok.decode(reply))


SAMPLES = ["Hello! How are you?", "What is 38 + 47?", "How many minutes are 5 hours?", "What is a router?",
           "Translate to German: The old teacher buys a red car.", "Translate to French: My friend sees a small bird.",
           "Sort these words alphabetically: zebra, lamp, cloud", "Turn on the lamp in the kitchen. Answer in JSON.",
           '[{"id":"temp3","value":78,"limit":60},{"id":"water1","value":30,"limit":55}] Emit the JSON action.',
           "Summarise this notice in one sentence: The Old library will close on Friday 12 March. Bring your own bag. "
           "The reason is a power cut. Call 555-0199 for details.", "Tell me a short story about a fox named Leo."]


def samples(path):
    model, tok = load(path)
    for prompt in SAMPLES:
        print(">", prompt)
        print("   ", tok.decode(model.generate(tok.encode(corpus.user_text(prompt)).ids, {tok.token_to_id(corpus.IM_END)})))


if __name__ == "__main__":
    {"tasks": tasks, "refs": refs, "samples": samples}[sys.argv[1]](*sys.argv[2:])
