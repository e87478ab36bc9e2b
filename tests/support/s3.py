"A real S3 for tests: SeaweedFS, which checks who asks; on free loopback ports, stopped by its own pid."
import json, subprocess, sys, time
from pathlib import Path
import httpx
from deadlines import allow
from serving import free_ports

WEED = Path(sys.executable).parent/"weed"

class SeaweedFS:
    key, secret = "churn-test-key", "churn-test-secret-0123456789"
    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder/"data").mkdir(parents=True)
        (self.folder/"s3.json").write_text(json.dumps({"identities": [{"name": "ci", "credentials": [{"accessKey": self.key, "secretKey": self.secret}],
                                                                      "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}))
        p = dict(zip(names := ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc"), free_ports(len(names))))
        self.url = f"http://127.0.0.1:{p['s3']}"
        ports = [f"-{n}.port{'.grpc' if grpc else ''}={p[n + ('.grpc' if grpc else '')]}" for n in ("master", "volume", "filer", "s3") for grpc in (0, 1)]
        with open(self.folder/"log", "wb") as log:
            self.process = subprocess.Popen([WEED, "server", f"-dir={self.folder/'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={self.folder/'s3.json'}",
                                             "-master.volumeSizeLimitMB=64", "-volume.max=20", "-s3.port.iceberg=0", "-s3.port.lance=0", *ports], stdout=log, stderr=subprocess.STDOUT)
    def __enter__(self):
        end = time.monotonic() + allow(90)
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if (r := httpx.get(self.url, timeout=allow(5))).status_code == 403 and r.text.startswith("<?xml"): return self # an S3, which asks who asks
            except httpx.TransportError: pass
            time.sleep(.1)
        self.__exit__()
        raise RuntimeError((self.folder/"log").read_text()[-3000:])
    def __exit__(self, *error): self.process.kill(); self.process.wait() # it does not end on SIGTERM
    def env(self, secret=None): return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": secret or self.secret, "AWS_DEFAULT_REGION": "us-east-1",
                                        "AWS_ENDPOINT_URL": self.url, "AWS_EC2_METADATA_DISABLED": "true"}
    def bucket(self, name):
        from botocore.session import get_session
        c = get_session().create_client("s3", endpoint_url=self.url, aws_access_key_id=self.key, aws_secret_access_key=self.secret, region_name="us-east-1")
        c.create_bucket(Bucket=name)
        return c
