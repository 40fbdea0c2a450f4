from typing import final

from azaion_loader.credentials import Credentials

KEY_FRAGMENT_MAX_BYTES: int
RESOURCE_MAX_BYTES: int

@final
class ApiClient:
    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float,
        login_timeout_s: float,
        request_timeout_s: float,
        stall_timeout_s: float,
    ) -> None: ...
    def login(self, credentials: Credentials) -> str: ...
    def key_fragment(self, token: str) -> bytes: ...
    def get_resource(
        self,
        token: str,
        folder: str,
        name: str,
        credentials: Credentials,
        hardware: str,
        max_bytes: int = ...,
    ) -> bytes: ...
    def list_resources(self, token: str, folder: str, search: str) -> list[str]: ...
    def put_resource(self, token: str, folder: str, name: str, data: bytes) -> None: ...
    def check_hardware(self, token: str, hardware: str) -> None: ...
    def close(self) -> None: ...
