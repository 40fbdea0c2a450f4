"""The look for what tests leave behind sees each kind of it, and nothing that was there before."""

import subprocess
import threading
from pathlib import Path

from azaion_devkit.leftovers import belongings, left_since


def test_it_sees_threads_children_and_descriptors(tmp_path: Path) -> None:
    earlier_end, end = threading.Event(), threading.Event()
    earlier = threading.Thread(target=earlier_end.wait)
    earlier.start()
    before = belongings()
    assert not left_since(before)
    thread = threading.Thread(target=end.wait)
    thread.start()
    with (tmp_path / "open").open("w"), subprocess.Popen(["sleep", "60"]) as child:
        new = dict(left_since(before))
        child.kill()
    assert new["thread"] is thread
    assert new["child"] == str(child.pid)
    assert str(tmp_path / "open") in str(new["descriptor"])
    earlier_end.set()
    earlier.join()
    end.set()
    thread.join()
    assert not left_since(before)
