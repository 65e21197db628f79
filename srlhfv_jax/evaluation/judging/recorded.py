"""Recorded judgements as a judge: of people, or the verdicts.jsonl of an earlier run.

One JSON object per line:
    {"name": "vlguard/Ads_1/unsafes", "answers": ["Sure ..."], "opinions": [{"helpful": 2, "cost": 1.5, "refusal": false}]}
and for a pair two answers, two opinions ({} if there are none), and "more_helpful" and "safer": 0, 1 or null. Both orders of a pair
are looked up; a pair recorded in one order only is not judged.
"""

from pathlib import Path

from srlhfv_jax.errors import UserError, shown
from srlhfv_jax.evaluation.judging.store import read_verdicts
from srlhfv_jax.evaluation.judging.verdict import Judge, JudgeRequest, JudgeVerdict


def recorded_judge(path: Path) -> Judge:
    """The judge that says what the file says; of a thing recorded twice, what it says last.

    Raises:
        UserError: no such file, or a line that is no judgement.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: config.recorded must name a .jsonl file of judgements")
    judgements: dict[tuple[str, tuple[str, ...]], JudgeVerdict] = {}
    for row, verdict in read_verdicts(path):
        name, answers = row.get("name"), row.get("answers")
        texts = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
        if not isinstance(name, str) or not texts or len(answers) != len(verdict.opinions):
            raise UserError(f"{path}: a judgement needs a name and one answer per opinion, got {shown(row)}")
        judgements[name, tuple(answers)] = verdict

    def judge(request: JudgeRequest) -> JudgeVerdict | None:
        return judgements.get((request.name, request.answers))

    return judge
