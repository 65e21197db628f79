"""The model card of an export: where the weights come from, what they were trained on and with, what came out, what they are for."""

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from srlhfv_jax.hf import hub
from srlhfv_jax.hf.revision import Revision

SIGNS = "cost > 0 means unsafe; a higher reward is more helpful."
USE = "research on alignment; evaluate it yourself before anybody depends on it"
NONCOMMERCIAL = ("saferlhf-v/BeaverTails-V", "PKU-Alignment/PKU-SafeRLHF", "PKU-Alignment/BeaverTails")  # CC-BY-NC-4.0
NOT_MEASURED = re.compile(r"step|rows|seconds|seed|dropped.*")
KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}  # of data in files, as the hub calls them
CERTIFICATE = "## Certificate"
ASSUMPTIONS = (
    "It holds for answers drawn in the same way to prompts drawn like these, and for what the judge, or the labels, call unsafe; it says "
    "nothing of other prompts, and not of several certificates of which the best is shown."
)
LICENCES = (
    "BeaverTails-V and PKU-SafeRLHF are CC-BY-NC-4.0, and so is what was trained on them; the base model's licence holds too."
)


class Product(NamedTuple):
    """The weights that a stage makes, for their card."""

    stage: str
    meaning: str  # of the weights: what they are, what they were not made for
    answers: bool = False  # they are a policy's


def card(
    *,
    base: str,
    product: Product,
    settings: dict[str, Any],
    result: dict[str, float],
    trace: list[tuple[int, float]],
    sees: bool = False,
    adapter: bool = False,
) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        base: what the weights started from; of a model of the hub with its revision.
        settings: of the stage, as in WORKDIR/config.json.
        result: its final numbers.
        trace: (iteration, multiplier) pairs; [] where there is none.
        sees: the model takes pictures.
        adapter: the weights are those of an adapter alone.
    """
    numbers = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(result.items()))
    parts = [
        f"---\n{_front(base, product, settings['data']['path'], result, sees, adapter)}\n---",
        f"# {product.stage} of {base}",
        product.meaning,
        f"Made with srlhfv_jax, an implementation of Safe RLHF-V (arXiv 2503.17682).\n\n"
        f"- base model: {base}\n- data: {settings['data']['path']}\n- licence: {LICENCES}\n"
        f"- intended use: {USE}",
        f"## Numbers at the end\n\n| | |\n|---|---|\n{numbers}",
    ]
    if trace:
        steps = "\n".join(f"| {step} | {value:.4f} |" for step, value in trace)
        parts.append(f"## The multiplier\n\n| iteration | lambda |\n|---|---|\n{steps}")
    parts.append(f"## Settings\n\n```json\n{json.dumps(settings, indent=1, sort_keys=True)}\n```")
    return "\n\n".join(parts) + "\n"


def merged(start: str, end: str, *, q: str, origin: str, sees: bool) -> str:
    """The card of a policy between two.

    Args:
        start, end: the two, as `hub.pinned` names them.
        q: share of the second.
        origin: what the first one started from; "" where its card does not say.
        sees: the model takes pictures.
    """
    about = (
        f"A policy between two: (1 - q) A + q B with q = {q}, number by number (P-SACPO, arXiv 2404.11049). Nothing was trained or "
        "measured after that."
    )
    return _put_together("merge", {"A": start, "B": end}, about, origin, sees)


def patched(
    base: str, safety: str, utility: str, *, origin: str, settings: dict[str, Any], result: dict[str, Any], sees: bool
) -> str:
    """The card of a policy with two patches.

    Args:
        base, safety, utility: the three, as `hub.pinned` names them.
        origin: what the base started from; "" where its card does not say.
        settings: of the command.
        result: its numbers.
        sees: the model takes pictures.
    """
    about = (
        "A policy with two patches of it, one away from harmful answers and one towards them, each without what both have "
        "(SafePatching, arXiv 2405.13820). Nothing was measured after that."
    )
    text = _put_together("patch", {"A": base, "safety": safety, "utility": utility}, about, origin, sees)
    numbers = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(result.items()))
    return f"{text}\n## Numbers\n\n| | |\n|---|---|\n{numbers}\n\n## Settings\n\n```json\n{json.dumps(settings, indent=1, sort_keys=True)}\n```\n"


def _put_together(name: str, models: dict[str, str], about: str, origin: str, sees: bool) -> str:
    """The card of weights that others were put together to; the first of them is A."""
    ours = [hub.name(model) for model in models.values() if hub.is_model_id(model)]
    facts = ModelCardData(
        base_model=ours or None,
        base_model_relation="merge" if ours else None,
        library_name="transformers",
        license="other",
        license_name="of-base-model-and-data",
        license_link="README.md",
        model_name=name,
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=["srlhfv-jax", "safe-rlhf", name],
    )
    *first, last = models.values()
    parts = [
        f"---\n{facts.to_yaml()}\n---",
        f"# {name} of {', '.join(first)} and {last}",
        about,
        "Made with srlhfv_jax, an implementation of Safe RLHF-V (arXiv 2503.17682).\n\n"
        + "".join(f"- {role}: {model}\n" for role, model in models.items())
        + (f"- base model of A: {origin}\n" if origin else "")
        + f"- data: see the cards of {'both' if len(models) == 2 else 'all'}\n- licence: {LICENCES}\n- intended use: {USE}",
    ]
    return "\n\n".join(parts) + "\n"


def revised(policy: str, revision: Revision, data: str, *, sees: bool) -> str:
    """The card of a policy with a revision.

    Args:
        policy: that it was fitted on, as `hub.pinned` names it.
        data: the pairs.
        sees: the model takes pictures.
    """
    facts = ModelCardData(
        base_model=hub.name(policy) if hub.is_model_id(policy) else None,
        library_name="transformers",
        license="other",
        license_name="of-base-model-and-data",
        license_link="README.md",
        model_name="revision",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=["srlhfv-jax", "safe-rlhf", "revision"],
    )
    count, what = len(revision.units), "heads" if revision.site == "heads" else "layers"
    parts = [
        f"---\n{facts.to_yaml()}\n---",
        f"# revision of {policy}",
        f"The weights are those of {policy}. Beside them lies a revision (Internal Activation Revision, arXiv 2501.16378): a constant vector "
        f"that is added to activations of {count} {what}, from the last token of the prompt on, with strength {revision.strength:g}. Nothing "
        "was trained or measured after that.",
        "`transformers` alone loads the weights without it. With it, by the script in this folder:\n\n```python\nfrom revision import load\n\n"
        'model = load("folder")\nmodel.generate(**inputs)\n```',
        f"Made with srlhfv_jax, an implementation of Safe RLHF-V (arXiv 2503.17682).\n\n- base model: {policy}\n- data: {data}\n"
        f"- licence: {LICENCES}\n- intended use: {USE}",
    ]
    return "\n\n".join(parts) + "\n"


def base_named_in(text: str) -> str:
    """The base model that a card of ours names, in that of a merge the one of A; "" where none is named."""
    line = re.search(r"^- base model(?: of A)?: (.+)$", text, re.MULTILINE)
    return line[1] if line else ""


def with_certificate(text: str, certificate: dict[str, Any]) -> str:
    """A card with the section that `srlhfv certify` writes, in the place of an earlier one.

    Args:
        certificate: as in certificate.json.
    """
    numbers = {name: value for name, value in sorted(certificate.items()) if type(value) in (int, float)}
    about = {name: certificate[name] for name in ("data", "judge", "labels", "kind") if certificate[name]}
    table = "\n".join(f"| {name} | {f'{value:.6g}' if name in numbers else value} |" for name, value in (about | numbers).items())
    section = f"{CERTIFICATE}\n\n{certificate['sentence']}.\n\n{ASSUMPTIONS}\n\n| | |\n|---|---|\n{table}\n"
    before, mark, after = text.partition(f"\n{CERTIFICATE}\n")
    rest = after[after.index("\n## ") :] if mark and "\n## " in after else ""
    return f"{before.rstrip()}\n\n{section}{rest}"


def _front(base: str, product: Product, data: str, result: dict[str, float], sees: bool, adapter: bool) -> str:
    """The facts that the hub reads: it knows nothing of folders here, and of licences only those of known data."""
    datasets = [hub.name(source) for source in _sources(data) if hub.is_model_id(source)]
    tag = ("image-text-to-text" if sees else "text-generation") if product.answers else "text-classification"
    noncommercial = bool(datasets) and all(name in NONCOMMERCIAL for name in datasets)
    other = {} if noncommercial else {"license_name": "of-base-model-and-data", "license_link": "README.md"}
    facts = ModelCardData(
        base_model=hub.name(base) if hub.is_model_id(base) else None,
        datasets=datasets or None,
        eval_results=_measured(data, datasets, result, tag),
        library_name="peft" if adapter else "transformers",
        license="cc-by-nc-4.0" if noncommercial else "other",
        model_name=product.stage,
        pipeline_tag=tag,
        tags=["srlhfv-jax", "safe-rlhf", product.stage],
        **other,
    )
    return facts.to_yaml()


def _sources(data: Any) -> list[str]:
    """The data sets of `config.data.path`, without the weights that may follow them."""
    sources = data.split(",") if isinstance(data, str) else [str(source) for source in data]
    return [re.sub(r":[0-9.]+$", "", source.strip()) for source in sources if source.strip()]


def _measured(data: Any, datasets: list[str], result: dict[str, float], task: str) -> list[EvalResult] | None:
    """The final numbers as the hub lists them; what only counts rows or steps is left to the table."""
    name = ", ".join(_sources(data)) or "none"
    kind = datasets[0] if datasets else KINDS.get(Path(name).suffix, "folder")
    numbers = {key: value for key, value in sorted(result.items()) if not NOT_MEASURED.fullmatch(key)}
    return [
        EvalResult(task_type=task, dataset_type=kind, dataset_name=name, metric_type=key, metric_value=value)
        for key, value in numbers.items()
        if type(value) in (int, float) and math.isfinite(value)
    ] or None
