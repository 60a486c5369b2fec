"""Optuna's side of `cargo xtask bench tune`: reads a case from stdin, answers with one line of JSON.

`tpe 10000`, `gp 200`: milliseconds of an ask, its suggestions and a tell after so many trials, ten floats.
`regret <sampler> <function> <trials> <seed>`: how far above the minimum the best of a study is after 60 and after 200
trials, as far as it went. What was worked out once is kept in the file that is named on the command line.
The functions are those of tune/benches/functions.
"""
import hashlib
import inspect
import json
import math
import random
import statistics
import sys
import time
import warnings

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore")
S = optuna.samplers


def sampler(name, seed):
    if name == "random":
        return S.RandomSampler(seed=seed)
    if name == "tpe":
        return S.TPESampler(seed=seed)
    if name == "gp":
        return S.GPSampler(seed=seed)
    return S.CmaEsSampler(seed=seed)


def cost(name, trials):
    space = {f"x{i}": FloatDistribution(-5, 5) for i in range(10)}
    value = lambda p: sum((v - 1) ** 2 for v in p.values())
    rng, study = random.Random(0), optuna.create_study(sampler=sampler(name, 0))
    points = [{k: rng.uniform(-5, 5) for k in space} for _ in range(trials)]
    study.add_trials([create_trial(params=p, distributions=space, value=value(p)) for p in points])
    times = []
    for _ in range(12 if trials < 20000 else 4):
        start = time.perf_counter()
        trial = study.ask()
        study.tell(trial, value({k: trial.suggest_float(k, -5, 5) for k in space}))
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:]) * 1e3


def cube(n, low, high):
    return lambda t: [t.suggest_float(f"x{i}", low, high) for i in range(n)]


def branin(t):
    x, y = t.suggest_float("x0", -5, 10), t.suggest_float("x1", 0, 15)
    a = y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6
    return a * a + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


A = [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
P = [
    [0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886],
    [0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991],
    [0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650],
    [0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381],
]


def hartmann(x):
    term = lambda i: sum(A[i][j] * (x[j] - P[i][j]) ** 2 for j in range(6))
    return -sum(alpha * math.exp(-term(i)) for i, alpha in enumerate([1.0, 1.2, 3.0, 3.2]))


def rosenbrock(x):
    return sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in zip(x, x[1:]))


def ackley(x):
    n = len(x)
    waves = sum(math.cos(2 * math.pi * v) for v in x) / n
    return -20 * math.exp(-0.2 * math.sqrt(sum(v * v for v in x) / n)) - math.exp(waves) + 20 + math.e


def levy(x):
    w = [1 + (v - 1) / 4 for v in x]
    middle = sum((v - 1) ** 2 * (1 + 10 * math.sin(math.pi * v + 1) ** 2) for v in w[:-1])
    return math.sin(math.pi * w[0]) ** 2 + middle + (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)


def rastrigin(x):
    return sum(v * v - 10 * math.cos(2 * math.pi * v) + 10 for v in x)


def mixed(t):
    x, lr = t.suggest_float("x", -5, 5), t.suggest_float("lr", 1e-5, 1e-1, log=True)
    layers, kind = t.suggest_int("layers", 1, 12), t.suggest_categorical("kind", ["a", "b", "c"])
    shift, extra = {"a": (-2.0, 0.5), "b": (1.5, 0.0), "c": (3.0, 1.0)}[kind]
    return (x - shift) ** 2 + (math.log10(lr) + 2.7) ** 2 + 0.1 * (layers - 7) ** 2 + extra


def conditional(t):
    width = (math.log2(t.suggest_int("width", 8, 256, log=True)) - 6) ** 2 * 0.2
    if t.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
        lr, momentum = t.suggest_float("sgd.lr", 1e-4, 1, log=True), t.suggest_float("sgd.momentum", 0, 1)
        return width + (math.log10(lr) + 1) ** 2 + 4 * (momentum - 0.9) ** 2
    return width + 0.3 + 0.3 * (math.log10(t.suggest_float("adam.lr", 1e-5, 1e-1, log=True)) + 3) ** 2


def griewank(x):
    waves = math.prod(math.cos(v / math.sqrt(i + 1)) for i, v in enumerate(x))
    return sum(v * v for v in x) / 4000 - waves + 1


def styblinski(x):
    return sum(v**4 - 16 * v * v + 5 * v for v in x) / 2


def michalewicz(x):
    return -sum(math.sin(v) * math.sin((i + 1) * v * v / math.pi) ** 20 for i, v in enumerate(x))


def sphere(x):
    return sum((v - 1) ** 2 for v in x)


def choices(t):
    kind = t.suggest_categorical("kind", ["a", "b", "c", "d"])
    act = t.suggest_categorical("act", ["relu", "tanh", "gelu"])
    norm = t.suggest_categorical("norm", [False, True])
    depth, width = t.suggest_int("depth", 1, 20), t.suggest_int("width", 4, 512, log=True)
    heads, dropout = t.suggest_int("heads", 2, 16, step=2), t.suggest_float("dropout", 0, 0.9, step=0.1)
    best = {"a": 3, "b": 6, "c": 11, "d": 16}[kind]
    loss = 0.02 * (depth - best) ** 2 + 0.2 * (math.log2(width) - 7) ** 2 + 0.01 * (heads - 8) ** 2
    loss += {"a": 0.6, "b": 0.3, "c": 0.0, "d": 0.4}[kind] + {"relu": 0.3, "tanh": 0.5, "gelu": 0.0}[act]
    return loss + (0.0 if norm else 0.2 + 0.05 * depth) + (dropout - 0.3) ** 2


# What draws and measures a trial, the least value, and the deviation of the noise on it.
FUNCTIONS = {
    "branin": (branin, 0.397887357729739, 0),
    "hartmann6": (lambda t: hartmann(cube(6, 0, 1)(t)), -3.32236801141551, 0),
    "rosenbrock5": (lambda t: rosenbrock(cube(5, -5, 10)(t)), 0.0, 0),
    "ackley10": (lambda t: ackley(cube(10, -32.768, 32.768)(t)), 0.0, 0),
    "levy10": (lambda t: levy(cube(10, -10, 10)(t)), 0.0, 0),
    "rastrigin5": (lambda t: rastrigin(cube(5, -5.12, 5.12)(t)), 0.0, 0),
    "mixed": (mixed, 0.0, 0),
    "conditional": (conditional, 0.0, 0),
    "griewank10": (lambda t: griewank(cube(10, -600, 600)(t)), 0.0, 0),
    "styblinski5": (lambda t: styblinski(cube(5, -5, 5)(t)), -195.830828518857, 0),
    "michalewicz5": (lambda t: michalewicz(cube(5, 0, math.pi)(t)), -4.687658179088148, 0),
    "sphere20": (lambda t: sphere(cube(20, -5, 5)(t)), 0.0, 0),
    "choices": (choices, 0.0, 0),
    "noisy6": (lambda t: hartmann(cube(6, 0, 1)(t)), -3.32236801141551, 0.2),
}
BUDGETS = [60, 200]


def regret(name, function, trials, seed):
    """The trial with the least measured value is judged by what it is without noise."""
    value, minimum, noise = FUNCTIONS[function]
    rng, truths, regrets = random.Random(seed), [], []
    study = optuna.create_study(sampler=sampler(name, seed))

    def measure(trial):
        truths.append(value(trial))
        return truths[-1] + rng.gauss(0, noise)

    for budget in BUDGETS:
        if budget <= trials:
            study.optimize(measure, n_trials=budget - len(truths))
            regrets.append(truths[study.best_trial.number] - minimum)
    return regrets


class Kept:
    """What was worked out before, in a file with a line each."""

    def __init__(self, path):
        self.path, self.known = path, {}
        try:
            for line in open(path):
                entry = json.loads(line)
                self.known[tuple(entry["key"])] = entry["regrets"]
        except FileNotFoundError:
            pass

    def regret(self, name, function, trials, seed):
        parts = [FUNCTIONS[function][0], globals().get(function.rstrip("0123456789")), cube]
        source = "".join(inspect.getsource(part) for part in parts if part)
        print_ = hashlib.sha256(source.encode()).hexdigest()[:12]
        key = (optuna.__version__, name, function, print_, seed)
        wanted = sum(budget <= trials for budget in BUDGETS)
        if len(self.known.get(key, [])) < wanted:
            self.known[key] = regret(name, function, trials, seed)
            if self.path:
                with open(self.path, "a") as file:
                    print(json.dumps({"key": key, "regrets": self.known[key]}), file=file)
        return self.known[key][:wanted]


kept = Kept(sys.argv[1]) if len(sys.argv) > 1 else Kept("")
for line in sys.stdin:
    words = line.split()
    if words[0] == "regret":
        print(json.dumps(kept.regret(words[1], words[2], int(words[3]), int(words[4]))), flush=True)
    else:
        print(cost(words[0], int(words[1])), flush=True)
