"""The packages that only exporting needs, and what to do where they are missing."""

from __future__ import annotations

from importlib import import_module

from gammabeta.errors import GammabetaError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require(*packages: str) -> None:
    """Refuse to begin what a missing package would end in the middle.

    Raises:
        GammabetaError: Naming the package and the command that installs it.

    Example:
        >>> require("json")
        >>> require("no_such_package")
        Traceback (most recent call last):
            ...
        gammabeta.errors.GammabetaError: no_such_package is not installed; pip install \
'gammabeta[export]'
    """
    for package in packages:
        try:
            import_module(package)
        except ImportError:
            raise GammabetaError(
                f"{package} is not installed; pip install 'gammabeta[export]'"
            ) from None
