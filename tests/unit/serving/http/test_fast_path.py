"The fast path answers what it takes exactly as the standard path does, and leaves everything else to it."
import contextlib, json, signal, socket, struct, threading
import httpx, pytest
from hypothesis import given, settings as hyp, strategies as st
from raw_http import GOOD, FAST, STANDARD, ROW, answer, ask, connect, request
from deadlines import allow
from serving import Server, put_live, rss_mb, serving, wait_for

pytestmark = pytest.mark.usefixtures("measured")

def same(a, b):
    varying = ("date", "x-request-id", "server-timing")
    strip = lambda r: (r[0], {k: v for k, v in r[1].items() if k not in varying}, r[2])
    assert strip(a) == strip(b) and {*a[1]} == {*b[1]}

values = st.none() | st.booleans() | st.integers(-10**40, 10**40) | st.floats() | st.text(max_size=3) | st.floats(-1e3, 1e3)
bodies = st.fixed_dictionaries(dict.fromkeys(ROW, values)).map(lambda v: json.dumps(v).encode()) | st.binary(max_size=40) | \
    st.dictionaries(st.sampled_from([*ROW, "customer_id"]), st.integers(-9, 9)).map(lambda v: json.dumps(v).encode())

@given(bodies, st.sampled_from([None, "abc-1", "a b", "x"*65]))
@hyp(max_examples=300, deadline=None)
def test_both_paths_give_the_same_answer(server, body, rid):
    headers = {"X_Request_Id": rid} if rid else {}
    fast, standard = (ask(server.url, request(body, kind, **headers))[0] for kind in (FAST, STANDARD))
    same(fast, standard)
    if rid == "abc-1": assert fast[1]["x-request-id"] == "abc-1" == standard[1]["x-request-id"]
    else: assert len(fast[1]["x-request-id"]) == 32 and fast[1]["x-request-id"] != standard[1]["x-request-id"]

def test_the_fast_path_serves_the_ordinary_case(server):
    "Its answer says so by nothing but its speed; so the server is asked how often its fast path was used."
    from churn_nb.serving.http.fast_path import FastPathProtocol
    from churn_nb.serve import create_app
    from serving import settings_for
    p = create_app(settings_for(server.workspace, request_log=0)).state.protocol
    assert issubclass(p, FastPathProtocol) and p.fast_path.path == b"/predict"

@pytest.mark.parametrize("how", [dict(version="1.0"), dict(Connection="close"), dict(path="/predict?explain=false"), dict(Expect="100-continue"), dict(Content_Encoding="identity")])
def test_what_is_not_ordinary_is_answered_all_the_same(server, how):
    with connect(server.url) as s, s.makefile("rb") as f:
        s.sendall(request(**how))
        if "Expect" in how:
            assert b"100 Continue" in f.readline() and f.readline() == b"\r\n"
        status, headers, body = answer(f)
        assert status == 200 and json.loads(body)["churn_risk"] == 0
        if how.get("version") == "1.0" or "Connection" in how: assert headers["connection"] == "close" and f.read() == b""

def test_a_chunked_body_and_other_methods(server):
    chunked = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    assert ask(server.url, chunked)[0][0] == 200
    assert [ask(server.url, request(method=m))[0][0] for m in ("PUT", "DELETE")] == [405, 405]
    assert ask(server.url, request(b"", FAST))[0][0] == 400
    assert ask(server.url, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n")[0][0] == 413

def test_a_request_that_comes_byte_by_byte(server):
    whole = request()
    assert ask(server.url, *[whole[i:i + 1] for i in range(len(whole))], pause=.001)[0][0] == 200

@given(st.lists(st.sampled_from(["fast", "long", "bad", "health"]), min_size=1, max_size=12), st.data())
@hyp(max_examples=60, deadline=None)
def test_requests_in_one_packet_are_answered_in_their_order(server, kinds, data):
    parts = {"fast": request(X_Request_Id="fast"), "long": request(kind=STANDARD, X_Request_Id="long"), "bad": request(b"{}", X_Request_Id="bad"),
             "health": b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: health\r\n\r\n"}
    whole = b"".join(parts[k] for k in kinds)
    cut = data.draw(st.integers(0, len(whole)))
    got = ask(server.url, whole[:cut], whole[cut:], n=len(kinds))
    assert [r[1]["x-request-id"] for r in got] == kinds
    assert [r[0] for r in got] == [422 if k == "bad" else 200 for k in kinds]

def test_clients_that_leave_cost_nothing_and_the_server_goes_on(tmp_path):
    put_live(tmp_path)
    with serving(tmp_path) as s:
        for i in range(200):
            c = connect(s.url)
            c.sendall(request() if i % 2 else request()[:-5])
            c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)) # a reset instead of an orderly end
            c.close()
        for i in range(200): # with many answers under way: uvloop refuses to write before uvicorn knows
            kinds = [request(), request(kind=STANDARD), request(path="/model", method="GET"), request(path="/docs", method="GET")]
            with contextlib.suppress(ConnectionError), connect(s.url) as c:
                if i % 2: c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                c.sendall(kinds[i % 4]*(1, 50, 1200)[i % 3])
        assert ask(s.url, request())[0][0] == 200
        text = lambda: httpx.get(s.url + "/metrics", timeout=allow(90)).text
        assert wait_for(lambda: "churn_queue_rows 0.0" in text())
        assert [line for line in s.logged() if line["level"] == "error"] == []

def test_a_client_that_sends_without_reading_is_cut_off(server):
    "What waits for it must not grow without a bound."
    before = rss_mb(server.pid)
    with connect(server.url) as s:
        s.settimeout(5)
        sent, piece = 0, request()*500
        try:
            while sent < 300_000_000: sent += s.send(piece)
        except (TimeoutError, ConnectionError): pass
    assert sent < 300_000_000 and rss_mb(server.pid) < before + 100
    assert ask(server.url, request())[0][0] == 200

def test_sigterm_lets_requests_under_way_be_answered(tmp_path):
    put_live(tmp_path)
    s = Server(tmp_path)
    seen, stop = [], threading.Event()
    def caller():
        with connect(s.url) as c, c.makefile("rb") as f:
            try:
                while not stop.is_set():
                    c.sendall(request())
                    seen.append("sent")
                    line = f.readline()
                    if not line: seen[-1] = "closed between requests"; return
                    assert b" 200 " in line
                    while f.readline() != b"\r\n": pass
                    assert f.read(1) == b"{" and b"}" in f.readline(111)
                    seen[-1] = "answered"
            except ConnectionError: seen[-1] = "closed between requests"
    crowd = [threading.Thread(target=caller) for _ in range(8)]
    for t in crowd: t.start()
    assert wait_for(lambda: seen.count("answered") > 200)
    s.process.send_signal(signal.SIGTERM)
    assert s.process.wait(allow(20)) == 0
    stop.set()
    for t in crowd: t.join(allow(20))
    s.process.stdout.close()
    assert not any(t.is_alive() for t in crowd)
    log = [line for line in s.logged() if line.get("route") == "/predict"]
    assert {line["status"] for line in log} == {200} and len(log) >= seen.count("answered")

# --- by id ---

@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_both_paths_look_up_a_customer_alike(copied, redis_store, kind):
    from online_store import api_on, customers, model_of
    s = copied("few", **({"stores__online": redis_store} if kind == "redis" else {}))
    model_of(s.paths.workspace, ["transactions_total", "transactions_24h", "recency_days"])
    ids = customers(s)[:5]
    server = api_on(s)
    try:
        both = lambda body: [ask(server.url, request(body.encode(), kind))[0] for kind in (FAST, STANDARD)]
        httpx.post(server.url + "/predict", json={"customer_id": ids[0]}, timeout=allow(120)) # opens the store
        statuses = {}
        for body in [*(f'{{"customer_id": {i}}}' for i in [*ids, 0, -1, 2**62, 2**64, 1.5, "null", '"3"', "true"]), '{"customer_id": 3, "transactions_total": 1}', "{}"]:
            fast, standard = both(body)
            same(fast, standard)
            statuses[body] = fast[0]
            if fast[0] == 200: assert fast[1]["server-timing"].startswith("lookup;dur=") and standard[1]["server-timing"].startswith("lookup;dur=")
        assert [statuses[f'{{"customer_id": {i}}}'] for i in ids] == [200]*5 and statuses['{"customer_id": 0}'] == 404 and set(statuses.values()) == {200, 404, 422}
        one_packet = ask(server.url, b"".join(request(f'{{"customer_id": {i}}}'.encode(), X_Request_Id=f"r{i}") for i in ids*20), n=100)
        assert [r[1]["x-request-id"] for r in one_packet] == [f"r{i}" for i in ids*20] and {r[0] for r in one_packet} == {200}
        for i in range(100): # who leaves while the store is asked costs nothing
            c = connect(server.url)
            c.sendall(request(f'{{"customer_id": {ids[i % 5]}}}'.encode()))
            c.close()
        same(*both(f'{{"customer_id": {ids[0]}}}'))
        lookups = lambda: int(float(httpx.get(server.url + "/metrics", timeout=allow(90)).text.split('churn_stage_seconds_count{stage="lookup"} ')[1].split()[0]))
        assert wait_for(lambda: lookups() >= 112), lookups()
    finally: server.stop()
    assert [line for line in server.logged() if line["level"] == "error"] == []

def test_both_paths_report_an_unavailable_store_alike(server):
    fast, standard = (ask(server.url, request(b'{"customer_id": 3}', kind))[0] for kind in (FAST, STANDARD))
    same(fast, standard)
    assert fast[0] == 503 and fast[1]["retry-after"] == "5" and b"no feature store" in fast[2]
