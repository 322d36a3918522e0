"""Every option of the benchmarks in a call that works, with what shows that it acted.

Small measurements run as they are. Of long ones the measuring function is replaced by one that notes what reached it,
so that the options, the order of the work and what is written are real. Words in braces are made by the test.
"""

from __future__ import annotations

from bench_fuzz_cases import FUZZ
from bench_method_cases import ELSEWHERE, METHODS
from bench_real_cases import REAL
from bench_seven_cases import DEPLOYED
from bench_size_cases import SIZES
from bench_speed_cases import LATENCY
from bench_trust_cases import TRUST

BENCHES = [*LATENCY, *SIZES, *TRUST, *METHODS, *ELSEWHERE, *FUZZ, *REAL, *DEPLOYED]
