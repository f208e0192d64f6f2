"""What follows each batch norm of a model, found by data flow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from gammabeta.norm.activation import Epilogue
from gammabeta.surgery.links import read_module
from gammabeta.surgery.match import Chain, find_chains
from gammabeta.surgery.survey import ModuleReader, is_timm_norm, owners
from gammabeta.surgery.tracing import trace
from gammabeta.surgery.watching import UntraceableError


@dataclass(frozen=True)
class Following:
    """What is done to a batch norm's output.

    Args:
        epilogue: The activation and the pooling; None if it is unknown.
        adds: Whether something is added before the activation.
    """

    epilogue: Epilogue | None = None
    adds: bool = False

    @property
    def activation(self) -> str | None:
        """The activation's name, or None."""
        return self.epilogue.activation if self.epilogue else None

    @property
    def pool(self) -> int | None:
        """The window of the max pooling, or None."""
        return self.epilogue.pool if self.epilogue else None


def following(model: nn.Module) -> dict[int, Following]:
    """Return what follows each plain batch norm, by the layer's id; those not found are left out.

    Every module that calls batch norms is traced for itself. One that cannot be traced, or an
    activation that is called elsewhere than its batch norm, leaves nothing found.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
        >>> following(model)[id(model[0])].activation
        'relu'
    """
    found = {}
    for norm in model.modules():
        step = read_module(norm.act) if is_timm_norm(norm) else None  # type: ignore[arg-type]
        if step is not None:
            found[id(norm)] = Following(Epilogue(**step.settings))
    for _, module in owners(model):
        reader = ModuleReader(module)
        for chain in _chains(module, reader):
            norm = reader.modules[str(chain.node.target)]
            if chain.links:
                found[id(norm)] = Following(Epilogue(**chain.settings), chain.sum is not None)
    return found


def _chains(module: nn.Module, reader: ModuleReader) -> list[Chain]:
    try:
        return find_chains(trace(module).graph, reader)
    except UntraceableError:
        return []
