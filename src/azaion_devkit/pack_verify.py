"""azaion-pack verify: proves an archive against its key fragment, as a device does, and lists what it holds.

    azaion-pack verify ARCHIVE --key-fragment FILE [--public-key PEM] [--json]

Exit codes: 0 proved, 1 not, 2 wrong usage.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from azaion_devkit.pack import PackError, check_platform, prove_archive, read_small
from azaion_devkit.pack_progress import PackProgress
from azaion_loader.archive_model import ArchiveIndex, distinct_layers
from azaion_loader.archive_trust import check_trust
from azaion_loader.errors import LoaderError
from azaion_loader.required_images import short_tag
from azaion_loader.security import archive_key
from azaion_loader.unlock_plan import tagged_images


def verify(archive: Path, key_fragment: Path, public_key: Path | None) -> dict[str, Any]:
    """Prove an archive and describe it. Raises PackError, LoaderError or OSError."""
    key = archive_key(read_small(key_fragment, "key fragment"))
    with archive.open("rb") as source, PackProgress() as progress:
        index = prove_archive(source, key, progress)
    found = describe(index)
    if public_key is not None:
        found["signed"] = check_trust(archive, public_key, tagged_images(index.images), None, allow_downgrade=False)
    return found


def describe(index: ArchiveIndex) -> dict[str, Any]:
    """Return what an archive holds as plain values; shared layers count once in the total."""
    layers = distinct_layers(layer for image in index.images for layer in image.layers)
    return {
        "layout": index.layout,
        "gzipped": index.gzipped,
        "tar_bytes": index.tar_bytes,
        "layer_bytes": sum(layer.size for layer in layers),
        "platform": check_platform(index, None),
        "images": [
            {
                "tags": [short_tag(tag) for tag in image.tags],
                "config_digest": image.config_digest,
                "created": image.created,
                "layers": [{"diff_id": layer.diff_id, "bytes": layer.size} for layer in image.layers],
                "bytes": sum(layer.size for layer in image.layers),
            }
            for image in index.images
        ],
    }


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(prog="azaion-pack verify", description="Prove an encrypted image archive.")
    parser.add_argument("archive", type=Path, metavar="ARCHIVE")
    parser.add_argument("--key-fragment", required=True, type=Path, metavar="FILE", help="the key fragment")
    parser.add_argument("--public-key", type=Path, metavar="PEM", help="Ed25519 public key to prove the signature with")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    try:
        found = verify(given.archive, given.key_fragment, given.public_key)
    except (PackError, LoaderError) as err:
        return _failed(str(err), given.json)
    except OSError as err:
        return _failed(f"{err.filename or given.archive}: {err.strerror}", given.json)
    sys.stdout.write(json.dumps(found) + "\n" if given.json else _table(given.archive, found))
    return 0


def _failed(sentence: str, as_json: bool) -> int:
    if as_json:
        sys.stdout.write(json.dumps({"detail": sentence}) + "\n")
    else:
        sys.stderr.write(f"azaion-pack: {sentence}\n")
    return 1


def _table(archive: Path, found: dict[str, Any]) -> str:
    lines = []
    for image in found["images"]:
        lines.append(f"{', '.join(image['tags'])}  {image['config_digest']}  {image['bytes']} bytes")
        lines += [f"  {layer['diff_id']}  {layer['bytes']} bytes" for layer in image["layers"]]
    packed = ", gzipped" if found["gzipped"] else ""
    signed = f", signed {found['signed']}" if "signed" in found else ""
    lines.append(
        f"{archive}: {len(found['images'])} images for {found['platform']}, {found['layer_bytes']} bytes of layers, "
        f"{found['layout']} layout{packed}{signed}, proved"
    )
    return "\n".join(lines) + "\n"
