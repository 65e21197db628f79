"""Policies on published safety benchmarks: srlhfv benchmark --config=configs/benchmark.py:SUITE --workdir=W --config.root=FOLDER
    --config.policies=base=PATH,ours=PATH

FOLDER holds one folder for each benchmark, unpacked as it is published: beavertails_v, pku_saferlhf, mm_safetybench, vlguard, siuo,
mmsafeaware, xstest, figstep, mssbench, mmsafe_po. A policy is a checkpoint, or a .jsonl file of recorded answers ({"benchmark",
"id", "answer"} on each line). Judges: "rules" (refusal phrases), "models" (--config.scorer, a workdir of `srlhfv scores`),
"recorded" (--config.recorded), "endpoint" (--config.endpoint.url, --config.endpoint.model; the key is read from the variable
that --config.endpoint.key_variable names). The same command goes on where it was interrupted. Not run on the published files.
"""

from ml_collections import ConfigDict

from srlhfv_jax.configs import sections

BENCHMARKS = ("beavertails_v", "pku_saferlhf", "mm_safetybench", "vlguard", "siuo", "siuo_mcq", "mmsafeaware", "xstest")
BENCHMARKS += ("figstep", "mssbench", "mmsafe_po")


def default() -> ConfigDict:
    """Harmful requests, and harmless ones that look like them: VLGuard, XSTest, MM-SafetyBench, FigStep, MSSBench."""
    return ConfigDict(
        dict(
            seed=0,  # of the cases that are drawn and of sampled answers
            root="",  # --config.root=...
            benchmarks=("vlguard", "xstest", "mm_safetybench", "figstep", "mssbench"),
            limit=0,  # cases of each benchmark; 0 = all
            policies="",  # --config.policies=base=PATH,ours=PATH; the first is the baseline
            samples=1,  # answers to each case
            temperature=0.0,  # of the answers; 0 = greedy
            reasoning=False,  # True: judge what follows </think>
            judge="rules",  # refusal phrases
            pairwise=False,  # True: compare each policy with the baseline, in both orders
            scorer="",  # of judge "models"
            recorded="",  # of judge "recorded"
            endpoint=dict(
                url="",  # of judge "endpoint"
                model="gpt-4o",
                key_variable="OPENAI_API_KEY",  # environment variable
                temperature=0.0,
                max_tokens=1024,  # of a reply
                workers=8,  # calls under way at once
                requests_per_minute=0.0,  # 0 = no limit
                timeout_s=120.0,  # seconds
                attempts=5,  # calls for one judgement, the first included
                backoff_s=2.0,  # seconds before the second attempt
            ),
            model=sections.model(),
            mesh=sections.mesh(),
            data=sections.data(batch=32, prompt=0, response=512),  # prompt 0 = as long as the longest
        )
    )


def paper() -> ConfigDict:
    """BeaverTails-V evaluation, judged in pairs against the first policy (the judge is an endpoint, as in the paper)."""
    config = default()
    config.update(
        benchmarks=("beavertails_v",),
        judge="endpoint",  # one that reads
        pairwise=True,
    )
    return config


def awareness() -> ConfigDict:
    """MMSafeAware and SIUO's options: read by rules, no judge is needed."""
    config = default()
    config.benchmarks = ("mmsafeaware", "siuo_mcq")
    return config


def siuo() -> ConfigDict:
    """SIUO with three answers to each question, put to the vote."""
    config = default()
    config.update(
        benchmarks=("siuo",),
        judge="endpoint",  # one that reads
        samples=3,  # answers to each case
        temperature=1.0,
    )
    return config


def preference() -> ConfigDict:
    """PKU-SafeRLHF test, MMSafe-PO."""
    config = default()
    config.update(
        benchmarks=("pku_saferlhf", "mmsafe_po"),
        judge="endpoint",  # one that reads
    )
    return config


def every() -> ConfigDict:
    """Every benchmark, one answer each."""
    config = default()
    config.update(
        benchmarks=BENCHMARKS,
        judge="endpoint",  # one that reads
    )
    return config


def tiny() -> ConfigDict:
    """XSTest, eight cases, for tests."""
    config = default()
    config.update(
        benchmarks=("xstest",),
        limit=8,  # cases
        model=sections.small_model(),
        data=dict(
            batch_size=8,
            response_length=8,  # tokens
        ),
    )
    return config


PRESETS = {"default": default, "safety": default, "paper": paper, "awareness": awareness, "siuo": siuo}
PRESETS |= {"preference": preference, "all": every, "tiny": tiny}


def get_config(preset: str = "default") -> ConfigDict:
    return sections.choose(preset, PRESETS)
