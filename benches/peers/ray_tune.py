"""Ray Tune as the peer of `cargo xtask bench tune`: what a trial costs that does nothing but report.

Reads a case a line from stdin and answers each with seconds, as JSON:
    reuse <trials>     in actors that are kept
    default <trials>   in an actor of its own each
"""

import json
import os
import sys
import tempfile
import time

import ray
from ray import tune


def trial(config):
    tune.report({"sum": config["x"] + config["y"]})


def fit(trials, reuse):
    space = {name: tune.uniform(0, 1) for name in ("x", "y")}
    settings = tune.TuneConfig(num_samples=trials, metric="sum", mode="min", reuse_actors=reuse)
    with tempfile.TemporaryDirectory() as folder:
        run = tune.RunConfig(storage_path=folder, verbose=0)
        began = time.perf_counter()
        grid = tune.Tuner(trial, param_space=space, tune_config=settings, run_config=run).fit()
        took = time.perf_counter() - began
    assert grid.num_errors == 0, grid.errors
    return took


# Ray prints to stdout, which is ours to answer on.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
for line in sys.stdin:
    mode, trials = line.split()
    print(json.dumps(fit(int(trials), mode == "reuse")), file=answers, flush=True)
