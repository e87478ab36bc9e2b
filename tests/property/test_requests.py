"Requests that nobody would write: made from the OpenAPI document, from mangled bodies, and a hundred thousand of them."
import contextlib, json, statistics, struct, sys, time
from collections import Counter
import httpx, pytest, schemathesis
from hypothesis import HealthCheck, Phase, example, given, seed, settings as hyp, strategies as st
from hypothesis.errors import Unsatisfiable
from churn_nb.core.errors import InvalidRequest
from churn_nb.core.manifest import Feature
from churn_nb.serving.request_schema import RequestSchema
from deadlines import allow
from serving import put_live, rss_mb, serving
from online_store import api_on, model_of
from raw_http import ROW, answer, connect, request

# --- from the document ---

quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

def operations(url):
    "Method, path and what to draw cases from, of each operation in the document."
    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    return [r.ok() for r in schema.get_all_operations()]

def fuzz(url, op, mode, counts, n=20):
    "Send cases of one operation."
    @given(op.as_strategy(generation_mode=mode))
    @seed(20260101)
    @hyp(max_examples=n, deadline=None, database=None, suppress_health_check=quiet, phases=[Phase.generate])
    def check(case):
        r = case.call(base_url=url, timeout=allow(90))
        counts[r.status_code] += 1
        if r.status_code == 503: assert "event log" in r.text or "feature store" in r.text, r.text # this workspace has none, and says so
        else: assert r.status_code < 500, (r.status_code, r.text)
        if r.status_code >= 400: assert r.headers["content-type"][0] == "application/problem+json" and r.json()["detail"], r.text
        if op.path.startswith("/predict") and r.status_code == 422: assert all("field" in e for e in r.json()["errors"]) # whose name may be ""
    check()

def test_no_request_from_the_document_is_a_5xx(server, capsys):
    "Good ones, which are answered, and spoilt ones, which are told why."
    counts, modes = {}, schemathesis.GenerationMode
    for op in operations(server.url):
        for mode in (modes.POSITIVE, modes.NEGATIVE):
            try: fuzz(server.url, op, mode, counts.setdefault(f"{op.method.upper()} {op.path}", Counter()))
            except Unsatisfiable: assert mode == modes.NEGATIVE # nothing in it could be wrong
    assert {200, 422} <= counts["POST /predict"].keys() and {200, 422} <= counts["POST /predict/batch"].keys() and len(counts) > 10
    with capsys.disabled(): print(f"\nfrom the document: {sum(map(Counter.total, counts.values()))} requests, {len(counts)} operations, statuses {dict(sum(counts.values(), Counter()))}")

# --- mangled bodies ---

GOOD = {"/predict": json.dumps(ROW).encode(), "/predict/batch": json.dumps([ROW, {**ROW, "gap": 2}]).encode(),
        "/events": b'{"event_id": 1, "customer_id": 3, "event_timestamp": "1998-06-30T18:20:00Z", "amount": 20.5}',
        "/v2/models/churn/infer": b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [42, 310.5, null]}]}'}
junk = st.sampled_from([b"", b"null", b"NaN", b"Infinity", b"-", b"1e999", b"-0", b"1e-999", b"9"*400, b'"', b"\\", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"}", b"[", b"]", b",", b":",
                        b"["*2000, b'{"a":'*500, b"\\ud800", "é😀".encode(), b"true", b"[[]]", b"{}", b'"x"', b" "*1000, b'"age": 1,', b'"customer_id": 9223372036854775808', b'"customer_id": 1'])

@st.composite
def mangled(draw, good):
    "A good body with pieces cut out, doubled, or put in."
    body = good
    for _ in range(draw(st.integers(1, 4))):
        i, j = sorted((draw(st.integers(0, len(body))), draw(st.integers(0, len(body)))))
        body = draw(st.sampled_from([body[:i] + body[j:], body[:j] + body[i:], body[:i] + draw(junk) + body[j:], body[:i] + draw(junk) + body[i:], body[:i] + draw(st.binary(max_size=5)) + body[i:]]))
        body = body[:50_000]
    return body

def told(path, r):
    "No 5xx, and a 4xx says what is wrong, in words that a person can read."
    status, headers, body = r
    if status == 200: return
    problem = json.loads(body)
    assert 400 <= status < 500 or status == 503 and "event log" in problem["detail"], (status, body)
    assert headers["content-type"] == "application/problem+json" and problem["status"] == status and 3 < len(problem["detail"]) <= 500 and "Traceback" not in problem["detail"]
    if path.startswith("/predict") and status == 422: assert all("field" in e and e["message"] for e in problem["errors"]) # a field may be ""
    if path.startswith("/v2"): assert problem["error"] == problem["detail"]

SCHEMA = RequestSchema([Feature(name="age"), Feature(name="a:b"), Feature(name="plan", type="string", values=["x", "y:z"], nullable=True)])
objects = st.just([("customer_id", 7)]) | st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.sampled_from(["x", "y:z", " : ", None])).map(lambda v: list(zip(("age", "a:b", "plan"), v)))

@given(st.lists(objects, min_size=1, max_size=4), st.data())
@hyp(max_examples=200, deadline=None)
def test_a_field_that_stands_twice_is_refused_by_row_and_name(rows, data):
    def body(rows): return [b"{" + b", ".join(json.dumps(k).encode() + b": " + json.dumps(v).encode() for k, v in pairs) + b"}" for pairs in rows]
    assert len(SCHEMA.decode(b"[" + b",".join(body(rows)) + b"]", many=True)) == len(rows) and SCHEMA.decode(body(rows)[0])
    rows, i = [list(r) for r in rows], data.draw(st.integers(0, len(rows) - 1))
    name, value = data.draw(st.sampled_from(rows[i]))
    rows[i].insert(data.draw(st.integers(0, len(rows[i]))), (name, value))
    with pytest.raises(InvalidRequest) as e: SCHEMA.decode(b"[" + b",".join(body(rows)) + b"]", many=True)
    assert e.value.errors == [{"row": i, "field": name, "message": "stands twice"}]
    with pytest.raises(InvalidRequest): SCHEMA.decode(body(rows)[i])

@pytest.fixture(scope="module")
def lines():
    "Connections that stay open, by server."
    with contextlib.ExitStack() as stack:
        made = {}
        def get(url):
            if url not in made or time.monotonic() - made[url][1] > 2: # the server ends a connection that has been idle
                c = stack.enter_context(connect(url))
                c.settimeout(120) # a busy machine
                made[url] = (c, stack.enter_context(c.makefile("rb"))), 0
            made[url] = made[url][0], time.monotonic()
            return made[url][0]
        yield get

def one(line, *args, **kw):
    s, f = line
    s.sendall(request(*args, **kw))
    return answer(f)

@pytest.mark.parametrize("path", GOOD)
def test_a_mangled_body_gets_a_descriptive_error(server, lines, path):
    @given(mangled(GOOD[path]) | st.binary(max_size=100))
    @hyp(max_examples=300, deadline=None, suppress_health_check=quiet)
    def check(body): told(path, one(lines(server.url), body, path=path)) # on one connection: each answer is the answer to its question
    check()

def test_mangled_events_on_a_real_log(copied, lines):
    "Each is taken, known, or told what is wrong; the store is asked for customers in between."
    s = copied("few")
    model_of(s.paths.workspace, ["transactions_total"])
    server, counts = api_on(s), Counter()
    first = {"/events": json.loads(GOOD["/events"]), "/predict": {"customer_id": 3}} # both start what takes seconds
    for path, body in first.items(): assert httpx.post(server.url + path, json=body, timeout=allow(120)).status_code in (200, 404, 422)
    values = st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
    event = st.fixed_dictionaries({}, optional={k: st.just(v) | values for k, v in json.loads(GOOD["/events"]).items()} | {"quantity": values, "x": values})
    bodies = mangled(GOOD["/events"]) | (event | st.lists(event, max_size=3)).map(lambda e: json.dumps(e).encode())
    @given(bodies)
    @hyp(max_examples=50, deadline=None, suppress_health_check=quiet)
    def check(body):
        r = one(lines(server.url), body, path="/events")
        counts[r[0]] += 1
        assert r[0] in (200, 202, 400, 413, 422), r
        if r[0] >= 400: told("/events", r)
        told("/predict", one(lines(server.url), b'{"customer_id": %d}' % (counts.total() % 50)))
    try: check()
    finally: server.stop()
    assert counts[422] and counts[400] and not [line for line in server.logged() if line["level"] == "error"]

@given(st.integers(-5, 300) | st.sampled_from([2**31, 2**63, 10**30, -1]), st.binary(max_size=80), st.sampled_from([0, 1, 3, 12, -1, 10**9]), st.lists(st.integers(-2, 7), max_size=3))
@example(130, struct.pack("<3f", 42, 310.5, 0), 12, [1, 3])
@hyp(max_examples=300, deadline=None)
def test_binary_tensors_that_lie(server, lines, head, tail, size, shape):
    "A length of the JSON part, of the tensor, and a shape: each may be wrong."
    tensor = {"name": "features", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    for length in (head, len(text)):
        r = one(lines(server.url), text + tail, kind="application/octet-stream", path="/v2/models/churn/infer", Inference_Header_Content_Length=length)
        told("/v2", r)
        assert (r[0] == 200) <= (length == len(text) and size == len(tail) == 12 and shape == [1, 3])

@given(st.sampled_from([*GOOD, "/", "/model", "/livez", "/v2", "/v2/models/churn", "/v2/models/churn/versions/1/infer", "/nowhere"]), st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
       st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "HEAD"]), st.dictionaries(st.sampled_from(["Content_Type", "Accept", "Content_Encoding", "X_Request_Id",
       "Inference_Header_Content_Length", "traceparent", "Authorization", "Cookie", "Range", "If_None_Match", "X_API_Key"]), st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20)))
@hyp(max_examples=300, deadline=None)
def test_any_path_method_and_header(server, path, tail, method, headers):
    end = path + ("?" + tail if len(tail) % 2 else "/" + tail if tail else "")
    more = b"".join(f"{k.replace('_', '-')}: {v}\r\n".encode("latin-1") for k, v in headers.items())
    with connect(server.url) as s:
        s.sendall(f"{method} {end} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n".encode() + more + b"\r\n{}")
        got = b"".join(iter(lambda: s.recv(65536), b""))
    status = int(got[9:12])
    assert status < 500 or status == 503 and b"event log" in got, got

def test_after_all_that_the_server_has_nothing_to_report(server, capsys):
    errors = [line for line in server.logged() if line["level"] == "error"]
    assert not errors, json.dumps(errors, indent=1)
    times = {}
    wrong = {"a wrong field": b'{"age": 1, "usage_minuts": 2, "gap": 3}', "not JSON": b'{"age": 1', "text for a number": b'{"age": "x", "usage_minutes": 2, "gap": 3}', "a missing field": b'{"age": 1}'}
    with connect(server.url) as s, s.makefile("rb") as f:
        for what, body in wrong.items():
            took = []
            for _ in range(200):
                began = time.perf_counter()
                s.sendall(request(body)); status, _, said = answer(f)
                took.append(time.perf_counter() - began)
                assert status in (400, 422) and json.loads(said)["errors"][0]["field"] in ("usage_minuts", "usage_minutes", "body", "age")
            times[what] = 1000*statistics.median(took)
    assert max(times.values()) < 500
    with capsys.disabled(): print("\nbad input, median: " + ", ".join(f"{w} {ms:.2f} ms" for w, ms in times.items()))

# --- a hundred thousand ---

def test_no_memory_is_lost_over_100_000_requests(tmp_path, capsys):
    "Good ones by both ways, wrong ones, batches, and the protocol's, on 64 connections."
    put_live(tmp_path)
    kinds = [request()]*40 + [request(kind="application/json; charset=utf-8")]*4 + [request(b'{"age": 1}')]*4 + [request(GOOD["/predict/batch"], path="/predict/batch")]*2 + [
        request(GOOD["/v2/models/churn/infer"], path="/v2/models/churn/infer"), request(b"{", kind="text/x"), b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /nowhere HTTP/1.1\r\n\r\n"]
    with serving(tmp_path, python=sys.executable, request_log_seconds=2) as s, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(s.url)) for _ in range(64)]
        sent, rss = 0, {}
        while sent < 100_000:
            for i, c in enumerate(clients): c.sendall(kinds[(sent + i) % len(kinds)])
            for c in clients:
                n = c.recv(65536)
                while not n.endswith((b"}", b"]")): n += c.recv(65536)
                assert n.startswith(b"HTTP/1.1 ") and n[9:10] != b"5", n
            sent += len(clients)
            for mark in (30_000, 100_000):
                if sent >= mark and mark not in rss: rss[mark] = rss_mb(s.pid)
    with capsys.disabled(): print(f"\nRSS: {rss[30_000]:.1f} MB after 30,000 requests, {rss[100_000]:.1f} MB after 100,000")
    assert rss[100_000] < rss[30_000] + 12
