"""What engines say of devices, memory and weights that fail them."""

import logging
from typing import Final

import torch

from domain.models import Model
from workers.engine import EngineError, EngineRequest, Failure

NO_MEMORY: Final = ("can't allocate memory", "not enough memory")
NOT_FINITE: Final = "The model's output is not finite; its weights may be damaged."

logger: Final = logging.getLogger(__name__)


def usable(device: str | None) -> torch.device:
    """The device of this name; None selects the GPU if there is one. Raises EngineError."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError) as error:
        raise EngineError(f"Device {device} cannot be used: {brief(error)}") from error
    return place


def unloadable(model: Model, place: torch.device, error: Exception) -> EngineError:
    if isinstance(error, torch.OutOfMemoryError):
        return EngineError(
            f"Model {model.id} does not fit into the memory of {place}; it needs about "
            f"{model.vram_gb:g} GB. Choose a smaller model, or TEXT2SONG_DEVICE=cpu."
        )
    return EngineError(f"Model {model.id} cannot be loaded: {brief(error)}")


def is_short_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # So torch says on a CPU, on each system in other words.
    return isinstance(error, RuntimeError) and any(said in str(error) for said in NO_MEMORY)


def failed(request: EngineRequest, device: str, error: Exception) -> Failure:
    """The end of a request. Of what nobody foresaw, the log has all that is known."""
    transient = True
    if isinstance(error, EngineError):
        said, transient = str(error), error.transient
    elif is_short_of_memory(error):
        said = short_of_memory(device, request.duration)
    else:
        logger.error("Request %s failed", request.id, exc_info=error)
        said = f"Generation failed: {brief(error)}"
    return Failure(request_id=request.id, error=said, transient=transient)


def short_of_memory(device: str, duration: float) -> str:
    return f"{device} ran out of memory on a clip of {duration:g} s."


def brief(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
