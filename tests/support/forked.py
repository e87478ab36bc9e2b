"""`churn`, a kernel, Python or a worker of pytest, forked from the process of warm.py where one answers: `python -S forked.py churn|kernel|python|worker ARGUMENTS`. It looks like the process itself."""
import array, json, os, select, signal, socket, sys, time

REAL = {"churn": ["-c", "import sys; from churn_nb.cli.app import entry_point; entry_point()"], "kernel": ["-m", "ipykernel_launcher"], "python": [], "worker": []}
WORKER_WAITS = 120 # seconds, for imports that take 15 of processor

def real(kind, arguments): os.execv(sys.executable, [sys.executable, *REAL[kind], *arguments])

def wait_for(path):
    "Until the process that is forked from answers, or has failed."
    end = time.monotonic() + WORKER_WAITS
    while not (os.path.exists(path) or os.path.exists(f"{path}.failed")) and time.monotonic() < end: time.sleep(.02)

def main(kind, *arguments):
    if kind == "worker": wait_for(os.environ["WARM_TEST_PROCESS"])
    if kind == "python" and (not arguments or arguments[0] not in ("-c", "-m")): real(kind, arguments) # other options are for a new interpreter
    connection = socket.socket(socket.AF_UNIX)
    try: connection.connect(os.environ["WARM_TEST_PROCESS"])
    except (KeyError, OSError): real(kind, arguments)
    job = {"kind": kind, "argv": [kind, *arguments], "environ": {k: v for k, v in os.environ.items() if k != "LC_CTYPE" or v != "C.UTF-8"}, "cwd": os.getcwd()}
    connection.sendmsg([json.dumps(job).encode() + b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (0, 1, 2)))])
    answers = connection.makefile("r")
    pid = int(answers.readline())
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"): signal.signal(getattr(signal, name), lambda number, _: os.kill(pid, number))
    parent = os.getppid()
    while kind == "kernel" and not select.select([connection], [], [], 1.)[0]: # as a kernel does, it ends with the process that started it
        if os.getppid() != parent: os._exit(1)
    code = int(answers.readline() or 70)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)

if __name__ == "__main__": main(*sys.argv[1:])
