"""The peer of `cargo xtask bench step`: the same training steps in PyTorch.

    python step.py DATA

Reads a case's name from stdin and answers with samples (ResNet-18) or steps (the MLP) a second, one line each.
DATA holds MNIST's test set as IDX files. The optimiser is the fastest that PyTorch has for the processor: fused Adam.
"""

import gzip
import os
import struct
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout)
        self.down = None
        if stride != 1 or cin != cout:
            self.down = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        skip = x if self.down is None else self.down(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + skip, inplace=True)


class ResNet18(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        layers, cin = [], 64
        for cout, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [Block(cin, cout, stride), Block(cout, cout, 1)]
            cin = cout
        self.body, self.head = nn.Sequential(*layers), nn.Linear(512, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn(self.stem(x)), inplace=True), 3, 2, 1)
        return self.head(self.body(x).mean((2, 3)))


def idx(path):
    with gzip.open(path) as f:
        raw = f.read()
    dims = raw[3]
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    return torch.frombuffer(bytearray(raw[4 + 4 * dims :]), dtype=torch.uint8).reshape(shape)


def trainer(model, x, y, batch, autocast):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    cursor = 0

    def step():
        nonlocal cursor
        if cursor + batch > len(x):
            cursor = 0
        inputs, labels = x[cursor : cursor + batch], y[cursor : cursor + batch]
        cursor += batch
        if autocast:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(inputs), labels)
        else:
            loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main():
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder = sys.argv[1]
    x = (idx(f"{folder}/t10k-images-idx3-ubyte.gz").float().div(255).sub(0.5).div(0.5)).unsqueeze(1)
    y = idx(f"{folder}/t10k-labels-idx1-ubyte.gz").long()
    mlp = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    cases = {
        "resnet18_cpu_f32": (trainer(ResNet18(), x, y, 128, False), 5, 128),
        "resnet18_cpu_bf16": (trainer(ResNet18(), x, y, 128, True), 5, 128),
        "mlp_cpu": (trainer(mlp, x.flatten(1).contiguous(), y, 64, False), 2000, 1),
    }
    for line in sys.stdin:
        step, steps, unit = cases[line.strip()]
        began = time.perf_counter()
        for _ in range(steps):
            step()
        print(steps * unit / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
