from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from azaion_loader.cdn_credentials import CDNCredentials as CDNCredentials
from azaion_loader.cdn_credentials import parse_cdn_yaml as parse_cdn_yaml
from azaion_loader.store_answers import KeysRefused as KeysRefused
from azaion_loader.store_answers import ObjectInfo as ObjectInfo
from azaion_loader.store_answers import ObjectMissing as ObjectMissing
from azaion_loader.transfer_terms import PrefixSink as PrefixSink
from azaion_loader.transfer_terms import TransferLimits as TransferLimits

__all__ = (
    "CDNCredentials",
    "CdnManager",
    "KeysRefused",
    "ObjectInfo",
    "ObjectMissing",
    "TransferLimits",
    "parse_cdn_yaml",
)

@final
class CdnManager:
    def __init__(
        self,
        credentials: CDNCredentials,
        *,
        connect_timeout_s: float = 4.0,
        request_timeout_s: float = 60.0,
        limits: TransferLimits | None = None,
    ) -> None: ...
    def head(self, bucket: str, key: str) -> ObjectInfo: ...
    def download(
        self,
        bucket: str,
        key: str,
        target: Path,
        *,
        info: ObjectInfo | None = None,
        sink: PrefixSink | None = None,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], None] | None = None,
        durable: bool = True,
    ) -> ObjectInfo: ...
    def upload(
        self,
        bucket: str,
        key: str,
        source: Path,
        metadata: Mapping[str, str],
        *,
        progress: Callable[[int], None] | None = None,
        cancelled: Callable[[], None] | None = None,
    ) -> str: ...
    def close(self) -> None: ...
