"""Weights into modules: every name and shape accounted for, or one sentence that says which not.

Knows files of pickled tensors (read as tensors and nothing else) and torch modules; knows no model.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from spark.models.checkpoint import CheckpointError, folded, refuse_pointer


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` file by name; nothing else in it is ever run.

    Raises:
        CheckpointError: it is missing, cut off, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing: fetch it again")
    refuse_pointer(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds more than tensors, or is damaged, and is not opened: take the "
            "file that its makers published"
        ) from error
    except Exception as error:  # a damaged file makes torch raise nearly anything
        raise CheckpointError(
            f"{path.name} is cut off or damaged: delete it and fetch it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path.name} is no table of tensors: take the published file")
    return {str(name): tensor for name, tensor in state.items()}


def nbytes(module: nn.Module, dtype: torch.dtype | None = None) -> int:
    """Bytes of a module's weights and buffers, in their own precision or in another."""
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in tensors)


def expect(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Hold the names and shapes of a state against a module's, before a weight is read.

    Args:
        module: where the state is to go; on any device, meta too.
        shapes: of the state, by name.
        source: what the state is of, for messages.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    wanted = module.state_dict()
    missing, extra = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    if missing or extra:
        parts = [f"lacks {folded(missing)}"] if missing else []
        parts += [f"holds {folded(extra)}, which the model has no place for"] if extra else []
        raise CheckpointError(
            f"{source} {' and '.join(parts)}: it is of another model; fetch it again"
        )
    for name, shape in shapes.items():
        if shape != tuple(wanted[name].shape):
            raise CheckpointError(
                f"{name} of {source} is {shape}, the model's is "
                f"{tuple(wanted[name].shape)}: it is of another model; fetch it again"
            )


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state into a module, in the module's precision and on its device.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or holds no numbers.
    """
    expect(module, {name: tuple(tensor.shape) for name, tensor in state.items()}, source)
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{name} of {source} holds no numbers: delete the file and fetch it again"
            )
    module.load_state_dict(dict(state))
    module.eval().requires_grad_(False)
