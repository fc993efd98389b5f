"""Where the threads of a process stand, for the log of who waits for it in vain: the kernel function that each sleeps in.

A process that does not answer is busy (`running`), waits for itself (`futex_…`), polls (`poll_…`), is stopped (`do_signal_stop`),
or stands at a page that nobody brings (`handle_userfault`). Source: proc_pid_wchan(5), proc_pid_stat(5).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

THREADS_MAX = 256


def thread_places(pid: int) -> str:
    """As `CPU 0/TCG: handle_userfault, worker: futex_do_wait (3), …`; says so if there is nothing to be seen."""
    places: Counter[str] = Counter()
    try:
        for count, task in enumerate(Path(f"/proc/{pid}/task").iterdir()):
            if count == THREADS_MAX:
                break
            places[_place(task)] += 1
    except OSError as error:
        if not places:
            return f"cannot be seen ({error.strerror})"
    return ", ".join(place if count == 1 else f"{place} ({count})" for place, count in sorted(places.items()))


def _place(task: Path) -> str:
    name = (task / "comm").read_text().strip()
    where = (task / "wchan").read_text().strip()
    return f"{name}: {'running' if where in ('', '0') else where}"
