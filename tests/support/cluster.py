#!/usr/bin/env python3
"""A stand-in for a Kubernetes cluster, and for `kubectl` in front of it: one node, one service, containers by Podman.

It reads the rendered manifests for real: image, arguments, environment, ConfigMap, Secret, security context, startup probe. As a Deployment
with maxUnavailable 0 does, it starts the new container beside the old one, sends traffic over when its startup probe passes, and stops the old one then.
`kubectl kustomize` is the real one. What is not there: nodes, scheduling, liveness, HPA, policies, jobs.

CLUSTER names the folder of its state: service.json (port, addresses of the services that manifests refer to, secrets), revisions/, state.json."""
import asyncio, json, os, shutil, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
import yaml

HOME = Path(os.environ["CLUSTER"])
config = lambda: json.loads((HOME/"service.json").read_text())
state = lambda: json.loads((HOME/"state.json").read_text()) if (HOME/"state.json").exists() else {"serving": None, "coming": None, "revision": 0, "last_good": None}
def save(s): (HOME/"state.tmp").write_text(json.dumps(s)); os.replace(HOME/"state.tmp", HOME/"state.json")

def podman(*args, check=True): return subprocess.run([*config()["podman"], *map(str, args)], check=check, capture_output=True, text=True)

def start(revision) -> dict:
    "The API's container of a revision, from its manifests."
    import socket
    docs = [d for d in yaml.safe_load_all((HOME/"revisions"/f"{revision}.yaml").read_text()) if d]
    by = {(d["kind"], d["metadata"]["name"]): d for d in docs}
    pod = by["Deployment", "churn-api"]["spec"]["template"]["spec"]
    (c,) = pod["containers"]
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    env = {}
    for e in c["env"]:
        if "value" in e: env[e["name"]] = e["value"]
        elif (v := config()["secrets"].get(e["valueFrom"]["secretKeyRef"]["key"])) is not None: env[e["name"]] = v
        elif not e["valueFrom"]["secretKeyRef"].get("optional"): raise SystemExit(f"error: secret {e['valueFrom']['secretKeyRef']} is missing")
    for name, address in config()["services"].items(): env = {k: v.replace(name, address) for k, v in env.items()}
    env |= {"CHURN_SERVE_HOST": "127.0.0.1", "CHURN_SERVE_PORT": str(port)} # no network of its own here: a port of this machine
    options = ["--read-only"] if c["securityContext"]["readOnlyRootFilesystem"] else []
    options += [x for cap in c["securityContext"]["capabilities"]["drop"] for x in ("--cap-drop", cap.lower())]
    volumes = {v["name"]: v for v in pod["volumes"]}
    for m in c["volumeMounts"]:
        v = volumes[m["name"]]
        if "configMap" in v:
            at = HOME/"maps"/v["configMap"]["name"]
            at.mkdir(parents=True, exist_ok=True)
            for name, text in by["ConfigMap", v["configMap"]["name"]]["data"].items(): (at/name).write_text(text)
            options += ["-v", f"{at}:{m['mountPath']}:ro"]
        elif "persistentVolumeClaim" in v:
            at = HOME/"volumes"/v["persistentVolumeClaim"]["claimName"]/m.get("subPath", "")
            at.mkdir(parents=True, exist_ok=True)
            os.chown(at, pod["securityContext"]["fsGroup"], pod["securityContext"]["fsGroup"])
            options += ["-v", f"{at}:{m['mountPath']}"]
        else: options += ["--tmpfs", f"{m['mountPath']}:rw,mode=1777"]
    name = f"churn-{HOME.name}-{revision}-{port}"
    image = c["image"]
    done = podman("run", "-d", "--pull", "always", "--tls-verify=false", "--name", name, "--network", "host", "--user", f"{pod['securityContext']['runAsUser']}",
                  "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", *options, *(x for k, v in env.items() for x in ("-e", f"{k}={v}")), image, *c["args"], check=False)
    if done.returncode: raise SystemExit(f"error: {done.stderr.strip()[-500:]}")
    return {"name": name, "port": port, "revision": revision, "probe": c["startupProbe"], "grace": pod["terminationGracePeriodSeconds"], "pause": int(c["lifecycle"]["preStop"]["exec"]["command"][1])}

def ready(it, seconds) -> bool:
    p = it["probe"]
    end = time.monotonic() + min(seconds, p["periodSeconds"]*p["failureThreshold"])
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{it['port']}{p['httpGet']['path']}", timeout=p["timeoutSeconds"]): return True
        except (OSError, urllib.error.URLError): time.sleep(.3)
        if podman("inspect", "--format", "{{.State.Running}}", it["name"]).stdout.strip() != "true": return False # CrashLoopBackOff
    return False

def remove(it):
    if not it: return
    podman("stop", "-t", it["grace"], it["name"], check=False)
    shutil.copyfileobj(_log(it), open(HOME/f"{it['name']}.log", "w"))
    podman("rm", "-f", it["name"], check=False)

def _log(it):
    import io
    d = podman("logs", it["name"], check=False)
    return io.StringIO(d.stdout + d.stderr)

def main(args):
    if args[0] == "kustomize": os.execv(config()["kubectl"], ["kubectl", *args])
    if args[0] == "--namespace": args = args[2:]
    match args:
        case ["apply", "-f", file]:
            s = state()
            s["revision"] += 1
            (HOME/"revisions").mkdir(exist_ok=True)
            shutil.copy(file, HOME/"revisions"/f"{s['revision']}.yaml")
            s["coming"] = start(s["revision"])
            save(s)
            print("deployment.apps/churn-api configured (stand-in for a cluster)")
        case ["rollout", "status", "deployment/churn-api", timeout]:
            s = state()
            if not (it := s["coming"]): return 0
            if not ready(it, int(timeout.partition("=")[2].rstrip("s"))):
                print(f"error: {it['name']} did not become ready:\n{_log(it).read()[-800:]}")
                return 1
            old, s["before"] = s["serving"], s["serving"] and s["serving"]["revision"]
            s["serving"], s["coming"] = it, None
            save(s) # traffic goes over
            if old: time.sleep(old["pause"])
            remove(old)
            print("deployment churn-api successfully rolled out")
        case ["rollout", "undo", "deployment/churn-api"]:
            s = state()
            if s["coming"]: # never took over
                remove(s["coming"])
                s["coming"] = None
                save(s)
                if s["serving"]: return 0
            if not s.get("before"):
                print("error: no rollout history found for deployment churn-api")
                return 1
            s["coming"] = start(s["before"])
            save(s)
        case ["port-forward", "service/churn-api", ":80"]:
            print(f"Forwarding from 127.0.0.1:{config()['port']} -> 8000", flush=True)
            time.sleep(600)
        case _:
            print(f"error: this stand-in does not know: kubectl {' '.join(args)}")
            return 1
    return 0

async def service():
    "The Service: one port that does not change, whatever container answers behind it."
    async def pipe(r, w):
        try:
            while data := await r.read(65536):
                w.write(data)
                await w.drain()
        except OSError: pass
        finally: w.close()
    async def serve(r, w):
        if not (it := state()["serving"]): return w.close()
        try: r2, w2 = await asyncio.open_connection("127.0.0.1", it["port"])
        except OSError: return w.close()
        await asyncio.gather(pipe(r, w2), pipe(r2, w))
    async with await asyncio.start_server(serve, "127.0.0.1", config()["port"]) as server: await server.serve_forever()

if __name__ == "__main__": sys.exit(asyncio.run(service()) if sys.argv[1:] == ["service"] else main(sys.argv[1:]))
