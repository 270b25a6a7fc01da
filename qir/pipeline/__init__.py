"""Passes, pipelines, the registry with its plug-ins, instruments, remarks."""

from qir.pipeline.contract import (
    Effect,
    Feed,
    NoProgress,
    Pass,
    PassContext,
    PassResult,
    Progress,
    Remark,
    RemarkKind,
)
from qir.pipeline.instruments import Instrument, PassRun, Verdict
from qir.pipeline.pipeline import Pipeline
from qir.pipeline.preset import Preset
from qir.pipeline.registry import Registry, default_registry
from qir.pipeline.remarks import RemarkFilter
from qir.pipeline.result import PassReport, PipelineResult
from qir.pipeline.rewriting import RewritePass

__all__ = [
    "Effect",
    "Feed",
    "Instrument",
    "NoProgress",
    "Pass",
    "PassContext",
    "PassReport",
    "PassResult",
    "PassRun",
    "Pipeline",
    "PipelineResult",
    "Preset",
    "Progress",
    "Registry",
    "Remark",
    "RemarkFilter",
    "RemarkKind",
    "RewritePass",
    "Verdict",
    "default_registry",
]
