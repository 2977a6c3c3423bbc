"""What people read of an evaluation."""

from collections.abc import Mapping

from llip.evaluation.metrics import Metric


def table(metrics: Mapping[str, Metric]) -> str:
    """Metrics beside their chance levels as text, by set."""
    width = max(map(len, metrics), default=0)
    lines = [f"{'metric':<{width}}   value  chance"]
    previous = ""
    for name, metric in metrics.items():
        data = name.split("/")[0]
        lines += [""] if data != previous else []
        lines.append(f"{name:<{width}}  {metric.value:6.3f}  {metric.chance:6.3f}")
        previous = data
    return "\n".join(lines)
