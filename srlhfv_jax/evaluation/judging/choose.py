"""The judge that reads answers, as the settings choose it."""

from pathlib import Path

from srlhfv_jax.config import EvaluateConfig
from srlhfv_jax.evaluation.judging.client import Client
from srlhfv_jax.evaluation.judging.endpoint import EndpointJudge, api_key
from srlhfv_jax.evaluation.judging.recorded import recorded_judge
from srlhfv_jax.evaluation.judging.store import Store
from srlhfv_jax.evaluation.judging.verdict import Judge

VERDICTS = "verdicts.jsonl"


def reading_judge(settings: EvaluateConfig, workdir: Path) -> Judge | None:
    """Recorded judgements, or an endpoint, whose verdicts are kept in the workdir; None for judges that are rules or models."""
    if settings.judge == "recorded":
        return recorded_judge(Path(settings.recorded))
    if settings.judge == "endpoint":
        client = Client(settings.endpoint, api_key(settings.endpoint))
        return EndpointJudge(client, Store(workdir / VERDICTS), settings.endpoint.model)
    return None
