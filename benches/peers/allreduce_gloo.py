"""A peer of `cargo xtask bench comm`: all-reduce of f32 sums by gloo, through torch.distributed.

    python allreduce_gloo.py WORLD

Reads the name of a size from stdin and answers with the microseconds of one call on the slowest rank, the best of its repeats.
"""

import os
import socket
import sys
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# The parts of one call in bytes, and how many calls are timed together. resnet18: DDP's buckets of its gradients.
SIZES = {
    "1KB": ([1 << 10], 200),
    "64KB": ([1 << 16], 100),
    "1MB": ([1 << 20], 20),
    "16MB": ([16 << 20], 3),
    "100MB": ([100_000_000], 1),
    "resnet18": ([2_052_000, 28_852_224, 15_853_824], 1),
}
REPEATS = 5


def measure(size):
    parts, calls = SIZES[size]
    tensors = [torch.full((n // 4,), 1e-30) for n in parts]
    best = float("inf")
    for repeat in range(REPEATS + 1):
        dist.barrier()
        began = time.perf_counter()
        for _ in range(calls):
            for work in [dist.all_reduce(t, async_op=True) for t in tensors]:
                work.wait()
        slowest = torch.tensor([(time.perf_counter() - began) / calls * 1e6], dtype=torch.float64)
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
        if repeat:
            best = min(best, slowest.item())
    return best


def rank(number, world, port, queues, answers):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=world)
    for size in iter(queues[number].get, None):
        us = measure(size)
        if number == 0:
            answers.put(us)


def main():
    world = int(sys.argv[1])
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    queues, answers = [context.Queue() for _ in range(world)], context.Queue()
    mp.spawn(rank, (world, port, queues, answers), nprocs=world, join=False, daemon=True)
    for line in sys.stdin:
        for queue in queues:
            queue.put(line.strip())
        print(answers.get(), flush=True)


if __name__ == "__main__":
    main()
