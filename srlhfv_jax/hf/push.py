"""An export to the Hugging Face hub: private unless its user says otherwise."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from srlhfv_jax.errors import UserError, reason


def check(repository: str, *, public: bool) -> None:
    """Ask the hub, before anything is written, whether this user may write to a repository, and who may read it.

    Raises:
        UserError: no name of a repository, no connection, no right to write, or a repository whose readers are not those asked for.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository_is_named = False
    else:
        repository_is_named = repository.count("/") == 1
    if not repository_is_named:
        raise UserError(f"--push={repository}: expected ORG/NAME, the name of a repository on the Hugging Face hub")
    with _answers(repository):
        api = huggingface_hub.HfApi()
        api.whoami()
        try:
            private = bool(api.repo_info(repository).private)
        except RepositoryNotFoundError:
            return
    if private == public:
        readers = (
            "is private: make it public on the hub, or leave --public out"
            if private
            else "is public: add --public to write to it"
        )
        raise UserError(f"--push={repository}: it exists, and {readers}")


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Upload a folder, which creates the repository if there is none; returns its address.

    Raises:
        UserError: the hub refused, or was not reached.
    """
    import huggingface_hub

    with _answers(repository):
        api = huggingface_hub.HfApi()
        address = str(api.create_repo(repository, private=not public, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of srlhfv_jax")
    return address


@contextmanager
def _answers(repository: str) -> Iterator[None]:
    """Whatever the hub or the way to it says, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    http_error = (
        HfHubHTTPError.__base__
    )  # of the library that this version of the hub speaks through; its time-outs are no OSErrors
    try:
        yield
    except (http_error, OSError) as error:
        if isinstance(error, HfHubHTTPError):
            raise UserError(
                f"--push={repository}: the Hugging Face hub refused ({reason(error)}): log in with `hf auth login` as somebody who may "
                "write there"
            ) from None
        if isinstance(error, LocalTokenNotFoundError):
            raise UserError(f"--push={repository}: nobody is logged in to the Hugging Face hub: run `hf auth login`") from None
        raise UserError(
            f"--push={repository}: the Hugging Face hub was not reached ({reason(error)}): go online, and push the folder again"
        ) from None
