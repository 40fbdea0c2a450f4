"""Makes sets of images without a registry: as streams of a `docker save` tar in both layouts, or in a real engine.

Each image has three layers: a base that all share, one of its own, and a small top that all share in content but not
in position, so that the older layout needs links. Payloads are AES-CTR key streams: incompressible, different at every
offset, the same for the same seed. Nothing is held in memory: layers are generated once for their digests and again for
each stream.
"""

import hashlib
import io
import json
import subprocess
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

CHUNK_BYTES = 1 << 20
END_OF_TAR = bytes(1024)
CREATED = "2026-01-02T03:04:05Z"
CANARY_STRIDE_BYTES = 1 << 16

_ZEROS = bytes(CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class SyntheticLayer:
    """A layer with one file of `size` bytes; `canary` is written over its payload every 64 KiB."""

    path: str
    size: int
    seed: str
    canary: bytes = b""

    def chunks(self) -> Iterator[bytes]:
        """Yield the layer's tar."""
        yield header(self.path, self.size)
        stream = Cipher(AES256(hashlib.sha256(self.seed.encode()).digest()), CTR(bytes(16))).encryptor()
        for start in range(0, self.size, CHUNK_BYTES):
            chunk = stream.update(_ZEROS[: min(CHUNK_BYTES, self.size - start)])
            yield _with_canary(chunk, self.canary) if self.canary else chunk
        yield bytes(-self.size % 512) + END_OF_TAR

    @property
    def tar_bytes(self) -> int:
        """Length of the layer's tar."""
        return 512 + self.size + -self.size % 512 + len(END_OF_TAR)


@dataclass(frozen=True, slots=True)
class SyntheticImage:
    """An image with its digests worked out; `layers` base first."""

    tag: str
    layers: tuple[SyntheticLayer, ...]
    diff_ids: tuple[str, ...]
    config: bytes = field(repr=False)

    @property
    def config_digest(self) -> str:
        """The image ID in a classic store."""
        return f"sha256:{hashlib.sha256(self.config).hexdigest()}"


def make_images(
    tags: Sequence[str],
    *,
    shared_bytes: int,
    unique_bytes: int,
    seed: str = "seed",
    os: str = "linux",
    architecture: str = "amd64",
    variant: str = "",
    versions: Mapping[str, int] | None = None,
    canary: bytes = b"",
) -> list[SyntheticImage]:
    """Return one image per tag: a shared base of `shared_bytes`, an own layer of `unique_bytes`, a small shared top.

    `versions` changes the own layer of single tags: another number, another content.
    """
    base = SyntheticLayer("base.bin", shared_bytes, f"{seed}/base", canary)
    top = SyntheticLayer("etc-release.bin", 700, f"{seed}/top", canary)
    digests: dict[SyntheticLayer, str] = {}
    images = []
    for tag in tags:
        version = (versions or {}).get(tag, 0)
        layers = (base, SyntheticLayer("own.bin", unique_bytes, f"{seed}/{tag.split(':')[0]}/{version}", canary), top)
        for layer in layers:
            if layer not in digests:
                digests[layer] = _digest(layer.chunks())
        diff_ids = tuple(digests[layer] for layer in layers)
        images.append(SyntheticImage(tag, layers, diff_ids, _config(diff_ids, os, architecture, variant, layers)))
    return images


def older_layout(images: Iterable[SyntheticImage]) -> Iterator[bytes]:
    """Yield the tar that `docker save` of Docker 20.10 writes for these images."""
    manifest, repositories = [], {}
    placed: dict[str, str] = {}
    written: set[str] = set()
    for image in images:
        paths = []
        chain = image.config_digest
        for position, (layer, diff_id) in enumerate(zip(image.layers, image.diff_ids, strict=True)):
            own = image.config_digest if position == len(image.layers) - 1 else ""
            chain = hashlib.sha256(f"{chain if position else ''} {diff_id} {own}".encode()).hexdigest()
            paths.append(f"{chain}/layer.tar")
            if chain in written:
                continue
            written.add(chain)
            yield header(f"{chain}/", 0, tarfile.DIRTYPE)
            yield from _file(f"{chain}/VERSION", b"1.0")
            yield from _file(f"{chain}/json", _json({"id": chain, "created": CREATED}))
            if diff_id in placed:
                yield header(f"{chain}/layer.tar", 0, tarfile.SYMTYPE, f"../{placed[diff_id]}/layer.tar")
            else:
                placed[diff_id] = chain
                yield from _member(f"{chain}/layer.tar", layer.tar_bytes, layer.chunks())
        config = f"{_hex(image.config_digest)}.json"
        yield from _file(config, image.config)
        manifest.append({"Config": config, "RepoTags": [image.tag], "Layers": paths})
        repository, _, tag = image.tag.rpartition(":")
        repositories[repository] = {tag: chain}
    yield from _file("manifest.json", _json(manifest) + b"\n")
    yield from _file("repositories", _json(repositories) + b"\n")
    yield END_OF_TAR


def oci_layout(images: Sequence[SyntheticImage], *, packed: bool = False) -> Iterator[bytes]:
    """Yield the tar that `docker save` of Docker 26 writes for these images.

    With `packed` the layers are gzipped inside, as the containerd store writes pulled images (in memory: small sets).
    """
    index, manifest = [], []
    yield header("blobs/", 0, tarfile.DIRTYPE)
    yield header("blobs/sha256/", 0, tarfile.DIRTYPE)
    written: set[str] = set()
    for image in images:
        descriptors = []
        for layer, diff_id in zip(image.layers, image.diff_ids, strict=True):
            content = _packed(layer.chunks()) if packed else b""
            digest = _digest([content]) if packed else diff_id
            size = len(content) if packed else layer.tar_bytes
            media_type = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if packed else "")
            descriptors.append({"mediaType": media_type, "digest": digest, "size": size})
            if digest not in written:
                written.add(digest)
                yield from _member(_blob(digest), size, [content] if packed else layer.chunks())
        document = _manifest(image, descriptors)
        digest = _digest([document])
        for name, content in ((image.config_digest, image.config), (digest, document)):
            if name not in written:
                written.add(name)
                yield from _file(_blob(name), content)
        index.append(_index_entry(image, digest, len(document)))
        layers = [_blob(str(descriptor["digest"])) for descriptor in descriptors]
        manifest.append({"Config": _blob(image.config_digest), "RepoTags": [image.tag], "Layers": layers})
    media_type = "application/vnd.oci.image.index.v1+json"
    yield from _file("index.json", _json({"schemaVersion": 2, "mediaType": media_type, "manifests": index}))
    yield from _file("manifest.json", _json(manifest))
    yield from _file("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    yield END_OF_TAR


def gzipped(chunks: Iterable[bytes], level: int = 1) -> Iterator[bytes]:
    """Yield a stream gzipped as a whole."""
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    for chunk in chunks:
        if packed := packer.compress(chunk):
            yield packed
    yield packer.flush()


def load_into_engine(chunks: Iterable[bytes], docker: Sequence[str] = ("docker",)) -> str:
    """Give a tar to `docker load` and return what the command printed. Raises RuntimeError with its message."""
    with subprocess.Popen(
        [*docker, "load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        if process.stdin is None:
            raise RuntimeError("docker load has no standard input")
        # A command that stops reading says why in its output.
        with suppress(BrokenPipeError):
            for chunk in chunks:
                process.stdin.write(chunk)
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdin = None
        output, _ = process.communicate(timeout=600)
    text = output.decode(errors="replace").strip()
    if process.returncode:
        raise RuntimeError(f"docker load failed: {text[-2000:]}")
    return text


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    """Return a ustar header, made by Python's tarfile (GNU form for 8 GiB and more)."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, target
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info.tobuf(tarfile.GNU_FORMAT if size >= 1 << 33 else tarfile.USTAR_FORMAT)


def _member(name: str, size: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield header(name, size)
    yield from chunks
    yield bytes(-size % 512)


def _file(name: str, content: bytes) -> Iterator[bytes]:
    return _member(name, len(content), [content])


def _with_canary(chunk: bytes, canary: bytes) -> bytes:
    marked = bytearray(chunk)
    for start in range(0, len(marked) - len(canary) + 1, CANARY_STRIDE_BYTES):
        marked[start : start + len(canary)] = canary
    return bytes(marked)


def _config(
    diff_ids: Sequence[str], system: str, architecture: str, variant: str, layers: Sequence[SyntheticLayer]
) -> bytes:
    document: dict[str, object] = {
        "architecture": architecture,
        "config": {"Cmd": ["/own.bin"], "Labels": {"own": layers[1].seed}},
        "created": CREATED,
        "history": [{"created": CREATED, "created_by": f"COPY {layer.path} /"} for layer in layers],
        "os": system,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return _json(document | ({"variant": variant} if variant else {}))


def _manifest(image: SyntheticImage, layers: Sequence[Mapping[str, object]]) -> bytes:
    media_type = "application/vnd.oci.image.config.v1+json"
    config = {"mediaType": media_type, "digest": image.config_digest, "size": len(image.config)}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    return _json({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": list(layers)})


def _index_entry(image: SyntheticImage, digest: str, size: int) -> dict[str, object]:
    return {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest,
        "size": size,
        "annotations": {
            "io.containerd.image.name": f"docker.io/{image.tag}",
            "org.opencontainers.image.ref.name": image.tag.rpartition(":")[2],
        },
    }


def _packed(chunks: Iterable[bytes]) -> bytes:
    target = io.BytesIO()
    target.writelines(gzipped(chunks))
    return target.getvalue()


def _digest(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _blob(digest: str) -> str:
    return f"blobs/sha256/{_hex(digest)}"


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
