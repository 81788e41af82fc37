"""What goes through the demo: a picture, what was found in it, and who gets to see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from uhd.runtime import Detections, Image


@dataclass(frozen=True)
class Frame:
    """A picture of a source.

    image: [h,w,3] BGR uint8. name: the picture's path relative to its folder, the video's file name, or `camera N`.
    number: from 1 up; in a folder the picture's place in the sorted list.
    """

    image: Image
    name: str
    number: int


@dataclass(frozen=True)
class Result:
    """A picture, what the detector found in it, and the milliseconds that this took, resizing and decoding included."""

    frame: Frame
    found: Detections
    ms: float


class View(ABC):
    """Something that is shown each result: a file, the window, the terminal."""

    needs_picture = False

    @abstractmethod
    def take(self, result: Result, picture: Image | None, speed: str) -> bool:
        """Shows a result; False when the user has seen enough.

        picture: the annotated one, [h,w,3] BGR, at least where needs_picture. speed: the recent one, in words.
        """

    def close(self) -> None:  # noqa: B027 - not every view has something to end
        """Ends the view, whatever the reason: what is finished is kept."""
