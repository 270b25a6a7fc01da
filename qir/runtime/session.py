"""onnxruntime sessions: made from bytes or a path, quiet, on the CPU, with errors of one clear line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime as ort

from qir.errors import ModelError, QirError, UnsupportedError
from qir.runtime import ort_values
from qir.runtime.specs import InputSpec, Model, Output, OutputSpec, spec_from_runtime, specs_from_value_infos

Level = Literal["none", "basic", "extended", "all"]

_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SILENT = 4  # onnxruntime's log severity "fatal": what it has to say arrives as an exception


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How to make a session.

    `level`: graph optimisations. `threads`: intra-op threads, 0 for the runtime's own choice.
    `disabled_optimizers`: names of graph transformers to leave out. `entries`: session config entries, such as
    `{"session.x64quantprecision": "1"}`. `data_folder`: where the external data of a model given as bytes lies.
    """

    level: Level = "all"
    threads: int = 0
    disabled_optimizers: tuple[str, ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    data_folder: str | None = None

    def options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.graph_optimization_level = _LEVELS[self.level]
        if self.threads:
            options.intra_op_num_threads = self.threads
            options.inter_op_num_threads = 1
        if self.data_folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", self.data_folder)
        for key, value in self.entries.items():
            options.add_session_config_entry(key, value)
        return options


OPTIMIZED = SessionConfig()
PLAIN = SessionConfig(level="none")


class Runner(Protocol):
    """A loaded model: feeds in, outputs out."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]: ...

    @property
    def outputs(self) -> tuple[OutputSpec, ...]: ...

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Output]:
        """The outputs of that name, all of them by default, in the model's (or the asked) order."""
        ...


def make_session(
    model: Model, config: SessionConfig, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """An onnxruntime session on the CPU. Raises ModelError or UnsupportedError with the runtime's reason.

    `options` replaces `config.options()`, for callers that need one more switch on it.
    """
    source = model if isinstance(model, bytes) else os.fspath(model)
    what = "the model" if isinstance(source, bytes) else f"'{source}'"
    extra = {"disabled_optimizers": list(config.disabled_optimizers)} if config.disabled_optimizers else {}
    try:
        return ort.InferenceSession(source, options or config.options(), providers=["CPUExecutionProvider"], **extra)
    except Exception as error:
        raise runtime_error(error, f"onnxruntime {ort.__version__} cannot load {what}") from error


def runtime_error(error: Exception, doing: str) -> QirError:
    """onnxruntime's exception as one line: `doing: reason`. Anything but a complaint of onnxruntime is raised again."""
    kind = type(error)
    if not kind.__module__.startswith("onnxruntime") and not isinstance(error, (RuntimeError, ValueError, TypeError)):
        raise error
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", " ".join(str(error).split()))
    # "file.cc:91 scope::Name(types) condition was false. Reason": the source location helps nobody here.
    text = re.sub(r"/\S+\.(?:cc|h|cpp):\d+ ", "", text).strip()
    refused = (
        kind.__name__ == "NotImplemented" or "Unsupported model IR version" in text or "is under development" in text
    )
    return (UnsupportedError if refused else ModelError)(f"{doing}: {text}")


class OrtRunner:
    """A model in onnxruntime. Feeds and outputs are numpy arrays, ml_dtypes for bfloat16, fp8 and sub-byte types.

    Raises ModelError or UnsupportedError when the model does not load or fails on a feed.
    """

    def __init__(self, model: Model, config: SessionConfig = OPTIMIZED) -> None:
        self._session = make_session(model, config)
        self._run_options = ort.RunOptions()
        self._run_options.log_severity_level = _SILENT
        self.inputs = self._specs(self._session.get_inputs(), model, "input")
        self.outputs = self._specs(self._session.get_outputs(), model, "output")
        self._kinds = {spec.name: spec.dtype for spec in self.outputs}
        self._exotic_input = any(ort_values.is_exotic(spec.dtype) for spec in self.inputs)

    @staticmethod
    def _specs(arguments: Sequence[Any], model: Model, side: str) -> tuple[InputSpec, ...]:
        specs = tuple(spec_from_runtime(a.name, a.type, a.shape) for a in arguments)
        if all(spec.shape != () for spec in specs):
            return specs
        # onnxruntime says [] both for a scalar and for an unknown rank: the file knows which.
        import onnx

        proto = (
            onnx.ModelProto.FromString(model)
            if isinstance(model, bytes)
            else onnx.load(model, load_external_data=False)
        )
        declared = {spec.name: spec for spec in specs_from_value_infos(getattr(proto.graph, side))}
        return tuple(declared.get(spec.name, spec) if spec.shape == () else spec for spec in specs)

    @property
    def session(self) -> ort.InferenceSession:
        """The session itself, for what this class does not wrap."""
        return self._session

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Output]:
        """The outputs by name, all without ``outputs``; the name of an input that is fed gives what is fed."""
        wanted = list(self._kinds) if outputs is None else list(outputs)
        names = [name for name in wanted if name in self._kinds or name not in feeds]
        if len(names) < len(wanted):
            found = {name: np.asarray(feeds[name]) for name in wanted if name not in names}
            found.update(self.run(feeds, names))
            return {name: found[name] for name in wanted}
        if not names:  # onnxruntime would take an empty list for "all"
            return {}
        try:
            if self._exotic_input or any(ort_values.is_exotic(self._kinds.get(name)) for name in names):
                boxed = {name: ort_values.to_ort(name, array) for name, array in feeds.items()}
                values = self._session.run_with_ort_values(names, boxed, self._run_options)
                return {name: ort_values.from_ort(name, value) for name, value in zip(names, values, strict=True)}
            return dict(zip(names, self._session.run(names, dict(feeds), self._run_options), strict=True))
        except QirError:
            raise
        except Exception as error:
            raise runtime_error(error, "onnxruntime failed while running the model") from error
