"""Tokenizer and image processor of a checkpoint, by `transformers`; whatever is wrong with their files is one line.

They are tried here on a word, and compared with the model: the same placeholder, the same patches, and a row of the embedding for
every token but the padding, which is never read.
"""

from pathlib import Path
from typing import Any

from srlhfv_jax.data import pictures
from srlhfv_jax.data.families import FAMILIES, Bundle, Reader
from srlhfv_jax.errors import UserError, reason, shown
from srlhfv_jax.files import read_json, take
from srlhfv_jax.models.config import VLMConfig


def load_processor(config: VLMConfig, folder: Path) -> Any:
    """The tokenizer, with the image processor (Pillow, no torch) if the model has eyes.

    Raises:
        UserError: files that `transformers` cannot read, or that are not of this model.
    """
    try:
        processor = _loaded(config, folder)
        tokenizer = processor if config.vision is None else processor.tokenizer
        len(tokenizer("a")["input_ids"])
        reader = None if config.vision is None else pictures.reader(processor)
        image_token = None if reader is None else tokenizer.convert_tokens_to_ids(processor.image_token)
        tokenizer.unk_token_id, tokenizer.convert_ids_to_tokens(0)  # an unknown token that is unknown itself has no end
    except UserError:
        raise
    except BaseException as error:  # whatever damaged files do, the panics of the Rust below included
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise UserError(f"{folder} has no usable tokenizer or processor files: {reason(error)}") from None
    _agree(config, folder, reader, image_token)
    _have_rows(config, folder, tokenizer)
    return processor


def _loaded(config: VLMConfig, folder: Path) -> Any:
    import transformers  # here: seconds of import that only reading a checkpoint should cost

    here = dict(local_files_only=True, trust_remote_code=False)
    if config.vision is not None and FAMILIES[config.family].processor:
        return transformers.AutoProcessor.from_pretrained(str(folder), **here, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **here)
    if config.vision is None:
        return tokenizer
    images = transformers.AutoImageProcessor.from_pretrained(str(folder), **here, backend="pil")
    template = folder / "chat_template.json"
    if not tokenizer.chat_template and template.is_file():  # older checkpoints keep it in a file beside them
        tokenizer.chat_template = take(read_json(template), "chat_template", str, str(template))
    if config.image_token >= len(tokenizer):
        raise UserError(f"{folder}: config.json has the image token {config.image_token}, the tokenizer {len(tokenizer)} tokens")
    token, vision = tokenizer.convert_ids_to_tokens(config.image_token), config.vision
    return Bundle(tokenizer, images, token, config.family, vision.patch, vision.merge)


def _agree(config: VLMConfig, folder: Path, reader: Reader | None, image_token: Any) -> None:
    """The processor makes what the model reads. The features of a tile are compared where rows are read (`runs.inputs.check_pictures`)."""
    if reader is None:
        return
    vision = config.vision
    pairs = [("image token", image_token, config.image_token), ("numbers in a patch", reader.values, vision.patch_values)]
    pairs += [("patches that become a feature", reader.merge**2, vision.merge**2)]
    for what, made, read in pairs:
        if made != read:
            raise UserError(
                f"{folder}: {what}: {shown(made)} by the processor's files, {shown(read)} by config.json: take both from one"
            )


def _have_rows(config: VLMConfig, folder: Path, tokenizer: Any) -> None:
    """`transformers` fails at the first token without a row; here it would be read as the last row of the table."""
    beyond = {word: index for word, index in tokenizer.get_vocab().items() if index >= config.text.vocab}
    without = sorted(word for word, index in beyond.items() if index != tokenizer.pad_token_id)
    if without:
        raise UserError(
            f"{folder}: the tokenizer has {len(without)} tokens beyond the {config.text.vocab} rows of the embedding, such as "
            f"{shown(without[0])}: resize the embedding (transformers: resize_token_embeddings) and train it, or take the tokenizer it had"
        )
