"""Operations as OpenTelemetry spans."""

from __future__ import annotations

from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, get_tracer

from skyward_etcd.observe.subject import Subject, subject
from skyward_etcd.ops.effects import Operation
from skyward_etcd.session.observing import Seen

__all__ = ["Traces"]


class Traces:
    """Makes a span of each operation."""

    def __init__(self, tracer_provider: TracerProvider | None) -> None:
        self._tracer = get_tracer("skyward_etcd", tracer_provider=tracer_provider)

    def begin(self, operation: Operation[Any]) -> tuple[Span, Subject]:
        """Begin its span, under the caller's current one."""
        about, _ = subject(operation)
        attributes = {
            "db.system.name": "etcd",
            "skyward_etcd.kind": about.kind,
            "skyward_etcd.name": about.name,
            "skyward_etcd.operation": about.operation,
        }
        name = f"{about.kind}.{about.operation}"
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes), about

    def repeated(self, begun: tuple[Span, Subject], error: BaseException) -> None:
        """Say so in the span."""
        begun[0].add_event("repeated", {"error": str(error)})

    def end(self, begun: tuple[Span, Subject], seen: Seen) -> None:
        """End its span."""
        span, about = begun
        span.set_attribute("skyward_etcd.attempts", seen.attempts)
        if about.waits:
            span.set_attribute("skyward_etcd.waited_s", about.waited_s(seen))
        if seen.error is not None:
            span.record_exception(seen.error)
            span.set_attribute("error.type", type(seen.error).__name__)
            span.set_status(Status(StatusCode.ERROR, str(seen.error)))
        span.end()

    def session_lost(self) -> None:
        """Nothing: it belongs to no operation."""

    def watch_broken(self) -> None:
        """Nothing: it belongs to no operation."""

    def cluster_changed(self) -> None:
        """Nothing: it belongs to no operation."""
