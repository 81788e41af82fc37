"""The documents say what is so: commands parse, tables are fresh, links lead somewhere."""

import os
import re
import shlex
import shutil
import stat
import string
import subprocess
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from uhd.augment import load_pipeline
from uhd.cli import (
    build_convert_parser,
    build_demo_parser,
    build_export_parser,
    build_parser,
    build_paste_parser,
    parse_args,
    parse_convert_args,
    parse_demo_args,
    parse_export_args,
    parse_paste_args,
)
from uhd.config import Head, UltraTinyODConfig
from uhd.flag_tables import flag_tables, with_tables
from uhd.models import build_model, count_macs, count_parameters

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
CI_SCRIPT = ROOT / ".ci" / "run"


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def shell_commands(block: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, with the block's own variables put in."""
    variables: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        assignment = re.fullmatch(r"(\w+)=(\S+)", line.strip())
        if assignment:
            variables[assignment[1]] = assignment[2]
            continue
        # An unknown variable is a KeyError: a recipe that is copied would run without it.
        words = shlex.split(string.Template(line).substitute(variables), comments=True)
        if words:
            yield words


def split_at(words: list[str], separator: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


COMMANDS = [words for block in code_blocks(README, "bash") for words in shell_commands(block)]
TRAINING = [words[words.index("train.py") + 1 :] for words in COMMANDS if "train.py" in words]
EXPORTS = [words[words.index("export_onnx.py") + 1 :] for words in COMMANDS if "export_onnx.py" in words]
DEMOS = [words[words.index("demo_uhd.py") + 1 :] for words in COMMANDS if "demo_uhd.py" in words]
CONVERSIONS = [words[words.index("uhd.data.convert") + 1 :] for words in COMMANDS if "uhd.data.convert" in words]
PASTES = [words[words.index("uhd.data.paste") + 1 :] for words in COMMANDS if "uhd.data.paste" in words]
PARSERS = {
    "train.py": build_parser(),
    "export_onnx.py": build_export_parser(),
    "demo_uhd.py": build_demo_parser(),
    "python -m uhd.data.convert": build_convert_parser(),
    "python -m uhd.data.paste": build_paste_parser(),
}
TEST_COMMAND = next(words for words in COMMANDS if "pytest" in words)


# --- commands -----------------------------------------------------------------------------------


def test_the_first_commands_are_the_main_job_and_the_tests() -> None:
    assert COMMANDS[:2] == [["uv", "run", "python", "train.py", "--demo-data"], TEST_COMMAND]


@pytest.mark.parametrize("argv", TRAINING, ids=" ".join)
def test_training_commands_parse(argv: list[str]) -> None:
    assert vars(build_parser().parse_args(argv))


@pytest.mark.parametrize("argv", EXPORTS, ids=" ".join)
def test_export_commands_parse(argv: list[str]) -> None:
    options, network = parse_export_args(argv)
    assert options.checkpoint or options.info
    assert network == {}


@pytest.mark.parametrize("argv", CONVERSIONS, ids=" ".join)
def test_conversions_parse(argv: list[str]) -> None:
    assert parse_convert_args(argv).out


@pytest.mark.parametrize("argv", DEMOS, ids=" ".join)
def test_demo_commands_parse(argv: list[str]) -> None:
    assert parse_demo_args(argv).onnx


@pytest.mark.parametrize("argv", PASTES, ids=" ".join)
def test_paste_commands_parse(argv: list[str]) -> None:
    assert parse_paste_args(argv).out


@pytest.mark.parametrize("argv", [argv for argv in TRAINING if not {"--ckpt", "--resume"} & set(argv)], ids=" ".join)
def test_training_commands_without_a_checkpoint_make_a_config_without_a_warning(
    argv: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uhd.precedence.log.propagate", True)
    cfg, checkpoint = parse_args(argv)
    assert cfg.run.exp_name in cfg.run.run_dir
    assert checkpoint is None
    assert not caplog.records


def test_there_is_a_recipe_for_each_head() -> None:
    heads = {
        tuple(flag in argv for flag in ("--use-improved-head", "--utod-head-ese", "--use-iou-aware-head"))
        for argv in TRAINING
        if "--auto-anchors" in argv and "ultratinyod" in argv
    }
    assert heads == {(True, False, False), (True, True, False), (True, True, True)}


def test_there_is_a_recipe_for_each_kind_of_network() -> None:
    kinds = {parse_args(argv)[0].model.head for argv in TRAINING if not {"--ckpt", "--resume"} & set(argv)}
    assert kinds == set(typing.get_args(Head))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_flags_in_the_text_exist(document: Path) -> None:
    known = {flag for parser in PARSERS.values() for flag in parser._option_string_actions}
    spans = re.findall(r"`(--[^`]*)`", document.read_text(encoding="utf-8"))
    named = {word for span in spans for word in re.findall(r"--\w[\w-]*", span)}
    assert named <= known


# --- tables -------------------------------------------------------------------------------------


def test_flag_tables_are_fresh() -> None:
    assert with_tables(README) == README, "run: uv run python -m uhd.flag_tables"


@pytest.mark.parametrize("program", PARSERS)
def test_flag_tables_have_a_row_for_every_flag_of_the_help(program: str) -> None:
    table = flag_tables().partition(f"### {program}\n")[2].partition("\n### ")[0]
    first_cells = re.findall(r"^\| (`--[^|]*) \|", table, flags=re.MULTILINE)
    listed = {name for cell in first_cells for name in re.findall(r"`(--[\w-]+)`", cell)}
    # Flags of a network are in train.py's tables, and repeated in the help of the export.
    own = PARSERS[program].format_help().partition("; the checkpoint's:")[0].rpartition("\n\n")[0]
    help_text = re.sub(r"(?<=-)\n\s+", "", own if program == "export_onnx.py" else PARSERS[program].format_help())
    typed = set(re.findall(r"^  (--[\w-]+)", help_text, flags=re.MULTILINE))
    assert typed
    assert typed <= listed
    assert len(first_cells) == len(set(first_cells))


@pytest.mark.parametrize(
    "text",
    ["", "<!-- flags:start -->", "<!-- flags:end -->", "<!-- flags:end --><!-- flags:start -->"],
)
def test_flag_tables_need_both_markers(text: str) -> None:
    with pytest.raises(ValueError, match="flags:start"):
        with_tables(text)


def test_flag_tables_leave_the_rest_alone() -> None:
    text = with_tables("before\n<!-- flags:start -->\nan older table\n<!-- flags:end -->\nafter\n")
    assert text.startswith("before\n<!-- flags:start -->\n")
    assert text.endswith("\n<!-- flags:end -->\nafter\n")
    assert "an older table" not in text


def size_rows() -> list[list[int]]:
    table = README.partition("<!-- sizes:start -->")[2].partition("<!-- sizes:end -->")[0]
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()[2:]]
    return [[int(cell.replace(",", "")) for cell in row] for row in rows]


@pytest.mark.parametrize("row", size_rows(), ids=lambda row: f"width {row[0]}")
def test_sizes_are_those_of_the_networks(row: list[int]) -> None:
    width, *expected = row
    heads = [
        {"use_iou_aware_head": False, "utod_head_ese": False},
        {"use_iou_aware_head": False, "utod_head_ese": True},
        {"use_iou_aware_head": True, "utod_head_ese": True},
    ]
    with torch.device("meta"):
        models = [
            build_model(
                UltraTinyODConfig(
                    cnn_width=width,
                    num_anchors=8,
                    anchors=((0.1, 0.2),) * 8,
                    use_batchnorm=True,
                    use_improved_head=True,
                    utod_residual=True,
                    **head,
                )
            )
            for head in heads
        ]
        assert [*map(count_parameters, models), count_macs(models[-1], 64, 64)] == expected


def test_augmentation_example_is_the_default_file(tmp_path: Path) -> None:
    (block,) = code_blocks(README, "yaml")
    example = tmp_path / "example.yaml"
    example.write_text(block, encoding="utf-8")
    assert yaml.safe_load(block)["data_augment"].keys()
    assert load_pipeline(example, [0]).ops == load_pipeline(ROOT / "uhd" / "aug.yaml", [0]).ops


# --- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    relative = [target for target in targets if "://" not in target]
    assert [target for target in relative if not (document.parent / target).is_file()] == []


# --- what the continuous integration runs -------------------------------------------------------


def write_stub(path: Path, lines: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{lines}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


UV_STUB = 'echo "$PWD:$*" >>"$CALLS"; case "$*" in $FAILS) exit 3;; esac'


def run_ci(bin_dir: Path, calls: Path, fails: str = "nothing") -> tuple[int, list[str]]:
    """Runs .ci/run from another folder with the programs of bin_dir only; returns its exit code and uv's calls."""
    environment = {"PATH": str(bin_dir), "CALLS": str(calls), "FAILS": fails, "CI": "true"}
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, str(CI_SCRIPT)], cwd=bin_dir, env=environment, capture_output=True, timeout=60, check=False
    )
    lines = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
    return done.returncode, lines


def expected_calls() -> list[str]:
    commands = split_at(TEST_COMMAND, "&&")
    assert all(command[0] == "uv" for command in commands)
    return [f"{ROOT}:{' '.join(words)}" for words in [["sync"], *(command[1:] for command in commands)]]


def test_ci_script_is_executable() -> None:
    assert os.access(CI_SCRIPT, os.X_OK)


def test_ci_installs_then_runs_the_test_command_of_the_readme(tmp_path: Path) -> None:
    write_stub(tmp_path / "uv", UV_STUB)
    assert run_ci(tmp_path, tmp_path / "calls") == (0, expected_calls())


@pytest.mark.parametrize("failing", range(5))
def test_ci_stops_at_the_first_failure(tmp_path: Path, failing: int) -> None:
    write_stub(tmp_path / "uv", UV_STUB)
    expected = expected_calls()
    assert len(expected) == 5
    code, calls = run_ci(tmp_path, tmp_path / "calls", fails=expected[failing].partition(":")[2])
    assert code == 3
    assert calls == expected[: failing + 1]


def test_ci_installs_uv_where_it_is_missing(tmp_path: Path) -> None:
    bin_dir, installed = tmp_path / "bin", tmp_path / "installed"
    bin_dir.mkdir()
    installed.mkdir()
    write_stub(installed / "stub", UV_STUB)
    rename = f"{shutil.which('mv')} {installed / 'stub'} {installed / 'uv'}"
    write_stub(bin_dir / "python3", f'case "$*" in *pip*install*uv) {rename};; -c*) echo {installed};; esac')
    assert run_ci(bin_dir, tmp_path / "calls") == (0, expected_calls())
