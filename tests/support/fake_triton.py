"""Triton's core and Python backend in this process, as far as a model repository's own models use them.

A :class:`FakeServer` loads the ``model.py`` of every model with a module ``triton_python_backend_utils`` of its own,
and checks what goes in and out of each model against its ``config.pbtxt``, as the real core does: names, types, sizes,
rows.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_DTYPES = {"TYPE_BOOL": "bool", "TYPE_INT64": "int64", "TYPE_FP32": "float32", "TYPE_STRING": "object"}
_SHIPPED = ("run_ort", "drawing", "growing_text")


class Tensor:
    """A named array."""

    def __init__(self, name: str, value: np.ndarray) -> None:
        self._name, self._value = name, np.asarray(value)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._value.copy()


class TritonError:
    """Why there is no response."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    """Tensors or an error."""

    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors, self._error = output_tensors or [], error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Sender:
    """Keeps what is sent; nothing may come after the end, and a whole answer is one response."""

    def __init__(self, decoupled: bool, leaves_after: int | None = None) -> None:
        self.responses: list[InferenceResponse] = []
        self.done, self._decoupled, self._leaves_after = threading.Event(), decoupled, leaves_after

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert not self.done.is_set()
        if response is not None:
            self.responses.append(response)
        assert self._decoupled or len(self.responses) == 1
        if flags:
            self.done.set()

    def is_cancelled(self) -> bool:
        return self._leaves_after is not None and len(self.responses) >= self._leaves_after


class FakeServer:
    """A repository whose models answer here.

    Args:
        repository: its folder.
        configs: ``config.pbtxt`` of each model as JSON, by name.
        patch: pytest's monkeypatch.
    """

    def __init__(self, repository: Path, configs: dict[str, dict[str, Any]], patch: Any) -> None:
        self.configs, self.models, self.calls, self.log = configs, {}, [], []
        for name, config in configs.items():
            with patch.context() as inside:
                inside.setitem(sys.modules, "triton_python_backend_utils", self._utils())
                inside.syspath_prepend(repository / name / "1")
                for module in _SHIPPED:  # each model's process has its own
                    inside.delitem(sys.modules, module, raising=False)
                path = repository / name / "1" / "model.py"
                spec = importlib.util.spec_from_file_location(f"model_of_{name}", path)
                assert spec is not None and spec.loader is not None
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                self.models[name] = module.TritonPythonModel()
                arguments = {"model_repository": str(repository / name), "model_version": "1"}
                self.models[name].initialize({**arguments, "model_config": json.dumps(config)})
                for module in _SHIPPED:
                    sys.modules.pop(module, None)

    def ask(self, name: str, leaves_after: int | None = None, **files: bytes) -> Sender:
        """What ``chat`` or ``chat_stream`` sends in answer."""
        sender = self.send(name, leaves_after, **files)
        assert sender.done.wait(60)
        return sender

    def send(self, name: str, leaves_after: int | None = None, **files: bytes) -> Sender:
        """The same, without waiting."""
        sender = Sender("model_transaction_policy" in self.configs[name], leaves_after)
        inputs = {key: np.array([data], np.object_) for key, data in files.items()}
        fed = self._checked(name, "input", inputs)
        self.models[name].execute([_request(fed, sender)])
        return sender

    def close(self) -> None:
        for model in self.models.values():
            if hasattr(model, "finalize"):
                model.finalize()

    def _utils(self) -> ModuleType:
        found = ModuleType("triton_python_backend_utils")
        server = self

        class InferenceRequest:
            def __init__(self, model_name, requested_output_names, inputs, preferred_memory=None):
                self.name, self.wanted = model_name, requested_output_names
                self.inputs = {one.name(): one.as_numpy() for one in inputs}

            def exec(self):
                server.calls.append(self.name)
                try:
                    fed = server._checked(self.name, "input", self.inputs)
                except AssertionError as error:  # as the core refuses
                    return InferenceResponse(error=TritonError(str(error), TritonError.INVALID_ARG))
                (made,) = server.models[self.name].execute([_request(fed)])
                if not made.has_error():
                    values = {one.name(): one.as_numpy() for one in made.tensors}
                    told = server._checked(self.name, "output", values, back=True)
                    made = InferenceResponse([Tensor(name, told[name]) for name in self.wanted])
                return made

        for one in (Tensor, TritonError, InferenceResponse, InferenceRequest):
            setattr(found, one.__name__, one)
        found.TritonModelException = type("TritonModelException", (Exception,), {})
        found.PreferredMemory = lambda kind, device: (kind, device)
        found.TRITONSERVER_MEMORY_CPU, found.TRITONSERVER_RESPONSE_COMPLETE_FINAL = 0, 1
        found.Logger = SimpleNamespace(log_error=self.log.append)
        found.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
        found.get_output_tensor_by_name = lambda response, name: next(
            one for one in response.tensors if one.name() == name
        )
        found.using_decoupled_model_transaction_policy = lambda config: config.get("model_transaction_policy", {}).get(
            "decoupled", False
        )
        return found

    def _checked(
        self, name: str, kind: str, values: dict[str, np.ndarray], back: bool = False
    ) -> dict[str, np.ndarray]:
        """The tensors as the other side sees them: the configuration's sizes outside, its reshaped ones inside."""
        config = self.configs[name]
        rows = config.get("max_batch_size", 0) > 0
        told = {one["name"]: one for one in config[kind]}
        needed = {key for key, one in told.items() if not one.get("optional")}
        assert needed <= values.keys() <= told.keys(), f"{name}: {sorted(values)} for {sorted(told)}"
        found = {}
        for key, value in values.items():
            one = told[key]
            sizes = [int(size) for size in one["dims"]]
            if back and "reshape" in one:
                value = value.reshape(*value.shape, *sizes)
            outer = value.shape[1:] if rows else value.shape
            fits = len(outer) == len(sizes) and all(size in (-1, real) for size, real in zip(sizes, outer, strict=True))
            assert fits, f"{name}: {key} has the shape {value.shape}, and its configuration says {sizes}"
            assert value.dtype == _DTYPES[one["data_type"]], f"{name}: {key} is {value.dtype}"
            found[key] = value.reshape(value.shape[: -len(sizes)]) if "reshape" in one and not back else value
        return found


def _request(fed: dict[str, np.ndarray], sender: Sender | None = None) -> Any:
    return SimpleNamespace(
        inputs={name: Tensor(name, value) for name, value in fed.items()},
        request_id=lambda: "",
        get_response_sender=lambda: sender,
    )
