"""What clients ask for, in the engine's words."""

from __future__ import annotations

from collections.abc import Callable

from . import messages, protocol


def to_engine(message: protocol.Control, picture: Callable[[str], bytes]) -> messages.Control:
    """The engine's control for a client's; `session.stop` has none. `picture` gives the pixels of
    an uploaded one. Raises `InputError` as it does."""
    event_id = message.event_id
    if isinstance(message, protocol.Update):
        return messages.Update(
            event_id=event_id,
            prompt=message.prompt,
            steps=message.steps,
            recache=message.recache,
            strength=message.strength,
            loras=message.loras,
            control=message.control,
        )
    if isinstance(message, protocol.Cut):
        image = None if message.image is None else picture(message.image)
        return messages.Cut(event_id=event_id, prompt=message.prompt, image=image)
    if isinstance(message, protocol.NewSeed):
        return messages.Update(event_id=event_id, seed=message.seed)
    if isinstance(message, protocol.Pause):
        return messages.Pause(event_id=event_id)
    if isinstance(message, protocol.Resume):
        return messages.Resume(event_id=event_id)
    if isinstance(message, protocol.Reset):
        return messages.Reset(event_id=event_id)
    raise TypeError(f"{kind_of(message)} is not for the engine")


def kind_of(message: protocol.Control) -> str:
    """Such as "update"."""
    return str(message.__struct_config__.tag).removeprefix("session.")
