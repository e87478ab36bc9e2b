"""Latency against load with three rules of batching, on a light and a heavy model: nothing, a timer (10 ms or 10 requests), and batch when busy.

    python bench/batching.py            all of it, about three minutes
    python bench/batching.py --quick    three rates, half a second each, into a temporary folder

One process: an event loop, `churn_nb.serving.batching.Batcher`, ONNX Runtime on one thread. Requests are due at random (exponential gaps) at a given rate and are
sent when they are due (open loop); latency counts from then. The light model (a network of 14 x 64 x 32) runs on the loop, the heavy one (a forest of
1,000 trees) in a thread, as the API does it. Rates are shares of what the model answers one row at a time. The rules take turns within a round.
Writes batching.json, batching.md and batching.png.
"""
import asyncio, random, statistics, time, warnings
from pathlib import Path
import numpy as np
from report import folder, options, recorded, table, where, write
from churn_nb.core.errors import QueueFull
from churn_nb.serving.batching import Batcher

RULES = {"off": {"max_batch": 1}, "timer: 10 ms or 10": {"max_wait": .010, "max_batch": 10}, "batch when busy": {"max_batch": 256}}
SHARES = (.1, .3, .5, .7, .9, 1.1, 1.5)

def models() -> dict:
    "Name -> session over float32 [N, 14]."
    import onnxruntime as ort
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.neural_network import MLPClassifier
    r = np.random.default_rng(0)
    X = r.normal(size=(4000, 14)).astype(np.float32)
    y = X[:, 0] + r.normal(size=4000) > 0
    with warnings.catch_warnings(action="ignore"):
        fitted = {"light": MLPClassifier((64, 32), max_iter=10, random_state=0).fit(X, y),
                  "heavy": RandomForestClassifier(1000, max_leaf_nodes=500, n_jobs=2, random_state=0).fit(X, y)}
    o = ort.SessionOptions()
    o.intra_op_num_threads = 1
    graph = lambda m: to_onnx(m, initial_types=[("x", FloatTensorType([None, 14]))], options={"zipmap": False}).SerializeToString()
    return {name: ort.InferenceSession(graph(m), o) for name, m in fitted.items()}

def cost(session, seconds:float=.3) -> tuple[float, float]:
    "(a, b) of t(n) = a + b n, from medians at 1 and 64 rows."
    t = {}
    for n in (1, 64):
        X, took, end = np.zeros((n, 14), np.float32), [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(took) < 5:
            began = time.perf_counter()
            session.run(None, {"x": X})
            took.append(time.perf_counter() - began)
        t[n] = statistics.median(took)
    b = (t[64] - t[1])/63
    return max(t[1] - b, 0), b

async def play(session, away:bool, rate:float, rule:dict, seconds:float) -> list[float]:
    "Latencies in seconds; empty where the queue ran over."
    def here(rows): return session.run(None, {"x": np.array(rows, np.float32)})[1][:, 1].tolist()
    async def thread(rows): return await asyncio.to_thread(here, rows)
    loop, r, row, took, full = asyncio.get_running_loop(), random.Random(0), (0.,)*14, [], []
    batcher = Batcher(thread if away else here, max_queue=5000, **rule)
    await batcher(row)
    due = began = loop.time()
    pending = set()
    def done(f, due):
        pending.discard(f)
        if not f.exception(): took.append(loop.time() - due)
    while due < began + seconds and not full:
        due += r.expovariate(rate)
        if (left := due - loop.time()) > (0 if away else .003): await asyncio.sleep(left - (0 if away else .002)) # its timers are a millisecond wide ...
        while not away and loop.time() < due: await asyncio.sleep(0)            # ... so a light model's rest is waited for turn by turn
        if len(pending) % 64 == 63: await asyncio.sleep(0)
        try: f = batcher(row)
        except QueueFull as e: full.append(e); break
        pending.add(f)
        f.add_done_callback(lambda f, due=due: done(f, due))
    await asyncio.wait(pending, timeout=5) if pending else None
    return [] if full or pending else took

def measure(seconds:float, rounds:int, shares:tuple) -> dict:
    found, ms = {}, lambda x: round(1000*x, 4)
    for name, session in models().items():
        a, b = cost(session)
        lat = {rule: {s: [] for s in shares} for rule in RULES}
        for _ in range(rounds):
            for s in shares:
                for rule, how in RULES.items():
                    lat[rule][s].append(asyncio.run(play(session, name == "heavy", s/(a + b), how, seconds)))
        found[name] = {"a_us": round(1e6*a, 1), "b_us": round(1e6*b, 1), "gain_at_most": round(1 + a/b, 2), "rate_alone": round(1/(a + b)),
                       "p50_ms": {rule: [ms(statistics.median(map(statistics.median, runs))) if all(runs) else None for runs in by.values()] for rule, by in lat.items()},
                       "p99_ms": {rule: [ms(statistics.median(float(np.percentile(t, 99)) for t in runs)) if all(runs) else None for runs in by.values()] for rule, by in lat.items()}}
    return found

def says(found:dict, shares:tuple) -> list[str]:
    "What the numbers say, in words made of them."
    lines = []
    for name, f in found.items():
        p = f["p50_ms"]
        idle = " / ".join(f"{p[r][0]:.3g}" for r in RULES)
        lines.append(f"{name}: a = {f['a_us']:g} us, b = {f['b_us']:g} us, so batching gains {f['gain_at_most']:g} x at most; "
                     f"median at {shares[0]:.0%} of {f['rate_alone']:,}/s, off / timer / busy: {idle} ms; at {shares[-1]:.0%}: "
                     + " / ".join("the queue runs over" if p[r][-1] is None else f"{p[r][-1]:.3g}" for r in RULES) + " ms")
    return lines

def draw(found:dict, shares:tuple, path:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 3))
    for ax, (name, f) in zip(axes, found.items()):
        for (rule, v), c in zip(f["p50_ms"].items(), ("#555555", "#d55e00", "#0072b2")):
            ax.plot(shares, [np.nan if x is None else x for x in v], "o-", ms=4, color=c, label=rule)
        ax.set(yscale="log", xlabel=f"rate, as a share of {f['rate_alone']:,} a second", ylabel="median latency, ms", title=f"{name} model")
    axes[0].legend(frameon=False, fontsize=8)
    fig.suptitle("Measured: a timer costs the idle server, batching when busy costs nothing", fontsize=10)
    fig.tight_layout()
    fig.savefig(path, dpi=90)

def markdown(found:dict) -> str:
    shares = found["shares"]
    rows = [[name, rule, *("runs over" if x is None else f"{x:.3g} / {y:.3g}" for x, y in zip(f["p50_ms"][rule], f["p99_ms"][rule]))] for name, f in found["models"].items() for rule in RULES]
    return "\n\n".join(["<!-- made by bench/batching.py -->", "### Latency against load, three rules of batching", "Median / 99th percentile in ms (medians over the rounds); columns are rates, as shares of "
        "what the model answers one row at a time.", table(["model", "rule", *(f"{s:.0%}" for s in shares)], rows), "\n".join(f"- {x}" for x in found["says"]), where(found)]) + "\n"

def main():
    p = options(__doc__, 3)
    a = p.parse_args()
    out, found, shares = folder(a), recorded("batching", p, a), SHARES[::3] if a.quick else SHARES
    models = measure(.5 if a.quick else 1, 1 if a.quick else a.rounds, shares)
    write(out, "batching", found | {"shares": shares, "models": models, "says": says(models, shares)}, markdown, lambda f, to: draw(f["models"], shares, to))

if __name__ == "__main__": main()
