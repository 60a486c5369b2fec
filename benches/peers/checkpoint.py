"""The peer of `cargo xtask bench checkpoint`: the same bytes through PyTorch.

    python checkpoint.py FOLDER

Reads lines `<what>_<pieces>` from stdin (`save`, `dcp`, `load`; `62` or `10k` pieces) and answers each with the seconds it took.
`save` is torch.save and fsync, `dcp` is torch.distributed.checkpoint with its own fsync, `load` is torch.load of what
`save` wrote last.
"""

import os
import shutil
import sys
import time

import torch
import torch.distributed.checkpoint as dcp

TOTAL = 1_000_000_000


def model(pieces):
    weights = [1 + (i * 7) % 13 for i in range(pieces)]
    sizes = [TOTAL // 4 * w // sum(weights) for w in weights]
    return {f"layers.{i}.weight": torch.randn(n) for i, n in enumerate(sizes)}


def save(tensors, path):
    if os.path.exists(path):
        os.remove(path)
    start = time.perf_counter()
    with open(path, "wb") as f:
        torch.save(tensors, f)
        f.flush()
        os.fsync(f.fileno())
    return time.perf_counter() - start


def save_dcp(tensors, path):
    shutil.rmtree(path, ignore_errors=True)
    start = time.perf_counter()
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(path, sync_files=True), no_dist=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(path)
    return seconds


def load(tensors, path):
    start = time.perf_counter()
    loaded = torch.load(path)
    seconds = time.perf_counter() - start
    assert loaded.keys() == tensors.keys()
    return seconds


def main():
    folder = sys.argv[1]
    pieces, tensors = None, None
    for line in sys.stdin:
        what, asked = line.strip().rsplit("_", 1)
        if asked != pieces:
            tensors = None
            pieces, tensors = asked, model(10_000 if asked == "10k" else 62)
        path = os.path.join(folder, f"torch-{pieces}.pt")
        seconds = {
            "save": lambda: save(tensors, path),
            "dcp": lambda: save_dcp(tensors, os.path.join(folder, "dcp")),
            "load": lambda: load(tensors, path),
        }[what]()
        print(seconds, flush=True)


main()
