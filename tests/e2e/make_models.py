#!/usr/bin/env python3
"""Writes the synthetic models that the reference logits belong to, and checks that they are those models, byte for byte.

    make_models.py FOLDER

A file that is there with the right checksum is kept. tests/reference/README.md says what each model is for.
"""
import hashlib
import pathlib
import subprocess
import sys

GENERATOR = pathlib.Path(__file__).resolve().parents[2] / "tools/synthetic/make_gguf.py"

# name: (arguments of make_gguf.py, sha256 of the file)
MODELS = {
    "tiny-F32": ("--preset tiny --type F32", "078df2b088456f57215146022b091e9779a7d2dd115130220552ed7761fbd81b"),
    "tiny-F16": ("--preset tiny --type F16", "b83c3cd05ee3958e94993d5e5a080bb832adacae152cd513cdaef2835d9d60f5"),
    "tiny-Q8_0": ("--preset tiny --type Q8_0", "8dd5e068cbb057a71484f95d6eccc44b702a76627aa424286ada7a4e97145ff7"),
    "tiny-Q4_0": ("--preset tiny --type Q4_0", "0921dc89177917f9246d1fab3724038ab9cd6afe431af32cfc5b882b28a425c2"),
    "tiny-softmax-F32": ("--preset tiny --type F32 --gating softmax", "1c3d2e5a76917763014a1c9b55c7d6f4f56879b5c9c58674029b76d5c303340b"),
    "tiny-rope-F32": ("--preset tiny-rope --type F32", "a656ac2ff1660ef32337a2d6375b9d62c0eff9dfded2619aa97a91a6821ba603"),
    "tiny-rope-Q4_0": ("--preset tiny-rope --type Q4_0", "b26ef834fb1718e2337ab5995b724d0732443ea04bb3c84155fcc50a818f0d0b"),
    "tiny-window20-F32": ("--preset tiny --type F32 --set window=20", "6ee39d40f975cd9ba7c1364feb3af7370ba40c40e167057c511a1536d6fa187d"),
    "tiny-transposed-F32": ("--preset tiny --type F32 --down-layout transposed", "34193e4ee063eefc1b583f33a2676a47096ff96982b9c23b4beff4e5010274e8"),
    "tiny-nogating-F32": ("--preset tiny --type F32 --gating omit", "43621b27a67a0f6027d2f6d7aaa7779b04ce29af34d50fb94cf72715ec95a4d3"),
}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make(folder, name):
    """Path of the model, written if it is not there. SystemExit when the bytes are not the recorded ones."""
    arguments, wanted = MODELS[name]
    path = folder / f"{name}.gguf"
    if path.exists() and sha256(path) == wanted:
        return path
    part = path.with_suffix(".part")
    subprocess.run([sys.executable, GENERATOR, *arguments.split(), "--out", part], check=True, stderr=subprocess.DEVNULL)
    found = sha256(part)
    if found != wanted:
        raise SystemExit(f"{name}: make_gguf.py {arguments} gave sha256 {found}, recorded is {wanted}: other versions of numpy or gguf "
                         "than tools/requirements.txt pins, or make_gguf.py has changed; the references belong to the recorded file")
    part.rename(path)
    return path


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        print(make(folder, name))


if __name__ == "__main__":
    main()
