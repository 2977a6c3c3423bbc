"""Items that wait until MLflow has taken them, and the names that it takes."""

import hashlib
import re
import threading
from collections.abc import Mapping
from typing import Generic, TypeVar

LONGEST_NAME = 250

Key = TypeVar("Key")
Item = TypeVar("Item")


class Kept(Generic[Key, Item]):
    """Items by name: all that were given, of which some wait to be sent. Any thread may call it."""

    def __init__(self) -> None:
        self.given: dict[Key, Item] = {}
        self._waiting: dict[Key, Item] = {}
        self._lock = threading.Lock()

    def add(self, items: Mapping[Key, Item]) -> None:
        with self._lock:
            self.given |= items
            self._waiting |= items

    def waiting(self) -> dict[Key, Item]:
        with self._lock:
            return dict(self._waiting)

    def forget(self, sent: Mapping[Key, Item]) -> None:
        """Wait no more for what was sent, but for what has been given another value since."""
        with self._lock:
            for name, item in sent.items():
                if self._waiting.get(name) is item:
                    del self._waiting[name]

    def send_again(self) -> None:
        """Everything waits."""
        with self._lock:
            self._waiting = dict(self.given)


class Names:
    """Names that MLflow takes, each for one of ours: other characters become underscores, and no part leads upwards."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        self._accepted: dict[str, str] = {}

    def accepted(self, name: str) -> str:
        if name not in self._accepted:
            parts = re.sub(r"[^\w/.\-: ]", "_", name).split("/")
            found = "/".join(part for part in parts if part.strip(". ")) or "_"
            if len(found) > LONGEST_NAME or self._owners.get(found, name) != name:
                found = f"{found[: LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            self._owners[found], self._accepted[name] = name, found
        return self._accepted[name]
