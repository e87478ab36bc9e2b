"Who may ask, how slowly, and how many at once: against real server processes, and against bytes of all kinds."
import contextlib, asyncio, itertools, json, os, re, socket, subprocess, sys, threading, time
from types import SimpleNamespace
import httpx, pytest, uvicorn
from hypothesis import given, settings as hyp, strategies as st
from deadlines import allow
from serving import Server, put_live, serving, wait_for
from raw_http import GOOD, FAST, STANDARD, answer, ask, connect, request
from churn_nb.serving.http.fast_path import FastPathProtocol
from churn_nb.serving.http.auth import read_api_keys
from churn_nb.serving.http.connection_limits import ConnectionLimiter, limited_protocol
from churn_nb.core.errors import ServeError

pytestmark = pytest.mark.usefixtures("measured")

OLD, NEW = "the-old-key-0123456789", "the-new-key-0123456789"
PATHS = ["/", "/docs", "/openapi.json", "/model", "/metrics", "/v2", "/v2/health/live", "/v2/models/churn", "/nowhere", "/livez/", "//livez", "/LIVEZ", "/livez/../model", "/%6civez/x"]

# --- keys ---

@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    "A server that asks for one of two keys."
    put_live(ws := tmp_path_factory.mktemp("locked"))
    with pytest.MonkeyPatch.context() as m:
        m.setenv("CHURN_SERVE_API_KEYS", f"{OLD}, {NEW}")
        s = Server(ws)
    yield s
    s.stop()

@pytest.mark.parametrize("headers", [{}, {"X_API_Key": OLD[:-1]}, {"X_API_Key": OLD + "x"}, {"Authorization": f"Basic {OLD}"}, {"Authorization": OLD}, {"Authorization": "Bearer"},
                                     {"X_API_Key": "x", "Authorization": f"Bearer {OLD}"}, {"X_API_Key": f"{OLD},{NEW}"}, {"X_API_Key": "ÿ"*30}])
def test_without_a_known_key_neither_path_answers(locked, headers):
    for kind in (FAST, STANDARD):
        status, told, body = ask(locked.url, request(kind=kind, **headers))[0]
        assert status == 401 and told["www-authenticate"].startswith("bearer") and told["content-type"] == "application/problem+json" and len(told["x-request-id"]) == 32
        assert json.loads(body)["detail"] and not re.search(rb"0\d{3}", body) and b"probability" not in body

@pytest.mark.parametrize("headers", [{"X_API_Key": OLD}, {"X_API_Key": NEW}, {"Authorization": f"Bearer {OLD}"}, {"Authorization": f"bearer   {NEW}"}])
def test_each_known_key_opens_both_paths(locked, headers):
    for kind in (FAST, STANDARD): assert ask(locked.url, request(kind=kind, **headers))[0][0] == 200

def test_all_paths_ask_but_the_probes(locked):
    get = lambda path, h="": ask(locked.url, f"GET {path} HTTP/1.1\r\nHost: x\r\n{h}\r\n".encode())[0][0] # as it is: a client would tidy the path
    assert [get(p) for p in PATHS] == [401]*len(PATHS)
    assert [get(p) for p in ("/livez", "/readyz")] == [200, 200]
    assert get("/model", f"X-API-Key: {OLD}\r\n") == 200
    assert httpx.post(locked.url + "/events", json={}, timeout=allow(90)).status_code == httpx.post(locked.url + "/v2/models/churn/infer", json={}, timeout=allow(90)).status_code == 401

def test_a_browser_is_asked_for_a_key_as_password(locked):
    html = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    asked = httpx.get(locked.url + "/", headers=html, timeout=allow(90))
    assert asked.status_code == 401 and asked.headers["www-authenticate"].startswith("Basic realm=")
    for name in ("", "ann", "é"):
        assert httpx.get(locked.url + "/", headers=html, auth=(name, OLD), timeout=allow(90)).status_code == 200
        assert httpx.post(locked.url + "/predict", json=json.loads(GOOD), auth=(name, NEW), timeout=allow(90)).status_code == 200 # on the fast path
    for auth in ((OLD, ""), ("ann", OLD[:-1]), (OLD, "x"*20)): assert httpx.get(locked.url + "/", headers=html, auth=auth, timeout=allow(90)).status_code == 401
    for text in ("=", "ann", "!!!!", "YW5u"): assert httpx.get(locked.url + "/", headers={"Authorization": f"Basic {text}"}, timeout=allow(90)).status_code == 401

def test_no_key_is_ever_written_anywhere(locked):
    secret = "not-a-key-but-a-secret-of-someone"
    for headers in ({"X-API-Key": secret}, {"Authorization": f"Bearer {secret}"}, {"X-API-Key": OLD}): httpx.get(locked.url + "/model", headers=headers, timeout=allow(90))
    text = httpx.get(locked.url + "/metrics", headers={"X-API-Key": OLD}, timeout=allow(90)).text
    assert wait_for(lambda: '"status":401' in locked.logfile.read_text())
    said = locked.logfile.read_text() + text + locked.greeting
    assert not any(k in said for k in (secret, OLD, NEW))
    assert 'route="unmatched",status="401"' in text


def start(workspace, host, keys=""):
    "What a server on an address does: (exit code, last line of its errors)."
    code = f"from churn_nb.serve import run_server\nfrom churn_nb.core.settings import load_settings\nrun_server(load_settings({{'paths.workspace': {str(workspace)!r}}}), {host!r}, 0)"
    p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"CHURN_SERVE_API_KEYS": keys})
    if p.stdout.readline(): p.terminate()
    return p.wait(allow(20)), (p.communicate()[1].splitlines() or [""])[-1]

def test_an_open_address_needs_keys(tmp_path):
    put_live(tmp_path)
    code, said = start(tmp_path, "0.0.0.0", OLD)
    assert code == 0 and OLD not in said
    code, said = start(tmp_path, "0.0.0.0")
    assert code == 1 and "ServeError: 0.0.0.0" in said and "CHURN_SERVE_API_KEYS" in said and "--insecure" in said
    code, said = start(tmp_path, "127.0.0.1", "short-secret")
    assert code == 1 and "key 1 of 1" in said and "short-secret" not in said

@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=16, max_size=40), max_size=4), st.text(max_size=40), st.data())
def test_a_key_is_known_if_it_is_one_of_them(keys, other, data):
    known = read_api_keys({"CHURN_SERVE_API_KEYS": ",".join(keys)})
    assert len(known) == len(keys) and all(known.verify(k.encode()) for k in keys)
    assert known.verify(other.encode()) == (other in keys) and not any(k in repr(known) + repr(vars(known)) for k in keys)
    if keys:
        k = data.draw(st.sampled_from(keys))
        i = data.draw(st.integers(0, len(k) - 1))
        for near in (k[:i], k[:i] + "\x7f" + k[i + 1:], k + "x"): assert not known.verify(near.encode()) or near in keys

@pytest.mark.parametrize("text", ["short", "x"*15, f"{OLD},y", "ä"*20, "with a blank in the middle", ",", " , "])
def test_keys_that_are_none_are_refused_without_being_shown(text):
    with pytest.raises(ServeError) as e: read_api_keys({"CHURN_SERVE_API_KEYS": text})
    assert "\n" not in str(e.value) and (len(text) < 4 or text not in str(e.value)) and OLD not in str(e.value)

# --- deadlines and sizes ---

SHORT = dict(header_seconds=.6, body_seconds=.6, idle_seconds=1.2, max_header_bytes=4000, max_headers=30, max_connections=60)

@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    put_live(ws := tmp_path_factory.mktemp("strict"))
    with serving(ws, **SHORT) as s: yield s

def rest(s):
    "All that comes until the server closes."
    with s: return b"".join(iter(lambda: s.recv(65536), b""))

def slowly(url, head, drip, n=400):
    "Send a head, then a drop again and again; what comes until the server closes, and after how long."
    began, s, got = time.monotonic(), connect(url), []
    reader = threading.Thread(target=lambda: got.append(rest(s)))
    s.sendall(head); reader.start()
    try:
        for _ in range(n):
            if not reader.is_alive(): break
            s.sendall(drip); time.sleep(.05)
    except OSError: pass
    reader.join(allow(20))
    return got[0] if got else b"", time.monotonic() - began

HEADS = {"headers": (b"POST /predict HTTP/1.1\r\nHost: x\r\n", b"a: b\r\n", b"408"),
         "one header": (b"GET /livez HTTP/1.1\r\na: ", b"b", b"408"),
         "request line": (b"G", b"E", b"4"), # 408, or 400 as no method is that long
         "body on the fast path": (request()[:-40], b" ", b"408"),
         "body on the standard path": (request(kind=STANDARD)[:-40], b" ", b"408"),
         "body of events": (request(path="/events")[:-40], b" ", b"408"),
         "chunks": (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"408"),
         "trailers": (b"POST /v2/models/churn/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n", b"408"),
         "blank lines": (b"", b"\r\n", b"")}

@pytest.mark.parametrize("what", HEADS)
def test_an_unfinished_request_gets_an_error_and_is_closed(strict, what):
    head, drip, status = HEADS[what]
    got, seconds = slowly(strict.url, head, drip)
    assert got[9:].startswith(status) and (b"Connection: close" in got or b"connection: close" in got or not got)
    assert seconds < 15 and (seconds > .5 or got[9:12] == b"400")

def test_after_an_answer_a_slow_request_has_its_own_deadline(strict):
    got, _ = slowly(strict.url, request() + request(kind=STANDARD) + request()[:-40], b" ")
    assert [x[:3] for x in got.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"408"]

def test_a_connection_without_a_request_is_closed_without_a_word(strict):
    began = time.monotonic()
    assert rest(connect(strict.url)) == b"" and time.monotonic() - began > 1
    with connect(strict.url) as s, s.makefile("rb") as f: # after an answer as well; the wait counts anew from each
        for _ in range(4):
            s.sendall(request()); assert answer(f)[0] == 200
            time.sleep(.5)
        assert f.read() == b""

def test_a_slow_body_within_the_limit_is_answered(strict):
    whole = request()
    assert ask(strict.url, whole[:50], whole[50:90], whole[90:], pause=.15)[0][0] == 200

@pytest.mark.parametrize("how", ["in one piece", "piece by piece", "many", "a long path", "behind a good one"])
def test_too_large_headers_are_431(strict, how):
    head = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
    pieces = {"in one piece": [head + b"a: " + b"x"*5000 + b"\r\n\r\n"], "piece by piece": [head, *[b"a: " + b"x"*1000 + b"\r\n"]*30], "many": [head + b"a: b\r\n"*40 + b"\r\n"],
              "a long path": [b"GET /livez?" + b"x"*5000 + b" HTTP/1.1\r\n\r\n"], "behind a good one": [head + b"\r\n" + head + b"a: " + b"x"*5000 + b"\r\n\r\n"]}[how]
    s = connect(strict.url)
    try:
        for p in pieces: s.sendall(p); time.sleep(.01)
    except OSError: pass
    got = rest(s).split(b"HTTP/1.1 ")[1:]
    if how == "behind a good one": assert [x[:3] for x in got] == [b"200"] # which was not answered yet: its answer comes, and nothing after it
    else: assert [x[:3] for x in got] == [b"431"] and b"problem+json" in got[0]

def test_a_body_without_end_is_cut_off(strict):
    got, _ = slowly(strict.url, b"POST /predict/batch HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"*100_000)
    assert got[9:12] == b"413"

def test_what_was_refused_is_counted_and_nothing_stays_behind(strict):
    for head, drip, _ in (HEADS["headers"], HEADS["body on the fast path"]): slowly(strict.url, head, drip)
    ask(strict.url, b"\x16\x03\x01\r\n\r\n")
    text = httpx.get(strict.url + "/metrics", timeout=allow(90)).text
    for reason in ("headers", "body", "invalid"): assert re.search(rf'churn_turned_away_total{{reason="{reason}"}} [1-9]', text), reason
    fds = lambda: len(os.listdir(f"/proc/{strict.pid}/fd"))
    n = fds()
    assert wait_for(lambda: fds() < n + 5)
    assert not [line for line in strict.logged() if line["level"] in ("error", "warning")]

# --- the cap ---

def test_a_connection_over_the_cap_gets_503_at_once(tmp_path):
    "The liveness probe and the connections that are open are still answered."
    put_live(tmp_path)
    with serving(tmp_path, max_connections=20) as s:
        held = [connect(s.url) for _ in range(20)]
        assert wait_for(lambda: ask(s.url, request())[0][0] == 503)
        status, headers, body = ask(s.url, request())[0]
        assert headers["retry-after"] == "1" and headers["connection"] == "close" and headers["content-type"] == "application/problem+json" and b"20 connections" in body
        assert [httpx.get(s.url + p, timeout=allow(90)).status_code for p in ("/livez", "/readyz", "/model")] == [200, 503, 503]
        with held[0] as c, c.makefile("rb") as f: # who is in is answered
            c.sendall(request()); assert answer(f)[0] == 200
        assert wait_for(lambda: ask(s.url, request())[0][0] == 200)
        silent = [connect(s.url) for _ in range(60)] # over the cap, and never ask
        assert wait_for(lambda: len(os.listdir(f"/proc/{s.pid}/fd")) < 60)
        for c in held + silent: c.close()
        assert wait_for(lambda: ask(s.url, request())[0][0] == 200)
        assert 'churn_turned_away_total{reason="full"}' in httpx.get(s.url + "/metrics", timeout=allow(90)).text

def test_the_limit_on_files_bounds_the_cap():
    code = ("import resource\nfrom churn_nb.serving.http.connection_limits import raise_open_files_limit\nfor hard in (4096, 700, 100):\n    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
            "    print(raise_open_files_limit(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["1000 1381", "394 700", "1 100"]

# --- bytes of all kinds: whatever comes, in whatever pieces, the books are balanced ---

LIMITS = SimpleNamespace(header_seconds=60, body_seconds=60, idle_seconds=60, max_connections=100, max_inflight=4, max_header_bytes=2000, max_headers=20, max_body_bytes=1000)

async def echo(scope, receive, send):
    "Answers after a while, sometimes before the body is there."
    if scope["path"] != "/early":
        while (m := await receive()).get("more_body"): pass
        if m["type"] == "http.disconnect": return
    if scope["path"] == "/slow": await asyncio.sleep(.002)
    if scope["path"] == "/raise": raise ValueError("on purpose")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

@pytest.fixture(scope="module")
def standing():
    "A server in a thread: its address and limiter."
    import logging
    logging.getLogger("uvicorn.error").setLevel("CRITICAL")
    limiter, sock = ConnectionLimiter(LIMITS), socket.create_server(("127.0.0.1", 0))
    closed = type("Closed", (), {"accepts": lambda self, p: False})()
    server = uvicorn.Server(uvicorn.Config(echo, http=limited_protocol(type("P", (FastPathProtocol,), {"fast_path": closed}), limiter), log_config=None, ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True); thread.start()
    yield sock.getsockname(), limiter
    server.should_exit = True; thread.join(allow(20)); sock.close()

part = st.sampled_from([b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /slow HTTP/1.1\r\n\r\n", b"GET /raise HTTP/1.1\r\n\r\n", b"POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
                        b"POST /early HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"POST /slow HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                        b"POST /early HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\na: b\r\n\r\n", b"GET /a HTTP/1.0\r\n\r\n", b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\n",
                        b"GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n", b"GET http://x/a HTTP/1.1\r\n\r\n",
                        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", b"GET /a HTTP/1.1\r\nX: " + b"y"*2500 + b"\r\n\r\n",
                        b"GET /a HTTP/1.1\r\n" + b"a: b\r\n"*25 + b"\r\n", b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"POST /a HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
                        b"\r\n", b"GET", b"GET /\xff HTTP/1.1\r\n\r\n", b"POST /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n"]) | st.binary(max_size=30)

@given(st.lists(part, min_size=1, max_size=8), st.lists(st.integers(0, 400), max_size=4), st.sampled_from(["eof", "reset", "read"]))
@hyp(max_examples=400, deadline=None)
def test_whatever_comes_the_books_are_balanced(standing, parts, cuts, end):
    at, limiter = standing
    whole, s = b"".join(parts), socket.create_connection(at, timeout=allow(90))
    marks = sorted({min(c, len(whole)) for c in cuts} | {0, len(whole)})
    try:
        for a, b in itertools.pairwise(marks): s.sendall(whole[a:b])
        if end == "reset": s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if end != "reset":
            with contextlib.suppress(OSError): s.shutdown(socket.SHUT_WR) # it may be gone already
        got = b"".join(iter(lambda: s.recv(65536), b"")) if end == "read" else b""
    except ConnectionError: got = b""
    finally: s.close()
    assert wait_for(lambda: not limiter.connections and not limiter.draining), (limiter.connections, limiter.draining)
    assert wait_for(lambda: limiter.under_way == 0)
    assert got == b"" or re.match(rb"HTTP/1\.1 \d\d\d ", got)

def test_requests_over_the_limit_under_way_get_503(standing):
    at, limiter = standing
    many = [socket.create_connection(at, timeout=allow(90)) for _ in range(40)]
    files, statuses = [s.makefile("rb") for s in many], []
    for _ in range(5):
        for s in many: s.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
        statuses += [answer(f)[0] for f in files]
    assert {200, 503} == set(statuses)
    many[0].sendall(b"GET /livez HTTP/1.1\r\n\r\n"); assert answer(files[0])[0] == 200
    for f in files: f.close()
    for s in many: s.close()
    assert wait_for(lambda: limiter.under_way == 0 and not limiter.connections)
