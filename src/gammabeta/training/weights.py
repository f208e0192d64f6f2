"""Weights of a network out of anybody's checkpoint: found, fitted to the model, and checked.

People save a state_dict plain, under a name ("state_dict", "net", "ema"), from a wrapper whose name
every key then begins with ("module.", "_orig_mod.", "model."), or several beside each other. The
state_dict and the prefix that fit the model best are taken, and what was done is said. Nothing is
cast in silence, and nothing is loaded unless all of it fits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gammabeta.errors import RunError
from gammabeta.training.weights_file import read_file, shown

DEPTH = 3
"""Dictionaries within dictionaries in which state_dicts are looked for."""
LISTED = 4
MAX_DOTS = 32
_COUNTER = "num_batches_tracked"
_WRAPPER = re.compile(r"\.(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")


@dataclass(frozen=True, eq=False)
class _Choice:
    """A state_dict of the file and the prefix of its keys: one way to read it.

    Args:
        place: Keys that lead to it in the file, joined by dots; empty for the file itself.
        prefix: What its keys begin with before the model's own names.
        tensors: All of it, by the names in the file.
        fitting: How many of the model's entries it has in name and shape, and in name alone.
    """

    place: str
    prefix: str
    tensors: Mapping[str, Tensor]
    fitting: tuple[int, int]

    @property
    def inside(self) -> dict[str, Tensor]:
        """Return what lies under the prefix, by names without it."""
        start = len(self.prefix)
        return {k[start:]: v for k, v in self.tensors.items() if k.startswith(self.prefix)}

    def __str__(self) -> str:
        parts = [part for part in (self.place, self.prefix.removesuffix(".")) if part]
        return shown(".".join(parts)) if parts else "the outermost"


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the first state_dict in a file, by the names that it has there.

    Raises:
        RunError: If the file cannot be read, or holds no tensors.
    """
    found = next(_state_dicts(read_file(path)), None)
    if found is None:
        raise RunError(f"{path}: holds no tensors by name; a state_dict was expected")
    return dict(found[1])


def load_into(
    model: nn.Module,
    path: Path,
    *,
    broken_statistics: bool = False,
    head: Collection[str] = (),
) -> list[str]:
    """Load a checkpoint into a model: all of it, or nothing.

    Args:
        model: Its names and shapes decide which of the file's tensors are meant.
        path: A safetensors file, or one that ``torch.save`` wrote.
        broken_statistics: Accept NaN and infinity in running statistics, to measure them anew.
        head: Entries that stay as they are where the file has them for other classes.

    Returns:
        Sentences for the user: the prefix that was left out, what was not used, what was rounded.

    Raises:
        RunError: If the file cannot be read, does not fit, or holds NaN or infinity.

    Example:
        >>> import tempfile
        >>> model, file = nn.Linear(2, 1), Path(tempfile.mkdtemp(), "compiled.pth")
        >>> torch.save({"net": torch.compile(model).state_dict()}, file)
        >>> load_into(nn.Linear(2, 1), file)
        ["the prefix '_orig_mod.' of its keys is left out"]
    """
    wanted = model.state_dict()
    choices = [c for place in _state_dicts(read_file(path)) for c in _choices(wanted, *place)]
    if not choices:
        raise RunError(f"{path}: holds no tensors by name; a state_dict was expected")
    best = max(choices, key=lambda choice: choice.fitting)  # the first of equals
    if not best.fitting[1]:
        raise RunError(f"{path}: {_strangers(model, choices)}")
    given = best.inside
    anew = [key for key in head if key in given and _for_other_classes(given[key], wanted[key])]
    apply_weights(model, given | {key: wanted[key] for key in anew}, path)
    check_finite(model, path, broken_statistics=broken_statistics)
    told = [f"{', '.join(anew)} begin anew: the file has them for other classes"] if anew else []
    return [*_notes(best, choices), *_rounded(wanted, given), *told]


def apply_weights(model: nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load a state_dict strictly; a checkpoint older than ``num_batches_tracked`` is accepted.

    Raises:
        RunError: Naming the file and entries that are missing, unknown, of another shape or kind.
    """
    wanted = model.state_dict()
    given = {k: v for k, v in wanted.items() if k.endswith(_COUNTER)} | dict(weights)
    groups = (
        [f"{key} is missing" for key in wanted if key not in given],
        [f"{shown(key)} is unknown" for key in given if key not in wanted],
        [f"{k} {wrong}" for k in wanted if k in given and (wrong := _misfit(given[k], wanted[k]))],
    )
    if any(groups):
        listed = [text for group in groups for text in group[:LISTED]]
        more = sum(map(len, groups)) - len(listed)
        text = "; ".join([*listed, *([f"and {more} more"] if more else [])])
        raise RunError(f"{source}: does not fit {type(model).__name__}: {text}")
    model.load_state_dict(given)


def check_finite(model: nn.Module, source: Path, *, broken_statistics: bool = False) -> None:
    """Refuse a model that can compute nothing but NaN.

    Args:
        model: Any.
        source: Where its weights come from.
        broken_statistics: Accept it in running statistics.

    Raises:
        RunError: Naming the first such tensor and what can be done.
    """
    found = broken(model)
    weights = [key for key in found if not is_statistic(key)]
    if not found or (broken_statistics and not weights):
        return
    key = (weights or found)[0]
    values = model.state_dict()[key]
    count = int((~torch.isfinite(values)).sum())
    remedy = (
        "take an earlier checkpoint, or train anew with a smaller --lr"
        if weights
        else "the weights are whole: `gammabeta recalibrate` measures running statistics anew"
    )
    raise RunError(
        f"{source}: {key} is NaN or infinite in {count} of {values.numel()} values; {remedy}"
    )


def broken(model: nn.Module) -> list[str]:
    """Return the names of parameters and buffers with NaN or infinity in them."""
    return [k for k, v in model.state_dict().items() if not bool(torch.isfinite(v).all())]


def is_statistic(key: str) -> bool:
    """Tell whether a state_dict's key names a batch norm's running statistic."""
    return key.endswith(("running_mean", "running_var"))


def _state_dicts(read: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every mapping of names to tensors, the outermost first, and where it lies."""
    level, seen = [("", read)], {id(read)}
    for _ in range(DEPTH + 1):
        below = []
        for place, mapping in level:
            tensors = {k: v for k, v in mapping.items() if _is_entry(k, v)}
            if tensors:
                yield place.removeprefix("."), _unwrapped(tensors)
            for key, value in mapping.items():
                if isinstance(value, Mapping) and id(value) not in seen:  # a file may repeat it
                    seen.add(id(value))
                    name = shown(key) if isinstance(key, str) else "…"
                    below.append((f"{place}.{name}", value))
        level = below


def _is_entry(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Leave out the names of wrappers inside the keys: those of parts that were wrapped alone."""
    plain = {_WRAPPER.sub("", key): value for key, value in tensors.items()}
    return plain if len(plain) == len(tensors) else tensors


def _choices(wanted: Mapping[str, Tensor], place: str, tensors: Any) -> Iterator[_Choice]:
    """Yield the prefixes under which a state_dict has names of the model, with how many fit."""
    names, shapes = Counter[str](), Counter[str]()
    for key, value in tensors.items():
        for prefix, name in _splits(key):
            if name in wanted:
                names[prefix] += 1
                shapes[prefix] += not _misfit(value, wanted[name])
    for prefix in names or [""]:
        yield _Choice(place, prefix, tensors, (shapes[prefix], names[prefix]))


def _splits(key: str) -> Iterator[tuple[str, str]]:
    """Yield every way to take a key for a prefix, which ends in a dot, and a name.

    Example:
        >>> list(_splits("module.fc.weight"))
        [('', 'module.fc.weight'), ('module.', 'fc.weight'), ('module.fc.', 'weight')]
    """
    if key.count(".") <= MAX_DOTS:
        starts = [0, *(i + 1 for i, c in enumerate(key) if c == ".")]
        yield from ((key[:start], key[start:]) for start in starts)


def _misfit(value: Tensor, target: Tensor) -> str | None:
    """Say why a tensor cannot become the model's entry, None if it can."""
    kind = _kind(value)
    if kind:
        return f"is {kind}, which is not read; save it as a plain tensor"
    if value.shape != target.shape:
        return f"has shape {_shape(value)}, expected {_shape(target)}"
    fits = (
        value.is_floating_point()
        if target.is_floating_point()
        else value.dtype is not torch.bool and not value.is_complex() and _whole(value)
    )
    return None if fits else f"is {_name(value.dtype)}, expected {_name(target.dtype)}"


def _for_other_classes(value: Tensor, target: Tensor) -> bool:
    """Tell whether two entries of a last layer differ in the number of classes alone."""
    if _kind(value) or value.ndim != target.ndim:
        return False
    return len(value) != len(target) and value.shape[1:] == target.shape[1:]


def _kind(value: Tensor) -> str | None:
    """Name what keeps a tensor from being a plain array of numbers in memory."""
    if value.is_nested:
        return "a nested tensor"
    if value.is_quantized:
        return "quantised"
    if value.layout is not torch.strided:
        return "sparse"
    return "without data (meta)" if value.is_meta else None


def _whole(value: Tensor) -> bool:
    """Tell whether a small tensor holds whole numbers: averaging makes counters float."""
    return bool((value.double().frac() == 0).all())


def _shape(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _strangers(model: nn.Module, choices: list[_Choice]) -> str:
    """Say that nothing in a file has a name of the model, and which names there are."""
    keys = list(max(choices, key=lambda choice: len(choice.tensors)).tensors)
    more = f" and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return (
        f"has no entry of {type(model).__name__}; expected {', '.join([*model.state_dict()][:2])} "
        f"and so on, found {', '.join(map(shown, keys[:LISTED]))}{more}"
    )


def _notes(best: _Choice, choices: list[_Choice]) -> Iterator[str]:
    """Say which part of a file is used where it is not all of it."""
    if best.prefix:
        yield f"the prefix {shown(best.prefix)!r} of its keys is left out"
    equals = [c for c in choices if c.fitting == best.fitting and c is not best]
    if equals:
        others = ", ".join(map(repr, map(str, equals[:LISTED])))
        yield f"{str(best)!r} is used; {others} would fit as well"
    prefixes = tuple(c.prefix for c in (best, *equals) if c.place == best.place)
    unused = [key for key in best.tensors if not key.startswith(prefixes)]
    if unused:
        more = f" and {len(unused) - LISTED} more" if len(unused) > LISTED else ""
        yield f"{', '.join(map(shown, unused[:LISTED]))}{more} beside them is not used"


def _rounded(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    """Say which floating-point types become the model's."""
    pairs = {(given[k].dtype, v.dtype) for k, v in wanted.items()
             if k in given and v.is_floating_point()}  # fmt: skip
    for old, new in sorted(pairs, key=str):
        if old is not new:
            yield f"{_name(old)} weights are used as {_name(new)}"
