"""Files that run without gammabeta: written, verified on data, and only then put in place."""

from gammabeta.deploy.export import export
from gammabeta.deploy.exported import Exported, Quantized
from gammabeta.deploy.metadata import Metadata
from gammabeta.deploy.session import OnnxModel, open_onnx

__all__ = ["Exported", "Metadata", "OnnxModel", "Quantized", "export", "open_onnx"]
