"""An adapter's own tokenizer, template and processor, over the files of the checkpoint that it lies over: one folder of links."""

import re
import tempfile
from pathlib import Path

from srlhfv_jax.files import read_json
from srlhfv_jax.hf.adapter_config import CONFIG

DESCRIBING = (".json", ".jinja", ".txt", ".model")
TEMPLATE = re.compile(r"chat_template\.(json|jinja)")
TOKENIZER = re.compile(
    r"(tokenizer(_config)?|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|vocab\.txt|tokenizer\.model"
)
PICTURES = re.compile(r"(pre)?processor_config\.json")
FOLDERS: dict[tuple[Path, Path], tempfile.TemporaryDirectory] = {}  # each is there as long as this process


def over(adapter: Path, under: Path) -> Path:
    """A folder that describes a checkpoint as `under` does, with the adapter's own files where it has some; `under`, where not.

    A tokenizer is replaced whole, a template where the adapter has one.
    """
    paths = [
        path for path in sorted(adapter.iterdir()) if any(kind.fullmatch(path.name) for kind in (TEMPLATE, TOKENIZER, PICTURES))
    ]
    if not paths:
        return under
    if (adapter, under) not in FOLDERS:
        FOLDERS[adapter, under] = folder = tempfile.TemporaryDirectory(prefix="adapter-over-checkpoint-")
        replaced = [PICTURES] if any(map(PICTURES.fullmatch, _names(paths))) else []
        replaced += [TOKENIZER] if any(map(TOKENIZER.fullmatch, _names(paths))) else []
        replaced += [TEMPLATE] if _has_template(adapter, paths) else []
        others = [
            path
            for path in sorted(under.iterdir())
            if path.suffix in DESCRIBING and not any(kind.fullmatch(path.name) for kind in replaced)
        ]
        for path in (*others, *paths, adapter / CONFIG):
            link = Path(folder.name) / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path.absolute())
        settings = under / "tokenizer_config.json"
        if TOKENIZER in replaced and TEMPLATE not in replaced and settings.is_file():
            template = read_json(settings).get("chat_template")
            if isinstance(template, str) and not any(map(TEMPLATE.fullmatch, _names(others))):
                (Path(folder.name) / "chat_template.jinja").write_text(template)
    return Path(FOLDERS[adapter, under].name)


def _names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def _has_template(adapter: Path, own: list[Path]) -> bool:
    settings = adapter / "tokenizer_config.json"
    return any(map(TEMPLATE.fullmatch, _names(own))) or settings in own and bool(read_json(settings).get("chat_template"))
