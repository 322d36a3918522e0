"""Triton's Python backend in the place of its ONNX Runtime backend: the same model, by onnxruntime in this process.

``model.py`` of a graph, for servers without that backend. Calls that the server makes one are one here, too.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """A graph with name, inputs and outputs of its ``config.pbtxt``."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"], "model.onnx", "model.onnx")
        onnxruntime.set_default_logger_severity(3)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = ([one["name"] for one in config[kind]] for kind in ("input", "output"))
        self.rows = config["max_batch_size"] > 0

    def execute(self, requests):
        fed = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
            for request in requests
        ]
        if not self.rows:
            return [self.responses([one])[0] for one in fed]
        return self.responses(fed)

    def responses(self, fed):
        """One for each of the calls, which are one."""
        try:
            whole = {name: np.concatenate([one[name] for one in fed]) if self.rows else fed[0][name] for name in fed[0]}
            found = self.session.run(self.outputs, whole)
        except Exception as error:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))] * len(fed)
        ends = np.cumsum([len(one[self.inputs[0]]) for one in fed])[:-1]
        parts = dict(zip(self.outputs, (np.split(one, ends) if self.rows else [one] for one in found), strict=True))
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, np.ascontiguousarray(part[at])) for name, part in parts.items()]
            )
            for at in range(len(fed))
        ]
