#!/usr/bin/env python3
"""A stand-in for a Kubernetes cluster, and for `kubectl` in front of it: one node, one service, containers by Podman.

It reads the rendered manifests for real: image, init container, arguments, environment, ConfigMap, Secret, security context, startup probe. As a Deployment
with maxUnavailable 0 does, it starts the new container beside the old one, sends traffic over when its startup probe passes, and stops the old one then.
`kubectl kustomize` is the real one. What is not there: nodes, scheduling, liveness, HPA, policies, jobs.

CLUSTER names the folder of its state: service.json (port, addresses of the services that manifests refer to, secrets), revisions/, state.json."""
import asyncio, json, os, shutil, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
import yaml

HOME = Path(os.environ["CLUSTER"])
LIMITS = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"] # the machine's own may be higher than a container may set
config = lambda: json.loads((HOME/"service.json").read_text())
state = lambda: json.loads((HOME/"state.json").read_text()) if (HOME/"state.json").exists() else {"serving": None, "coming": None, "revision": 0}
def save(s): (HOME/"state.tmp").write_text(json.dumps(s)); os.replace(HOME/"state.tmp", HOME/"state.json")

def podman(*args, check=True): return subprocess.run([*config()["podman"], *map(str, args)], check=check, capture_output=True, text=True)

def mounts(pod, container, name, by) -> list:
    "Podman's options for a container's volumes; an emptyDir is a folder of the pod's."
    options, volumes, group = [], {v["name"]: v for v in pod["volumes"]}, pod["securityContext"]["fsGroup"]
    for m in container["volumeMounts"]:
        v = volumes[m["name"]]
        if "configMap" in v:
            at = HOME/"maps"/v["configMap"]["name"]
            at.mkdir(parents=True, exist_ok=True)
            for file, text in by["ConfigMap", v["configMap"]["name"]]["data"].items(): (at/file).write_text(text)
            options += ["-v", f"{at}:{m['mountPath']}:ro"]
            continue
        claim = v.get("persistentVolumeClaim")
        at = HOME/"volumes"/claim["claimName"]/m.get("subPath", "") if claim else HOME/"pods"/name/m["name"]
        if not at.exists():
            at.mkdir(parents=True)
            os.chown(at, group, group)
        options += ["-v", f"{at}:{m['mountPath']}"]
    return options

def manifests(revision) -> dict:
    "The objects of a revision by kind and name."
    return {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all((HOME/"revisions"/f"{revision}.yaml").read_text()) if d}

def names(revision) -> list[str]:
    "What kubectl calls the objects of a revision, but for its volumes."
    return [f"{kind.lower()}/{name}" for kind, name in manifests(revision) if kind != "PersistentVolumeClaim"] if revision else []

def put(file):
    "Apply a file of objects; a changed Deployment starts a new container beside the one that serves."
    s, before = state(), state()["revision"]
    (HOME/"revisions").mkdir(exist_ok=True)
    revision = len(list((HOME/"revisions").iterdir())) + 1
    shutil.copy(file, HOME/"revisions"/f"{revision}.yaml")
    now = manifests(revision)
    if before: # what is not in the file stays
        gone = [d for k, d in manifests(before).items() if k not in now]
        (HOME/"revisions"/f"{revision}.yaml").write_text(yaml.safe_dump_all([*now.values(), *gone]))
    s["revision"] = revision
    remove(s["coming"]) # never took over
    s["coming"] = None
    serves = s["serving"] and manifests(s["serving"]["revision"])["Deployment", "churn-api"]
    if serves != now["Deployment", "churn-api"]: s["coming"] = start(revision)
    save(s)

def start(revision) -> dict:
    "The API's container of a revision, from its manifests."
    import socket
    by = manifests(revision)
    pod = by["Deployment", "churn-api"]["spec"]["template"]["spec"]
    (c,) = pod["containers"]
    with socket.create_server(("127.0.0.1", 0)) as s: port = s.getsockname()[1]
    name = f"churn-{HOME.name}-{revision}-{port}"
    for first in pod["initContainers"]:
        done = podman("run", "--rm", "--pull", "always", "--tls-verify=false", "--network", "none", "--user", f"{pod['securityContext']['runAsUser']}", "--read-only", *LIMITS, "--no-healthcheck",
                      *mounts(pod, first, name, by), "--entrypoint", first["command"][0], first["image"], *first["command"][1:], check=False)
        if done.returncode: raise SystemExit(f"error: {first['name']}: {done.stderr.strip()[-500:]}")
    env = {}
    for e in c["env"]:
        if "value" in e: env[e["name"]] = e["value"]
        elif (v := config()["secrets"].get(e["valueFrom"]["secretKeyRef"]["key"])) is not None: env[e["name"]] = v
        elif not e["valueFrom"]["secretKeyRef"].get("optional"): raise SystemExit(f"error: secret {e['valueFrom']['secretKeyRef']} is missing")
    for service, address in config()["services"].items(): env = {k: v.replace(service, address) for k, v in env.items()}
    env |= {"CHURN_SERVE_HOST": "127.0.0.1", "CHURN_SERVE_PORT": str(port)} # no network of its own here: a port of this machine
    options = ["--read-only"] if c["securityContext"]["readOnlyRootFilesystem"] else []
    options += [x for cap in c["securityContext"]["capabilities"]["drop"] for x in ("--cap-drop", cap.lower())]
    options += mounts(pod, c, name, by)
    image = c["image"]
    done = podman("run", "-d", "--pull", "always", "--tls-verify=false", "--name", name, "--network", "host", "--user", f"{pod['securityContext']['runAsUser']}",
                  *LIMITS, *options, *(x for k, v in env.items() for x in ("-e", f"{k}={v}")), image, *c["args"], check=False)
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
        case ["get", _, "--selector", _, "--output", "name"]: print("\n".join(names(state()["revision"])))
        case ["apply", "view-last-applied", it, "--output", "yaml"]:
            (found,) = [d for (kind, name), d in manifests(state()["revision"]).items() if f"{kind.lower()}/{name}" == it]
            print(yaml.safe_dump(found))
        case ["apply", "--dry-run=server", "-f", file]: assert [d for d in yaml.safe_load_all(open(file)) if d]
        case ["apply", "-f", file]:
            put(file)
            print("deployment.apps/churn-api configured (stand-in for a cluster)")
        case ["delete", it]:
            r = state()["revision"]
            kept = [d for (kind, name), d in manifests(r).items() if f"{kind.lower()}/{name}" != it]
            (HOME/"revisions"/f"{r}.yaml").write_text(yaml.safe_dump_all(kept))
            print(f"{it} deleted")
        case ["rollout", "status", "deployment/churn-api", timeout]:
            s = state()
            if not (it := s["coming"]): return 0
            if not ready(it, int(timeout.partition("=")[2].rstrip("s"))):
                print(f"error: {it['name']} did not become ready:\n{_log(it).read()[-800:]}")
                return 1
            old = s["serving"]
            s["serving"], s["coming"] = it, None
            save(s) # traffic goes over
            if old: time.sleep(old["pause"])
            remove(old)
            print("deployment churn-api successfully rolled out")
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
