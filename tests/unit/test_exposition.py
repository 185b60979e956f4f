"""Pages of several processes become one that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from spotinference.core.exposition import merged


def page(requests: int, parked: int) -> str:
    registry = CollectorRegistry()
    counter = Counter("requests", "Requests.", ["tier", "code"], registry=registry)
    counter.labels('a"}b', "ok").inc(requests)
    Gauge("parked", "Parked.", registry=registry).set(parked)
    Histogram("seconds", "Time.", buckets=(1, 2), registry=registry).observe(1.5)
    return generate_latest(registry).decode()


def test_each_sample_keeps_its_labels_and_gets_its_process() -> None:
    text = merged({"0": page(3, 1), "1": page(4, 2)})
    samples = {
        (sample.name, sample.labels.get("worker"), sample.labels.get("le")): sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["requests_total", "0", None].value == 3
    assert samples["requests_total", "1", None].value == 4
    assert samples["requests_total", "1", None].labels["tier"] == 'a"}b'
    assert samples["parked", "1", None].value == 2
    assert samples["seconds_bucket", "0", "2.0"].value == 1
    assert {worker for _, worker, _ in samples} == {"0", "1"}


def test_a_family_is_described_once() -> None:
    text = merged({"0": page(1, 1), "1": page(1, 1), "2": ""})
    assert text.count("# TYPE requests_total counter") == 1
    assert text.count("# HELP parked Parked.") == 1


def test_samples_of_a_family_stand_together() -> None:
    lines = merged({"0": page(1, 1), "1": page(1, 1)}).splitlines()
    names = [line.split(" ")[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    at = lines.index("# TYPE parked gauge")
    assert lines[at + 1 : at + 3] == ['parked{worker="0"} 1.0', 'parked{worker="1"} 1.0']
