"""A conformance suite that any batch norm class can be run against.

:func:`check_batch_norm` builds layers of a class, feeds them small inputs, and judges each
behaviour of PyTorch's contract apart, against the definition computed in float64. It needs neither
pytest nor that the class inherits from torch's.

Example:
    >>> from torch import nn
    >>> report = check_batch_norm(nn.BatchNorm2d, behaviours=["affine=False has no γ and no β"])
    >>> report.passed
    True
"""

from __future__ import annotations

from gammabeta.testing.registry import names
from gammabeta.testing.report import Report, Result
from gammabeta.testing.run import check_batch_norm

__all__ = ["Report", "Result", "check_batch_norm", "names"]
