"The micro-batcher: to each its own result, whatever arrives, fails, leaves or waits."
import asyncio, json, threading
import httpx, numpy as np, pytest
from hypothesis import given, settings as hyp, strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from churn_nb.serving.http import telemetry
from churn_nb.core.errors import QueueFull, DeadlineExceeded
from churn_nb.serving.batching import Batcher
from deadlines import allow
from serving import probability, put_live, serving, settings_for

turns = lambda n=3: asyncio.gather(*[asyncio.sleep(0) for _ in range(n)])

def away(run):
    async def later(items):
        await asyncio.sleep(0)
        return run(items)
    return later

@given(st.lists(st.tuples(st.integers(-5, 5), st.sampled_from(["now", "next turn", "leave"])), max_size=60), st.booleans(), st.integers(1, 7), st.integers(1, 3))
@hyp(max_examples=150, deadline=None)
def test_each_item_gets_its_own_result_in_bounded_batches(asked, slow, most, at_once):
    sizes, under_way, worst = [], 0, 0
    def run(items):
        sizes.append(len(items))
        return [ValueError("zero") if i == 0 else 60/i for i in items]
    async def slowly(items):
        nonlocal under_way, worst
        under_way += 1
        worst = max(worst, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return run(items)
    async def main():
        b, futures = Batcher(slowly if slow else run, most, concurrency=at_once), []
        for item, how in asked:
            futures.append((item, how, f := b(item)))
            if how == "leave": f.cancel()
            if how == "next turn": await turns()
        for item, how, f in futures:
            if how == "leave": assert f.cancelled()
            elif item == 0: assert isinstance((await asyncio.gather(f, return_exceptions=True))[0], ValueError)
            else: assert await f == 60/item
        await turns() # of those who left
        assert not b.waiting and not b.under_way
    asyncio.run(main())
    assert all(n <= most for n in sizes) and sum(sizes) == sum(how != "leave" for _, how in asked) and worst <= at_once

def test_a_failed_batch_is_retried_item_by_item():
    "With an unavailable service nothing is tried again."
    ran = []
    def run(items): ran.append(items); return [1/i for i in items]
    async def ask(b): return await asyncio.gather(*[b(i) for i in (1, 0, 2)], return_exceptions=True)
    async def main():
        here = await ask(Batcher(run))
        assert here[0] == 1 and isinstance(here[1], ZeroDivisionError) and here[2] == .5 and ran == [[1, 0, 2], [1], [0], [2]]
        ran.clear()
        assert all(isinstance(e, ZeroDivisionError) for e in await ask(Batcher(away(run)))) and ran == [[1, 0, 2]]
    asyncio.run(main())

def test_queue_full_and_deadline_exceeded_are_refused():
    "The batcher works on afterwards."
    async def main():
        gate = asyncio.Event()
        async def run(items): await gate.wait(); return items
        b = Batcher(run, max_queue=3, deadline=.03)
        first = b(0)
        await turns()
        waits = [b(i) for i in (1, 2, 3)]
        with pytest.raises(QueueFull, match="3 requests wait already"): b(4)
        assert [type(e) for e in await asyncio.gather(*waits, return_exceptions=True)] == [DeadlineExceeded]*3
        gate.set()
        assert await first == 0 and await b(5) == 5
    asyncio.run(main())

def test_an_item_past_its_deadline_is_not_run():
    ran = []
    async def main():
        gate = asyncio.Event()
        async def run(items): ran.append(items); await gate.wait(); return items
        b = Batcher(run, deadline=.05)
        first = b("first")
        await turns()
        late = b("late")
        b.deadline_timer.cancel() # the timer is late too: the taking itself must look
        await asyncio.sleep(.1)
        gate.set()
        fresh = b("fresh")
        assert await first == "first" and await fresh == "fresh"
        with pytest.raises(DeadlineExceeded): await late
    asyncio.run(main())
    assert ran == [["first"], ["fresh"]]

def test_a_batch_waits_for_its_timer_unless_full():
    sizes = []
    async def main():
        b, loop = Batcher(lambda xs: xs, max_batch=3, max_wait=.05, on_run=sizes.append), asyncio.get_running_loop()
        alone, began = b(1), loop.time()
        await alone
        assert loop.time() - began >= .045
        b.max_wait = 30
        assert await asyncio.wait_for(asyncio.gather(*[b(i) for i in range(3)]), 5) == [0, 1, 2] # would hang for half a minute
    asyncio.run(main())
    assert sizes == [1, 3]

def test_too_few_results_fail_every_request():
    async def main(): return await asyncio.gather(*map(Batcher(lambda xs: xs[1:]), range(3)), return_exceptions=True)
    assert [str(e) for e in asyncio.run(main())] == ["2 results for 3 items"]*3

# In the server

def test_under_load_rows_share_runs_without_mixing_answers(tmp_path):
    put_live(tmp_path)
    r, n = np.random.default_rng(0), 40
    X = r.normal(size=(n, 40, 3)).astype(np.float32)*20
    got = np.zeros((n, 40))
    with serving(tmp_path) as s:
        def caller(k):
            with httpx.Client(base_url=s.url, timeout=allow(90)) as c:
                for i, x in enumerate(X[k].tolist()): got[k, i] = c.post("/predict", json=dict(zip(("age", "usage_minutes", "gap"), x))).json()["probability"]
        crowd = [threading.Thread(target=caller, args=[k]) for k in range(n)]
        for t in crowd: t.start()
        for t in crowd: t.join()
        np.testing.assert_allclose(got.ravel(), probability(X.reshape(-1, 3)), atol=1e-6)
        metrics = dict(line.rsplit(" ", 1) for line in httpx.get(s.url + "/metrics", timeout=allow(90)).text.splitlines() if line.startswith("churn_batch_rows"))
    runs, rows = (float(metrics[f'churn_batch_rows_{x}{{stage="score"}}']) for x in ("count", "sum"))
    assert rows == n*40 and runs < rows

def test_a_heavy_model_runs_in_a_thread(tmp_path, monkeypatch):
    "So the server can answer other requests meanwhile."
    from fastapi.testclient import TestClient
    from churn_nb import serve
    put_live(tmp_path)
    app = serve.create_app(settings_for(tmp_path, request_log=0))
    model, where = app.state.current.model, []
    real = model.predict
    model.run_seconds = 1.
    monkeypatch.setattr(model, "predict", lambda X: where.append(threading.current_thread().name) or real(X))
    with TestClient(app) as c:
        row = {"age": 42, "usage_minutes": 310.5, "gap": None}
        one, two = c.post("/predict", json=row).json(), c.post("/predict/batch", json=[row]*2).json()
        assert abs(one["probability"] - two[1]["probability"]) < 1e-6
        assert c.post("/predict", json=row | {"age": 1e39}).status_code == 422
    assert len(where) == 3 and all("asyncio" in name for name in where)

def test_queue_full_and_deadline_exceeded_give_503_with_retry_after(tmp_path):
    from churn_nb import serve
    put_live(tmp_path)
    app = serve.create_app(settings_for(tmp_path, request_log=0, max_queue=2, deadline_ms=50))
    model = app.state.current.model
    row = {"age": 42, "usage_minutes": 310.5, "gap": None}
    async def main():
        gate = asyncio.Event()
        async def stuck(items): await gate.wait(); return [(.5, np.zeros((1, 3), np.float32), None) for _ in items]
        model.batcher = Batcher(stuck, max_queue=2, deadline=.05)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as c:
            first = asyncio.create_task(c.post("/predict", json=row))
            while not model.batcher.under_way: await asyncio.sleep(.001)
            others = [asyncio.create_task(c.post("/predict", json=row)) for _ in range(3)]
            answers = await asyncio.gather(*others)
            gate.set()
            return [*answers, await first]
    *refused, served = asyncio.run(main())
    assert served.status_code == 200 and [r.status_code for r in refused] == [503]*3 and all(r.headers["retry-after"] == "1" for r in refused)
    assert sorted(r.json()["detail"] for r in refused) == ["2 requests wait already; send it again", *["waited 0.05 s for its turn"]*2]

def test_timing_goes_to_the_caller_and_to_prometheus(server):
    with httpx.Client(base_url=server.url, timeout=allow(90)) as c:
        r = c.post("/predict", json={"age": 42, "usage_minutes": 310.5, "gap": None})
        parts = dict(p.split(";dur=") for p in r.headers["server-timing"].split(", "))
        assert list(parts) == ["score", "total"] and 0 < float(parts["score"]) <= float(parts["total"])
        text = c.get("/metrics").text
    assert 'churn_stage_seconds_count{stage="score"}' in text and 'churn_request_seconds_bucket{le="+Inf",route="/predict"}' in text and "churn_queue_rows 0.0" in text

def test_with_a_tracer_a_request_is_a_child_span(monkeypatch):
    from opentelemetry import trace
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept := InMemorySpanExporter()))
    assert telemetry.span_exporter() is None or not isinstance(trace.get_tracer_provider(), TracerProvider)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    make = telemetry.span_exporter()
    make([telemetry.AccessRecord(100., "abc", "POST", "/predict", 200, .25, 1, "7", [("score", .001)], b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")])
    span, = kept.get_finished_spans()
    assert span.name == "POST /predict" and f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c" and f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert (span.end_time - span.start_time)/1e9 == pytest.approx(.25) and span.attributes["churn.model_version"] == "7" and json.loads(span.to_json())["attributes"]["churn.score_ms"] == 1.
