"Requests as bytes on a socket, for what an HTTP client would not send."
import json, socket, time
from urllib.parse import urlsplit
from deadlines import allow

ROW = {"age": 42, "usage_minutes": 310.5, "gap": None}
GOOD = json.dumps(ROW).encode()
FAST, STANDARD = "application/json", "application/json; charset=utf-8" # a content type that the fast path does not take

def request(body=GOOD, kind=FAST, path="/predict", version="1.1", method="POST", **headers):
    more = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in headers.items())
    return f"{method} {path} HTTP/{version}\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body

def connect(url):
    at = urlsplit(url)
    return socket.create_connection((at.hostname, at.port), timeout=allow(90))

def answer(f):
    "(status, headers, body) of the next answer on a connection."
    status, headers = int(f.readline().split()[1]), {}
    while (line := f.readline()) not in (b"\r\n", b""): headers.update([line.decode().strip().lower().split(": ", 1)])
    return status, headers, f.read(int(headers["content-length"]))

def ask(url, *pieces, n=1, pause=0.):
    with connect(url) as s, s.makefile("rb") as f:
        for p in pieces: s.sendall(p); time.sleep(pause)
        return [answer(f) for _ in range(n)]
