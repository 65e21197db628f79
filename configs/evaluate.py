"""Policies on published safety benchmarks: srlhfv evaluate --config=configs/evaluate.py:SUITE --workdir=W --config.root=FOLDER
    --config.policies=base=PATH,ours=PATH

    safety      harmful requests, and harmless ones that look like them: VLGuard, XSTest, MM-SafetyBench, FigStep, MSSBench
    paper       BeaverTails-V evaluation, judged in pairs against the first policy (the judge is an endpoint, as in the paper)
    awareness   MMSafeAware and SIUO's options: read by rules, no judge is needed
    siuo        SIUO with three answers to each question, put to the vote
    preference  PKU-SafeRLHF test, MMSafe-PO
    all         every benchmark, one answer each
    tiny        XSTest, eight cases, for tests

FOLDER holds one folder for each benchmark, unpacked as it is published: beavertails_v, pku_saferlhf, mm_safetybench, vlguard, siuo,
mmsafeaware, xstest, figstep, mssbench, mmsafe_po. A policy is a checkpoint, or a .jsonl file of recorded answers ({"benchmark",
"id", "answer"} on each line). Judges: "rules" (refusal phrases), "models" (--config.scorer, a workdir of `srlhfv scores`),
"recorded" (--config.recorded), "endpoint" (--config.endpoint.url, --config.endpoint.model; the key is read from the variable
that --config.endpoint.key_variable names). The same command goes on where it was interrupted. Not run on the published files.
"""

from ml_collections import ConfigDict
from srlhfv_jax.configs import sections

SUITES = {
    "default": ("vlguard", "xstest", "mm_safetybench", "figstep", "mssbench"),
    "safety": ("vlguard", "xstest", "mm_safetybench", "figstep", "mssbench"),
    "paper": ("beavertails_v",),
    "awareness": ("mmsafeaware", "siuo_mcq"),
    "siuo": ("siuo",),
    "preference": ("pku_saferlhf", "mmsafe_po"),
    "all": (
        "beavertails_v",
        "pku_saferlhf",
        "mm_safetybench",
        "vlguard",
        "siuo",
        "siuo_mcq",
        "mmsafeaware",
        "xstest",
        "figstep",
        "mssbench",
        "mmsafe_po",
    ),
    "tiny": ("xstest",),
}
JUDGES = {"default": "rules", "safety": "rules", "awareness": "rules", "tiny": "rules"}  # the others need one that reads


def get_config(arg: str = "default") -> ConfigDict:
    sections.choose(arg, *SUITES)
    tiny = arg == "tiny"
    return ConfigDict(
        dict(
            seed=0,
            root="",  # --config.root=...
            benchmarks=SUITES[arg],
            limit=8 if tiny else 0,
            policies="",  # --config.policies=base=PATH,ours=PATH; the first is the baseline
            samples=3 if arg == "siuo" else 1,
            temperature=1.0 if arg == "siuo" else 0.0,
            reasoning=False,
            judge=JUDGES.get(arg, "endpoint"),
            pairwise=arg == "paper",
            scorer="",
            recorded="",
            endpoint=dict(
                url="",
                model="gpt-4o",
                key_variable="OPENAI_API_KEY",
                temperature=0.0,
                max_tokens=1024,
                workers=8,
                requests_per_minute=0.0,
                timeout_s=120.0,
                attempts=5,
                backoff_s=2.0,
            ),
            model=sections.model(tiny),
            mesh=sections.mesh(),
            data=sections.data(batch=8 if tiny else 32, prompt=0, response=8 if tiny else 512),
        )
    )
