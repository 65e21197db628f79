"""`srlhfv export --push`: private by default, one line where the hub is not there or says no. The hub is a stand-in."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import jax
import pytest
import tiny_hf
import transformers
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from srlhfv_jax.cli import export
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import export_pretrained, load_pretrained
from srlhfv_jax.models import score_heads

ADDRESS = "https://huggingface.co/me/mine"


def refused(kind, status: int):
    """An error of the hub's client, with the response that it needs."""
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error", response=response)


class Hub:
    """Stands in for HfApi: remembers what was asked of it. `refuses` maps a call to what it raises."""

    def __init__(self, *, private: bool | None = None, **refuses: Exception):
        self.private, self.refuses, self.calls, self.files = private, refuses, [], []

    def __call__(self) -> "Hub":
        return self

    def _asked(self, name: str, *given) -> None:
        self.calls.append((name, *given))
        if name in self.refuses:
            raise self.refuses[name]

    def whoami(self) -> dict:
        self._asked("whoami")
        return {"name": "me"}

    def repo_info(self, repository: str) -> SimpleNamespace:
        self._asked("repo_info", repository)
        if self.private is None:
            raise refused(RepositoryNotFoundError, 404)
        return SimpleNamespace(private=self.private)

    def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> str:
        self._asked("create_repo", repository, private, exist_ok)
        return ADDRESS

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self._asked("upload_folder", repo_id)
        load_pretrained(folder_path)  # a whole checkpoint
        self.files = sorted(path.name for path in Path(folder_path).iterdir())


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    tiny_hf.save(folder / "base", tiny_hf.llama_config())
    base = load_pretrained(folder / "base")
    heads = score_heads.init(base.config, ("cost", "reward"), jax.random.key(0))
    card = "---\nlibrary_name: peft\n---\n\n# a scorer\n"
    return export_pretrained(folder / "export", base.config, base.params, base=folder / "base", heads=heads, card=card)


def run(monkeypatch, hub: Hub, scorer, *more: str) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    export.main([f"--workdir={scorer}", *more])


@pytest.mark.parametrize("public", [False, True])
def test_a_push_creates_a_repository_with_the_whole_folder(scorer, monkeypatch, capsys, public):
    hub, before = Hub(), sorted(scorer.parent.iterdir())
    run(monkeypatch, hub, scorer, "--push=me/mine", *["--public"] * public)
    assert hub.calls[-2:] == [("create_repo", "me/mine", not public, True), ("upload_folder", "me/mine")]
    assert {"README.md", "config.json", "model.safetensors", "score_heads.safetensors", "tokenizer.json"} <= set(hub.files)
    assert capsys.readouterr().out == f"pushed to {ADDRESS}\n" and sorted(scorer.parent.iterdir()) == before


def test_a_push_of_what_is_kept_and_of_one_head(scorer, monkeypatch, tmp_path, capsys):
    run(monkeypatch, Hub(private=True), scorer, "--push=me/mine", f"--out={tmp_path / 'out'}", "--head=reward")
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}\npushed to {ADDRESS}\n"
    assert list(load_pretrained(tmp_path / "out").heads) == ["reward"]
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()  # an adapter would be merged
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "reward"}


@pytest.mark.parametrize(
    ("hub", "more", "message"),
    [
        (Hub(), ["--push=mine"], "--push=mine: expected ORG/NAME"),
        (Hub(), ["--push=me/my/model"], "expected ORG/NAME"),
        (Hub(), ["--push=me/my model"], "expected ORG/NAME"),
        (Hub(), ["--push=https://huggingface.co/me/mine"], "expected ORG/NAME"),
        (Hub(private=False), ["--push=me/mine"], "it exists, and is public: add --public"),
        (Hub(private=True), ["--push=me/mine", "--public"], "it exists, and is private: make it public on the hub"),
        (
            Hub(whoami=OfflineModeIsEnabled("offline mode is enabled")),
            ["--push=me/mine"],
            "was not reached .offline mode is enabled",
        ),
        (Hub(whoami=ConnectionError("no route")), ["--push=me/mine"], "was not reached .no route.: go online"),
        (Hub(whoami=HfHubHTTPError.__base__("timed out")), ["--push=me/mine"], "was not reached .timed out"),
        (
            Hub(whoami=LocalTokenNotFoundError("Token is required")),
            ["--push=me/mine"],
            "nobody is logged in .* run `hf auth login`",
        ),
        (Hub(whoami=refused(HfHubHTTPError, 401)), ["--push=me/mine"], "refused .401 Client Error.: log in"),
        (Hub(), ["--public"], "--public says who may read what --push uploads"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_before_anything_is_written(scorer, monkeypatch, tmp_path, hub, more, message):
    with pytest.raises(UserError, match=message) as error:
        run(monkeypatch, hub, scorer, f"--out={tmp_path / 'out'}", *more)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("call", ["create_repo", "upload_folder"])
def test_a_hub_that_refuses_late_leaves_the_folder(scorer, monkeypatch, tmp_path, call):
    with pytest.raises(UserError, match="refused .403 Client Error"):
        run(monkeypatch, Hub(**{call: refused(HfHubHTTPError, 403)}), scorer, "--push=me/mine", f"--out={tmp_path / 'out'}")
    assert load_pretrained(tmp_path / "out").heads


def test_a_head_that_is_not_there_is_named(scorer, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="has no harm head .it has cost, reward"):
        run(monkeypatch, Hub(), scorer, f"--out={tmp_path / 'out'}", "--head=harm")
