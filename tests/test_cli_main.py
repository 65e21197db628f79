"""The command line: every mistake of a user is one line and exit code 2; results and settings are written."""

import errno
import functools
import json
import signal
import subprocess
import sys
import tempfile

import pytest
from commands import ENVIRONMENT

from srlhfv_jax import quiet
from srlhfv_jax.cli import flags, main
from srlhfv_jax.config import EvaluateConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.parsing import parse
from srlhfv_jax.runs.run import command, record

GIVEN = ["--config=sft.py:tiny", "--config.init=model", "--config.data.path=rows.jsonl"]


def run(capsys, *argv: str) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    code = main.main(list(argv))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["stf"], "there is no command 'stf'; did you mean 'sft'?"),
        (["sft"], "--workdir is needed: folder of the run"),
        (["sft", "--workdr=w"], "srlhfv sft has no flag --workdr; did you mean 'workdir'?"),
        (["sft", "word"], "srlhfv sft takes flags only, got 'word'"),
        (["sft", "--workdir=w"], "config.init is empty: give a Hugging Face folder"),
        (["sft", "--workdir=w", "--config.init=m"], "config.data.path is empty: give rows with a question and a response"),
        (["ppo_lag", "--workdir=w", "--config.policy=p", "--config.data.path=d"], "give config.scorer"),
        (["sft", "--config.step=3"], "unknown config key config.step; did you mean 'steps'?"),
        (["sft", "--config.data.batchsize=3"], "unknown config key config.data.batchsize; did you mean 'batch_size'?"),
        (["sft", "--config.data=3"], "config.data is a section: set its values one by one (allow_dir, batch_size, "),
        (["sft", "--config.seed.x=3"], "config.seed is a single value (0), it has no key 'x'"),
        (["sft", "--config.steps=1.5"], "config.steps must be int, got '1.5'"),
        (["sft", "--config.steps"], "Missing value for flag --config.steps"),
        (["sft", "--config.init_random=maybe"], "config.init_random must be bool, got 'maybe'"),
        (
            ["sft", "--config=there/is/none.py"],
            "there is no config file there/is/none.py (the package brings benchmark.py, cost.py, ",
        ),
        (["sft", "--config"], "--config needs a value"),
        (["sft", "--config=sft.py:huge"], "this config knows the arguments default, paper, tiny, benign_refusal, "),
        (["export", "--workdir=x"], "--out is needed"),
        (["export", "--workdir=x", "--out=."], "--out=. exists"),
        (["export", "--workdir=no/such/folder", "--out=t"], "no/such/folder"),
        (["export", "--dtype=int8"], "value should be one of <float32|bfloat16>"),
        (["generate", "--prompt=a"], "--policy is needed"),
        (["generate", "--policy=p"], "needs either --prompt (and --image), or --data and --out"),
        (["generate", "--policy=p", "--prompt=a", "--data=d"], "needs either --prompt (and --image), or --data and --out"),
        (["generate", "--policy=p", "--data=d"], "--out is needed"),
        (["generate", "--policy=p", "--data=d", "--out=."], "--out=. exists"),
        (["generate", "--policy=p", "--prompt=a", "--image=no.png"], "--image=no.png: there is no such file"),
        (["generate", "--policy=no/such/folder", "--prompt=a"], "no/such/folder"),
        (["quickstart", "--rounds=0", "--workdir=w"], "rounds"),
    ],
)
def test_every_mistake_is_one_line_and_exit_code_2(capsys, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, *argv)
    assert code == 2 and said.startswith("srlhfv: error: ") and message in said
    assert said.count("\n") == 1 and "Traceback" not in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config(: pass", "SyntaxError"),
        ("x = 1", "has no function get_config"),
        ("def get_config(): return {}", "must return a ConfigDict, got dict"),
        ("def get_config(): return None", "get_config() takes 0 positional arguments"),
    ],
)
def test_a_broken_config_file_is_named(capsys, tmp_path, text, message):
    file = tmp_path / "mine.py"
    file.write_text(text)
    code, said = run(capsys, "sft", f"--config={file}:arg" if "takes" in message else f"--config={file}")
    assert code == 2 and str(file) in said and message in said and said.count("\n") == 1


def test_overrides_reach_the_settings_with_their_types(tmp_path):
    settings, workdir = flags.stage(
        "sft",
        SFTConfig,
        [
            f"--workdir={tmp_path}",
            *GIVEN,
            "--config.steps=7",
            "--config.optimizer.learning_rate=1",
            "--config.optimizer.freeze=('vision/', 'projector/')",
            "--noconfig.init_random",
            "--config.model.remat=layer",
        ],
        "doc",
    )
    assert workdir == tmp_path and settings.steps == 7 and settings.optimizer.learning_rate == 1.0
    assert settings.optimizer.freeze == ("vision/", "projector/") and settings.init_random is False
    assert settings.model.remat == "layer" and settings.data.path == "rows.jsonl"
    assert settings.data.batch_size == 2  # of the tiny variant
    one, _ = flags.stage("sft", SFTConfig, [f"--workdir={tmp_path}", "--config.optimizer.freeze=text/"], "doc")
    assert one.optimizer.freeze == ("text/",)


def test_help_is_no_mistake(capsys):
    assert main.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in main.COMMANDS)
    for name in ("sft", "quickstart", "export", "report"):
        with pytest.raises(SystemExit) as ended:
            main.main([name, "--help"])
        assert ended.value.code == 0 and f"usage: srlhfv {name}" in capsys.readouterr().out
    assert main.main([]) == 2


def settings_of(*argv: str) -> SFTConfig:
    return flags.stage("sft", SFTConfig, ["--workdir=w", *GIVEN, *argv], "doc")[0]


def measure(stage, settings, workdir) -> None:
    command(functools.partial(record, stage), settings, workdir)


def test_a_stage_leaves_its_settings_and_its_result(tmp_path):
    measure(lambda settings, workdir: {"loss": 0.25, "about": workdir.name}, settings_of(), tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["loss"] == 0.25 and result["about"] == tmp_path.name and result["seconds"] >= 0
    assert json.loads((tmp_path / "config.json").read_text())["data"]["path"] == "rows.jsonl"


def test_a_changed_setting_is_refused_before_anything_is_overwritten(tmp_path):
    def never(settings, workdir):
        raise AssertionError("the stage must not start")

    measure(lambda settings, workdir: {}, settings_of(), tmp_path)
    measure(lambda settings, workdir: {}, settings_of("--config.steps=9"), tmp_path)  # no checkpoint yet: still free to change
    (tmp_path / "checkpoints").mkdir()
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match="cannot resume: config.steps was 9 when this workdir was started and is now 8"):
        command(never, settings_of("--config.steps=8"), tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    measure(lambda settings, workdir: {}, settings_of("--config.steps=9", "--config.log.every_steps=5"), tmp_path)
    with pytest.raises(UserError, match="is a file, or lies in one: give a folder"):
        command(never, settings_of(), tmp_path / "config.json")


STARTED = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, *rest):
        if name == "absl":
            os.kill(os.getpid(), signal.{name})

sys.meta_path.insert(0, Finder())
sys.argv = ["srlhfv", "report"]
runpy.run_module("srlhfv_jax", run_name="__main__")
"""
SWALLOWED = """
import os, signal
from srlhfv_jax.cli import main

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})

def never(name, argv):
    Dying()
    print("went on")

main._run = never
main.main(["report"])
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("script", [STARTED, SWALLOWED], ids=["while modules are imported", "where exceptions are swallowed"])
def test_a_signal_outside_the_loop_ends_the_command_wherever_it_lands(script, name, code):
    ended = subprocess.run([sys.executable, "-c", script.format(name=name)], capture_output=True, text=True)
    assert ended.returncode == code and "went on" not in ended.stdout
    assert ended.stderr == (
        "srlhfv: interrupted; the same command goes on from the last checkpoint\n" if name == "SIGINT" else ""
    )


def test_an_interrupt_says_how_to_go_on(capsys, monkeypatch):
    assert failing(capsys, monkeypatch, KeyboardInterrupt()) == (
        130,
        "srlhfv: interrupted; the same command goes on from the last checkpoint\n",
    )


def failing(capsys, monkeypatch, error: BaseException) -> tuple[int, str]:
    """What a command says that raises this."""

    def fail(name, argv):
        raise error

    monkeypatch.setattr(main, "_run", fail)
    return run(capsys, "sft")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; free some room"),
        (PermissionError(errno.EACCES, "denied", "w/x"), "Permission denied: 'w/x'; give a place that this user may"),
        (OSError(errno.EROFS, "", "w" * 9000), "Read-only file system: 'www"),
        (ValueError("UNKNOWN: Error writing [OS error 28: ENOSPC No space left on device]\nmore"), "free some room"),
        (FileNotFoundError(errno.ENOENT, "gone", "w/x"), "No such file or directory: 'w/x'; restore it"),
    ],
    ids=["full", "denied", "read-only", "full, in C++", "removed"],
)
def test_a_place_that_cannot_be_written_is_one_line_and_exit_code_2(capsys, monkeypatch, error, said):
    code, line = failing(capsys, monkeypatch, error)
    assert code == 2 and said in line and line.count("\n") == 1 and len(line) < 500
    assert line.endswith("; then the same command goes on from the last checkpoint\n")
    wrapped = RuntimeError("it failed")
    wrapped.__cause__ = error
    assert failing(capsys, monkeypatch, wrapped)[0] == 2


def test_any_other_error_is_one_line_that_names_a_file_with_its_traceback(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, line = failing(capsys, monkeypatch, ZeroDivisionError("by \ud800 zero\nand so on"))
    (kept,) = tmp_path.iterdir()
    assert code == 1 and line.startswith("srlhfv: error: ZeroDivisionError: by") and line.count("\n") == 1 and str(kept) in line
    assert "raise error" in kept.read_text() and "and so on" in kept.read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    code, line = failing(capsys, monkeypatch, ZeroDivisionError("by zero"))
    assert code == 1 and "Traceback" in line  # nowhere to keep it: nothing is lost


SECRETS = [
    ("http://user:s3cret@host/v1", "http://***@host/v1"),
    ("https://s3cret@host:8000/v1", "https://***@host:8000/v1"),
    ("https://u:s3/c@ret@host/v1?key=s3cret#s3cret", "https://***@host/v1?***"),
    ("https://host/v1?api_key=s3cret", "https://host/v1?***"),
    ("https://host/v1#s3cret", "https://host/v1#***"),
    ("https://host/v1", "https://host/v1"),
]


@pytest.mark.parametrize(("address", "public"), SECRETS)
def test_secrets_of_an_address_reach_no_file_and_no_message(capsys, monkeypatch, tmp_path, address, public):
    config = flags.load("benchmark.py")
    config.endpoint.url = address
    settings = parse(EvaluateConfig, config)
    measure(lambda settings, workdir: {"kept": settings.endpoint.url == address}, settings, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["endpoint"]["url"] == public
    assert json.loads((tmp_path / "result.json").read_text())["kept"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = [run(capsys, "benchmark", "--config=benchmark.py", f"--config.endpoint.url={address}", more)[1] for more in MORE]
    said += [failing(capsys, monkeypatch, error(f"no answer from {address}"))[1] for error in (UserError, RuntimeError)]
    said += [path.read_text() for path in tmp_path.glob("srlhfv-*.txt")]
    assert len(said) == 6 and not [line for line in said if "s3cret" in line or "c@ret" in line]


MORE = ["--config.endpoint.url.x=1", "--config.endpoint.workers=0", "--config.endpoint.timeout_s=x"]


ENDLESS = (
    "import sys; main._run = lambda *_: [print('x' * 99, file=sys.{}) for _ in range(9999)]; sys.exit(main.main(['report']))"
)


@pytest.mark.parametrize(
    "script, shown",
    [
        (ENDLESS.format("stdout"), "x" * 99 + "\n"),
        (ENDLESS.format("stderr"), "x" * 99 + "\n"),
        ("import sys, time; time.sleep(0.5); sys.exit(main.main(['--help']))", None),  # its reader is gone before it speaks
        ("import sys, time; time.sleep(0.5); sys.exit(main.main(['stf']))", None),
    ],
)
def test_a_reader_that_has_seen_enough_is_no_error(script, shown, tmp_path):
    """Neither for what a command prints nor for its help and its messages, which are read as `srlhfv ... 2>&1 | head`."""
    reader = "true" if shown is None else "head -1"
    command = f'({sys.executable} -c "from srlhfv_jax.cli import main; {script}" 2>&1; echo $? > {tmp_path}/code) | {reader}'
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ended.stdout == (shown or "") and ended.stderr == ""
    assert (tmp_path / "code").read_text() == "141\n"


def test_libraries_are_silent_unless_everything_is_asked_for():
    environment: dict[str, str] = {}
    assert quiet.take_flag(["sft", "--workdir=W"], environment) == ["sft", "--workdir=W"]
    quiet.silence(environment)
    assert environment == quiet.SILENT and not quiet.verbose(environment)
    environment = {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "0"}
    quiet.silence(environment)
    assert environment == {"TRANSFORMERS_NO_ADVISORY_WARNINGS": "0"}  # what was set stays
    environment = {}
    assert quiet.take_flag(["sft", "--verbose"], environment) == ["sft"]
    quiet.silence(environment)
    assert quiet.verbose(environment) and not environment.keys() & quiet.SILENT.keys()


def test_transformers_says_nothing_of_torch_to_a_command_that_needs_none():
    code = "from srlhfv_jax.cli import main; main._run = lambda *_: __import__('transformers'); main.main({})"
    quiet_run, verbose_run = (
        subprocess.run([sys.executable, "-c", code.format(argv)], env=ENVIRONMENT, capture_output=True, text=True)
        for argv in (["report"], ["report", "--verbose"])
    )
    assert quiet_run.stderr == "" and "PyTorch was not found" in verbose_run.stderr


def test_python_dash_m_is_the_same_command():
    ended = subprocess.run([sys.executable, "-m", "srlhfv_jax", "stf"], capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("srlhfv: error: there is no command 'stf'")


LEAVING = """
import os, sys, time
from srlhfv_jax.__main__ import run
class Library:
    def __del__(self, write=os.write, sleep=time.sleep):
        write(1, b"closing\\n")
        sleep(2)
library = Library()
sys.argv = ["srlhfv", "data"]
sys.exit(run())
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_while_a_process_that_is_done_closes_changes_no_exit_code(name):
    done = subprocess.Popen([sys.executable, "-c", LEAVING], stdout=subprocess.PIPE, text=True)
    for line in done.stdout:
        if line == "closing\n":
            done.send_signal(getattr(signal, name))
    assert done.wait(60) == 0
