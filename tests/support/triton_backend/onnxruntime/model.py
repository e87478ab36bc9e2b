"""A Triton backend in Python that runs ONNX files with the `onnxruntime` package, on CPU. Test support.

Triton finds it as the backend `onnxruntime`, so configurations written for NVIDIA's own load unchanged. The scheduler, the dynamic batcher, model control,
statistics and protocols are Triton's; only the graph is run here."""
import os, json
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1") # before the import
import onnxruntime as ort # noqa: E402
import numpy as np
import triton_python_backend_utils as pb

TYPES = {"tensor(float)": "TYPE_FP32", "tensor(double)": "TYPE_FP64", "tensor(int64)": "TYPE_INT64", "tensor(int32)": "TYPE_INT32", "tensor(uint8)": "TYPE_UINT8",
         "tensor(string)": "TYPE_STRING"}

def as_text(x):
    "Triton hands over texts as bytes, ONNX Runtime wants them as text."
    return np.array([b.decode() for b in x.flat], object).reshape(x.shape) if x.dtype == object else x

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config): return config

    def initialize(self, args):
        c = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], c.get("default_model_filename") or "model.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try: self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as e: raise pb.TritonModelException(f"{path}: {e}") from None
        self.batched = int(c.get("max_batch_size", 0)) > 0
        for kind, asked, there in (("input", c["input"], self.session.get_inputs()), ("output", c["output"], self.session.get_outputs())):
            for t in asked: self.check(kind, t, {x.name: x for x in there})
        self.inputs, self.outputs = [t["name"] for t in c["input"]], [t["name"] for t in c["output"]]

    def check(self, kind, t, there):
        "Refuse a tensor that the graph has not, with both sides named."
        if t["name"] not in there: raise pb.TritonModelException(f"unexpected {kind} '{t['name']}', the model has: {', '.join(there)}")
        x = there[t["name"]]
        if TYPES.get(x.type) != t["data_type"]: raise pb.TritonModelException(f"{kind} '{x.name}': the configuration says {t['data_type']}, the model has {TYPES.get(x.type)}")
        dims = t["reshape"].get("shape", []) if "reshape" in t else t["dims"]
        says = [-1]*self.batched + [int(d) for d in dims]
        has = [d if isinstance(d, int) else -1 for d in x.shape]
        if len(says) != len(has) or any(a != b and -1 not in (a, b) for a, b in zip(says, has)):
            raise pb.TritonModelException(f"{kind} '{x.name}': the configuration's shape is {says}, the model's {has}")

    def execute(self, requests):
        "One run for all requests that Triton put together."
        given = [[as_text(pb.get_input_tensor_by_name(r, n).as_numpy()) for n in self.inputs] for r in requests]
        groups = [range(len(requests))] if self.batched else [[i] for i in range(len(requests))]
        answers = [None] * len(requests)
        for group in groups:
            feeds = {n: np.concatenate([given[i][j] for i in group]) if len(group) > 1 else given[group[0]][j] for j, n in enumerate(self.inputs)}
            try: out = self.session.run(self.outputs, feeds)
            except Exception as e:
                for i in group: answers[i] = pb.InferenceResponse(error=pb.TritonError(f"onnxruntime: {e}"))
                continue
            at = 0
            for i in group:
                n = len(given[i][0])
                cut = slice(at, at + n) if self.batched else slice(None)
                asked = set(requests[i].requested_output_names())
                answers[i] = pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(x[cut])) for name, x in zip(self.outputs, out) if name in asked])
                at += n
        return answers
