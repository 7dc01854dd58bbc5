"""Real time, for the few places that wait for a real broker or server; nothing of the simulated world reads it."""

import time

monotonic = time.monotonic
pause = time.sleep
