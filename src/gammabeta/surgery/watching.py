"""Watching a forward while it is traced: what it looks at, and what it must not do.

A symbolic trace sees tensors only. What a forward decides by the module's attributes is noted
here; what it does besides (drawing random numbers, changing the module, a gradient of its own)
stops the trace, for no graph would do it again.
"""

from __future__ import annotations

import copy
import random
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Asked = dict[tuple[str, str], Any]
"""What was looked at: (path of a module, its attribute) and the value."""


class UntraceableError(Exception):
    """A forward cannot be taken as a graph; the message is a reason, "it ..."."""


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Leave module and random generators as they are; refuse a forward that changes them."""
    rng, drawn, held = torch.get_rng_state(), _drawn(), _held(module)
    with warnings.catch_warnings(), _no_custom_gradients():
        warnings.simplefilter("ignore")
        try:
            yield
            if _drawn() != drawn:
                raise UntraceableError("it draws random numbers to decide")
            if _marks(_held(module)) != _marks(held):
                raise UntraceableError("it changes the module's attributes")
        finally:
            torch.set_rng_state(rng)
            random.setstate(drawn[0])
            _restore(held)


def _drawn() -> tuple[Any, ...]:
    return (random.getstate(), torch.get_rng_state().numpy().tobytes())


Held = list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]


def _held(module: nn.Module) -> Held:
    """Note every module's attributes, and what its lists and dictionaries hold."""
    noted = []
    for m in module.modules():
        inner = {k: copy.copy(v) for k, v in vars(m).items() if isinstance(v, list | dict | set)}
        noted.append((m, dict(vars(m)), inner))
    return noted


def _marks(held: Held) -> list[Any]:
    """Return what two notes of the same state have in common."""
    return [
        (id(m), name, id(value), _ids(inner.get(name, ())))
        for m, attributes, inner in held
        for name, value in attributes.items()
        if not name.startswith("_tensor_constant")
    ]


def _ids(held: Any) -> list[int]:
    """Return what tells a list, set or dictionary from one with other content."""
    return [id(v) for v in (*held, *(held.values() if isinstance(held, dict) else ()))]


def _restore(held: Held) -> None:
    for m, attributes, inner in held:
        own = vars(m)
        for name in set(own) - set(attributes):
            del own[name]
        own.update(attributes)
        for name, content in inner.items():
            if isinstance(own[name], list):
                own[name][:] = content
            elif _ids(own[name]) != _ids(content):
                own[name].clear()
                own[name].update(content)


@contextmanager
def _no_custom_gradients() -> Iterator[None]:
    """Stop at a user's autograd.Function: tracing would run through it and lose its backward.

    Other threads' functions run as they are; one thread traces at a time.
    """
    function: Any = torch.autograd.Function
    tracer = threading.get_ident()
    with _one_at_a_time:
        original = vars(function)["apply"]

        def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != tracer:
                return original.__get__(None, cls)(*args, **kwargs)
            raise UntraceableError(f"it calls {cls.__name__}, which has a gradient of its own")

        function.apply = classmethod(apply)
        try:
            yield
        finally:
            function.apply = original


_one_at_a_time = threading.RLock()


@contextmanager
def watched(root: nn.Module, asked: Asked) -> Iterator[None]:
    """Note every plain attribute of the module or of one below it that is looked at."""
    paths = {id(module): path for path, module in root.named_modules()}
    classes = {module: type(module) for module in root.modules()}
    spies = {kind: _spy(kind, paths, asked) for kind in set(classes.values())}
    try:
        for module, kind in classes.items():
            object.__setattr__(module, "__class__", spies[kind])
        yield
    finally:
        for module, kind in classes.items():
            object.__setattr__(module, "__class__", kind)


def _spy(kind: Any, paths: dict[int, str], asked: Asked) -> type:
    def __getattribute__(self: nn.Module, name: str) -> Any:  # noqa: N807
        value = object.__getattribute__(self, name)
        if name == "_modules":
            if not _asked_by_fx():
                asked.setdefault((paths[id(self)], name), tuple(value))
        elif is_plain(value) and name in object.__getattribute__(self, "__dict__"):
            asked.setdefault((paths[id(self)], name), copy.deepcopy(value))
        return value

    def __getattr__(self: nn.Module, name: str) -> Any:  # noqa: N807 (registered, like a bias)
        value = kind.__getattr__(self, name)
        if value is None:
            asked.setdefault((paths[id(self)], name), value)
        return value

    methods: dict[str, Any] = {"__getattribute__": __getattribute__, "__getattr__": __getattr__}
    methods["__module__"] = kind.__module__
    made: type = type(kind)(kind.__name__, (kind,), methods)
    return made


def _asked_by_fx() -> bool:
    """Tell whether torch.fx itself walks through the modules, and not the forward."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame and (name := frame.f_globals.get("__name__", "")).startswith("torch."):
        if name.startswith("torch.fx."):
            return True
        frame = frame.f_back
    return False


def is_plain(value: Any) -> bool:
    """Tell whether a value can be noted: a number, a string, None, a function, or some of these."""
    if isinstance(value, tuple | list):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, (*value, *value.values())))
    return value is None or type(value) in _PLAIN


_PLAIN = {bool, int, float, str, torch.dtype, types.FunctionType, types.BuiltinFunctionType}
