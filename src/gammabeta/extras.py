"""The packages that only some tasks need, and what to do where they are missing."""

from __future__ import annotations

from importlib import import_module

from gammabeta.errors import GammabetaError

EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "tensorboard": ("tensorboard",),
}


def require(extra: str, *packages: str) -> None:
    """Refuse to begin what a missing package would end in the middle.

    Args:
        extra: The extra of gammabeta that brings the packages.
        packages: Some of its packages; by default all.

    Raises:
        GammabetaError: Naming the package and the commands that install it.

    Example:
        >>> require("export", "json")
        >>> require("export", "no_such_package")
        Traceback (most recent call last):
            ...
        gammabeta.errors.GammabetaError: no_such_package is not installed; pip install '.[export]' \
in a clone of gammabeta, or 'gammabeta[export]' where an index has it
    """
    for package in packages or EXTRAS[extra]:
        try:
            import_module(package)
        except ImportError:
            raise GammabetaError(
                f"{package} is not installed; pip install '.[{extra}]' in a clone of gammabeta, "
                f"or 'gammabeta[{extra}]' where an index has it"
            ) from None
