"Asks a server over the Open Inference Protocol with KServe's own client; prints what it got, as JSON."
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def main(url, rows):
    X = np.array(rows, np.float32)
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    async def told(question):
        try: return await question
        except ValueError as e: return type(e).__name__
    said = {"live": await told(client.is_server_live(url)), "ready": await told(client.is_server_ready(url)), "model": await client.is_model_ready(url, "churn")}
    for name, binary in (("json", False), ("binary", True)):
        x = InferInput("features", list(X.shape), "FP32")
        x.set_data_from_numpy(X, binary_data=binary)
        r = await client.infer(url, InferRequest(model_name="churn", infer_inputs=[x], request_id=f"k-{name}"), model_name="churn")
        p = r.outputs[0]
        said[name] = {"id": r.id, "model": r.model_name, "output": p.name, "shape": list(p.shape), "datatype": p.datatype, "p": p.as_numpy().ravel().tolist()}
    try: await client.infer(url, InferRequest(model_name="nobody", infer_inputs=[x]), model_name="nobody")
    except Exception as e: said["error"] = f"{type(e).__name__} {getattr(getattr(e, 'response', None), 'status_code', None)}"
    print(json.dumps(said))

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
