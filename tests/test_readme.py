"""README and docs: every command parses with the program's own flags, every link and every named file exists, pages build."""

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from srlhfv_jax import batches
from srlhfv_jax.checkpoint import lock
from srlhfv_jax.cli import flags, main
from srlhfv_jax.data import sources
from srlhfv_jax.data.tfds import look_before_you_answer
from srlhfv_jax.guard.service import server
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.parallel import host_cpu, hosts
from srlhfv_jax.parsing import flattened
from srlhfv_jax.plan import topology
from srlhfv_jax.runs import checkpoints

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
SIDES = [ROOT / folder / "README.md" for folder in ("colab", "launch")]
FILES = [ROOT / "README.md", *PAGES, *sorted((ROOT / "docs" / "api").glob("*.md")), *SIDES]
IDS = [str(file.relative_to(ROOT)) for file in FILES]
PLACES = (ROOT, ROOT / "srlhfv_jax", ROOT / "benchmarks", ROOT / "docs", ROOT / "tests")  # where a named file may lie
IN_EXPORTS = ("score_heads.py", "revision.py")  # named, and written beside exported heads and revisions
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`(srlhfv [^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<![\w./$-])[\w./-]*\w\.(?:py|sh|txt|md)(?![\w-])")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
MISSING = re.compile("does not exist|no such file|neither a folder here|is not a folder")  # a path of the example


class Parsed(BaseException):
    """The command has read its flags and is about to work."""


def shell(text: str) -> Iterator[list[str]]:
    """The `srlhfv` commands of a piece of shell, also those behind `&&`, `do` and `--`."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split, words.commenters = True, "#"
        command: list[str] | None = None
        for word in [*words, ";"]:
            if set(word) <= set("();<>|&"):
                if command is not None:
                    yield command
                command = None
            elif command is not None:
                command.append(word)
            elif word == "srlhfv":
                command = []


def commands(file: Path) -> list[list[str]]:
    """Arguments of every command, in fenced blocks of shell and in code spans."""
    text = file.read_text()
    blocks = [body for language, body in FENCE.findall(text) if language == "bash"]
    spans = SPAN.findall(FENCE.sub("", text))
    return [argv for piece in [*blocks, *spans] for argv in shell(piece.replace("$seed", "0"))]


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """Commands run, in an empty folder, up to the first thing that they do besides reading what they were given."""

    def stop(*_, **__):
        raise Parsed

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(host_cpu, "prepare", lambda: None)
    monkeypatch.setattr(hosts, "check_batch", lambda *_: None)  # one row at a time is for one chip, and here are eight devices
    for module, name in (
        (lock, "held"),
        (sources, "open_rows"),
        (checkpoints, "check_checkpoint"),
        (look_before_you_answer, "standard"),
        (server, "listen"),
        (topology, "device"),
    ):
        monkeypatch.setattr(module, name, stop)


@pytest.fixture
def problem(stopped, capsys):
    """What the command line says of some arguments; "" if it takes them."""

    def told(argv: list[str]) -> str:
        if argv == ["--help"]:
            return ""
        if len(argv) <= 2 and not any(word.startswith("-") for word in argv):  # a command that is only named
            return "" if argv[0] in main.COMMANDS else f"there is no command {argv[0]}"
        try:
            code = main.main(argv)
        except (Parsed, SystemExit):  # --help ends the process
            return ""
        error = capsys.readouterr().err
        return "" if code == 2 and MISSING.search(error) else error or "it ran"

    return told


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_command_parses(file, problem):
    wrong = {shlex.join(argv): error for argv in commands(file) if (error := problem(argv))}
    assert not wrong


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("srlhfv sft --workdir=W --config.init=A --config.data.path=B", ""),
        ("srlhfv sft --workdir=W --config.init=A", "config.data.path is empty"),
        ("srlhfv sft --config.init=A --config.data.path=B", "--workdir is needed"),
        ("srlhfv sft --workdir=W --config.init=A --config.data.paht=B", "unknown config key"),
        ("srlhfv evaluate --policies=a=b --data=c", "--workdir is needed"),
        ("srlhfv generate --policy=a --prompt=b --gaurd=c", "no flag --gaurd"),
        ("srlhfv plan --config=configs/ppo_lag.py:llava", "this config knows the arguments"),
        ("srlhfv trian --workdir=W", "no command"),
    ],
)
def test_a_wrong_command_would_be_seen(line, expected, problem):
    (argv,) = shell(line)
    assert expected in problem(argv) and bool(expected) == bool(problem(argv))


def test_every_command_stands_in_the_table_of_commands():
    table = (ROOT / "docs" / "index.md").read_text().partition("## What you can run")[2]
    assert [name for name in main.COMMANDS if f"`srlhfv {name}" not in table] == []


def anchors(file: Path) -> set[str]:
    """What a link may name after #, as GitHub and MkDocs make it of a heading."""
    headings = HEADING.findall(FENCE.sub("", file.read_text()))
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_link_leads_somewhere(file):
    for target in LINK.findall(FENCE.sub("", file.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = file.parent / path if path else file
        assert there.exists(), f"{file.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{file.name}: {target}"


@pytest.mark.parametrize("file", [*FILES, ROOT / "benchmarks" / "README.md"], ids=[*IDS, "benchmarks/README.md"])
def test_every_named_file_exists(file):
    named = {name for name in NAMED.findall(re.sub(r"https?://\S+", "", file.read_text())) if name not in IN_EXPORTS}
    missing = [name for name in sorted(named) if not any((place / name).exists() for place in (*PLACES, file.parent))]
    assert not missing


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_every_named_setting_exists(file):
    """`config.section.key` in text; those of commands are read by `test_every_command_parses`."""
    stages = ("sft", "scores", "preference", "guard", "ppo_lag", "evaluate", "quickstart")
    known = {key for stage in stages for key in flattened(flags.load(f"{stage}.py"))}
    known |= {key.rpartition(".")[0] for key in known}  # a section
    named = re.findall(r"`(?:--)?config\.([a-z0-9_.]*[a-z0-9_])", FENCE.sub("", file.read_text()))
    assert set(named) <= known | {"json", "x"}  # config.json; config.x of a message


def test_the_map_of_symbols_names_what_exists():
    text = (ROOT / "docs" / "method.md").read_text().partition("## From the paper's symbols")[2].partition("\n## ")[0]
    places = {"lagrangian": lagrangian} | vars(batches)
    named = re.findall(r"`(\w+)\.(\w+)", text)
    assert {place for place, _ in named} >= {"lagrangian", "PromptBatch", "Rollout", "Experience", "Stream"}
    missing = [f"{place}.{name}" for place, name in named if place != "config" and not hasattr(places[place], name)]
    assert not missing


def test_the_readme_is_one_screen_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 120
    linked = {target.partition("#")[0] for target in LINK.findall(text)}
    assert {f"docs/{page.name}" for page in PAGES} - linked == {"docs/index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_opens_with_a_command(page):
    opening = page.read_text().partition("\n## ")[0]
    assert FENCE.search(opening) and not opening.partition("```")[0].count("|"), "say what a reader can do, then show a command"


def table(file: Path) -> list[list[str]]:
    """The first table between the markers of benchmarks/quickstart_tables.py, without its line of dashes."""
    rows = file.read_text().partition("<!-- quickstart tables: begin -->")[2].strip().partition("\n\n")[0].splitlines()
    return [re.split(r" *\| *", row)[1:-1] for row in rows if row.startswith("|") and not row.startswith("|---")]


def test_the_table_of_the_readme_is_the_first_seed_of_the_results():
    short, whole = table(ROOT / "README.md"), table(ROOT / "docs" / "results.md")
    columns = [whole[0].index(name) for name in short[0][1:]]
    first = {row[0]: [row[column].split(", ")[0] for column in columns] for row in whole[1:]}
    assert len(short) == 4
    for label, *values in short[1:]:
        assert first[label] == values


def test_the_page_from_zero_has_the_commands_of_the_script():
    page = [[word.replace("$", "") for word in argv] for argv in commands(ROOT / "docs" / "from_zero.md")]
    for chip in ("v6e-8", "v5e-1"):
        script = [ROOT / "launch" / "end_to_end.sh", "--model=M", "--pairs=D", "--workdir=W", f"--chip={chip}", "--dry-run"]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if not line.startswith("==")]
        assert len(lines) >= 10
        for argv in shell("\n".join(lines)):
            assert argv in page, shlex.join(argv)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install -e '.[docs]'")
def test_the_documentation_builds(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(build, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "The multiplier" in (tmp_path / "method" / "index.html").read_text()
    assert "window_mean" in (tmp_path / "api" / "losses" / "index.html").read_text()
