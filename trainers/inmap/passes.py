"""What InMaP's solver has seen, kept in step checkpoints: a long solve that is interrupted goes on after it.

The objective and its gradient at each step are all that the solver decides by, and each costs a pass over the features.
They are kept where `TRAIN.CHECKPOINT_STEPS` is set, after every so many passes: a few `[E, C]` matrices for the fast
solver, of which the authors' 2000 steps would make too many.
"""

from collections.abc import Callable

from torch import Tensor

from .solver import Point


class Passes:
    """The points of each reading's solve, and the potentials that come before.

    Args:
        every: Passes between two checkpoints; 0: nothing is kept.
        save: Writes a checkpoint, from the number of passes so far and what is needed to go on.
        kept: What the newest checkpoint holds, if anything.
    """

    def __init__(self, every: int, save: Callable[[int, dict], None], kept: dict | None):
        self.every, self.save, kept = every, save, kept or {}
        self.found: Tensor | None = kept.get("potentials")
        self.points: dict[str, list[Point]] = {
            name: [Point(*point) for point in points] for name, points in kept.get("points", {}).items()
        }

    def potentials(self, make: Callable[[], Tensor]) -> Tensor:
        """Those that are kept, or what `make` gives."""
        found = self.found if self.found is not None else make()
        self.found = found.cpu()
        return found

    def of(self, name: str) -> dict[str, object]:
        """The arguments of a reading's solve that have it go on, and its points kept."""
        points = self.points.setdefault(name, [])
        if not self.every:
            return {"known": tuple(points)}

        def note(point: Point) -> None:
            points.append(Point(*(x.cpu() for x in point)))
            count = sum(map(len, self.points.values()))
            if count % self.every == 0:
                plain = {name: [tuple(point) for point in points] for name, points in self.points.items()}
                self.save(count, {"points": plain, "potentials": self.found})

        return {"known": tuple(points), "on_point": note}
