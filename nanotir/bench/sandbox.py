"""A measurement of the Python tool: latency, throughput, start, and what many calls leave behind.

No policy is needed.
"""

from __future__ import annotations

import time
from concurrent.futures import wait
from pathlib import Path

from nanotir.bench.timing import timed
from nanotir.tools import PythonTool

PRINT = "print(2**100)"
CUBIC = "from sympy import *\nx = symbols('x')\nsolve(x**3 - 2*x**2 - 5*x + 6, x)"
SLEEP = "import time\ntime.sleep(0.05)"
WRITE = "open('f', 'w').write('x')\nprint('y' * 1000)"


def python_tool(policy) -> dict:
    """Latency of calls made one by one, of a print and of sympy solving a cubic; calls a second.

    Also the time of 64 calls that sleep 50 ms, the start of the fork servers, and what 10,000
    calls leave behind: processes, files and descriptors, and MB of memory.
    """
    with PythonTool(workers=64) as tool:
        start, _ = timed(tool.run, "1")
        prints = latencies(tool, PRINT, 400)
        cubics = latencies(tool, CUBIC, 100)
        run_together(tool, SLEEP, 64)  # now there are 64 workers
        sleeping, _ = timed(run_together, tool, SLEEP, 64)
        together, _ = timed(run_together, tool, PRINT, 500)

        before, memory_before = left_behind(tool)
        for _ in range(20):
            run_together(tool, WRITE, 500)
        after, memory_after = left_behind(tool)
    return {
        "p50_ms": 1000 * prints[200],
        "p99_ms": 1000 * prints[396],
        "cubic_p50_ms": 1000 * cubics[50],
        "calls_per_second": 500 / together,
        "sleep_64": sleeping,
        "start": start,
        "left_behind": after - before,
        "left_behind_mb": memory_after - memory_before,
    }


def latencies(tool: PythonTool, code: str, n: int) -> list[float]:
    """Seconds of n calls, one after the other, sorted."""
    return sorted(timed(tool.run, code)[0] for _ in range(n))


def run_together(tool: PythonTool, code: str, n: int):
    wait([tool.submit(code) for _ in range(n)])


def left_behind(tool: PythonTool) -> tuple[int, float]:
    """(processes of the servers, descriptors of theirs and ours, and files; MB of their memory).

    Shared pages are counted in equal parts. Linux only.
    """
    time.sleep(0.5)  # the workers have forked their next children by then
    servers = [server.process.pid for server in tool._servers.values()]
    pids = list(servers)
    for pid in pids:
        # The list grows while it is read: children of children are found too.
        pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())

    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in (*pids, "self"))
    files = set()
    for pid in pids[len(servers) :]:
        files |= {path.name for path in Path(f"/proc/{pid}/cwd").iterdir()}
    return len(pids) + descriptors + len(files), sum(proportional_mb(pid) for pid in pids)


def proportional_mb(pid: int) -> float:
    """Memory of a process, to which a page shared by n processes adds 1/n of its size."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
