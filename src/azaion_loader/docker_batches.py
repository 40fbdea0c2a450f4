"""Splits the references that one call of the container engine's client is given."""

from collections.abc import Iterable, Iterator

# An answer holds some 10 KiB for each image, and a complaint names each absent one up to three times: both have to
# stay within their bounds, or the rest could not be read. (The system's own bound on arguments is megabytes.)
BATCH_REFERENCES = 64
BATCH_CHARACTERS = 8 * 1024


def batches(references: Iterable[str]) -> Iterator[list[str]]:
    """Yield the references in lists that are short enough for one call, in their order."""
    batch: list[str] = []
    characters = 0
    for reference in references:
        if batch and (len(batch) == BATCH_REFERENCES or characters + len(reference) > BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(reference)
        characters += len(reference)
    if batch:
        yield batch
