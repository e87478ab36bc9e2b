"""The servers that bench/serve.py measures, each started as `python bench/servers.py NAME PORT FOLDER` in an environment that has what it needs.

FOLDER holds model.onnx, names.json (the features in order) and sklearn/ (the same model, saved by MLflow). One worker process everywhere, uvicorn with
uvloop and httptools wherever a server is ours to start, no access log. The peers run one worker on a CPU, otherwise with
their defaults and without request tracking or access logs; tuned by nobody. What runs many processes or threads is held to the same one core.
"""
import asyncio, json, logging, os, shutil, sys, time, uuid
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1") # of this process and of Triton's, before they import it

ANSWER = {"churn_risk": 1, "probability": .5, "threshold": .44, "model_version": "1", "missing_features": []}
BODY = json.dumps(ANSWER).encode()

def uvicorn_run(app, port:int):
    import uvicorn
    uvicorn.run(app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_config=None, access_log=False, server_header=False)

def names(folder:Path) -> list[str]: return json.loads((folder/"names.json").read_text())

def session(folder:Path):
    import onnxruntime as ort
    o = ort.SessionOptions()
    o.intra_op_num_threads, o.inter_op_num_threads, o.log_severity_level = 1, 1, 3
    return ort.InferenceSession(str(folder/"model.onnx"), o, providers=["CPUExecutionProvider"])

# The ladder of ASGI: each adds one layer to the one before

async def read(receive) -> bytes:
    message = await receive()
    if not message.get("more_body"): return message["body"]
    return message["body"] + await read(receive)

async def say(send, body:bytes):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

async def lifespan(receive, send):
    for _ in range(2):
        message = await receive()
        await send({"type": message["type"] + ".complete"})

def asgi(answer):
    "An application of one endpoint; `answer` takes `receive` and gives the body."
    async def app(scope, receive, send):
        if scope["type"] == "lifespan": return await lifespan(receive, send)
        await say(send, await answer(scope, receive))
    return app

def row_decoder(folder:Path):
    import msgspec
    Row = msgspec.defstruct("Row", [(f"f{i}", float|None) for i, _ in enumerate(names(folder))], frozen=True, forbid_unknown_fields=True,
                            rename={f"f{i}": n for i, n in enumerate(names(folder))})
    return msgspec.json.Decoder(Row).decode, msgspec.structs.astuple, msgspec.json.Encoder().encode, msgspec.defstruct("Answer", [(k, type(v)) for k, v in ANSWER.items()])

def asgi_empty(port, folder):
    async def answer(scope, receive): return BODY
    uvicorn_run(asgi(answer), port)

def asgi_decode(port, folder):
    decode, astuple, encode, Answer = row_decoder(folder)
    async def answer(scope, receive):
        astuple(decode(await read(receive)))
        return encode(Answer(1, .5, .44, "1", []))
    uvicorn_run(asgi(answer), port)

def asgi_session(port, folder):
    import numpy as np
    (decode, astuple, encode, Answer), run = row_decoder(folder), session(folder).run
    async def answer(scope, receive):
        X = np.array([astuple(decode(await read(receive)))], np.float32)
        p = run(["probability"], {"features": X})[0].item()
        return encode(Answer(int(p >= .44), p, .44, "1", []))
    uvicorn_run(asgi(answer), port)

def batcher(folder:Path):
    "`score(row)`: one run of the session over all rows that this turn of the loop has brought."
    import numpy as np
    run, rows, waiting = session(folder).run, [], []
    def flush():
        p = run(["probability"], {"features": np.array(rows, np.float32)})[0].tolist()
        for w, q in zip(waiting, p):
            if not w.done(): w.set_result(q)
        rows.clear(); waiting.clear()
    def score(row):
        loop = asyncio.get_running_loop()
        if not rows: loop.call_soon(flush)
        rows.append(row); waiting.append(w := loop.create_future())
        return w
    return score

def asgi_batch(port, folder):
    (decode, astuple, encode, Answer), score = row_decoder(folder), batcher(folder)
    async def answer(scope, receive):
        p = await score(astuple(decode(await read(receive))))
        return encode(Answer(int(p >= .44), p, .44, "1", []))
    uvicorn_run(asgi(answer), port)

def asgi_noted(port, folder):
    "With a request id, a counter, a histogram and a log line, as plainly as one would write them."
    from prometheus_client import Counter, Histogram
    (decode, astuple, encode, Answer), score = row_decoder(folder), batcher(folder)
    requests, seconds = Counter("requests", "", ["route", "status"]), Histogram("seconds", "", ["route"])
    log, handler = logging.getLogger("ladder"), logging.StreamHandler(open(folder/"ladder.log", "w"))
    log.handlers, log.propagate = [handler], False
    log.setLevel("INFO")
    async def app(scope, receive, send):
        if scope["type"] == "lifespan": return await lifespan(receive, send)
        began, rid = time.perf_counter(), dict(scope["headers"]).get(b"x-request-id", b"").decode() or uuid.uuid4().hex
        p = await score(astuple(decode(await read(receive))))
        body = encode(Answer(int(p >= .44), p, .44, "1", []))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
                                                                            (b"x-request-id", rid.encode()), (b"x-model-version", b"1")]})
        await send({"type": "http.response.body", "body": body})
        took = time.perf_counter() - began
        requests.labels("/predict", 200).inc()
        seconds.labels("/predict").observe(took)
        log.info(json.dumps({"time": time.time(), "level": "info", "message": "request", "request_id": rid, "route": "/predict", "status": 200, "ms": round(took*1000, 3)}))
    uvicorn_run(app, port)

# The ladder of FastAPI

def starlette_empty(port, folder):
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route
    async def predict(request): return JSONResponse(ANSWER)
    uvicorn_run(Starlette(routes=[Route("/predict", predict, methods=["POST"])]), port)

def fastapi_route(port, folder):
    from fastapi import FastAPI
    app = FastAPI()
    @app.post("/predict")
    async def predict(): return ANSWER
    uvicorn_run(app, port)

def row_model(folder:Path):
    from pydantic import create_model
    return create_model("Row", **{n: (float|None, ...) for n in names(folder)})

def fastapi_empty(port, folder):
    from fastapi import FastAPI
    app, Row = FastAPI(), row_model(folder)
    @app.post("/predict")
    async def predict(row:Row): return ANSWER
    uvicorn_run(app, port)

def fastapi_onnx(port, folder):
    import numpy as np
    from fastapi import FastAPI
    app, Row, order, run = FastAPI(), row_model(folder), names(folder), session(folder).run
    @app.post("/predict")
    async def predict(row:Row):
        p = run(["probability"], {"features": np.array([[getattr(row, n) for n in order]], np.float32)})[0].item()
        return ANSWER | {"churn_risk": int(p >= .44), "probability": p}
    uvicorn_run(app, port)

# Peers

def tutorial(port, folder):
    "FastAPI and mlflow.pyfunc, as most tutorials have it."
    import mlflow, pandas as pd
    from fastapi import FastAPI
    app, Row, model = FastAPI(), row_model(folder), mlflow.pyfunc.load_model(str(folder/"sklearn"))
    @app.post("/predict")
    def predict(row:Row):
        p = float(model.predict(pd.DataFrame([row.model_dump()]))[0][1])
        return {"churn_risk": int(p >= .44), "probability": p}
    uvicorn_run(app, port)

def mlflow_serve(port, folder):
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder/"sklearn"), "-p", str(port), "-h", "127.0.0.1",
                              "--env-manager", "local", "--workers", "1"])

def bento(port, folder):
    os.environ |= {"BENCH_FOLDER": str(folder), "BENTOML_DO_NOT_TRACK": "true", "BENTOML_HOME": str(folder/"bentoml")}
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "servers:Churn", "--host", "127.0.0.1", "-p", str(port), "--working-dir", str(Path(__file__).parent)])

if os.environ.get("BENCH_FOLDER"): # BentoML imports this file
    import bentoml, numpy as np
    @bentoml.service(workers=1, metrics={"enabled": True}, logging={"access": {"enabled": False}})
    class Churn:
        def __init__(self): self.run = session(Path(os.environ["BENCH_FOLDER"])).run
        @bentoml.api
        async def predict(self, features:list[float]) -> dict:
            p = self.run(["probability"], {"features": np.array([features], np.float32)})[0].item()
            return {"churn_risk": int(p >= .44), "probability": p}

def mlserver(port, folder):
    "A model class of our own around ONNX Runtime, inference in the server's process (`parallel_workers` 0)."
    import socket
    free = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as s: free.append(s.getsockname()[1])
    home = folder/"mlserver"
    home.mkdir(exist_ok=True)
    (home/"settings.json").write_text(json.dumps({"http_port": port, "grpc_port": free[0], "metrics_port": free[1], "host": "127.0.0.1", "parallel_workers": 0, "debug": False,
                                                  "logging_settings": {"version": 1, "disable_existing_loggers": True}}))
    (home/"model-settings.json").write_text(json.dumps({"name": "churn", "implementation": "mlserver_churn.Churn", "parameters": {"uri": str(folder/"model.onnx")}}))
    (home/"mlserver_churn.py").write_text(f"""import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
import numpy as np, servers
class Churn(MLModel):
    async def load(self):
        self.run = servers.session(Path(self.settings.parameters.uri).parent).run
        return True
    async def predict(self, payload):
        X = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        p = self.run(["probability"], {{"features": X}})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probability", p)])
""")
    os.chdir(home)
    os.execv(sys.executable, [sys.executable, "-c", "import sys; from mlserver.cli.main import main; sys.argv = ['mlserver', 'start', '.']; main()"])

def litserve(port, folder):
    os.environ["BENCH_LITSERVE"] = str(folder)
    import litserve as ls
    import servers # its worker is a new process that imports the class
    ls.LitServer(servers.Lit(), accelerator="cpu", workers_per_device=1, track_requests=False).run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning",
                                                                                                  num_api_servers=1, access_log=False)

if os.environ.get("BENCH_LITSERVE"):
    import litserve as ls, numpy as np
    class Lit(ls.LitAPI):
        def setup(self, device): self.run = session(Path(os.environ["BENCH_LITSERVE"])).run
        def decode_request(self, request): return request["features"]
        def predict(self, x): return self.run(["probability"], {"features": np.array([x], np.float32)})[0].item()
        def encode_response(self, p): return {"churn_risk": int(p >= .44), "probability": p}

def rayserve(port, folder):
    import ray
    from ray import serve
    from starlette.requests import Request
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100_000_000, _temp_dir=f"/tmp/bench-ray-{port}")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    where = str(Path(__file__).parent)
    @serve.deployment(num_replicas=1, max_ongoing_requests=64, logging_config={"enable_access_log": False})
    class Churn:
        def __init__(self):
            sys.path.insert(0, where)
            import numpy, servers
            self.np, self.run = numpy, servers.session(folder).run
        async def __call__(self, request:Request):
            p = self.run(["probability"], {"features": self.np.array([(await request.json())["features"]], "float32")})[0].item()
            return {"churn_risk": int(p >= .44), "probability": p}
    serve.run(Churn.bind(), route_prefix="/predict")
    try:
        while True: time.sleep(3600)
    finally:
        serve.shutdown(); ray.shutdown()

TRITON_MODEL = '''import os
import numpy as np, onnxruntime as ort
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def initialize(self, args):
        o = ort.SessionOptions()
        o.intra_op_num_threads = o.inter_op_num_threads = 1
        self.run = ort.InferenceSession(os.path.join(args["model_repository"], args["model_version"], "model.onnx"), o, providers=["CPUExecutionProvider"]).run
    def execute(self, requests):
        X = [pb_utils.get_input_tensor_by_name(r, "features").as_numpy() for r in requests]
        p = np.split(self.run(["probability"], {"features": np.concatenate(X)})[0], np.cumsum([len(x) for x in X])[:-1])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("probability", np.ascontiguousarray(q).reshape(-1, 1))]) for q in p]
'''

def triton(port, folder):
    "The real core with its dynamic batcher, from PyPI; the model runs in its Python backend, as no other comes with the wheel."
    import importlib.util, socket, sysconfig
    root, py = Path(importlib.util.find_spec("pytriton").origin).parent/"tritonserver", f"{sys.version_info[0]}.{sys.version_info[1]}"
    home = folder/"triton"
    shutil.rmtree(home, ignore_errors=True)
    python, model = home/"backends/python", home/"models/churn"
    python.mkdir(parents=True)
    (model/"1").mkdir(parents=True)
    for f in (root/"backends/python").glob("*.*"): shutil.copy(f, python/f.name) # a link is refused
    shutil.copy(root/"python_backend_stubs"/py/"triton_python_backend_stub", python)
    shutil.copy(folder/"model.onnx", model/"1")
    (model/"1/model.py").write_text(TRITON_MODEL)
    (model/"config.pbtxt").write_text(f'name: "churn"\nbackend: "python"\nmax_batch_size: 64\ninput [{{name: "features" data_type: TYPE_FP32 dims: [{len(names(folder))}]}}]\n'
        'output [{name: "probability" data_type: TYPE_FP32 dims: [1]}]\ndynamic_batching {}\ninstance_group [{kind: KIND_CPU count: 1}]\n')
    free = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as s: free.append(s.getsockname()[1])
    free[0] = int(os.environ.get("BENCH_GRPC", free[0]))
    os.environ |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": f"{root.parent.parent}/nvidia_pytriton.libs:{sysconfig.get_config_var('LIBDIR')}"}
    os.execv(root/"bin/tritonserver", ["tritonserver", f"--model-repository={home}/models", f"--backend-directory={home}/backends", "--http-address=127.0.0.1", f"--http-port={port}",
        "--grpc-address=127.0.0.1", f"--grpc-port={free[0]}", "--metrics-address=127.0.0.1", f"--metrics-port={free[1]}", "--allow-gpu-metrics=false"])

# Ours, as `churn serve` starts it

def ours(port, folder, **over):
    from churn_nb.serve import run_server
    from churn_nb.core.settings import load_settings
    run_server(load_settings({"paths.workspace": str(folder/"ws"), **over}, environ={}), port=port)

def ours_sqlite(port, folder): ours(port, folder)

def ours_redis(port, folder):
    address = (folder/"redis.txt").read_text()
    ours(port, folder, **{"stores.online": address, "paths.workspace": str(folder/"ws-redis")})

def ours_triton(port, folder):
    "With a Triton of its own beside it, on the same core."
    import socket, subprocess
    free = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as s: free.append(s.getsockname()[1])
    subprocess.Popen([os.environ["BENCH_TRITON"], __file__, "triton", str(free[0]), str(folder)], env=os.environ | {"BENCH_GRPC": str(free[1])})
    ours(port, folder, **{"serve.backend": "triton", "triton.url": f"127.0.0.1:{free[1]}", "triton.fallback": "no"})

if __name__ == "__main__": globals()[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]).resolve())
