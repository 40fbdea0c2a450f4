"""The door to the object store against a real S3 server."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from azaion_devkit.fault_proxy import FaultProxy
from azaion_devkit.object_store import ObjectStore, free_port
from azaion_loader.cdn_manager import CDNCredentials, CdnManager, KeysRefused, ObjectInfo, ObjectMissing, TransferLimits
from azaion_loader.errors import DiskFull, IntegrityError, Interrupted, LoaderError, UpstreamError, UpstreamUnavailable

pytestmark = pytest.mark.store
MIB = 1 << 20
LIMITS = TransferLimits(stall_timeout_s=5, part_bytes=MIB, connections=4)


def payload(size: int, seed: int = 0) -> bytes:
    """Bytes that differ at every place, so that a piece at a wrong offset can't pass."""
    return hashlib.shake_128(f"payload {seed}".encode()).digest(size)


class Sink:
    """Collects a hash of what it is fed."""

    def __init__(self, refuse: LoaderError | None = None) -> None:
        self.refuse = refuse
        self.reset()

    def reset(self) -> None:
        self.sha256 = hashlib.sha256()

    def update(self, chunk: memoryview) -> None:
        self.sha256.update(chunk)

    def prove(self, info: ObjectInfo) -> None:  # noqa: ARG002 - the protocol's signature
        if self.refuse is not None:
            raise self.refuse


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    server = ObjectStore(tmp_path_factory.mktemp("store"))
    server.make_bucket("models")
    with server:
        yield server


def manager_of(store: ObjectStore, **changed: str) -> CdnManager:
    named = {
        "host": store.url,
        "downloader_access_key": store.downloader[0], "downloader_access_secret": store.downloader[1],
        "uploader_access_key": store.uploader[0], "uploader_access_secret": store.uploader[1], **changed,
    }  # fmt: skip
    return CdnManager(CDNCredentials(**named), connect_timeout_s=2, limits=LIMITS)


@pytest.fixture
def manager(store: ObjectStore) -> Iterator[CdnManager]:
    made = manager_of(store)
    yield made
    made.close()


@pytest.mark.parametrize("size", [0, 1, 15, 16, MIB - 1, MIB, MIB + 1, 5 * MIB + 3, 20 * MIB])
def test_round_trip(manager: CdnManager, tmp_path: Path, size: int) -> None:
    data = payload(size)
    source, target = tmp_path / "source", tmp_path / "got" / "target"
    source.write_bytes(data)
    key = f"round-{size}.big"
    sent: list[int] = []
    manager.upload("models", key, source, {"azaion-format": "1", "azaion-mac": "ab"}, progress=sent.append)
    info = manager.head("models", key)
    assert info.size == size
    assert dict(info.metadata) == {"azaion-format": "1", "azaion-mac": "ab"}
    sink, got = Sink(), list[int]()
    assert manager.download("models", key, target, sink=sink, progress=got.append).etag == info.etag
    assert target.read_bytes() == data
    assert sink.sha256.hexdigest() == hashlib.sha256(data).hexdigest()
    assert sent[-1] == got[-1] == size
    assert got == sorted(got)
    assert list(target.parent.iterdir()) == [target]


def test_missing_key_and_missing_bucket_on_reads(manager: CdnManager, tmp_path: Path) -> None:
    for bucket in ("models", "no-such-bucket"):
        with pytest.raises(ObjectMissing) as caught:
            manager.head(bucket, "absent.big")
        assert isinstance(caught.value, IntegrityError)
        with pytest.raises(ObjectMissing):
            manager.download(bucket, "absent.big", tmp_path / "t")
        with pytest.raises(ObjectMissing):
            manager.download(bucket, "absent.big", tmp_path / "t", info=ObjectInfo(5, "etag"))
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_missing_bucket_on_upload_is_an_upstream_error_and_makes_none(
    store: ObjectStore, manager: CdnManager, tmp_path: Path, size: int
) -> None:
    (tmp_path / "source").write_bytes(payload(size))
    with pytest.raises(UpstreamError) as caught:
        manager.upload("never-made", "a.big", tmp_path / "source", {})
    assert not isinstance(caught.value, KeysRefused | UpstreamUnavailable)
    assert not (store.root / "never-made").exists()


@pytest.mark.parametrize("changed", ["access_key", "access_secret"])
def test_refused_keys_are_a_signal_of_their_own(store: ObjectStore, tmp_path: Path, changed: str) -> None:
    wrong = manager_of(store, **{f"downloader_{changed}": "wrong", f"uploader_{changed}": "wrong"})
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(payload(3 * MIB))
    for name in ("small", "large"):
        with pytest.raises(KeysRefused):
            wrong.upload("models", "refused.big", tmp_path / name, {})
    with pytest.raises(KeysRefused):
        wrong.download("models", "refused.big", tmp_path / "t")
    assert not (store.root / "models" / "refused.big").exists()


def test_each_role_uses_its_own_keys(store: ObjectStore, manager: CdnManager, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(payload(3 * MIB))
    manager_of(store, downloader_access_key="wrong").upload("models", "roles.big", tmp_path / "source", {})
    manager_of(store, uploader_access_key="wrong").download("models", "roles.big", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == payload(3 * MIB)


def test_an_upload_reads_nothing_at_the_store(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(payload(10 * MIB))
    with FaultProxy(store.url) as proxy:
        manager_of(store, host=proxy.url).upload("models", "written.big", tmp_path / "source", {})
        assert proxy.count("GET|HEAD") == 0
        assert proxy.count("PUT") == 10


def test_an_unreachable_store_is_told_within_five_seconds(tmp_path: Path, store: ObjectStore) -> None:
    manager = manager_of(store, host=f"http://127.0.0.1:{free_port()}")
    (tmp_path / "s").write_bytes(b"x")
    failed = threading.Event()
    timer = threading.Timer(5.0, failed.set)
    timer.start()
    for call in (
        lambda: manager.head("models", "a"),
        lambda: manager.download("models", "a", tmp_path / "t", info=ObjectInfo(9, "e")),
        lambda: manager.upload("models", "a", tmp_path / "s", {}),
    ):
        with pytest.raises(UpstreamUnavailable):
            call()
        timer.cancel()
        assert not failed.is_set()
        timer = threading.Timer(5.0, failed.set)
        timer.start()
    timer.cancel()


def test_settings_of_other_programs_neither_redirect_nor_break(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\nregion=mars\nendpoint_url=http://127.0.0.1:1\ns3=\n  addressing_style=virtual\n")
    nonsense = {
        "AWS_PROFILE": "absent", "AWS_DEFAULT_PROFILE": "absent", "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(config), "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_SESSION_TOKEN": "z", "AWS_REGION": "mars", "AWS_DEFAULT_REGION": "mars", "AWS_MAX_ATTEMPTS": "x",
        "AWS_RETRY_MODE": "bogus", "AWS_DEFAULTS_MODE": "bogus", "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true", "AWS_DATA_PATH": "/nowhere", "AWS_REQUEST_CHECKSUM_CALCULATION": "bogus",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "bogus", "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:1",
        "AWS_SIGV4A_SIGNING_REGION_SET": "mars", "AWS_AUTH_SCHEME_PREFERENCE": "bogus", "AWS_CSM_ENABLED": "true",
    }  # fmt: skip
    for name, value in nonsense.items():
        monkeypatch.setenv(name, value)
    manager = manager_of(store)
    (tmp_path / "source").write_bytes(payload(3 * MIB))
    manager.upload("models", "env.big", tmp_path / "source", {"azaion-format": "1"})
    manager.download("models", "env.big", tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == payload(3 * MIB)


def test_a_proxy_of_the_environment_is_used(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(UpstreamUnavailable):
        manager_of(store).head("models", "absent.big")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ObjectMissing):
        manager_of(store).head("models", "absent.big")


def test_tls_needs_the_private_ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    secure = ObjectStore(tmp_path / "store", certificate=certificate, key=key)
    secure.make_bucket("models")
    (tmp_path / "source").write_bytes(payload(9 * MIB))
    with secure:
        with pytest.raises(UpstreamUnavailable, match="certificate"):
            manager_of(secure).head("models", "a")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        manager = manager_of(secure)
        manager.upload("models", "tls.big", tmp_path / "source", {})
        manager.download("models", "tls.big", tmp_path / "t")
        assert (tmp_path / "t").read_bytes() == payload(9 * MIB)


def test_no_room_is_told_before_the_first_byte(store: ObjectStore, manager: CdnManager, tmp_path: Path) -> None:
    with FaultProxy(store.url) as proxy:
        with pytest.raises(DiskFull, match="bytes needed"):
            manager_of(store, host=proxy.url).download("models", "a", tmp_path / "t", info=ObjectInfo(1 << 60, "e"))
        assert proxy.count() == 0
    assert list(tmp_path.iterdir()) == []


def test_what_the_sink_refuses_does_not_land(store: ObjectStore, manager: CdnManager, tmp_path: Path) -> None:
    (store.root / "models" / "refuse.big").write_bytes(payload(3 * MIB))
    store.refresh()
    with pytest.raises(IntegrityError):
        manager.download("models", "refuse.big", tmp_path / "t", sink=Sink(IntegrityError("no")))
    assert list(tmp_path.iterdir()) == []


def test_a_cancelled_download_stops_and_can_go_on(store: ObjectStore, tmp_path: Path) -> None:
    (store.root / "models" / "cancel.big").write_bytes(payload(12 * MIB))
    store.refresh()
    seen: list[int] = []

    def cancelled() -> None:
        if seen and seen[-1] >= 2 * MIB:
            raise Interrupted("stopped")

    with FaultProxy(store.url) as proxy:
        manager = manager_of(store, host=proxy.url)
        with pytest.raises(Interrupted):
            manager.download("models", "cancel.big", tmp_path / "t", progress=seen.append, cancelled=cancelled)
        before = proxy.body_bytes
        manager.download("models", "cancel.big", tmp_path / "t")
        assert proxy.body_bytes <= 12 * MIB + 4 * MIB + before - seen[-1]
    assert (tmp_path / "t").read_bytes() == payload(12 * MIB)


def test_a_file_that_changes_during_its_upload_is_refused(
    store: ObjectStore, manager: CdnManager, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(payload(40 * MIB))
    asked: list[int] = []

    def shrink_once() -> None:
        if not asked:
            with source.open("r+b") as file:
                file.truncate(20 * MIB)
        asked.append(1)

    with pytest.raises(LoaderError, match="changed") as caught:
        manager.upload("models", "short.big", source, {}, cancelled=shrink_once)
    assert not isinstance(caught.value, UpstreamError)
    assert not (store.root / "models" / "short.big").exists()


def test_two_processes_for_one_target_take_turns(store: ObjectStore, tmp_path: Path) -> None:
    (store.root / "models" / "two.big").write_bytes(payload(12 * MIB))
    store.refresh()
    (tmp_path / "cdn.yaml").write_bytes(store.cdn_yaml())
    program = (
        "import sys; from pathlib import Path; from azaion_loader.cdn_manager import *\n"
        "m = CdnManager(parse_cdn_yaml(Path(sys.argv[1]).read_bytes()), limits=TransferLimits(part_bytes=1 << 20))\n"
        "m.download('models', 'two.big', Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cdn.yaml"), str(tmp_path / "t")]
    running = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in running] == [0, 0]
    assert (tmp_path / "t").read_bytes() == payload(12 * MIB)
    assert not (tmp_path / "t.part").exists()
