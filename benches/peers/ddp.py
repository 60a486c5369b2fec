"""The peer of the data-parallel cases of `cargo xtask bench train`: PyTorch's DistributedDataParallel over gloo.

    python ddp.py

Reads a case's name from stdin and answers with samples (ResNet-18) or steps (the MLP) a second of both workers
together, one line each. It is its own workers: two processes with one thread each, which wait in a read between the
cases. The optimiser is the fastest that PyTorch has for the processor: fused Adam.
"""

import os
import socket
import subprocess
import sys
import time

WORLD = 2


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def contestant():
    env = dict(os.environ, OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(WORLD))
    workers = []
    for rank in range(WORLD):
        out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        command = [sys.executable, __file__]
        workers.append(subprocess.Popen(command, env=dict(env, RANK=str(rank)), stdin=subprocess.PIPE, stdout=out, text=True))
    for line in sys.stdin:
        for worker in workers:
            worker.stdin.write(line)
            worker.stdin.flush()
        print(workers[0].stdout.readline(), end="", flush=True)
    for worker in workers:
        worker.stdin.close()
        worker.wait()


def worker():
    import torch
    import torch.distributed as dist
    import torch.nn as nn
    import torch.nn.functional as F
    from step import ResNet18

    torch.manual_seed(0)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    # Noise of the shape of MNIST, as our side has it: what it is does not change how long a step takes.
    x = torch.rand(10_000, 1, 28, 28) * 2 - 1
    y = torch.randint(10, (10_000,))

    def trainer(model, x, batch):
        model = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        cursor = rank * batch

        def step():
            nonlocal cursor
            if cursor + batch > len(x):
                cursor = 0
            inputs, labels = x[cursor : cursor + batch], y[cursor : cursor + batch]
            cursor += batch * WORLD
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    mlp = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    cases = {
        "resnet18_2workers": (trainer(ResNet18(), x, 128), 5, 128 * WORLD),
        "mlp_2workers": (trainer(mlp, x.flatten(1).contiguous(), 64), 1000, 1),
    }
    for line in sys.stdin:
        step, steps, unit = cases[line.strip()]
        step()
        dist.barrier()
        began = time.perf_counter()
        for _ in range(steps):
            step()
        dist.barrier()
        if rank == 0:
            print(steps * unit / (time.perf_counter() - began), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    worker() if "RANK" in os.environ else contestant()
