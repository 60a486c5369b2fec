"""A training in plain Python: `regatta train configs/command.ron`, from the root of the checkout.

It needs nothing but the standard library, and of Regatta nothing but variables, lines and files: where torch is at hand,
`torch.distributed.init_process_group()` finds its peers by the same variables.
"""

import argparse
import json
import os
import pathlib
import signal
import time

arguments = argparse.ArgumentParser()
arguments.add_argument("--lr", type=float, required=True)
arguments.add_argument("--epochs", type=int, required=True)
arguments = arguments.parse_args()

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
print(f"rank {rank} of {world}, start {os.environ['TORCHELASTIC_RESTART_COUNT']}")

stop = False


def ask(*_):
    global stop
    stop = True


signal.signal(signal.SIGTERM, ask)  # finish the epoch, save, and end


def tell(**values):
    """What stands after `regatta: ` is for the trainer; all else is the log."""
    print("regatta: " + json.dumps(values))


def save(state):
    """Files below REGATTA_CHECKPOINT_DIR become a checkpoint when they are named."""
    name = f"epoch-{state['epoch']}"
    folder = pathlib.Path(os.environ["REGATTA_CHECKPOINT_DIR"], name)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state))
    tell(checkpoint=name)


state = {"epoch": 0, "slope": 0.0, "offset": 0.0}
restored = os.environ.get("REGATTA_RESTORE_DIR")
if restored:
    state = json.loads(pathlib.Path(restored, "state.json").read_text())

samples = [(x / 50 - 1, 3 * (x / 50 - 1) + 1) for x in range(100)]  # y = 3 x + 1
epochs = 1 if os.environ.get("REGATTA_FAST_DEV_RUN") else arguments.epochs
while state["epoch"] < epochs and not stop:
    loss = 0.0
    for x, y in samples:
        error = state["slope"] * x + state["offset"] - y
        loss += error * error / len(samples)
        state["slope"] -= arguments.lr * error * x
        state["offset"] -= arguments.lr * error
    time.sleep(0.1)  # it would be over before anyone could press Ctrl-C
    state["epoch"] += 1
    if rank == 0:
        tell(loss=loss, step=state["epoch"] * len(samples), epoch=state["epoch"] - 1)
        save(state)
