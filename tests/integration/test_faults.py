"""What breaks around a running server, and what its clients notice. Redis away, hanging and back: tests/integration/test_events.py; bundles swapped under load: tests/unit/test_serve.py;
Triton away: tests/unit/serving/test_triton.py."""
import contextlib, itertools, json, os, resource, shutil, signal, socket, sys, threading, time
import httpx, pytest
from deadlines import allow
from serving import Server, put_live, rss_mb, serving, wait_for
from raw_http import ROW, answer, ask, connect, request
from churn_nb.serving.http.connection_limits import raise_open_files_limit
from churn_nb.monitoring.logged_traffic import read_requests

def numbered(i): return json.dumps({**ROW, "age": i}).encode() # float32 keeps whole numbers up to 2**24

class Load:
    "Clients that ask without a pause, each on a connection of its own, until the server goes; what they were answered."
    def __init__(self, url, clients=4, first=1, kinds=("application/json", "application/json; charset=utf-8")):
        self.answered, self.bad, self.stop = [[] for _ in range(clients)], [], threading.Event()
        self.threads = [threading.Thread(target=self.client, args=(url, first + 1_000_000*k, kinds[k % len(kinds)], self.answered[k])) for k in range(clients)]
        for t in self.threads: t.start()
    def client(self, url, i, kind, answered): # each client's numbers ascend
        with contextlib.suppress(OSError), connect(url) as s, s.makefile("rb") as f:
            while not self.stop.is_set():
                s.sendall(request(numbered(i), kind))
                if not (line := f.readline()): return # the server has closed
                status, length = int(line.split()[1]), 0
                while (line := f.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"): length = int(line.split()[1])
                body = f.read(length)
                if len(body) < length: return
                if status == 200: answered.append((i, time.monotonic()))
                else: self.bad.append((status, body))
                i += 1
    def end(self):
        self.stop.set()
        for t in self.threads: t.join(allow(20))
        assert not any(t.is_alive() for t in self.threads) and not self.bad, self.bad[:3]

def logged(workspace):
    log = read_requests(workspace/"requests")
    assert log.attrs["broken"] == []
    return log.age.astype(int).tolist() if len(log) else []

# --- the process ---

def test_kill_9_loses_at_most_one_log_interval(tmp_path, capsys):
    "The server is killed under load; a restarted one continues the log."
    put_live(tmp_path)
    every, sent, before = .5, 0, set()
    for k in range(2):
        s = Server(tmp_path, request_log_seconds=every)
        load = Load(s.url, first=1 + 100_000*k)
        try: assert wait_for(lambda: len([*tmp_path.glob("requests/*/*.parquet")]) > 3*k + 2)
        finally: s.process.kill(); s.process.wait(); s.process.stdout.close()
        killed = time.monotonic()
        load.end()
        ids = logged(tmp_path)
        new = set(ids) - before
        assert len(ids) == len(set(ids)), "logged twice"
        lost = []
        for a in load.answered: # of each client the log has a beginning of what it was answered, without a hole
            there = [i in new for i, _ in a]
            assert there == sorted(there, reverse=True)
            lost += [t for i, t in a if i not in new]
        sent += sum(map(len, load.answered))
        oldest = killed - min(lost, default=killed)
        assert oldest < every + 5 # and the time that it takes to write a file, on a busy machine
        before = set(ids)
        with capsys.disabled(): print(f"\nkill -9: {sent} answered so far, {len(lost)} of this round not in the log, the oldest answered {oldest:.2f} s before (every {every} s)")
    with serving(tmp_path) as s: assert ask(s.url, request(numbered(9_999_999)))[0][0] == 200
    assert 9_999_999 in logged(tmp_path) and before < set(logged(tmp_path))

def test_sigterm_answers_open_requests_and_writes_the_log(tmp_path):
    "The server accepts no new connection and exits with 0."
    put_live(tmp_path)
    s = Server(tmp_path, request_log_seconds=3600)
    half = [(connect(s.url), request(numbered(i), kind)) for i, kind in ((7, "application/json"), (8, "application/json; charset=utf-8"))]
    for c, whole in half: c.sendall(whole[:-10]) # the server knows of these requests, and waits for the rest
    load = Load(s.url)
    assert wait_for(lambda: sum(map(len, load.answered)) > 200)
    os.kill(s.pid, signal.SIGTERM)
    assert wait_for(lambda: not any(t.is_alive() for t in load.threads)) # new requests are not taken
    with pytest.raises(ConnectionRefusedError): connect(s.url)
    for c, whole in half:
        with c, c.makefile("rb") as f:
            c.sendall(whole[-10:])
            status, headers, _ = answer(f)
            assert status == 200 and headers["connection"] == "close" and f.read() == b""
    assert s.process.wait(allow(20)) == 0
    s.process.stdout.close()
    load.end()
    assert {i for a in load.answered for i, _ in a} | {7, 8} <= set(logged(tmp_path))

def test_an_unfinished_request_does_not_delay_shutdown(tmp_path):
    put_live(tmp_path)
    s = Server(tmp_path, body_seconds=2)
    held = [connect(s.url) for _ in range(3)]
    held[0].sendall(request()[:-5])
    held[1].sendall(request(kind="application/json; charset=utf-8")[:-5])
    assert wait_for(lambda: ask(s.url, request())[0][0] == 200)
    began = time.monotonic()
    s.stop()
    assert s.process.returncode == 0 and time.monotonic() - began < 9 # uvicorn would wait ten
    for c in held: c.close()

# --- what it reads and writes ---

class Over(Server):
    "A server with more settings, and a line of code before it starts."
    def __init__(self, workspace, over=None, first="", **serve):
        self.code = first + "\n" + Server.code.replace("json.loads(sys.argv[1])", f"json.loads(sys.argv[1]) | {over or {}!r}")
        super().__init__(workspace, **serve)

def test_a_stderr_that_nobody_reads_stops_nothing(tmp_path):
    "The pipe is full after some hundred lines; what finds no room is dropped and counted, and SIGTERM ends the server."
    put_live(tmp_path)
    s = Over(tmp_path, first="import os\nfull = os.pipe()\nos.dup2(full[1], 2)")
    load = Load(s.url)
    assert wait_for(lambda: sum(map(len, load.answered)) > 15_000)
    load.end()
    metrics = httpx.get(f"{s.url}/metrics").text
    dropped = next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith("churn_log_dropped_total "))
    assert dropped > 1000 and httpx.get(f"{s.url}/readyz").status_code == 200
    s.stop()
    assert s.process.returncode == 0

def test_with_the_registry_unavailable_the_last_good_bundle_is_served(tmp_path):
    put_live(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as hangs: # accepts and never answers
        s = Over(tmp_path, {"stores.tracking_uri": f"http://127.0.0.1:{hangs.getsockname()[1]}", "stores.online": "redis://127.0.0.1:9"})
        try:
            assert httpx.get(s.url + "/readyz", timeout=allow(90)).json() == {"status": "ready", "model_version": "1"} and ask(s.url, request())[0][0] == 200
            r = httpx.post(s.url + "/predict", json={"customer_id": 1}, timeout=allow(60))
            assert r.status_code == 503 and int(r.headers["retry-after"]) > 0
        finally: s.stop()

SPOILT = {"truncated": lambda b: (b/"model.onnx").write_bytes((b/"model.onnx").read_bytes()[:-20]), "one bit": lambda b: (b/"model.onnx").write_bytes(
              bytes([(d := (b/"model.onnx").read_bytes())[0] ^ 1]) + d[1:]), "no model": lambda b: (b/"model.onnx").unlink(), "no manifest": lambda b: (b/"manifest.json").unlink(),
          "half a manifest": lambda b: (b/"manifest.json").write_bytes((b/"manifest.json").read_bytes()[:200]), "a folder": lambda b: ((b/"model.onnx").unlink(), (b/"model.onnx").mkdir())}

def test_a_corrupt_bundle_is_refused_while_the_old_one_serves(tmp_path):
    "Each refusal is logged as an error. A server that starts with a corrupt bundle answers 503 until a good one is there."
    put_live(tmp_path)
    with serving(tmp_path) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
        for k, (what, spoil) in enumerate(SPOILT.items()):
            put_live(tmp_path/"made", f"{k + 2}")
            spoil(made := tmp_path/"made"/"bundle"/f"{k + 2}")
            shutil.copytree(made, tmp_path/"bundle"/f"{k + 2}")
            (tmp_path/"bundle"/"next").symlink_to(f"{k + 2}"); os.replace(tmp_path/"bundle"/"next", tmp_path/"bundle"/"current")
            told = lambda k=k: "refused" in (r := c.get("/readyz").json()) and f"{k + 2}" in r["refused"] + str(len(refused())) and len(refused()) > k
            refused = lambda: [line for line in s.logged() if line["message"].startswith("bundle refused")]
            assert wait_for(told), what
            assert ask(s.url, request())[0][0] == 200 and c.get("/readyz").json()["model_version"] == "1"
            assert "churn_bundle_refused 1.0" in c.get("/metrics").text
        assert len(refused()) == len(SPOILT) and {line["level"] for line in refused()} == {"error"}
    with serving(tmp_path) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c: # there is no old one in memory now
        assert [c.get(p).status_code for p in ("/livez", "/readyz")] == [200, 503] and c.post("/predict", json=ROW).status_code == 503
        put_live(tmp_path, "20")
        assert wait_for(lambda: c.get("/readyz").status_code == 200) and c.post("/predict", json=ROW).json()["model_version"] == "20"

def test_where_nothing_can_be_written_predictions_go_on(tmp_path):
    put_live(tmp_path)
    (tmp_path/"requests").write_text("a file where a folder should be") # for root no folder is read-only
    with serving(tmp_path, request_log_seconds=.2) as s, httpx.Client(base_url=s.url, timeout=allow(90)) as c:
        for _ in range(3):
            for _ in range(20): assert c.post("/predict", json=ROW).status_code == 200
            time.sleep(.3)
        assert wait_for(lambda: 'churn_request_log_dropped_total{reason="unwritten"} 60.0' in c.get("/metrics").text)
        (tmp_path/"requests").unlink() # and it heals
        assert c.post("/predict", json={**ROW, "age": 77}).status_code == 200
        assert wait_for(lambda: (tmp_path/"requests").is_dir() and 77 in logged(tmp_path))
    assert len([line for line in s.logged() if "request log" in line["message"]]) == 1

# --- the clock ---

CLOCK = "import time\nreal, at = time.time, {path!r}\ndef moved():\n    with open(at) as f: return real() + float(f.read())\ntime.time = moved"

def test_a_clock_jump_changes_no_answer_and_closes_no_connection(tmp_path):
    put_live(tmp_path)
    offset = tmp_path/"offset"
    def jump(seconds):
        (tmp_path/"new").write_text(str(seconds)); os.replace(tmp_path/"new", offset)
    jump(0)
    s = Over(tmp_path, first=CLOCK.format(path=str(offset)), request_log_seconds=.3, header_seconds=30, body_seconds=30, idle_seconds=60)
    n = 0
    try:
        idle, half = connect(s.url), connect(s.url)
        half.sendall(request()[:-5])
        with httpx.Client(base_url=s.url, timeout=allow(90)) as c:
            for hours in (5, -5, 24*400, 0):
                jump(3600*hours)
                for kind in ("application/json", "application/json; charset=utf-8"):
                    for _ in range(20):
                        r = c.post("/predict", content=numbered(n), headers={"Content-Type": kind}); n += 1
                        assert r.status_code == 200
                        assert all(0 <= float(p.rpartition("dur=")[2]) < 60_000 for p in r.headers["server-timing"].split(","))
                assert wait_for(lambda: len(logged(tmp_path)) == n), hours # files are written on
                time.sleep(1.1) # a sweep over the connections, and a look at the bundle
            put_live(tmp_path, "2")
            assert wait_for(lambda: c.get("/readyz").json()["model_version"] == "2") # the watch goes on
            text = c.get("/metrics").text
            assert 0 <= float(next(line for line in text.splitlines() if line.startswith("churn_request_seconds_sum")).split()[1]) < 600
        for sock, rest in ((idle, request()), (half, request()[-5:])): # neither was thrown out
            with sock, sock.makefile("rb") as f: sock.sendall(rest); assert answer(f)[0] == 200
    finally: s.stop()
    assert s.process.returncode == 0 and not [line for line in s.logged() if line["level"] == "error"]

def test_a_paused_process_closes_no_connection(tmp_path):
    put_live(tmp_path)
    with serving(tmp_path, header_seconds=1.5, body_seconds=1.5, idle_seconds=1.5) as s:
        assert ask(s.url, request())[0][0] == 200
        held, half = connect(s.url), connect(s.url)
        half.sendall(request()[:-5]); time.sleep(.3)
        os.kill(s.pid, signal.SIGSTOP); time.sleep(3); os.kill(s.pid, signal.SIGCONT)
        for sock, rest in ((held, request()), (half, request()[-5:])):
            with sock, sock.makefile("rb") as f: sock.sendall(rest); assert answer(f)[0] == 200

# --- many, and slow ---

@pytest.fixture
def files():
    "As many open files as this process may have."
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield raise_open_files_limit(10_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

def test_ten_thousand_connections(tmp_path, files, capsys):
    put_live(tmp_path)
    n = files - 100
    with serving(tmp_path, python=sys.executable, max_connections=n, idle_seconds=300) as s, contextlib.ExitStack() as stack:
        ask(s.url, request())
        empty, began, held = rss_mb(s.pid), time.monotonic(), []
        for _ in range(n - 20): held.append(stack.enter_context(connect(s.url)))
        took = time.monotonic() - began
        times = []
        with httpx.Client(base_url=s.url, timeout=allow(90)) as c:
            for _ in range(100):
                began = time.monotonic()
                assert c.post("/predict", json=ROW).status_code == 200
                times.append(time.monotonic() - began)
        for i in range(0, len(held), 97): # those who waited are answered as well
            held[i].sendall(request())
        for i in range(0, len(held), 97):
            with held[i].makefile("rb") as f: assert answer(f)[0] == 200
        full = rss_mb(s.pid)
        more = [stack.enter_context(connect(s.url)) for _ in range(30)]
        began, (status, headers, _) = time.monotonic(), ask(s.url, request())[0]
        refused = time.monotonic() - began
        assert status == 503 and headers["retry-after"] == "1" and httpx.get(s.url + "/livez", timeout=allow(90)).status_code == 200
        for c in held + more: c.close()
        assert wait_for(lambda: ask(s.url, request())[0][0] == 200)
        with capsys.disabled():
            print(f"\n{n - 20:,} connections opened in {took:.1f} s, {1024*(full - empty)/(n - 20):.1f} KB each; /predict meanwhile: median {1000*sorted(times)[50]:.1f} ms, "
                  f"99 of 100 within {1000*sorted(times)[98]:.1f} ms; one more: 503 in {1000*refused:.1f} ms")

def test_slow_clients_are_ended_and_the_others_do_not_notice(tmp_path, capsys):
    put_live(tmp_path)
    with serving(tmp_path, header_seconds=2, body_seconds=2, idle_seconds=4, max_inflight=50) as s:
        load = Load(s.url, 2)
        slow, whole = [], request()
        heads = [b"POST /predict HTTP/1.1\r\nHost: x\r\na: ", whole[:-30], request(kind="text/json; charset=utf-8")[:-30], request(path="/predict/batch")[:-30], request(path="/events")[:-30]]
        began = time.monotonic()
        for i in range(500): # ten times max_inflight
            slow.append(connect(s.url)); slow[-1].sendall(heads[i % len(heads)])
        alive = slow
        while alive and time.monotonic() - began < 40: # a byte to each, again and again
            left = []
            for c in alive:
                try: c.sendall(b" "); left.append(c)
                except OSError: c.close()
            alive = left; time.sleep(.1)
        took = time.monotonic() - began
        assert not alive, len(alive)
        load.end()
        assert all(len(a) > 20 for a in load.answered)
        pauses = [b - a for x in load.answered for (_, a), (_, b) in itertools.pairwise(x)]
        assert wait_for(lambda: len(os.listdir(f"/proc/{s.pid}/fd")) < 100)
        with capsys.disabled(): print(f"\n500 slow clients gone after {took:.1f} s (limit 2 s); {sum(map(len, load.answered))} answers to the others meanwhile, longest pause {1000*max(pauses):.0f} ms")
