"""Ask a deployed API one real question: is it the version that was meant, and does it predict?

smoke.py URL VERSION; the environment variable SMOKE_KEY holds an API key where one is asked for. Exit code 0: it answers; 1: not, with a line that says why.
Only Python's own library, so that it runs wherever a deployment does."""
import json, math, os, sys, time, urllib.error, urllib.request

def ask(url:str, body=None) -> dict:
    headers = {"Content-Type": "application/json", **({"X-API-Key": key} if (key := os.environ.get("SMOKE_KEY")) else {})}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as r: return json.load(r)

def wrong(url:str, version:str) -> str:
    "What is wrong; empty: nothing."
    try:
        about = ask(f"{url}/model")
        if about["version"] != version: return f"version {about['version']} answers, not {version}"
        said = ask(f"{url}/predict", about["example"])
    except urllib.error.HTTPError as e: return f"{e.url}: status {e.code}: {e.read(300).decode(errors='replace')}"
    except (OSError, ValueError, KeyError, TypeError) as e: return f"{type(e).__name__}: {e}"
    p = said.get("probability")
    if said.get("model_version") != version or not isinstance(p, float) or not (math.isfinite(p) and 0 <= p <= 1): return f"a strange prediction: {said}"
    return ""

def main(url:str, version:str, seconds:float=30) -> int: # how long it may take
    end = time.monotonic() + (seconds := float(seconds))
    while (why := wrong(url, version)) and time.monotonic() < end: time.sleep(min(1, seconds)) # a service just switched
    print(f"smoke test failed: {' '.join(why.split())[:400]}" if why else f"smoke test passed: version {version} predicts")
    return int(bool(why))

if __name__ == "__main__": sys.exit(main(*sys.argv[1:]))
