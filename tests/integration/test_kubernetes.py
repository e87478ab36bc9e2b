"Kubernetes manifests: rendered, valid for two versions, and what a schema can't see: that things find each other and the app."
import os, re, shutil, subprocess
import pytest, yaml
from kubernetes_validate import ValidationError, validate
from fastapi.testclient import TestClient
from churn_nb.serving.http.auth import read_api_keys
from churn_nb.serve import create_app
from churn_nb.core.settings import load_settings
from deadlines import allow
from serving import put_live, settings_for
from paths import CHURN, ROOT

PEM = "-----BEGIN PUBLIC KEY-----"
OVERLAYS = ("dev", "prod", "triton")
pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="NOT RUN: Kubernetes manifests; kubectl, which renders them, is missing")

def render(folder): return subprocess.run(["kubectl", "kustomize", folder], check=True, capture_output=True, text=True, timeout=allow(300)).stdout

@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request): return request.param, render(ROOT/"k8s/overlays"/request.param)

@pytest.fixture
def objects(rendered): return [o for o in yaml.load_all(rendered[1], Loader=yaml.CSafeLoader) if o]

def kind(objects, k): return {o["metadata"]["name"]: o for o in objects if o["kind"] == k}
def pod_specs(objects):
    "(name, labels, spec) of each pod that comes to be."
    for o in objects:
        t = o["spec"]["template"] if o["kind"] == "Deployment" else o["spec"]["jobTemplate"]["spec"]["template"] if o["kind"] == "CronJob" else None
        if t: yield o["metadata"]["name"], t["metadata"]["labels"], t["spec"]
containers = lambda objects: [(name, spec, c) for name, _, spec in pod_specs(objects) for c in [*spec.get("initContainers", []), *spec["containers"]]]

@pytest.mark.parametrize("version", ["1.31.0", "1.36.0"])
def test_valid_for(objects, version):
    for o in objects: validate(o, version, strict=True) # a kind without a schema is an error, too
    (deployment,) = [o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == "churn-api"]
    pod = deployment["spec"]["template"]["spec"]
    pod["terminationGraceSeconds"] = pod.pop("terminationGracePeriodSeconds")
    with pytest.raises(ValidationError, match="terminationGraceSeconds"): validate(deployment, version, strict=True) # it finds a misspelt key

def test_every_part_is_there(rendered, objects):
    kinds = {o["kind"] for o in objects}
    assert kinds >= {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "ConfigMap", "CronJob", "PersistentVolumeClaim", "ServiceAccount"}
    assert "Secret" not in kinds, "secrets are referenced, never here"
    assert set(kind(objects, "CronJob")) == {"churn-materialize", "churn-drift"}
    assert len({o["metadata"].get("namespace") for o in objects}) == 1 and all(o["metadata"]["labels"]["app.kubernetes.io/part-of"] == "churn" for o in objects)
    assert ("churn-redis" in kind(objects, "Deployment")) == (rendered[0] == "dev"), "production's Redis is the company's"

def test_selectors_find_their_pods(objects):
    pods = [labels for _, labels, _ in pod_specs(objects)]
    found = lambda want: [p for p in pods if want.items() <= p.items()]
    for d in kind(objects, "Deployment").values():
        assert d["spec"]["selector"]["matchLabels"].items() <= d["spec"]["template"]["metadata"]["labels"].items()
        for spread in d["spec"]["template"]["spec"].get("topologySpreadConstraints", []): assert found(spread["labelSelector"]["matchLabels"])
    for o in [*kind(objects, "PodDisruptionBudget").values(), *kind(objects, "NetworkPolicy").values()]:
        assert found((o["spec"].get("selector") or o["spec"]["podSelector"])["matchLabels"]), o["metadata"]["name"]
    for s in kind(objects, "Service").values():
        if s["spec"].get("type") == "ExternalName": continue
        (labels,) = found(s["spec"]["selector"])
        (spec,) = [spec for _, others, spec in pod_specs(objects) if others == labels]
        ports = {p["name"] for c in spec["containers"] for p in c["ports"]}
        assert {p["targetPort"] for p in s["spec"]["ports"]} <= ports
    for h in kind(objects, "HorizontalPodAutoscaler").values():
        target = kind(objects, "Deployment")[h["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "else each deployment would undo the scaling"

def test_ports_are_named_and_equal(objects):
    for name, spec, c in containers(objects):
        names = {p["name"]: p["containerPort"] for p in c.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in c: assert next(iter(c[probe][k]["port"] for k in ("httpGet", "tcpSocket") if k in c[probe])) in names, (name, probe)
        env = {e["name"]: e.get("value") for e in c.get("env", [])}
        if "CHURN_SERVE_PORT" in env: assert names == {"http": int(env["CHURN_SERVE_PORT"])}
    policy = kind(objects, "NetworkPolicy")["churn-api"]["spec"]
    assert policy["ingress"][0]["ports"] == [{"port": "http"}]

def test_probes_exist_on_the_app_and_mean_what_they_should(objects, tmp_path):
    (api,) = [c for name, _, c in containers(objects) if name == "churn-api" and c["name"] == "api"]
    path = {p: api[p]["httpGet"]["path"] for p in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert path == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    statuses = lambda ws: [TestClient(create_app(settings_for(ws), keys=read_api_keys({"CHURN_SERVE_API_KEYS": "k"*20}))).get(p).status_code for p in ("/readyz", "/livez")]
    assert statuses(tmp_path) == [503, 200], "no model: no traffic, no restart; and no key is asked for"
    put_live(tmp_path)
    assert statuses(tmp_path) == [200, 200]

def test_every_container_is_bounded_and_locked(objects):
    for name, spec, c in containers(objects):
        r, s = c["resources"], {**spec["securityContext"], **c["securityContext"]}
        assert r["requests"].keys() == r["limits"].keys() == {"cpu", "memory"}, name
        assert s["runAsNonRoot"] is True and s["runAsUser"] and s["readOnlyRootFilesystem"] is True and s["allowPrivilegeEscalation"] is False, name
        assert s["capabilities"] == {"drop": ["ALL"]} and s["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        if spec.get("restartPolicy") != "Never" and c not in spec.get("initContainers", []): assert {"readinessProbe", "livenessProbe"} <= c.keys(), name
        mounted, there = {m["name"] for x in [*spec.get("initContainers", []), *spec["containers"]] for m in x.get("volumeMounts", [])}, {v["name"] for v in spec.get("volumes", [])}
        assert mounted == there, name
        for v in spec.get("volumes", []): assert "emptyDir" not in v or v["emptyDir"]["sizeLimit"], "an unbounded one fills the node"

def test_what_is_referred_to_is_there(objects):
    claims, maps, services = (set(kind(objects, k)) for k in ("PersistentVolumeClaim", "ConfigMap", "Service"))
    for name, spec, c in containers(objects):
        for v in spec.get("volumes", []):
            assert v.get("persistentVolumeClaim", {"claimName": next(iter(claims))})["claimName"] in claims
            assert v.get("configMap", {"name": next(iter(maps))})["name"] in maps
        for e in c.get("env", []):
            if address := re.match(r"\w+://([\w-]+):\d+", e.get("value") or ""): assert address[1] in services, (name, e)
            if "secretKeyRef" in e.get("valueFrom", {}): assert e["valueFrom"]["secretKeyRef"]["name"] == "churn-api"
    account, = kind(objects, "ServiceAccount")
    assert all(spec.get("serviceAccountName", account) == account for _, _, spec in pod_specs(objects))

def test_the_settings_are_the_settings_and_every_variable_is_known(objects, tmp_path):
    (config,) = kind(objects, "ConfigMap").values()
    assert config["data"]["settings.ini"] == (ROOT/"settings.ini").read_text(), "make export"
    (tmp_path/"settings.ini").write_text(config["data"]["settings.ini"])
    for name, spec, c in containers(objects):
        env = {e["name"]: e.get("value", PEM if "PUBLIC_KEY" in e["name"] else "given") for e in c.get("env", []) if e["name"].startswith("CHURN_") and e["name"] != "CHURN_SETTINGS"}
        if not env: continue
        s = load_settings(path=tmp_path/"settings.ini", environ=env) # an unknown name is an error
        assert spec["enableServiceLinks"] is False, "else CHURN_API_PORT and the like come in and are no settings"
        assert any(m["mountPath"] == "/etc/churn" for m in c["volumeMounts"])
        if name == "churn-api": assert s.serve.port == 8000 and str(s.paths.workspace) == "/srv/churn/work"
    with pytest.raises(Exception, match="CHURN_API_SERVICE_HOST"): load_settings(environ={"CHURN_API_SERVICE_HOST": "10.0.0.1"})

def test_a_rolling_update_loses_no_request(objects):
    d = kind(objects, "Deployment")["churn-api"]["spec"]
    pod, (api,) = d["template"]["spec"], d["template"]["spec"]["containers"]
    assert d["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}} and d["revisionHistoryLimit"]
    pause = int(api["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pause + 10 < pod["terminationGracePeriodSeconds"], "the pause, then what uvicorn waits for what is under way"

def test_the_jobs_are_commands_of_churn(objects):
    for name, job in kind(objects, "CronJob").items():
        (c,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        said = subprocess.run([CHURN, c["args"][0], "--help"], capture_output=True, text=True, timeout=allow(300))
        assert said.returncode == 0 and all(a in said.stdout for a in c["args"] if a.startswith("--")), name
        assert re.fullmatch(r"[\d*/, -]+", job["spec"]["schedule"]) and job["spec"]["concurrencyPolicy"] == "Forbid"

def test_the_jobs_work_on_the_features_of_what_is_deployed(objects):
    for name, job in kind(objects, "CronJob").items():
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (first,), (c,) = pod["initContainers"], pod["containers"]
        assert first["image"].startswith("churn-api") and c["image"].startswith("churn-jobs"), "deploy.sh gives both their digests"
        ours, theirs = ({m["name"]: m["mountPath"] for m in x["volumeMounts"]} for x in (first, c))
        workspace = next(e["value"] for e in c["env"] if e["name"] == "CHURN_PATHS_WORKSPACE")
        assert theirs["work"] == workspace and f"{workspace}/feast {ours['work']}/feast.new" in first["args"][0], name

def test_the_scaling_goes_by_the_cpu_alone(objects):
    "A metric that can't be read keeps an HPA from scaling down; the CPU is read in every cluster."
    (hpa,) = kind(objects, "HorizontalPodAutoscaler").values()
    assert [(m["type"], m["resource"]["name"]) for m in hpa["spec"]["metrics"]] == [("Resource", "cpu")]
    assert hpa["spec"]["minReplicas"] < hpa["spec"]["maxReplicas"]
    minimum, pdb = hpa["spec"]["minReplicas"], next(iter(kind(objects, "PodDisruptionBudget").values()))
    assert pdb["spec"]["minAvailable"] < minimum, "else no node could ever be emptied"

def test_the_component_adds_the_apps_queue_metric(tmp_path):
    to = lambda folder: os.path.relpath(ROOT/"k8s"/folder, tmp_path.resolve())
    (tmp_path/"kustomization.yaml").write_text(yaml.safe_dump({"resources": [to("overlays/prod")], "components": [to("components/queue-metric")]}))
    (hpa,) = kind(list(yaml.safe_load_all(render(tmp_path))), "HorizontalPodAutoscaler").values()
    assert [m["type"] for m in hpa["spec"]["metrics"]] == ["Resource", "Pods"]
    put_live(tmp_path)
    assert f"\n{hpa['spec']['metrics'][1]['pods']['metric']['name']} " in TestClient(create_app(settings_for(tmp_path))).get("/metrics").text

def test_what_an_event_changes_can_be_written(objects):
    "The root of the container is read-only: the event log and the feature store are on volumes, the latter filled from the image."
    pod = kind(objects, "Deployment")["churn-api"]["spec"]["template"]["spec"]
    (first,), (api,) = pod["initContainers"], pod["containers"]
    mounts = {m["mountPath"]: m for m in api["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["volumes"]}
    assert first["image"] == api["image"], "the features belong to the model"
    features = volumes[mounts["/srv/churn/work/feast"]["name"]]
    assert "emptyDir" in features and {m["name"]: m["mountPath"] for m in first["volumeMounts"]} == {features["name"]: "/features"}
    assert first["command"][-1] == "cp -R /srv/churn/work/feast/. /features"
    assert "persistentVolumeClaim" in volumes[mounts["/srv/churn/work/events"]["name"]], "events outlive the pod"

def test_only_production_asks_for_signatures(rendered, objects):
    (api,) = [c for name, _, c in containers(objects) if name == "churn-api" and c["name"] == "api"]
    keys = [e for e in api["env"] if e["name"] == "CHURN_SERVE_PUBLIC_KEY"]
    assert len(keys) == (rendered[0] != "dev") and not any(e["valueFrom"]["secretKeyRef"].get("optional") for e in keys)

def test_the_overlays_differ_where_they_say():
    (triton,) = [c for name, _, c in containers(list(yaml.safe_load_all(render(ROOT/"k8s/overlays/triton")))) if name == "churn-api" and c["name"] == "api"]
    (prod,) = [c for name, _, c in containers(list(yaml.safe_load_all(render(ROOT/"k8s/overlays/prod")))) if name == "churn-api" and c["name"] == "api"]
    assert (prod["image"], triton["image"]) == ("churn-api", "churn-api-triton")
    assert any(m["mountPath"] == "/dev/shm" for m in triton["volumeMounts"]) and prod["args"] == triton["args"] == ["serve"]
