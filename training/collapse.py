"""Warns when embeddings no longer tell images apart, early enough to act."""

from __future__ import annotations

from dataclasses import dataclass, field

# In a row; the first records of a run are those of an encoder that knows nothing yet.
RECORDS = 5
POINT, LINE = 1e-3, 1.5
CHANCE = 1.5  # times the AP of a random ranking
MESSAGES = {
    "point": "collapse: the embeddings of all images are {}. Likely causes: no negatives, no "
    "predictor or no stop-gradient, or a learning rate too high",
    "line": "collapse: the embeddings of all images lie {}. Likely causes: a learning rate, "
    "momentum or temperature too high, or no batch norm in the projection head",
    "chance": "the views of an image are found {}. Likely causes: a learning rate too high or far "
    "too low, views that share too little (small crops), or too few steps so far",
}


@dataclass
class Collapse:
    """Watches the records of a run and returns one warning for each kind of collapse.

    Args:
        after: step before which nothing is said: warm-up, and the first hundred steps.
    """

    after: int
    _seen: dict[str, int] = field(default_factory=dict)

    def update(
        self,
        step: int,
        *,
        batch_ap: float,
        chance: float,
        variance: float,
        dimension: float,
    ) -> str | None:
        """Return a warning for people, or None.

        Args:
            step: number of updates done.
            batch_ap: mean AP of the batch's views.
            chance: mean AP of a random ranking.
            variance: of its embeddings on the unit sphere, 0 to 1.
            dimension: effective dimension of its embeddings.
        """
        if step < self.after:
            return None
        if variance < POINT:
            kind, found = "point", f"nearly one point (variance {variance:.1g})"
        elif dimension < LINE:
            kind, found = "line", f"on a line (about {dimension:.1f} dimensions)"
        elif batch_ap < CHANCE * chance:
            kind, found = "chance", f"no better than by chance (AP {batch_ap:.3f}, {chance:.3f})"
        else:
            kind, found = "", ""
        self._seen = {kind: self._seen.get(kind, 0) + 1}
        if kind and self._seen[kind] == RECORDS:
            return MESSAGES[kind].format(found)
        return None
