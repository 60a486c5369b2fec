"""Ray Train as the peer of `cargo xtask bench train`: what it adds around a training loop.

Reads a case a line from stdin and answers each with seconds, as JSON:
    start     fit() with two workers until the first line of user code
    report    one report() of one number, the median of five
    recovery  a worker exits during the run: until user code runs again
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import ray
import ray.train
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


def loop(config):
    started = time.time()
    context = ray.train.get_context()
    rank, scratch, case = context.get_world_rank(), config["scratch"], config["case"]
    again = ray.train.get_checkpoint() is not None
    if again and rank == 0:
        (scratch / "back").write_text(str(started))
    costs = []
    for i in range({"start": 0, "report": 5, "recovery": 4}[case]):
        checkpoint = None
        if case == "recovery" and rank == 0:
            folder = tempfile.mkdtemp()
            pathlib.Path(folder, "state").write_text("1" * 1000)
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        before = time.time()
        ray.train.report({"i": i}, checkpoint=checkpoint)
        costs.append(time.time() - before)
        if case == "recovery" and not again and i == 2 and rank == 1:
            time.sleep(0.5)
            (scratch / "died").write_text(str(time.time()))
            os._exit(1)
    return {"started": started, "costs": costs}


def measure(case):
    scratch = pathlib.Path(tempfile.mkdtemp())
    before = time.time()
    result = DataParallelTrainer(
        loop,
        train_loop_config={"case": case, "scratch": scratch},
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            storage_path=str(scratch), failure_config=ray.train.FailureConfig(max_failures=2)
        ),
    ).fit()
    if case == "start":
        return result.return_value["started"] - before
    if case == "report":
        return statistics.median(result.return_value["costs"])
    return float((scratch / "back").read_text()) - float((scratch / "died").read_text())


# Ray prints to stdout, which is ours to answer on.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
for line in sys.stdin:
    print(json.dumps(measure(line.strip())), file=answers, flush=True)
