"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .answer import Verdict
from .drift import Reference, Window, pictures_told
from .scheduler import Scheduler

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LOG_ODDS = (-20, -10, -5, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 5, 10, 20)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, scheduler: Scheduler, watched: Sequence[Reference] = ()) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("safetykit_requests", "Requests by HTTP status.", ["status"], registry=registry)
        self.answers = Counter("safetykit_answers", "Answers by finish_reason.", ["finish_reason"], registry=registry)
        self.tokens = Counter("safetykit_tokens", "Tokens read and written.", ["kind"], registry=registry)
        self.refusals = Counter("safetykit_refusals", "Requests that the detector refused.", registry=registry)
        self.shadow = Counter(
            "safetykit_shadow_refusals", "Requests in shadow mode that it would have refused.", registry=registry
        )
        self.gates = Counter(
            "safetykit_gate_prompts", "Prompts by gate and decision.", ["gate", "open"], registry=registry
        )
        self.risk = Histogram("safetykit_risk_log_odds", "The detector's risk.", buckets=_LOG_ODDS, registry=registry)
        self.first_token = Histogram(
            "safetykit_first_token_seconds", "Until the prompt was read.", buckets=_SECONDS, registry=registry
        )
        self.latency = Histogram(
            "safetykit_request_seconds", "Until the answer was complete.", buckets=_SECONDS, registry=registry
        )
        of = ("what", "pictures")
        above = "Share of the last window of prompts above the value at which the calibration's lies furthest off."
        self.share = Gauge("safetykit_drift_share", above, of, registry=registry)
        self.expected = Gauge("safetykit_drift_expected", "Share of the calibration's records.", of, registry=registry)
        more = "Whether they are further apart than sampling explains."
        self.alarm = Gauge("safetykit_drift_alarm", more, of, registry=registry)
        self.alarms = Counter("safetykit_drift_alarms", "Windows in which they were.", of, registry=registry)
        for one in watched:
            self.alarm.labels(*_of(one)).set(0)
        waiting = Gauge("safetykit_queue_rows", "Rows that wait.", registry=registry)
        waiting.set_function(lambda: scheduler.waiting)
        running = Gauge("safetykit_batch_rows", "Rows that are answered now.", registry=registry)
        running.set_function(lambda: scheduler.running)

    def note(self, verdict: Verdict, prompt_tokens: int, seconds: float) -> None:
        """Count what a prompt led to, ``seconds`` after its request came."""
        self.first_token.observe(seconds)
        self.tokens.labels("prompt").inc(prompt_tokens)
        if verdict.risk is not None:
            self.risk.observe(verdict.risk)
        self.refusals.inc(verdict.refused)
        self.shadow.inc(bool(verdict.would_refuse))
        for name, value in verdict.gates.items():
            self.gates.labels(name, "yes" if value > 0 else "no").inc()

    def compared(self, window: Window) -> None:
        """Show how far a window of prompts lies from the calibration."""
        labels = _of(window.reference)
        self.share.labels(*labels).set(window.share)
        self.expected.labels(*labels).set(window.expected)
        self.alarm.labels(*labels).set(window.alarm)
        self.alarms.labels(*labels).inc(window.alarm)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)


def _of(reference: Reference) -> tuple[str, str]:
    return reference.what, pictures_told(reference.pictured)
