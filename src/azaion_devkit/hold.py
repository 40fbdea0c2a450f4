"""A place where a server keeps a request until a test says what is to become of it."""

import threading


class Hold:
    """One request that is kept: `reached` is set when it came; `release` passes it on, `drop` ends its connection."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._decided = threading.Event()
        self._dropped = False

    def release(self) -> None:
        """Let the request go on."""
        self._decided.set()

    def drop(self) -> None:
        """End the request's connection without an answer."""
        self._dropped = True
        self._decided.set()

    def wait(self, stopping: threading.Event) -> bool:
        """Keep the calling server thread until the decision, or until the server stops; False means drop."""
        self.reached.set()
        while not self._decided.wait(0.05):
            if stopping.is_set():
                return False
        return not self._dropped
