"""Regatta's hand in a Ray cluster. Orders come in on standard input and events go out on standard output, a line of JSON
each; the end of the input is the end of every worker. All decisions are the driver's, which is not written in Python."""
import asyncio, codecs, contextlib, ctypes, glob, json, os, signal, subprocess, sys
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as In
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever else prints must not come between the lines
gangs, tasks = {}, set()

def say(**event):
    print(json.dumps(event), file=out, flush=True)

@ray.remote(max_restarts=0)
class Slot:
    """A bundle's actor: it ends what its worker leaves behind, and a shell, which is nobody's child, if the actor dies."""
    def __init__(self, guard):
        self.guard = subprocess.Popen(["/bin/sh", "-c", guard], stdin=subprocess.PIPE, text=True, start_new_session=True)
        self.guard.wait()
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER

    async def run(self, argv, env, cwd, home):
        here = lambda text: text.replace(home, os.getcwd()) if home else text
        given = {name: value for name, value in os.environ.items() if name.endswith("_VISIBLE_DEVICES")}
        env, pipe = {**given, **{name: here(value) for name, value in env.items()}}, subprocess.PIPE
        how = dict(env=env, cwd=here(cwd), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True)
        try:
            worker = await asyncio.create_subprocess_exec(*map(here, argv), **how)
        except OSError as error:
            yield "refused", str(error)
            return
        self.group, queue = worker.pid, asyncio.Queue(16)
        print(worker.pid, env["REGATTA_WORKER"], file=self.guard.stdin, flush=True)
        yield "started", worker.pid
        async def pump(stream, reader):
            decode = codecs.getincrementaldecoder("utf-8")("replace").decode
            while data := await reader.read(65536):
                await queue.put((stream, decode(data)))
            await queue.put(None)
        pumps = [asyncio.ensure_future(pump(*of)) for of in (("stdout", worker.stdout), ("stderr", worker.stderr))]
        ended = asyncio.ensure_future(self.end(worker))
        for _ in pumps:
            while event := await queue.get():
                yield event
        yield "exited", await ended

    async def end(self, worker):
        while worker.returncode is None:  # its `wait` would wait for those who inherited its output, too
            await asyncio.sleep(0.005)
        self.signal(signal.SIGKILL)
        while left := [int(pid) for of in glob.glob("/proc/self/task/*/children") for pid in open(of).read().split()]:
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
            await asyncio.sleep(0.002)
        print(file=self.guard.stdin, flush=True)
        return worker.returncode

    def signal(self, number):
        with contextlib.suppress(OSError):
            os.killpg(self.group, number)

async def acquire(gang, bundles, strategy, avoid, guard):
    labels = [{"ray.io/node-id": f"!in({','.join(avoid)})"}] * len(bundles) if avoid else None
    group, slots = gangs[gang] = placement_group(bundles, strategy=strategy, bundle_label_selector=labels), []
    while (table := await asyncio.to_thread(placement_group_table, group))["state"] != "CREATED" and gang in gangs:
        await asyncio.sleep(0.02)
    for index, bundle in enumerate(bundles if gang in gangs else []):
        slots.append(Slot.options(num_gpus=bundle.get("GPU", 0), scheduling_strategy=In(group, index)).remote(guard))
    say(event="acquired", gang=gang, nodes=[table["bundles_to_node_id"][index] for index in range(len(slots))])

async def launch(gang, index, worker, **order):
    async for event in gangs[gang][1][index].run.options(num_returns="streaming").remote(**order):
        say(worker=worker, **dict(zip(("event", "value"), await event)))

async def send(gang, index, number):
    slot = gangs[gang][1][index]
    await slot.signal.remote(number) if number else ray.kill(slot)

async def release(gang):
    group, slots = gangs.pop(gang)
    for slot in slots:
        ray.kill(slot)
    remove_placement_group(group)

async def look(seen=None):
    while True:
        nodes = await asyncio.to_thread(ray.nodes)
        nodes == seen or say(event="nodes", nodes=nodes, host=ray.util.get_node_ip_address())
        seen = nodes
        await asyncio.sleep(0.5)

async def obey(op, **order):
    try:
        await globals()[op](**order)
    except Exception as error:
        what = {key: order[key] for key in ("gang", "worker") if key in order}
        say(event="failed", op=op, value=f"{type(error).__name__}: {error}", **what)

async def main():
    orders = asyncio.StreamReader(limit=1 << 28)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    tasks.add(asyncio.ensure_future(obey("look")))
    while line := await orders.readline():
        tasks.add(task := asyncio.ensure_future(obey(**json.loads(line))))
        task.add_done_callback(tasks.discard)

ray.init(log_to_driver=False, logging_level="warning")
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # stopping a job signals all its processes: the driver answers for this one
asyncio.run(main())
