"""A process with the slow imports done (mlflow, feast, scikit-learn, evidently: some 15 seconds of processor), from which pytest's workers, and commands, kernels and short programs of tests are forked.

    python warm.py SOCKET     serve: a client's argv, environment, folder and descriptors come in; a fork runs `churn`, a kernel, `python -c|-m` or a worker with them

Clients are `forked.py`, which look like the process itself: same descriptors, signals passed on, same exit code. Where no such server answers, a client runs the real thing,
so nothing depends on it but time. What is forked differs from a fresh process in one way: modules are imported already. `prometheus_client` comes first, as in the API: Feast's import turns on
its mode for several processes. Tests of imports, of limits and of hash seeds start their own."""
import array, atexit, gc, importlib, json, os, runpy, selectors, signal, socket, sys, threading, time, traceback, types, warnings

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = ("prometheus_client", "pandas", "scipy.stats", "sklearn.ensemble", "sklearn.linear_model", "sklearn.neural_network", "sklearn.inspection", "sklearn.model_selection", "matplotlib.pyplot",
           "mlflow.onnx", "mlflow.store.tracking.sqlalchemy_store", "skl2onnx", "evidently", "evidently.presets", "duckdb", "pyarrow.parquet", "pyarrow.csv",
           "feast", "ipykernel.kernelapp", "ipykernel.ipkernel", "papermill",
           "nbformat", "jupyter_client", "fastapi.testclient", "fastcore.test", "uvicorn", "churn_nb.cli.pipeline", "churn_nb.train", "churn_nb.promote", "churn_nb.drift", "churn_nb.serve",
           "churn_nb.batch.job", "churn_nb.ops.monitor", "churn_nb.ops.store_checks", "churn_nb.ops.serving_checks", "churn_nb.ops.event_worker")

def receive(connection) -> tuple[dict, list[int]]:
    "A request and the three descriptors that came with it."
    data, ancillary, *_ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(3*4))
    descriptors = array.array("i")
    for _, _, raw in ancillary: descriptors.frombytes(raw)
    while not data.endswith(b"\n"): data += connection.recv(1 << 20)
    return json.loads(data), descriptors.tolist()

class Server:
    "One thread and one loop: requests, clients that went away, children that ended."
    def __init__(self, path:str):
        self.children, self.selector = {}, selectors.DefaultSelector() # pid -> connection
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{path}.new")
        self.listener.listen(64)
        os.rename(f"{path}.new", path) # it is there when it answers
        self.selector.register(self.listener, selectors.EVENT_READ)

    def next_job(self) -> dict:
        "Serve until a child is forked; returns in the child, with its request."
        parent = os.getppid()
        while os.getppid() == parent: # it ends with the test run
            for key, _ in self.selector.select(.05 if self.children else 1.):
                if key.fileobj is self.listener:
                    if (job := self.fork()) is not None: return job
                else: self.lost(key.fileobj)
            self.reap()
        sys.exit()

    def fork(self) -> dict|None:
        connection, _ = self.listener.accept()
        try: job, descriptors = receive(connection)
        except (OSError, ValueError): return connection.close()
        if pid := os.fork():
            for d in descriptors: os.close(d)
            self.children[pid] = connection
            self.selector.register(connection, selectors.EVENT_READ)
            connection.sendall(f"{pid}\n".encode())
            return None
        self.selector.close()
        for s in (self.listener, connection, *self.children.values()): s.close()
        for to, d in enumerate(descriptors): os.dup2(d, to); os.close(d)
        return job

    def lost(self, connection):
        "A client is gone before its process: as if the process had got the signal."
        self.selector.unregister(connection)
        for pid, c in self.children.items():
            if c is connection: os.kill(pid, signal.SIGKILL)

    def reap(self):
        while self.children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid: return
            connection = self.children.pop(pid)
            try: connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            except OSError: pass
            try: self.selector.unregister(connection)
            except (KeyError, ValueError): pass
            connection.close()

def become(job:dict):
    "Take over what a client has: arguments, environment, folder, and what is read from them at import."
    import numpy as np
    sys.argv[:] = job["argv"]
    os.environ.clear()
    os.environ.update(job["environ"])
    os.environ.pop("JPY_PARENT_PID", None) # the client watches its parent
    os.chdir(job["cwd"])
    if job["kind"] == "python": sys.path[:] = ["", *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *(p for p in sys.path if p != HERE)]
    if job["kind"] != "worker": sys.executable = os.environ.get("WARM_TEST_PYTHON", sys.executable) # what it starts is forked, too
    for name in ("SIGINT", "SIGTERM", "SIGCHLD"): signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
    time.tzset()
    np.random.seed()
    sys.stdout, sys.stderr = (open(d, "w", buffering=1 if os.isatty(d) or d == 2 else -1, closefd=False, encoding="utf-8", errors=e) for d, e in ((1, "strict"), (2, "backslashreplace")))
    sys.stdin = open(0, closefd=False)
    if "COVERAGE_PROCESS_START" in os.environ:
        import coverage
        coverage.process_startup(force=True)

def run(job:dict):
    become(job)
    if job["kind"] == "churn":
        from churn_nb.cli.app import main
        sys.exit(main())
    if job["kind"] == "python": return python(*job["argv"][1:])
    if job["kind"] == "worker": return python(*job["argv"][2:]) # after -u: execnet reads and writes descriptors of its own
    import matplotlib, pandas # which ask at import whether they are in a kernel
    matplotlib.rcParams["backend"] = os.environ.get("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    pandas.set_option("display.max_columns", 20)
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)

def python(option:str, program:str, *arguments):
    "As the interpreter does it with `-c` and `-m`."
    sys.argv[:] = [option, *arguments]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        return
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    exec(compile(program, "<string>", "exec"), vars(main))

def ended(job:dict):
    "Run it and end as the interpreter does, without taking all modules apart, which would take seconds."
    code = 1
    try:
        run(job)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
        if isinstance(e.code, str): print(e.code, file=sys.stderr)
    except BaseException: traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed: stream.flush()
    os._exit(code)

def import_slow_modules():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("prometheus_client")
        from churn_nb.feature_store.online import import_feast
        import_feast()
        for m in MODULES: importlib.import_module(m)

def serve(path:str):
    signal.signal(signal.SIGINT, signal.SIG_IGN) # the test run's Ctrl-C is the test run's
    try: import_slow_modules()
    except BaseException: # what is broken is in the log of warm_process.py, and the clients' own imports say it
        open(f"{path}.failed", "w").close() # none of them need wait
        raise
    gc.freeze() # or the first collection in a child copies every page
    ended(Server(path).next_job())

if __name__ == "__main__": serve(sys.argv[1])
