"""What the peers' programs share: when the process began, its peak memory, the report line."""

import json
import os
import time


def seconds_since_process_start():
    with open("/proc/self/stat", encoding="ascii") as file:
        started_ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    return uptime - started_ticks / os.sysconf("SC_CLK_TCK")


def peak_bytes():
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def report(**figures):
    """The last line of a peer's output."""
    print(json.dumps(figures), flush=True)


class Clock:
    """Wall seconds of each step."""

    def __init__(self):
        self.steps = []
        self._start = None

    def begin(self):
        self._start = time.perf_counter()

    def end(self):
        self.steps.append(time.perf_counter() - self._start)
